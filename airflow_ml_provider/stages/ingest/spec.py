"""What the ingest stage is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Optional, Union, get_args

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid, unknown_name
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages import Result, Spec
from airflow_ml_provider.tables import local_path

ColumnType = Literal["string", "int", "float", "bool", "date", "timestamp"]

RESERVED = "_ml_"  # begins the names of columns that a merge adds for itself


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

    def __post_init__(self) -> None:
        if self.type not in get_args(ColumnType):
            raise unknown_name("column type", str(self.type), get_args(ColumnType))


def as_columns(columns: Mapping[str, Union[Column, str, Mapping[str, Any]]]) -> dict[str, Column]:
    """Return columns with the short forms spelt out: a type's name, or a mapping with the fields of `Column`.

    Raises:
        SpecError: a type, a key or a value is wrong; the message names the column.
    """
    full: dict[str, Column] = {}
    for name, value in columns.items():
        body = {"type": value} if isinstance(value, str) else value
        full[name] = codec.decode(Column, body, f"columns.{name}")
    return full


def check_columns(columns: Mapping[str, Column]) -> None:
    """Check names, and what columns say of each other: titles are unique, `known_at` names a timestamp column.

    Raises:
        SpecError: they are not, or there is no column at all.
    """
    if not columns:
        raise invalid("columns", dict(columns), "at least one column")
    owner: dict[str, str] = {}
    for name, column in columns.items():
        if not name or name.lower().startswith(RESERVED):
            allowed = f"a text that is not empty and does not begin with {RESERVED}"
            raise invalid("column name", name, allowed, "choose another one and make the delivered one its alias")
        for title in (name, *column.aliases):
            # Table engines do not tell upper from lower case in the names of columns.
            if owner.setdefault(title.lower(), name) != name:
                raise SpecError(f"column name or alias {title!r} belongs to both {owner[title.lower()]!r} and {name!r}")
        if column.known_at is None:
            continue
        if column.known_at not in columns:
            raise unknown_name(f"known_at of column {name!r}:", column.known_at, columns)
        if columns[column.known_at].type != "timestamp":
            raise invalid(f"known_at of column {name!r}", column.known_at, "the name of a timestamp column")


@dataclass(frozen=True)
class IngestResult(Result):
    """What came in.

    Attributes:
        dataset: the rows of the interval (or the merged table).
        quarantine: dead letters of the interval, with a reason for each; none when there are none.
        counts: `files`, `duplicate_files`, `bad_files`, and of rows `read` = `accepted` + `duplicates` +
            `quarantined`. Rows of a file that is quarantined as a whole count as far as they could be read; a file
            with the same bytes as an earlier one is not read again.
        files: per file its `name`, `digest`, `rows`, `quarantined` (rows), `status` (accepted, duplicate, quarantined,
            empty), `reason` and `ignored` (columns that nobody expects).
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
        source: path or glob (`**` for any folders) of the landing files of the interval; `{partition}`,
            `{start:%Y%m%d}` and `{end:%Y%m%d}` stand for the interval's key and bounds, in every kind of run. The name
            tells the format: `.csv`, `.jsonl` or `.ndjson`, plain or with `.gz` or `.zst`. Names that begin with a dot
            are not seen.
        target: root folder of the table.
        interval: the window of the files; its key names the partition.
        columns: the expected columns; a file that lacks one is quarantined as a whole.
        key: columns that identify a row, and without a value in which a row is a dead letter; empty means whole rows.
        version: column of which the highest value wins among rows of one key; among equals, and without a version, the
            last in order of file name and line.
        mode: `overwrite` replaces the partition of the interval; `merge` updates the table by key.
        partition_by: in merge mode, the date or timestamp column whose UTC day names a row's partition; none keeps
            one file.
        null_values: texts that mean "no value".
        quarantine: root folder of the dead letters; by default `TARGET` with `_quarantine` appended.
        on_missing: no file at all is an error (`fail`; the task's retries look again) or an empty interval (`empty`).
        delimiter: the character between the fields of a CSV file.
        memory_gib: what the table engine may hold in memory before it spills to the temporary folder (GiB).
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
    delimiter: str = ","
    memory_gib: float = 2.0

    def __post_init__(self) -> None:
        for field_name in ("name", "source", "target"):
            if not getattr(self, field_name):
                raise invalid(field_name, getattr(self, field_name), "a text that is not empty")
        if len(self.delimiter) != 1 or not self.delimiter.isascii() or self.delimiter in '"\r\n\0':
            raise invalid("delimiter", self.delimiter, "one ASCII character that is neither a quote nor a line end")
        if self.memory_gib <= 0:
            raise invalid("memory_gib", self.memory_gib, "greater than 0 (GiB)")
        if local_path(self.quarantine_root) == local_path(self.target):
            raise invalid("quarantine", self.quarantine, "another folder than target")
        check_columns(self.columns)
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
        if self.partition_by and self.columns[self.partition_by].type not in ("date", "timestamp"):
            found = self.columns[self.partition_by].type
            raise invalid(f"type of the partition_by column {self.partition_by!r}", found, "date or timestamp")

    @property
    def quarantine_root(self) -> str:
        """Root folder of the dead letters."""
        return self.quarantine or self.target.rstrip("/") + "_quarantine"

    def requires(self) -> dict[str, str]:
        return {"duckdb": "duckdb", "pyarrow": "pyarrow"}
