"""The rows of the optimise stage: the older ones calibrate and train, the newer ones measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from airflow_ml_provider import models
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.models import InputType
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.evaluate import parquet
from airflow_ml_provider.stages.optimise.spec import Measurement
from airflow_ml_provider.stages.train import data


@dataclass(frozen=True)
class Divided:
    """Labelled rows of the model's segment as Arrow tables in order of time, with the column `label` of 0 or 1.

    Attributes:
        older: rows that calibrate and train.
        newer: rows that measure; no candidate has seen them.
        by: how they were told apart.
        start: time of the first of `newer`.
        end: time of the last of them.
    """

    older: Any
    newer: Any
    by: str
    start: datetime
    end: datetime

    def sample(self, count: int) -> Any:
        """Return up to `count` of the older rows, evenly spread."""
        return take_evenly(self.older, count)

    def labels(self) -> Any:
        """Return the labels of the newer rows."""
        return self.newer.column("label").to_numpy().astype("float64")


def divide(spec: Measurement, dataset: DatasetRef, package: Path) -> Divided:
    """Return the rows of the dataset, divided at the package's first validation row.

    Without validation rows, or where the dataset holds nothing older, the oldest `older_share` is the older part.

    Raises:
        DataError: a column is missing or unusable, or one part has no row or the newer one has one label only.
        IntegrityError: the dataset is not the one of its ref.
    """
    import numpy as np

    manifest = models.read_manifest(package)
    table, times = _read(spec, dataset, manifest.inputs, manifest.segment)
    window = parquet.validation_window(package)
    split = int(np.searchsorted(times, _micros(window[0]))) if window else 0
    by = "the package's first validation row"
    if not split:
        split, by = int(len(times) * spec.older_share), f"the oldest {spec.older_share:.0%}"
    older, newer = table.slice(0, split), table.slice(split)
    labels = newer.column("label").to_numpy()
    if not older.num_rows or not newer.num_rows or labels.min() == labels.max():
        raise DataError(
            f"dataset {dataset.name!r} cannot be divided by {by}: {older.num_rows} older rows, {newer.num_rows} "
            f"newer ones{' of one label' if newer.num_rows else ''}; give rows of both labels that reach beyond those "
            "that the model was fitted to"
        )
    start, end = parquet.span(newer.column(spec.timestamp))
    return Divided(older, newer, by, start, end)


def feeds(table: Any, inputs: Mapping[str, InputType], name: str) -> dict[str, Any]:
    """Return the rows of a table as a graph takes them."""
    return {column: models.read_input(table, column, kind, name) for column, kind in inputs.items()}


def take_evenly(table: Any, count: int) -> Any:
    """Return up to `count` rows, evenly spread over a table."""
    import numpy as np

    if table.num_rows <= count:
        return table
    chosen = np.unique(np.linspace(0, table.num_rows - 1, count).round().astype(np.int64))
    return table.take(models.arrow_array(chosen))


def _read(
    spec: Measurement, dataset: DatasetRef, inputs: Mapping[str, InputType], segment: Mapping[str, str]
) -> tuple[Any, Any]:
    """Return the labelled rows of the segment in order of time, and their times."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    sliced = [part for name in spec.slices for part in name.split("*")]
    columns = list(dict.fromkeys([*inputs, spec.timestamp, *sliced, *segment]))
    parts = []
    for path in data.files(dataset):
        with pq.ParquetFile(path) as file:
            parquet.check_columns(file.schema_arrow.names, [spec.label, *columns], path)
            part = file.read(columns=list(dict.fromkeys([*columns, spec.label])))
        labels = parquet.read_labels(part.column(spec.label), spec.label, path)
        parts.append(part.select(columns).append_column("label", labels).filter(pc.is_valid(labels)))
    table = pa.concat_tables(parts, promote_options="default")
    if segment:
        table = table.filter(models.segment_mask(table, segment))
    moments = table.column(spec.timestamp)
    if moments.null_count or not table.num_rows:
        where = f" with {dict(segment)}" if segment else ""
        raise DataError(
            f"dataset {dataset.name!r} has {table.num_rows} labelled rows{where}, {moments.null_count} of them "
            f"without {spec.timestamp}; every row needs its time"
        )
    parquet.span(moments)  # refuses what is no timestamp
    zone = getattr(moments.type, "tz", None)
    times = moments.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64()).to_numpy()
    order = np.argsort(times, kind="stable")
    return table.take(models.arrow_array(order)), times[order]


def _micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)
