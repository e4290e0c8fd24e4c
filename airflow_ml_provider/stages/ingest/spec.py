"""What the ingest stage is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Optional

from airflow_ml_provider.exceptions import SpecError, invalid, unknown_name
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages import Result, Spec

ColumnType = Literal["string", "int", "float", "bool", "date", "timestamp"]


@dataclass(frozen=True)
class Column:
    """One column of a table as the user expects it.

    Attributes:
        type: what every value must be; `timestamp` is in UTC unless the text carries an offset.
        required: a row without a value goes to the dead letters.
        known_at: name of the timestamp column that says when this value became known; none when it is known from the
            start. The features stage hides such columns from anything that is computed before that moment.
        aliases: other names under which a delivery may bring the column.
    """

    type: ColumnType
    required: bool = False
    known_at: Optional[str] = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class IngestResult(Result):
    """What came in.

    Attributes:
        dataset: the rows of the interval (or the merged table).
        quarantine: dead letters of the interval, with a reason for each; none when there are none.
        counts: `files`, `duplicate_files`, `bad_files`, `read`, `accepted`, `duplicates`, `quarantined`.
        files: per file its `name`, `digest`, `rows`, `status` (accepted, duplicate, quarantined, empty) and `reason`.
    """

    dataset: Optional[DatasetRef] = None
    quarantine: Optional[DatasetRef] = None
    counts: Mapping[str, int] = field(default_factory=dict)
    files: tuple[Mapping[str, object], ...] = ()


@dataclass(frozen=True)
class IngestSpec(Spec):
    """Bring the landing files of one interval into a table, once.

    Attributes:
        name: name of the dataset.
        source: path or glob of the landing files of the interval.
        target: root folder of the table.
        interval: the window of the files; its key names the partition.
        columns: the expected columns; a file that lacks one is quarantined as a whole.
        key: columns that identify a row; empty means whole rows.
        version: column of which the highest value wins among rows of one key; none keeps the last in file order.
        mode: `overwrite` replaces the partition of the interval; `merge` updates the table by key.
        partition_by: in merge mode, the date or timestamp column whose UTC day names a row's partition; none keeps
            one file.
        null_values: texts that mean "no value".
        quarantine: root folder of the dead letters; by default `TARGET` with `_quarantine` appended.
        on_missing: no file at all is an error (`fail`) or an empty interval (`empty`).
    """

    stage: ClassVar[str] = "ingest"
    entry: ClassVar[str] = "airflow_ml_provider.stages.ingest.files:run"
    result: ClassVar[type[Result]] = IngestResult
    name: str
    source: str
    target: str
    interval: Interval
    columns: Mapping[str, Column]
    key: tuple[str, ...] = ()
    version: Optional[str] = None
    mode: Literal["overwrite", "merge"] = "overwrite"
    partition_by: Optional[str] = None
    null_values: tuple[str, ...] = ("", "NA", "NULL", "null")
    quarantine: Optional[str] = None
    on_missing: Literal["fail", "empty"] = "fail"

    def __post_init__(self) -> None:
        if not self.columns:
            raise invalid("columns", self.columns, "at least one column")
        for what, names in (
            ("key column", self.key),
            ("version column", (self.version,)),
            ("partition_by column", (self.partition_by,)),
        ):
            for name in names:
                if name is not None and name not in self.columns:
                    raise unknown_name(what, name, self.columns)
        if self.mode == "merge" and not self.key:
            raise SpecError("mode 'merge' needs key columns; give key=(…) or use mode 'overwrite'")
        if self.mode == "overwrite" and self.partition_by:
            raise SpecError("partition_by is for mode 'merge'; in mode 'overwrite' the interval is the partition")

    def requires(self) -> dict[str, str]:
        return {"duckdb": "duckdb", "pyarrow": "pyarrow"}
