"""Feature tables with one row per version of a source row, as SQL."""

# ruff: noqa: S608 - the SQL is made of quoted names and of expressions from the user's own repository

from __future__ import annotations

from typing import Any

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features import definition, expressions, sources
from airflow_ml_provider.stages.features.definition import CREATED, EVENT
from airflow_ml_provider.stages.features.sources import CORRECTED, PART, ROW
from airflow_ml_provider.stages.features.windows import Lineage

_q = tables.quote_name


def timestamp(moment: Any) -> str:
    """Return a datetime as an SQL literal."""
    return f"TIMESTAMPTZ '{moment.isoformat()}'"


def became_known(created: str, source: sources.Table, interval: Interval) -> str:
    """Return the predicate for rows that belong to an interval's output: each row is in exactly one.

    A row belongs to the interval in which it became known, or, when it was delivered later, to that of its delivery.
    """
    start, end = timestamp(interval.start), timestamp(interval.end)
    own = ", ".join(map(tables.quote, source.own)) or "NULL"
    return f"({created} < {end} AND ({created} >= {start} OR {PART} IN ({own})))"


def known_by(source: sources.Table, used: tuple[str, ...], *moments: str) -> str:
    """Return SQL for the moment by which all of `used` and the version itself are known, and not before `moments`.

    A moment that is null makes the whole null; a late column that never became known adds nothing, since its value
    is blanked.
    """
    late = dict.fromkeys(source.late[name] for name in used if name in source.late)
    others = [*map(_q, late), CORRECTED]
    test = " AND ".join(f"{m} IS NOT NULL" for m in moments)
    return f"CASE WHEN {test} THEN greatest({', '.join((*moments, *others))}) END"


def query(
    connection: Any, table: definition.Table, name: str, source: sources.Table, interval: Interval
) -> tuple[str, Lineage]:
    """Return the query for the rows of a plain table that became known in an interval, and where features come from.

    Of several rows of an entity with the same two timestamps the one with the newest version counts.
    """
    for column in table.entity:
        if column not in source.columns:
            raise SpecError(f"table {name!r}: entity column {column!r} is not in source {source.name!r}")

    def parsed(text: str, what: str) -> expressions.Expression:
        return expressions.parse(connection, text, source.columns, f"table {name!r}: {what}")

    columns = {c: parsed(text, f"columns.{c}") for c, text in table.columns.items()}
    event = parsed(table.event_timestamp or "", EVENT)
    created = parsed(table.created_timestamp, CREATED) if table.created_timestamp else event
    where = parsed(table.where, "where") if table.where else None
    everything = [*columns.values(), event, created, *([where] if where else [])]
    used = tuple(dict.fromkeys((*table.entity, *(c for e in everything for c in e.columns))))
    moments = [f"CAST({e.text} AS TIMESTAMPTZ)" for e in dict.fromkeys((event, created))]
    known = known_by(source, used, *moments)
    entity = ", ".join(map(_q, table.entity))
    conditions = [f"{_q(c)} IS NOT NULL" for c in table.entity] + ([where.text] if where else [])
    blanked = f"SELECT {sources.masked(source, None)}, {PART}, {ROW}, {CORRECTED} FROM {source.view}"
    body = ", ".join(f"{e.text} AS {_q(c)}" for c, e in columns.items())
    version = f", {_q(source.source.version)} AS __version" if source.source.version else ""
    newest = [*(["__version DESC"] if version else []), f"{PART} DESC", f"{ROW} DESC"]
    sql = f"""
WITH rows AS (
  SELECT {entity}, {moments[0]} AS {EVENT}, {known} AS {CREATED}, {body}, {PART}, {ROW}{version}
  FROM ({blanked}) WHERE {" AND ".join(conditions)}
)
SELECT {entity}, {EVENT}, {CREATED}, {", ".join(map(_q, columns))} FROM rows
WHERE {EVENT} IS NOT NULL AND {became_known(CREATED, source, interval)}
QUALIFY row_number() OVER (PARTITION BY {entity}, {EVENT}, {CREATED} ORDER BY {", ".join(newest)}) = 1
ORDER BY {entity}, {EVENT}, {CREATED}"""
    lineage = {c: [(source.name, u) for u in dict.fromkeys((*e.columns, *event.columns))] for c, e in columns.items()}
    return sql, lineage
