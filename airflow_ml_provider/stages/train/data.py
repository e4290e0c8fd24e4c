"""Training rows from Parquet: of one segment, in time order, with labels that can be learnt from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.models import InputType, arrow_array, segment_mask
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.train import logic
from airflow_ml_provider.stages.train.spec import TrainSpec

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Rows:
    """Rows to learn from, oldest first.

    Attributes:
        inputs: column to what it is read as.
        table: Arrow table of the inputs, the label and the timestamp.
        labels: 0 or 1, float32 [N].
        times: microseconds since 1970, int64 [N].
        split: the first row that is used for validation.
    """

    inputs: Mapping[str, InputType]
    table: Any
    labels: Any
    times: Any
    split: int

    @property
    def latest(self) -> datetime:
        """Time of the newest row."""
        return _EPOCH + timedelta(microseconds=int(self.times[-1]))


def paths(dataset: DatasetRef) -> list[Path]:
    """Return the Parquet files of a data set, unchecked."""
    path = tables.local_path(dataset.uri)
    return [path] if path.is_file() else sorted(path.rglob("*.parquet"))


def files(dataset: DatasetRef) -> list[Path]:
    """Return the Parquet files of a data set, checked against its digest.

    Raises:
        DataError: there is none.
        IntegrityError: their content is not what the ref names.
    """
    path, found = tables.local_path(dataset.uri), paths(dataset)
    if not found:
        raise DataError(f"training rows {dataset.name!r}: there is no Parquet file at {dataset.uri}")
    digests = [tables.file_digest(file) for file in found]
    digest = digests[0]
    if not path.is_file():
        digest = "sha256:" + hashlib.sha256("\n".join(digests).encode()).hexdigest()  # as tables.combined
    if digest != dataset.digest:
        raise IntegrityError(
            f"training rows {dataset.name!r} at {dataset.uri} have digest {digest}, not {dataset.digest}: they were "
            f"changed since; run the task that made them again"
        )
    return found


def load(spec: TrainSpec) -> Rows:
    """Return the rows of the segment.

    Raises:
        DataError: a column is missing or of a wrong type, no row is left, a label is not 0 or 1, a timestamp is null
            or later than the cutoff, or the older part holds one label only.
        IntegrityError: the files are not those of the ref.
    """
    import numpy as np
    import pyarrow as pa

    found = files(spec.dataset)
    inputs = logic.choose_inputs(spec, _types(found[0]))
    columns = list(dict.fromkeys([*inputs, spec.label, spec.timestamp, *spec.segment]))
    parts = [_read(file, columns) for file in found]
    table = pa.concat_tables(parts, promote_options="default")
    if spec.segment:
        table = table.filter(segment_mask(table, spec.segment))
    if table.num_rows < 2:
        where = f" with {dict(spec.segment)}" if spec.segment else ""
        raise DataError(f"training rows {spec.dataset.name!r}: {table.num_rows} rows{where} are too few to learn from")
    labels, times = _labels(table, spec.label), _times(table, spec)
    order = np.argsort(times, kind="stable")
    table = table.select([*inputs, spec.label, spec.timestamp]).take(arrow_array(order))
    labels, times = labels[order], times[order]
    split = logic.split_point(times, spec.validation)
    if len(np.unique(labels[:split])) < 2:
        raise DataError(
            f"all {split} training rows have label {labels[0]:.0f}; both are needed: take a longer history or a "
            f"smaller validation share than {spec.validation}"
        )
    return Rows(inputs, table, labels, times, split)


def _types(path: Path) -> dict[str, str]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return {field.name: _kind(field.type) for field in file.schema_arrow}
    except (OSError, ValueError) as error:
        raise DataError(f"training rows at {path} cannot be read: {error}") from error


def _kind(kind: Any) -> str:
    from pyarrow import types

    value = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(value) or types.is_large_string(value):
        return "string"
    numeric = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    return "float" if any(test(value) for test in numeric) else str(kind)


def _read(path: Path, columns: list[str]) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}")
        return file.read(columns=columns, use_pandas_metadata=False)


def _labels(table: Any, name: str) -> Any:
    import numpy as np
    import pyarrow as pa

    column = table.column(name)
    if column.null_count:
        raise DataError(
            f"{column.null_count} of {len(column)} training rows have no label in {name!r}; leave rows without an "
            f"outcome out of the training set"
        )
    try:
        values = column.cast(pa.float64()).combine_chunks()
    except pa.ArrowException as error:
        raise DataError(f"label {name!r} of type {column.type} must be 0 or 1: {error}") from error
    labels = np.frombuffer(values.buffers()[1], np.float64)[values.offset : values.offset + len(values)]
    wrong = labels[(labels != 0) & (labels != 1)]
    if len(wrong):
        raise DataError(f"label {name!r} must be 0 or 1; {len(wrong)} of {len(labels)} rows differ, such as {wrong[0]}")
    return labels.astype(np.float32)


def _times(table: Any, spec: TrainSpec) -> Any:
    import numpy as np
    import pyarrow as pa

    column = table.column(spec.timestamp)
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise DataError(f"timestamp {spec.timestamp!r} must be a timestamp column, it has type {column.type}")
    if column.null_count:
        raise DataError(f"{column.null_count} of {len(column)} training rows have no timestamp in {spec.timestamp!r}")
    zone = getattr(column.type, "tz", None)
    values = column.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64()).combine_chunks()
    times = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values)]
    interval = spec.dataset.interval
    if interval is not None:
        cutoff = (interval.end - _EPOCH) // timedelta(microseconds=1)
        late = int((times >= cutoff).sum())
        if late:
            raise DataError(
                f"{late} of {len(times)} training rows are not before the cutoff {interval.end.isoformat()} that the "
                f"data set states; they would leak the future into the model"
            )
    return times
