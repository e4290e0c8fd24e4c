"""Bring landing files into a table, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from airflow_ml_provider import codec
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators._base import StageOperator, names
from airflow_ml_provider.stages.ingest.spec import Column, IngestSpec, as_columns

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.stages.checks import Check

_ANY_DAY = Interval.of_grain(datetime(2000, 1, 1, tzinfo=timezone.utc), "day")


class IngestOperator(StageOperator):
    """Read the CSV or JSON Lines files of one interval into a table of Parquet, typed, deduplicated and in one step.

    A second delivery of the same bytes is absorbed. A file that is cut off, damaged or lacks a column is quarantined
    as a whole, a row that breaks the contract by itself; each becomes a dead letter with its reason, and running the
    interval again after the source was mended replaces them. When nothing of a delivery can be used the task refuses
    and the table stays as it was. `@task.ingest` is for files that a function fetches first; `ValidateOperator` judges
    what the values mean.

    Parameters:
        name: name of the dataset.
        source: path or glob of the landing files; `{partition}`, `{start:%Y/%m/%d}` and `{end:…}` stand for the
            interval's key and bounds and work in every kind of run, also in those without a logical date.
        target: root folder of the table.
        columns: column to what is expected of it: a type's name (`string`, `int`, `float`, `bool`, `date`,
            `timestamp`), a mapping with `type`, `required`, `known_at` and `aliases`, or a `Column`.
        key: columns (or the one column) that identify a row; by default whole rows are compared.
        version: column of which the highest value wins among rows of one key; by default the last row wins.
        mode: `overwrite` replaces the interval's partition, `merge` updates the table by key.
        partition_by: in mode `merge`, the date or timestamp column whose UTC day names a row's partition; by default
            the table is one file.
        null_values: texts that mean "no value".
        quarantine: root folder of the dead letters; by default `TARGET` with `_quarantine` appended.
        on_missing: what having no file means: an error that retries may mend (`fail`) or an empty interval (`empty`).
        wait_s: how long to wait for the first file, in the triggerer and without a worker slot (seconds); by default
            the task does not wait. When the wait ends without a file, the task fails.
        delimiter: the character between the fields of a CSV file.
        memory_gib: what the table engine may hold in memory before it spills to disk (GiB).
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields,
        "name", "source", "target", "columns", "key", "version", "mode", "partition_by", "null_values", "quarantine",
        "on_missing", "wait_s", "delimiter", "memory_gib",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        source: str,
        target: str,
        columns: Mapping[str, Column | str | Mapping[str, Any]],
        key: str | Sequence[str] = (),
        version: str | None = None,
        mode: Literal["overwrite", "merge"] | str = "overwrite",
        partition_by: str | None = None,
        null_values: Sequence[str] = ("", "NA", "NULL", "null"),
        quarantine: str | None = None,
        on_missing: Literal["fail", "empty"] | str = "fail",
        wait_s: float = 0.0,
        delimiter: str = ",",
        memory_gib: float | str = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.source = source
        self.target = target
        self.columns = columns
        self.key = key
        self.version = version
        self.mode = mode
        self.partition_by = partition_by
        self.null_values = null_values
        self.quarantine = quarantine
        self.on_missing = on_missing
        self.wait_s = wait_s
        self.delimiter = delimiter
        self.memory_gib = memory_gib
        shape = (columns, key, version, mode, partition_by, null_values, on_missing, delimiter, memory_gib)
        if _is_plain(shape):
            places = {what: "later" for what in ("name", "source", "target") if not _is_plain(getattr(self, what))}
            self._spec(_ANY_DAY, **places)

    def awaits(self, interval: Interval) -> tuple[Check, float] | None:
        if not float(self.wait_s):
            return None
        from airflow_ml_provider.stages.checks import LandingCheck
        from airflow_ml_provider.stages.ingest.logic import resolve_source

        return LandingCheck(resolve_source(self.source, interval)), float(self.wait_s)

    def build_spec(self, interval: Interval, context: Context) -> IngestSpec:
        return self._spec(interval)

    def _spec(self, interval: Interval, **replaced: str) -> IngestSpec:
        fields = {
            "name": self.name,
            "source": self.source,
            "target": self.target,
            "interval": interval,
            "columns": as_columns(self.columns),
            "key": names(self.key),
            "version": self.version or None,
            "mode": self.mode,
            "partition_by": self.partition_by or None,
            "null_values": self.null_values,
            "quarantine": self.quarantine or None,
            "on_missing": self.on_missing,
            "delimiter": self.delimiter,
            "memory_gib": _number(self.memory_gib),
        }
        return codec.decode(IngestSpec, {**fields, **replaced})


def _number(value: Any) -> Any:
    """Return the number that a rendered template is; what is none is left for the spec to refuse."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _is_plain(value: Any) -> bool:
    """Return whether a value is known when the DAG is parsed: neither a template nor the output of a task."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, Column))
