"""Parquet to sketches: one scan by row groups, numpy over Arrow, columns divided among threads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_ml_provider.exceptions import DataError, invalid
from airflow_ml_provider.stages.monitor import sketch
from airflow_ml_provider.stages.monitor.sketch import KINDS, ZERO, Column, Kind, Numbers, Sketch, Texts

# Up to so many possible codes a plain count over all of them beats sorting.
_DENSE = 1 << 17


def tables(paths: Sequence[Path], columns: Mapping[str, Kind], where: Mapping[str, str]) -> Sketch:
    """Do the work of `sketch_parquet`."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    for name, kind in columns.items():
        if kind not in KINDS:
            raise invalid(f"kind of column {name!r}", kind, "'float' or 'string'")
    names = list(columns)
    workers = max(1, min(4, os.cpu_count() or 1, len(names)))
    shares = [{name: columns[name] for name in names[i::workers]} for i in range(workers)]
    with ThreadPoolExecutor(workers) as pool:  # a column never changes threads, so sums add up in one order
        parts = list(pool.map(lambda share: _scan(paths, share, where), shares))
    merged: dict[str, Column] = {name: column for part in parts for name, column in part.columns.items()}
    return Sketch(parts[0].rows, {name: merged[name] for name in names})


def _scan(paths: Iterable[Path], columns: Mapping[str, Kind], where: Mapping[str, str]) -> Sketch:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from airflow_ml_provider.models import segment_mask

    rows = 0
    scans: dict[str, Any] = {n: NumberScan() if kind == "float" else TextScan() for n, kind in columns.items()}
    for path in paths:
        try:
            with pq.ParquetFile(path, read_dictionary=[n for n, k in columns.items() if k == "string"]) as file:
                for name in (*columns, *where):
                    if name not in file.schema_arrow.names:
                        known = ", ".join(file.schema_arrow.names)
                        raise DataError(f"column {name!r} is missing in {path}; there are {known}")
                for group in range(file.num_row_groups):
                    mask = segment_mask(file.read_row_group(group, columns=list(where)), where) if where else None
                    rows += pc.sum(mask).as_py() or 0 if where else file.metadata.row_group(group).num_rows
                    for name, scan in scans.items():
                        values = file.read_row_group(group, columns=[name], use_threads=False).column(0)
                        _add(scan, values if mask is None else values.filter(mask), name, path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    return Sketch(rows, {name: scan.result() for name, scan in scans.items()})


def _add(scan: Any, values: Any, name: str, path: Path) -> None:
    import pyarrow as pa

    try:
        for chunk in values.chunks:
            if len(chunk):
                scan.add(chunk)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"column {name!r} of {path} ({values.type}) cannot be read as {scan.kind}: {error}") from error


class NumberScan:
    """Collects one number column, chunk by chunk."""

    kind = Numbers.kind

    def __init__(self) -> None:
        import numpy as np

        self.count = self.nulls = self.shift = 0
        self.low, self.high, self.total = math.inf, -math.inf, 0.0
        self.codes, self.counts = np.empty(0, np.uint32), np.empty(0, np.int64)

    def add(self, chunk: Any) -> None:
        import numpy as np

        values = _floats(chunk)
        low = values.min() if len(values) else math.nan
        if math.isnan(low):
            values = values[~np.isnan(values)]
        self.nulls += len(chunk) - len(values)
        if not len(values):
            return
        self.count += len(values)
        finite = values
        if not (math.isfinite(values.min()) and math.isfinite(values.max())):
            finite = values[np.isfinite(values)]
        if len(finite):
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
            with np.errstate(over="ignore", invalid="ignore"):  # what has no finite sum is told so by its sum
                self.total += float(finite.sum(dtype=np.float64))
        self._count(codes_of(values))

    def _count(self, codes: Any) -> None:
        import numpy as np

        # Whole numbers leave the low bits of all codes zero: dropping these bits for the count loses nothing.
        used = int(np.bitwise_or.reduce(codes))
        spare = np.uint32(max(self.shift, (used & -used).bit_length() - 1))
        codes >>= spare
        low = codes.min()
        if int(codes.max()) - int(low) < _DENSE:
            dense = np.bincount(codes - low)
            found = np.flatnonzero(dense)
            counts, found = dense[found], found.astype(np.uint32) + low
        else:
            codes.sort()
            found, counts = _runs(codes, None)
        found <<= spare - np.uint32(self.shift)
        self.codes, self.counts = _gather(self.codes, self.counts, found, counts)
        if len(self.codes) > sketch.CAP:
            bits = _surplus(self.codes)
            self.codes, self.counts = _runs(self.codes >> np.uint32(bits), self.counts)
            self.shift += bits

    def result(self) -> Numbers:
        has_finite = self.low <= self.high
        return Numbers(
            count=self.count,
            nulls=self.nulls,
            low=self.low if has_finite else None,
            high=self.high if has_finite else None,
            total=self.total,
            shift=self.shift,
            bins=dict(zip(self.codes.tolist(), self.counts.tolist())),
        )


class TextScan:
    """Collects one text column, chunk by chunk."""

    kind = Texts.kind

    def __init__(self) -> None:
        self.sketch = Texts()

    def add(self, chunk: Any) -> None:
        import numpy as np
        import pyarrow as pa

        encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.cast(pa.string()).dictionary_encode()
        indices = encoded.indices.drop_null().cast(pa.int32())
        numbers = np.frombuffer(indices.buffers()[1], np.int32)[indices.offset : indices.offset + len(indices)]
        counts = np.bincount(numbers, minlength=len(encoded.dictionary)).tolist()
        values: dict[str, int] = {}
        for value, count in zip(encoded.dictionary.cast(pa.string()).to_pylist(), counts):
            if value is not None and count:
                values[value] = values.get(value, 0) + count
        total = sum(values.values())
        part = Texts(total, len(chunk) - total)
        for names in _portions(values):
            part = part.merge(Texts(values={name: values[name] for name in names}))
        self.sketch = self.sketch.merge(part)

    def result(self) -> Texts:
        return self.sketch


def _portions(values: Mapping[str, int]) -> Iterator[list[str]]:
    names = list(values)
    for start in range(0, len(names), sketch.CAP):
        yield names[start : start + sketch.CAP]


def _floats(chunk: Any) -> Any:
    """Return the values that are not null as an array of float64 (Arrow's own `to_numpy` would import pandas)."""
    import numpy as np
    import pyarrow as pa

    values = chunk.cast(pa.float64(), safe=False).drop_null()
    if not len(values):
        return np.empty(0, np.float64)
    return np.frombuffer(values.buffers()[1], np.float64)[values.offset : values.offset + len(values)]


def codes_of(values: Any) -> Any:
    """Return the bits of the values as float32, such that greater values have greater codes."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32)
    signed = narrow.view(np.int32)
    sign = signed >> np.int32(31)  # all ones for negative values
    signed &= np.int32(0x7FFFFFFF)
    signed ^= sign
    signed -= sign
    codes = signed.view(np.uint32)
    codes ^= np.uint32(ZERO)
    return codes


def _runs(codes: Any, counts: Any) -> tuple[Any, Any]:
    """Return the different ones of sorted codes and the count of each."""
    import numpy as np

    starts = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))
    if counts is None:
        return codes[starts], np.diff(np.append(starts, len(codes)))
    return codes[starts], np.add.reduceat(counts, starts)


def _surplus(codes: Any) -> int:
    """Return how many bits more must be dropped from sorted codes to leave at most `CAP` different ones."""
    import numpy as np

    # Neighbours stay apart as long as the highest bit in which they differ is kept.
    _, highest = np.frexp((codes[1:] ^ codes[:-1]).astype(np.float64))
    apart = np.bincount(highest, minlength=33)[::-1].cumsum()[::-1]  # pairs that differ at bit i or above
    return int(np.flatnonzero(apart[1:] < sketch.CAP)[0])


def _gather(codes: Any, counts: Any, more: Any, their: Any) -> tuple[Any, Any]:
    import numpy as np

    if not len(codes):
        return more, their.astype(np.int64)
    both, numbers = np.concatenate((codes, more)), np.concatenate((counts, their))
    order = np.argsort(both, kind="stable")
    return _runs(both[order], numbers[order])
