"""Sketches: what one scan keeps of a table, small, exact to merge, the same for training rows and for today's rows.

A number column is kept as a histogram whose bins are fixed by the bits of a float32, not by the data: values are
ordered by their bits and the lowest `shift` bits are dropped. `shift` is the smallest one that leaves at most `CAP`
occupied bins. Bins of a greater shift are unions of bins of a smaller one, hence merging the sketches of any parts in
any order gives exactly the sketch of the whole. Columns with at most `CAP` different values are kept exactly; others
keep a constant relative resolution (about 1/32 for a million normal values), so heavy tails cost nothing.

A text column is kept as counts by value, up to `CAP` different values; beyond that, by the same argument, as counts in
`BUCKETS` buckets of a hash: names are lost then, shifts between values are not.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional, Union

from airflow_ml_provider.exceptions import DataError, invalid

CAP = 2048
BUCKETS = 512
FORMAT = 1
# Code of the value 0; codes of positive values lie above it by the bits of the value, of negative ones below.
_ZERO = 0x80000000
# Up to so many possible codes a plain count over all of them beats sorting.
_DENSE = 1 << 17

Kind = Literal["float", "string"]


@dataclass(frozen=True)
class Numbers:
    """What is kept of a number column.

    Attributes:
        count: values, infinite ones included.
        nulls: missing values; NaN counts as missing.
        low: least finite value; none without one.
        high: greatest finite value.
        total: sum of the finite values; the one part that merges up to rounding only.
        shift: bits dropped from the code of a value.
        bins: code of a bin to its count, in ascending order of values.
    """

    kind: ClassVar[Kind] = "float"
    count: int = 0
    nulls: int = 0
    low: Optional[float] = None
    high: Optional[float] = None
    total: float = 0.0
    shift: int = 0
    bins: Mapping[int, int] = field(default_factory=dict)

    @property
    def mean(self) -> Optional[float]:
        """Mean of the values; none without values or when there are infinite ones."""
        edges = (
            [lower_edge(code, self.shift) for code in (min(self.bins), max(self.bins))] if self.count else [math.inf]
        )
        return self.total / self.count if all(map(math.isfinite, [*edges, self.total])) else None

    def merge(self, other: Numbers) -> Numbers:
        """Return the sketch of both columns' rows together."""
        shift = max(self.shift, other.shift)
        bins = coarsen(self.bins, shift - self.shift)
        for code, count in coarsen(other.bins, shift - other.shift).items():
            bins[code] = bins.get(code, 0) + count
        while len(bins) > CAP:
            bins, shift = coarsen(bins, 1), shift + 1
        return Numbers(
            count=self.count + other.count,
            nulls=self.nulls + other.nulls,
            low=min((v for v in (self.low, other.low) if v is not None), default=None),
            high=max((v for v in (self.high, other.high) if v is not None), default=None),
            total=self.total + other.total,
            shift=shift,
            bins=dict(sorted(bins.items())),
        )

    def to_dict(self) -> dict[str, Any]:
        codes = list(self.bins)
        steps = [b - a for a, b in zip([0, *codes], codes)]  # shorter as text than the codes themselves
        total = self.total if math.isfinite(self.total) else None
        return {
            "kind": self.kind, "count": self.count, "nulls": self.nulls, "low": self.low, "high": self.high,
            "total": total, "shift": self.shift, "steps": steps, "counts": list(self.bins.values()),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Numbers:
        code, bins = 0, {}
        for step, count in zip(data["steps"], data["counts"]):
            code += step
            bins[code] = count
        total = math.nan if data["total"] is None else data["total"]
        return cls(data["count"], data["nulls"], data["low"], data["high"], total, data["shift"], bins)


@dataclass(frozen=True)
class Texts:
    """What is kept of a text column.

    Attributes:
        count: values.
        nulls: missing values.
        values: value to count; empty when there were more than `CAP` different ones …
        buckets: … and then hash bucket to count.
    """

    kind: ClassVar[Kind] = "string"
    count: int = 0
    nulls: int = 0
    values: Mapping[str, int] = field(default_factory=dict)
    buckets: Mapping[int, int] = field(default_factory=dict)

    @property
    def by_name(self) -> bool:
        """Whether the values are still known by name."""
        return not self.buckets

    def bucketed(self) -> dict[int, int]:
        """Return the counts by hash bucket, whichever way they are kept."""
        buckets = dict(self.buckets)
        for value, count in self.values.items():
            bucket = bucket_of(value)
            buckets[bucket] = buckets.get(bucket, 0) + count
        return dict(sorted(buckets.items()))

    def top(self, n: int = 20) -> list[tuple[str, int]]:
        """Return the `n` most frequent values with their counts, and the rest as `("", count)` when there is one."""
        ranked = sorted(self.values.items(), key=lambda item: (-item[1], item[0]))
        rest = self.count - sum(count for _, count in ranked[:n])
        return ranked[:n] + ([("", rest)] if rest else [])

    def merge(self, other: Texts) -> Texts:
        """Return the sketch of both columns' rows together."""
        count, nulls = self.count + other.count, self.nulls + other.nulls
        if self.by_name and other.by_name:
            values = dict(self.values)
            for value, number in other.values.items():
                values[value] = values.get(value, 0) + number
            if len(values) <= CAP:
                return Texts(count, nulls, dict(sorted(values.items())))
        buckets = self.bucketed()
        for bucket, number in other.bucketed().items():
            buckets[bucket] = buckets.get(bucket, 0) + number
        return Texts(count, nulls, {}, dict(sorted(buckets.items())))

    def to_dict(self) -> dict[str, Any]:
        values = dict(sorted(self.values.items()))
        body: dict[str, Any] = {"kind": self.kind, "count": self.count, "nulls": self.nulls, "values": values}
        return {**body, "buckets": {str(k): v for k, v in self.buckets.items()}} if self.buckets else body

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Texts:
        buckets = {int(k): v for k, v in data.get("buckets", {}).items()}
        return cls(data["count"], data["nulls"], dict(data["values"]), buckets)


Column = Union[Numbers, Texts]
_KINDS: dict[str, type[Column]] = {"float": Numbers, "string": Texts}


@dataclass(frozen=True)
class Sketch:
    """What is kept of a table.

    Attributes:
        rows: number of rows.
        columns: name of a column to what is kept of it.
    """

    rows: int = 0
    columns: Mapping[str, Column] = field(default_factory=dict)

    def merge(self, other: Sketch) -> Sketch:
        """Return the sketch of both tables' rows together; a column that one of them lacks is kept as it is.

        Raises:
            DataError: a column is text in one and numbers in the other.
        """
        columns = dict(self.columns)
        for name, column in other.columns.items():
            mine = columns.get(name)
            if mine is not None and mine.kind != column.kind:
                raise DataError(f"column {name!r} is {mine.kind} in one sketch and {column.kind} in the other")
            columns[name] = column if mine is None else mine.merge(column)  # type: ignore[arg-type]
        return Sketch(self.rows + other.rows, columns)

    def to_json(self) -> str:
        """Return the sketch as JSON; equal sketches give equal text."""
        columns = {name: self.columns[name].to_dict() for name in sorted(self.columns)}
        body = {"format": FORMAT, "rows": self.rows, "columns": columns}
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> Sketch:
        """Return the sketch that `to_json` wrote.

        Raises:
            DataError: the text is something else.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise DataError(f"sketch has format {data['format']!r}, this version reads {FORMAT}; write it again")
            columns = {name: _KINDS[body["kind"]].from_dict(body) for name, body in data["columns"].items()}
            return cls(data["rows"], columns)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"this is no sketch: {error!r}") from error


def lower_edge(code: int, shift: int) -> float:
    """Return the least float32 of a bin; it is the value itself where the bin holds one value only."""
    code <<= shift
    if code > 0xFFFFFFFF:
        return math.inf
    bits = code - _ZERO if code >= _ZERO else (_ZERO - code) | 0x80000000
    value: float = struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0]
    if math.isnan(value):  # codes beyond those of the infinities
        return math.inf if code >= _ZERO else -math.inf
    return value


def coarsen(bins: Mapping[int, int], bits: int) -> dict[int, int]:
    """Return the histogram with so many more bits dropped."""
    merged: dict[int, int] = {}
    for code, count in bins.items():
        merged[code >> bits] = merged.get(code >> bits, 0) + count
    return merged


def bucket_of(value: str) -> int:
    """Return the hash bucket of a text; the same in every process and on every machine."""
    return zlib.crc32(value.encode("utf-8", "surrogatepass")) % BUCKETS


def sketch_parquet(
    paths: Sequence[Path], columns: Mapping[str, Kind], where: Optional[Mapping[str, str]] = None
) -> Sketch:
    """Return the sketch of `columns` over all rows of Parquet files, in one scan and bounded memory.

    Parameters:
        paths: the files; none gives the sketch of no rows.
        columns: column to `float` or `string`.
        where: keep rows in which each of these columns, read as text, has this value.

    Raises:
        DataError: a file cannot be read, a column is missing or cannot be read as what was asked for.
    """
    import os
    from concurrent.futures import ThreadPoolExecutor

    for name, kind in columns.items():
        if kind not in _KINDS:
            raise invalid(f"kind of column {name!r}", kind, "'float' or 'string'")
    names = list(columns)
    workers = max(1, min(4, os.cpu_count() or 1, len(names)))
    shares = [{name: columns[name] for name in names[i::workers]} for i in range(workers)]
    with ThreadPoolExecutor(workers) as pool:  # a column never changes threads, so sums add up in one order
        parts = list(pool.map(lambda share: _scan(paths, share, dict(where or {})), shares))
    merged: dict[str, Column] = {name: column for part in parts for name, column in part.columns.items()}
    return Sketch(parts[0].rows, {name: merged[name] for name in names})


def _scan(paths: Iterable[Path], columns: Mapping[str, Kind], where: Mapping[str, str]) -> Sketch:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from airflow_ml_provider.models import segment_mask

    rows = 0
    scans: dict[str, Any] = {n: _NumberScan() if kind == "float" else _TextScan() for n, kind in columns.items()}
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


class _NumberScan:
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
            with np.errstate(over="ignore"):
                self.total += float(finite.sum(dtype=np.float64))
        self._count(_codes(values))

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
        if len(self.codes) > CAP:
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


class _TextScan:
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
    for start in range(0, len(names), CAP):
        yield names[start : start + CAP]


def _floats(chunk: Any) -> Any:
    """Return the values that are not null as an array of float64 (Arrow's own `to_numpy` would import pandas)."""
    import numpy as np
    import pyarrow as pa

    values = chunk.cast(pa.float64(), safe=False).drop_null()
    if not len(values):
        return np.empty(0, np.float64)
    return np.frombuffer(values.buffers()[1], np.float64)[values.offset : values.offset + len(values)]


def _codes(values: Any) -> Any:
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
    codes ^= np.uint32(_ZERO)
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
    return int(np.flatnonzero(apart[1:] < CAP)[0])


def _gather(codes: Any, counts: Any, more: Any, their: Any) -> tuple[Any, Any]:
    import numpy as np

    if not len(codes):
        return more, their.astype(np.int64)
    both, numbers = np.concatenate((codes, more)), np.concatenate((counts, their))
    order = np.argsort(both, kind="stable")
    return _runs(both[order], numbers[order])
