"""What became of those who got an answer: a table of outcomes, joined with who got which version."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, Optional

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError, Unavailable, invalid
from airflow_ml_provider.stages.deploy.stats import Moments

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}\.jsonl")
_LINE = "{'time': 'VARCHAR', 'traffic': 'VARCHAR', 'key': 'VARCHAR', 'assigned': 'VARCHAR'}"

# A user's version is the one that the present split has assigned, whoever answered in its place.
_FROM_LOG = """
    SELECT key, arg_max(assigned, first) AS version, max(first) AS first FROM (
        SELECT key, assigned, epoch(min(time::TIMESTAMPTZ)) AS first FROM read_json({files}, columns = {line},
            format = 'newline_delimited', ignore_errors = true)
        WHERE traffic = 'live' AND key IS NOT NULL AND epoch(time::TIMESTAMPTZ) >= {since} GROUP BY key, assigned)
    GROUP BY key"""
_FROM_TABLE = """
    SELECT key::VARCHAR AS key, arg_max(version::VARCHAR, time) AS version, epoch(min(time::TIMESTAMPTZ)) AS first
    FROM outcomes WHERE epoch(time::TIMESTAMPTZ) >= {since} GROUP BY key"""
_MOMENTS = """
    WITH outcomes AS ({outcomes}), exposed AS ({exposed}), users AS (
        SELECT any_value(e.version) AS version, coalesce({per_user}(o.value::DOUBLE), {missing}) AS value
        FROM exposed e LEFT JOIN outcomes o ON o.key::VARCHAR = e.key AND epoch(o.time::TIMESTAMPTZ) >= e.first
            AND ({window} = 0 OR epoch(o.time::TIMESTAMPTZ) < e.first + {window})
        WHERE e.first + {window} <= {now} GROUP BY e.key)
    SELECT version, count(value), sum(value), sum(value * value) FROM users WHERE value IS NOT NULL GROUP BY version"""


@dataclass(frozen=True)
class Outcomes:
    """A table with what became of users, one row or more for each: `key`, `value`, `time`, perhaps `version`.

    Where there is a log of predictions, it tells who got which version and since when; `key` is then what requests
    carried. Where there is none, the column `version`, the name of the version in the service, tells it.

    Attributes:
        table: Parquet file, or a glob of such.
        sql: instead of that, a SELECT of DuckDB.
        window_s: what comes within so many seconds after a user's first answer counts, and a user counts once these are
            over: so late labels cannot favour anybody. 0 counts users at once, with what is known by then.
        missing: value of a user without an outcome; none leaves such users out. It takes a log to know of them.
        per_user: what several values of a user make: `max`, `sum` or `avg`.
        log: folder of the prediction log; empty takes that of a service on this machine.
    """

    table: str = ""
    sql: str = ""
    window_s: float = 0.0
    missing: Optional[float] = 0.0
    per_user: Literal["max", "sum", "avg"] = "max"
    log: str = ""

    def __post_init__(self) -> None:
        if bool(self.table) == bool(self.sql):
            raise invalid("table, sql", (self.table, self.sql), "one of them")
        if not 0 <= self.window_s < float("inf"):
            raise invalid("window_s", self.window_s, "at least 0 (seconds)")


def read(outcomes: Outcomes, since: float, now: float) -> Mapping[str, Moments]:
    """Return the sums of the users' outcomes by version.

    Parameters:
        outcomes: where they are.
        since: users who got their version before do not count (seconds since 1970).
        now: users whose window is not over by then do not count (seconds since 1970).

    Raises:
        DataError: the table lacks a column, or has a value that is no number.
        Unavailable: it cannot be read at this moment.
    """
    import duckdb

    files = _log_files(tables.local_path(outcomes.log), since) if outcomes.log else []
    source = _source(outcomes)
    if source is None or (outcomes.log and not files):
        return {}
    listed = "[" + ", ".join(map(tables.quote, files)) + "]"
    exposed = (_FROM_LOG if outcomes.log else _FROM_TABLE).format(files=listed, line=_LINE, since=repr(since))
    missing = "NULL" if outcomes.missing is None else repr(float(outcomes.missing))
    try:
        with tables.connect() as connection:
            query = _MOMENTS.format(
                outcomes=_late_enough(connection, source, since), exposed=exposed, per_user=outcomes.per_user,
                missing=missing, window=repr(outcomes.window_s), now=repr(now),
            )  # fmt: skip
            rows = connection.execute(query).fetchall()
    except (duckdb.BinderException, duckdb.ConversionException, duckdb.ParserException) as error:
        needs = "key, value, time" + ("" if outcomes.log else ", version")
        raise DataError(f"outcomes cannot be read: {error}; they need the columns {needs}") from error
    except duckdb.Error as error:
        raise Unavailable(f"outcomes cannot be read now: {error}") from error
    return {str(version): _moments(*sums) for version, *sums in rows}


def _log_files(folder: Path, since: float) -> list[str]:
    """Return the files of a log but those of days before; no line is later than the day that its file is called by."""
    first = datetime.fromtimestamp(since, timezone.utc).strftime("%Y-%m-%d.jsonl")
    return sorted(str(file) for file in folder.glob("*.jsonl") if not _DAY.fullmatch(file.name) or file.name >= first)


def _late_enough(connection: Any, source: str, since: float) -> str:
    """Return the query for the rows since a time, in its column's own type: row groups before are passed over."""
    kind = connection.execute(f"DESCRIBE SELECT time FROM ({source})").fetchone()[1]  # noqa: S608
    begin = f"'{datetime.fromtimestamp(math.floor(since), timezone.utc):%Y-%m-%d %H:%M:%S}'"
    as_it_is = kind.startswith(("TIMESTAMP", "DATE"))
    column, kind = ("time", kind) if as_it_is else ("time::TIMESTAMPTZ", "TIMESTAMPTZ")
    return f"SELECT * FROM ({source}) WHERE {column} >= CAST({begin} AS {kind})"  # noqa: S608


def _source(outcomes: Outcomes) -> Optional[str]:
    """Return the query for the table; none while there is no file."""
    if outcomes.sql:
        return outcomes.sql
    path = str(tables.local_path(outcomes.table))
    if not (Path(path).exists() or glob.glob(path, recursive=True)):
        return None
    return f"SELECT * FROM read_parquet({tables.quote(path)}, union_by_name = true)"  # noqa: S608


def _moments(count: Any, total: Any, squares: Any) -> Moments:
    return Moments(int(count), float(total), float(squares))
