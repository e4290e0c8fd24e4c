"""Source tables as DuckDB sees them: which version of a row counts at a moment, and which values are known by then.

Nothing here shows a value before it was known. `masked` blanks late columns until their moment, `versions` says from
when until when a version of a row is the newest known one, and `Table.early` are the columns that are known from the
start: an expression for a prediction sees no others.
"""

# ruff: noqa: S608 - the SQL is made of quoted names and of expressions from the user's own repository

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError, SpecError, unknown_name
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.features.spec import Source

PART, ROW, CORRECTED, FROM, UNTIL = "__part", "__row", "__corrected", "__from", "__until"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FOREVER = "TIMESTAMPTZ 'infinity'"
_ALWAYS = "TIMESTAMPTZ '-infinity'"


@dataclass(frozen=True)
class Table:
    """A source opened on a connection.

    Attributes:
        name: its name.
        source: as given.
        view: SQL name of the relation of all rows, with all versions, timestamps in UTC, `__part` and `__row` (where it
            stands) and `__corrected` (when a later version of a row became known, else null).
        columns: column to type.
        late: column to the column that says when its value is known.
        files: what is read.
        own: keys of the partitions that the interval itself brought.
    """

    name: str
    source: Source
    view: str
    columns: Mapping[str, str]
    late: Mapping[str, str]
    files: tuple[Path, ...] = field(repr=False, default=())
    own: tuple[str, ...] = ()

    @property
    def early(self) -> tuple[str, ...]:
        """The columns that are known from the start."""
        hidden = {*self.late, self.source.version, self.source.corrected_at}
        return tuple(name for name in self.columns if name not in hidden)

    def ref(self) -> DatasetRef:
        """Return what was read, with one digest over all of it."""
        parts = [tables.describe(self.name, path) for path in self.files]
        return tables.combined(self.name, str(tables.local_path(self.source.root)), parts)


def connect() -> Any:
    """Return a connection on one thread: sums of floats depend on their order, and a re-run must give the same bits."""
    return tables.connect(threads="1")


def open_all(connection: Any, sources: Mapping[str, Source], until: Interval) -> dict[str, Table]:
    """Open every source as it was delivered up to and with the interval `until`."""
    return {name: open_source(connection, name, source, until) for name, source in sources.items()}


def open_source(connection: Any, name: str, source: Source, until: Interval) -> Table:
    """Open one source.

    Raises:
        DataError: there is no data up to the interval, it cannot be read, or nothing says when a later version of a
            row became known.
        SpecError: a column of the source's description does not exist.
    """
    path = tables.local_path(source.root)
    files = [path] if path.is_file() else visible(source.root, until)
    if not files:
        raise DataError(f"source {name!r} has no partition up to {until.key} in {path}; run its ingest first")
    read = (
        f"read_parquet([{', '.join(tables.quote(str(f)) for f in files)}], union_by_name = true, "
        f"hive_partitioning = false, filename = '__file')"
    )
    columns = _columns(connection, name, read)
    _check(name, source, columns)
    select = [f"CAST({_q(c)} AS {kind}) AS {_q(c)}" for c, kind in columns.items()]
    part = "coalesce(nullif(regexp_extract(__file, 'interval=([^/]+)/[^/]*$', 1), ''), '')"
    view = tables.quote_name(f"__source_{name}")
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW {view} AS "
        f"SELECT {', '.join(select)}, {part} AS {PART}, file_row_number AS {ROW}, "
        f"{_corrected(source, columns)} AS {CORRECTED} FROM {read}"
    )
    _check_versions(connection, name, source, columns, view)
    own = tuple(key for key in map(_key, files) if key == until.key or _within(key, until))
    return Table(name, source, view, columns, _late(source, columns), tuple(files), own)


def visible(root: str, until: Interval) -> list[Path]:
    """Return the partitions of a table that a run for the interval `until` may see: those that end with it or before.

    A weekly run sees the days of its week. A key that is no calendar interval is compared as text.
    """
    seen = []
    for path in tables.partitions(root):
        calendar = _calendar(_key(path))
        if _key(path) == until.key or (calendar.end <= until.end if calendar else _key(path) < until.key):
            seen.append(path)
    return seen


def since(files: Iterable[Path], moment_us: int) -> list[Path]:
    """Return the partitions that can hold events from a moment on (microseconds since 1970).

    For tables that are written by this stage: nothing in them is about a time after the end of its partition.
    """
    kept = []
    for path in files:
        calendar = _calendar(_key(path))
        if calendar is None or micros(calendar.end) > moment_us:
            kept.append(path)
    return kept


def micros(moment: datetime) -> int:
    """Return a moment as microseconds since 1970, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def versions(table: Table, keys_where: Optional[str] = None) -> str:
    """Return SQL for all versions of rows with `__from` and `__until`: the version counts for moments between them.

    A version counts from its correction on (a first version: always) until a newer version does.

    Parameters:
        keys_where: only keys that have some version fulfilling this predicate are looked at.
    """
    source, corrected = table.source, f"coalesce({CORRECTED}, {_ALWAYS})"
    where = f" WHERE {keys_where}" if keys_where else ""
    if not source.key:
        return f"SELECT *, {corrected} AS {FROM}, {_FOREVER} AS {UNTIL} FROM {table.view}{where}"
    keys = ", ".join(map(_q, source.key))
    order = ", ".join([*([f"{_q(source.version)} DESC"] if source.version else []), f"{PART} DESC", f"{ROW} DESC"])
    newer = f"OVER (PARTITION BY {keys} ORDER BY {order} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
    rows = table.view
    if keys_where:
        rows += f" SEMI JOIN (SELECT DISTINCT {keys} FROM {table.view}{where}) USING ({keys})"
    return f"SELECT *, {corrected} AS {FROM}, coalesce(min({corrected}) {newer}, {_FOREVER}) AS {UNTIL} FROM {rows}"


def masked(table: Table, moment: Optional[str]) -> str:
    """Return the select list of the table's columns in which late values are null unless known before `moment`.

    Without a moment a late value is null only if it has none, that is when nobody ever knew it.
    """
    parts = []
    for name in table.columns:
        if name in table.late:
            known = _q(table.late[name])
            test = f"{known} < {moment}" if moment else f"{known} IS NOT NULL"
            parts.append(f"CASE WHEN {test} THEN {_q(name)} END AS {_q(name)}")
        else:
            parts.append(_q(name))
    return ", ".join(parts)


def refuse_late(table: Table, used: tuple[str, ...], what: str, moment: str) -> None:
    """Raise `SpecError` when an expression for a prediction uses a column that is not known by its moment."""
    for name in used:
        if name in table.late or name in (table.source.version, table.source.corrected_at):
            when = table.late.get(name, name)
            raise SpecError(
                f"{what} uses {name!r}, which becomes known only at {when!r}, not by the moment of the prediction "
                f"({moment!r}); use columns that are known by then: {', '.join(table.early)}"
            )


def _late(source: Source, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the late columns; a column that says when something became known is itself known only then."""
    moments = [*source.known_at.values(), source.corrected_at, source.version]
    own = {name: name for name in moments if name and columns[name].startswith("TIMESTAMP")}
    return {**own, **source.known_at}


def _check(name: str, source: Source, columns: Mapping[str, str]) -> None:
    named = [*source.key, source.version, source.corrected_at, *source.known_at, *source.known_at.values()]
    for column in named:
        if column is not None and column not in columns:
            raise unknown_name(f"column in source {name!r}:", column, columns)
    for column in (source.corrected_at, *source.known_at.values()):
        if column is not None and not columns[column].startswith("TIMESTAMP"):
            raise SpecError(f"source {name!r}: {column!r} says when something became known and must be a timestamp")


def _corrected(source: Source, columns: Mapping[str, str]) -> str:
    """Return SQL for when a version became known as a correction; null for the first one, which always counts."""
    if source.corrected_at:
        return f"CAST({_q(source.corrected_at)} AS TIMESTAMPTZ)"
    if not source.key or not source.version or not columns[source.version].startswith("TIMESTAMP"):
        return "NULL::TIMESTAMPTZ"
    version, keys = f"CAST({_q(source.version)} AS TIMESTAMPTZ)", ", ".join(map(_q, source.key))
    return f"CASE WHEN {version} > min({version}) OVER (PARTITION BY {keys}) THEN {version} END"


def _check_versions(connection: Any, name: str, source: Source, columns: Mapping[str, str], view: str) -> None:
    """Raise `DataError` when a row has versions of which nothing says when the later ones became known."""
    if not source.key or not source.version or source.corrected_at or columns[source.version].startswith("TIMESTAMP"):
        return
    keys, version = ", ".join(map(_q, source.key)), _q(source.version)
    query = f"SELECT {keys}, min({version}), max({version}) FROM {view} GROUP BY {keys}"
    if found := connection.execute(f"{query} HAVING min({version}) <> max({version}) ORDER BY ALL LIMIT 1").fetchall():
        *key, first, last = found[0]
        raise DataError(
            f"source {name!r}: the row {key} has versions {first} to {last}, and {source.version!r}, which is no "
            "timestamp, does not say when the later ones became known; name a column that does as corrected_at"
        )


def _columns(connection: Any, name: str, read: str) -> dict[str, str]:
    import duckdb

    try:
        rows = connection.execute(f"DESCRIBE SELECT * EXCLUDE (__file) FROM {read}").fetchall()
    except duckdb.Error as error:
        raise DataError(f"source {name!r} cannot be read: {str(error).strip()}") from error
    return {column: "TIMESTAMP WITH TIME ZONE" if kind.startswith("TIMESTAMP") else kind for column, kind, *_ in rows}


def _key(path: Path) -> str:
    return path.parent.name.partition("interval=")[2]


def _within(key: str, interval: Interval) -> bool:
    calendar = _calendar(key)
    return calendar is not None and interval.start <= calendar.start and calendar.end <= interval.end


def _calendar(key: str) -> Optional[Interval]:
    try:
        return Interval.from_key(key)
    except SpecError:
        return None


_q = tables.quote_name
