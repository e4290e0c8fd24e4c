"""The test set on its way through the model: Parquet to labels and scores, and the predictions back to Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import models, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.evaluate.metrics import Rows
from airflow_ml_provider.stages.evaluate.spec import EvaluateSpec


@dataclass(frozen=True)
class Scored:
    """The test rows of the model's segment, with scores.

    Attributes:
        table: key, timestamp and slice columns, `label` and `score`, in the order of the test file.
        read: rows of the test file.
        unlabelled: rows of the segment without a label; left out.
    """

    table: Any
    read: int
    unlabelled: int

    def values(self, name: str) -> Any:
        """Return the label or score column as an array."""
        import numpy as np
        import pyarrow as pa

        column = self.table.column(name).cast(pa.float64()).combine_chunks()
        return np.frombuffer(column.buffers()[1], np.float64)[column.offset : column.offset + len(column)]


def locked(test: DatasetRef) -> Path:
    """Return the test file, proven to be the one that was locked away.

    Raises:
        IntegrityError: its content has changed.
        DataError: it is gone.
    """
    path = tables.local_path(test.uri)
    if not path.is_file():
        raise DataError(f"test set {test.name!r} is no file at {path}; make the training set again")
    found = tables.file_digest(path)
    if found != test.digest:
        raise IntegrityError(f"test set {test.name!r} at {path} has digest {found}, not {test.digest}: it was changed")
    return path


def score(spec: EvaluateSpec, path: Path, package: Path) -> Scored:
    """Return the test rows of the model's segment with their scores, read by row groups.

    Raises:
        DataError: a column is missing or unusable, or no labelled row is left.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    scorer = models.Scorer(package)
    segment = scorer.manifest.segment
    kept = list(dict.fromkeys([*spec.key, spec.timestamp, *(c for s in spec.slices for c in s.split("*"))]))
    parts, unlabelled = [], 0
    with pq.ParquetFile(path) as file:
        check_columns(file.schema_arrow.names, [spec.label, *kept, *segment], path)
        needed = [n for n in file.schema_arrow.names if n in {spec.label, *kept, *segment, *scorer.manifest.inputs}]
        read = file.metadata.num_rows
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=needed)
            if segment:
                table = table.filter(models.segment_mask(table, segment))
            labels = read_labels(table.column(spec.label), spec.label, path)
            unlabelled += labels.null_count
            if labels.null_count:
                table, labels = table.filter(pc.is_valid(labels)), labels.drop_null()
            scores = pa.array(scorer.score(table), pa.float32())
            parts.append(table.select(kept).append_column("label", labels).append_column("score", scores))
    rows = sum(part.num_rows for part in parts)
    if not rows:
        what = f" of segment {dict(segment)}" if segment else ""
        raise DataError(f"test set at {path} has {read} rows, none labelled{what}; nothing can be measured")
    found = Scored(pa.concat_tables(parts), read, unlabelled)
    _check_values(found, path)
    return found


def write_predictions(scored: Scored, path: Path, metadata: Mapping[str, str]) -> None:
    """Replace the predictions in one step; equal rows give equal bytes."""
    import pyarrow.parquet as pq

    table = scored.table.replace_schema_metadata(dict(metadata))
    with tables.replacing(path) as aside:
        pq.write_table(table, aside, compression="zstd", row_group_size=122880)


def validation_rows(package: Path) -> Optional[Rows]:
    """Return labels and native scores of the package's validation rows; none when it has none."""
    import numpy as np

    table = _read(package / models.VALIDATION, [models.VALIDATION_LABEL, models.SAMPLE_SCORE])
    if table is None or not table.num_rows:
        return None
    scored = Scored(table, table.num_rows, 0)
    labels, scores = scored.values(models.VALIDATION_LABEL), scored.values(models.SAMPLE_SCORE)
    known = ~(np.isnan(labels) | np.isnan(scores))
    return Rows.of(labels[known], scores[known])


def validation_window(package: Path) -> Optional[tuple[datetime, datetime]]:
    """Return the times of the oldest and the newest of the package's validation rows; none when it has none."""
    table = _read(package / models.VALIDATION, [models.VALIDATION_TIME])
    return span(table.column(0)) if table is not None and table.num_rows else None


def newest_training_row(package: Path, timestamp: str) -> datetime:
    """Return the time of the newest row that the model was trained or tuned on.

    Raises:
        DataError: neither the package's validation rows nor the training set can be read.
    """
    window = validation_window(package)
    if window:
        return window[1]
    training = models.read_manifest(package).training
    table = _read(tables.local_path(training.uri), [timestamp])
    if table is None or not table.num_rows:
        raise DataError(
            f"model package {package} has no {models.VALIDATION}, and its training set {training.uri} is gone: it "
            "cannot be proven that the test rows are later; train again"
        )
    return span(table.column(0))[1]


def span(column: Any) -> tuple[datetime, datetime]:
    """Return the first and the last moment of a column of timestamps or dates, in UTC (without a zone it is in UTC).

    Raises:
        DataError: it holds no timestamps.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise DataError(f"the timestamp column has type {column.type}, not timestamp or date; name the right column")
    zone = getattr(column.type, "tz", None)
    found = pc.min_max(column.cast(pa.timestamp("us", zone), safe=False)).as_py()
    if found["min"] is None:
        raise DataError("the timestamp column has no values; name the right column")
    low, high = (m if m.tzinfo else m.replace(tzinfo=timezone.utc) for m in (found["min"], found["max"]))
    return low.astimezone(timezone.utc), high.astimezone(timezone.utc)


def _read(path: Path, columns: Sequence[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    with pq.ParquetFile(path) as file:
        check_columns(file.schema_arrow.names, columns, path)
        groups = [file.read_row_group(i, columns=list(columns)) for i in range(file.num_row_groups)]
        return pa.concat_tables(groups).select(list(columns)) if groups else None


def check_columns(there: Sequence[str], needed: Sequence[str], path: Path) -> None:
    """Raise `DataError` unless all needed columns are there."""
    missing = sorted({name for name in needed if name not in there})
    if missing:
        raise DataError(f"{path} lacks column {', '.join(missing)}; there are {', '.join(there)}")


def read_labels(column: Any, name: str, path: Path) -> Any:
    """Return a label column as int8, missing where it is.

    Raises:
        DataError: a label is no whole number.
    """
    import pyarrow as pa

    try:
        return column.cast(pa.float64(), safe=False).cast(pa.int8())
    except pa.ArrowException as error:
        raise DataError(f"label {name!r} in {path} must be 0 or 1: {error}") from error


def _check_values(scored: Scored, path: Path) -> None:
    import numpy as np

    labels, scores = scored.values("label"), scored.values("score")
    wrong = labels[(labels != 0) & (labels != 1)]
    if len(wrong):
        raise DataError(f"label in {path} must be 0 or 1, got {wrong[0]:g} in {len(wrong)} rows")
    bad = int((~np.isfinite(scores) | (scores < 0) | (scores > 1)).sum())
    if bad:
        raise DataError(f"{bad} of {len(scores)} scores are not probabilities in [0, 1]; the model is broken")
    if labels.min() == labels.max():
        raise DataError(
            f"all {len(labels)} labelled test rows in {path} have label {labels[0]:g}; nothing can be measured: "
            "lengthen the test window"
        )
