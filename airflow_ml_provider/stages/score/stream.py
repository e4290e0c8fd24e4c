"""Parquet to Parquet through ONNX Runtime: record batches, several in flight, never the whole file in memory."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.models import Scorer, segment_mask
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.score import logic

ROW_GROUP_ROWS = 122_880
"""Rows of a row group, as in the other tables of this package."""
_WAITING_ROWS = 4 * ROW_GROUP_ROWS
"""Rows of all models together that may wait for their row group to be full."""


@dataclass
class Counts:
    """What happened to the rows."""

    rows: int = 0
    without_model: int = 0
    not_a_number: int = 0
    per_model: list[int] = field(default_factory=list)
    lowest: Optional[float] = None
    highest: Optional[float] = None

    @property
    def scored(self) -> int:
        """Rows with a score."""
        return sum(self.per_model)


def score_file(
    source: Path,
    target: Path,
    models: Sequence[tuple[ModelRef, Scorer]],
    *,
    keep: Sequence[str] = (),
    batch_rows: int = 65536,
    thresholds: Sequence[float] = (),
    metadata: Optional[Mapping[str, Any]] = None,
) -> Counts:
    """Score the rows of `source` into `target`, in the order of `source` within each model; replaces it in one step.

    Of several models whose segment a row belongs to, the first one scores it. Every row group holds rows of one model.
    Equal input gives equal bytes.

    Parameters:
        keep: columns to carry over; empty carries all.
        batch_rows: rows per batch; up to two batches per core are in memory.
        thresholds: operating point per model, from which a row is `flagged`; by default that of the package.
        metadata: further key-value metadata of the file, as JSON.

    Raises:
        DataError: the source cannot be read, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False) as file:
            schema = file.schema_arrow
            names = logic.carried(keep, schema.names)
            needed = dict.fromkeys(names)
            for ref, scorer in models:
                logic.require([*scorer.manifest.inputs, *ref.segment], schema.names, f"model {ref.name!r}")
                needed.update(dict.fromkeys([*scorer.manifest.inputs, *ref.segment]))
            counts = Counts(per_model=[0] * len(models))
            points = thresholds or [scorer.manifest.threshold for _, scorer in models]
            named = [(ref, point) for (ref, _), point in zip(models, points)]
            with tables.replacing(target) as aside, _Writer(aside, schema, names, named, metadata or {}) as writer:
                batches = file.iter_batches(batch_rows, columns=list(needed), use_threads=False)
                for index, rows, scores in _scored(batches, models, counts):
                    _count(counts, index, scores)
                    writer.add(index, rows, scores)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"rows at {source} cannot be scored: {error}") from error
    return counts


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _scored(
    batches: Iterator[Any], models: Sequence[tuple[ModelRef, Scorer]], counts: Counts
) -> Iterator[tuple[int, Any, Any]]:
    """Give (model, rows, scores) in the order of the input, with two batches per core in flight."""
    workers = cores()
    waiting: deque[tuple[int, Any, Future[Any]]] = deque()
    # ONNX Runtime works outside of Python's lock; one thread per call and many calls beat many threads per call.
    with ThreadPoolExecutor(workers, thread_name_prefix="score") as pool:
        try:
            for batch in batches:
                for index, part in _divide(batch, models, counts):
                    waiting.append((index, part, pool.submit(models[index][1].score, part)))
                    while len(waiting) > 2 * workers:
                        done, rows, future = waiting.popleft()
                        yield done, rows, future.result()
            while waiting:
                done, rows, future = waiting.popleft()
                yield done, rows, future.result()
        finally:
            for _, _, future in waiting:
                future.cancel()


def _divide(batch: Any, models: Sequence[tuple[ModelRef, Scorer]], counts: Counts) -> Iterator[tuple[int, Any]]:
    """Give (model, its rows of the batch); rows that belong to no model are counted."""
    import pyarrow.compute as pc

    counts.rows += batch.num_rows
    rest = batch
    for index, (ref, _) in enumerate(models):
        if not rest.num_rows:
            return
        if not ref.segment:
            yield index, rest
            return
        mask = segment_mask(rest, ref.segment)
        part = rest.filter(mask)
        if part.num_rows:
            yield index, part
        rest = rest.filter(pc.invert(mask))
    counts.without_model += rest.num_rows


def _count(counts: Counts, index: int, scores: Any) -> None:
    import numpy as np

    counts.per_model[index] += len(scores)
    finite = scores[np.isfinite(scores)]
    counts.not_a_number += len(scores) - len(finite)
    if len(finite):
        low, high = float(finite.min()), float(finite.max())
        counts.lowest = low if counts.lowest is None else min(counts.lowest, low)
        counts.highest = high if counts.highest is None else max(counts.highest, high)


class _Writer:
    """Collects scored rows per model and writes row groups of one model each."""

    def __init__(
        self, path: Path, schema: Any, names: Sequence[str], models: Sequence[tuple[ModelRef, float]],
        metadata: Mapping[str, Any],
    ) -> None:  # fmt: skip
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = pa.dictionary(pa.int32(), pa.string())
        added = [(logic.SCORE, pa.float32()), (logic.FLAGGED, pa.bool_()), *((n, text) for n in logic.MODEL_COLUMNS)]
        self._schema = pa.schema([*(schema.field(name) for name in names), *(pa.field(n, t) for n, t in added)])
        self._names, self._models, self._metadata = list(names), models, metadata
        self._waiting: dict[int, list[Any]] = {index: [] for index in range(len(models))}
        self._rows = [0] * len(models)
        self._groups: list[dict[str, Any]] = []
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd")

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            for index in self._waiting:
                self._flush(index)
            told = {**self._metadata, "row_groups": self._groups}
            self._file.add_key_value_metadata({f"airflow_ml.{k}": codec.canonical(v) for k, v in told.items()})
        self._file.close()

    def add(self, index: int, rows: Any, scores: Any) -> None:
        """Take scored rows of a model; full row groups are written."""
        import numpy as np
        import pyarrow as pa

        ref, threshold = self._models[index]
        constants = [
            pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), len(scores)), pa.array([value]))
            for value in (ref.name, ref.version or "", ref.digest)
        ]
        # In float32, as the scores are: an operating point that is the score of some row flags that row.
        flagged = scores >= np.float32(threshold)
        added = [pa.array(scores), pa.array(flagged), *constants]
        columns = [*(rows.column(name) for name in self._names), *added]
        self._waiting[index].append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._rows[index] += len(scores)
        while self._rows[index] >= ROW_GROUP_ROWS:
            self._flush(index, ROW_GROUP_ROWS)
        while sum(self._rows) > _WAITING_ROWS:
            self._flush(max(self._waiting, key=lambda i: self._rows[i]))

    def _flush(self, index: int, rows: Optional[int] = None) -> None:
        """Write a row group of the first `rows` rows of a model, or of all that wait."""
        import pyarrow as pa

        if not self._rows[index]:
            return
        table = pa.Table.from_batches(self._waiting[index], self._schema)
        group = table.slice(0, rows)
        self._file.write_table(group, row_group_size=group.num_rows)
        ref = self._models[index][0]
        self._groups.append({"model": ref.name, "version": ref.version, "digest": ref.digest, "rows": group.num_rows})
        rest = table.slice(group.num_rows)
        self._waiting[index] = rest.to_batches()
        self._rows[index] = rest.num_rows


def row_groups(path: Path) -> list[dict[str, Any]]:
    """Return which model made each row group of a file of predictions, from its metadata alone.

    Raises:
        DataError: the file is no file of predictions.
    """
    groups: Optional[list[dict[str, Any]]] = _told(path, "row_groups")
    if groups is None:
        raise DataError(f"{path} was not written by the score stage: its metadata lists no row groups")
    return groups


def ruled_by(path: Path) -> dict[str, dict[str, int]]:
    """Return by alias and model which entry of the journal chose the version that scored; empty without a file."""
    return (_told(path, "ruled_by") or {}) if path.exists() else {}


def _told(path: Path, what: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = (pq.read_metadata(path).metadata or {}).get(f"airflow_ml.{what}".encode())
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return None if found is None else json.loads(found)
