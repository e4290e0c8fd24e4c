"""Feature tables on a grid: rolling windows and snapshots that end strictly before their grid point, as SQL."""

# ruff: noqa: S608 - the SQL is made of quoted names and of expressions from the user's own repository

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features import definition, expressions, sources
from airflow_ml_provider.stages.features.definition import CREATED, EVENT
from airflow_ml_provider.stages.features.sources import FROM, UNTIL, micros

_KNOWN, _H = "__known", "__h"
_q = tables.quote_name

Lineage = dict[str, list[tuple[str, str]]]  # feature to (source, column)


def grid(interval: Interval, every_s: int) -> range:
    """Return the grid points of an interval as microseconds since 1970: the multiples of `every_s` in [start, end)."""
    step = every_s * 1_000_000
    return range(-(-micros(interval.start) // step) * step, micros(interval.end), step)


def rolling(
    connection: Any, table: definition.Table, name: str, source: sources.Table, interval: Interval
) -> tuple[str, Lineage]:
    """Return the query for the rows of a rolling table in an interval, and where each feature comes from.

    For grid point h and window w, the aggregate over the rows that are known in [h - w, h), with every value that was
    not known before h blanked, and of each row the version that was the newest before h. An entity has a row as long
    as its longest window holds one, and one row more: the empty one that ends its history, so that an as-of join
    never finds an old value where the window is empty.
    """
    every_s, window_s = definition.seconds(table.every or ""), [definition.seconds(w) for w in table.windows]
    points = grid(interval, every_s)
    known, where, aggregates = _expressions(connection, table, name, source)
    missing = [column for column in table.entity if column not in source.columns]
    if missing:
        raise SpecError(f"table {name!r}: entity column {missing[0]!r} is not in source {source.name!r}")
    entity = ", ".join(map(_q, table.entity))
    reach, step = (max(window_s) + every_s) * 1_000_000, points.step
    first, last = (points.start, points[-1]) if points else (0, -1)
    base = first - -(-reach // step) * step  # a grid point before everything that matters
    moment = f"epoch_us(CAST({known.text} AS TIMESTAMPTZ))"
    reached = f"BETWEEN {first - reach} AND {last - 1}"
    after = f"greatest({first}, {base} + (({_KNOWN} - {base}) // {step} + 1) * {step})"
    until = f"least({last}, {base} + (({_KNOWN} + {reach} - {base}) // {step}) * {step})"
    h = f"make_timestamptz({_H})"
    query = f"""
WITH known AS (
  SELECT *, {moment} AS {_KNOWN} FROM ({sources.versions(source, f"{moment} {reached}")})
  WHERE {" AND ".join(f"{_q(c)} IS NOT NULL" for c in table.entity)}
), spread AS (
  SELECT *, unnest(range({after}, {until} + 1, {step})) AS {_H} FROM known WHERE {_KNOWN} {reached}
), seen AS MATERIALIZED (
  SELECT {sources.masked(source, h)}, {_KNOWN}, {_H} FROM spread WHERE {FROM} < {h} AND {h} <= {UNTIL}
), points AS (
  -- Also where a correction withdrew the row, or gave it to another entity: a row must say that it no longer counts.
  SELECT DISTINCT {entity}, {_H} FROM spread WHERE {FROM} < {h} AND {FROM} < {UNTIL}
)
SELECT {entity}, {h} AS {EVENT}, {h} AS {CREATED}"""
    joins = ""
    for i, (window, length) in enumerate(zip(table.windows, window_s)):
        body = ", ".join(f"{e.text} AS {_q(a)}" for a, e in aggregates.items())
        rows = f"seen WHERE {_KNOWN} >= {_H} - {length * 1_000_000}" + (f" AND {where}" if where else "")
        joins += f"\nLEFT JOIN (SELECT {entity}, {_H}, true AS __found, {body} FROM {rows} GROUP BY ALL) w{i} "
        joins += f"USING ({entity}, {_H})"
        # What the aggregate says of no rows: 0 for a count, null for a mean.
        joins += f"\nCROSS JOIN (SELECT {body} FROM seen WHERE false) e{i}"
        for a in aggregates:
            query += f",\n  CASE WHEN w{i}.__found THEN w{i}.{_q(a)} ELSE e{i}.{_q(a)} END AS {_q(f'{a}_{window}')}"
    query += f"\nFROM points{joins}\nORDER BY {entity}, {EVENT}"
    lineage = {
        f"{a}_{window}": [(source.name, c) for c in dict.fromkeys((*e.columns, *known.columns))]
        for window in table.windows
        for a, e in aggregates.items()
    }
    return query, lineage


def snapshot(
    connection: Any, table: definition.Table, name: str, opened: Mapping[str, sources.Table], interval: Interval
) -> tuple[str, Lineage]:
    """Return the query for the rows of a snapshot table in an interval; it reads a table that this fills.

    The user's query runs once for each grid point, over views of the sources that show of each row the version that
    was the newest before it, with every later value blanked.
    """
    h = "getvariable('h')"
    for source in opened.values():
        connection.execute("SET VARIABLE h = TIMESTAMPTZ 'infinity'")
        connection.execute(
            f"CREATE OR REPLACE TEMP VIEW {_q(source.name)} AS SELECT {sources.masked(source, h)} "
            f"FROM ({sources.versions(source)}) WHERE {FROM} < {h} AND {h} <= {UNTIL}"
        )
    known = {n: tuple(source.columns) for n, source in opened.items()}
    used = expressions.reads(connection, table.sql or "", known, f"table {name!r}: sql")
    target = _q(f"__snapshot_{name}")
    entity = ", ".join(map(_q, table.entity))
    select = f"SELECT {entity}, {h} AS {EVENT}, {h} AS {CREATED}, * EXCLUDE ({entity}) FROM (\n{table.sql}\n)"
    create = f"CREATE OR REPLACE TEMP TABLE {target} AS FROM ({select}) LIMIT 0"
    connection.execute(create)
    some = " AND ".join(f"{_q(c)} IS NOT NULL" for c in table.entity)
    for point in grid(interval, definition.seconds(table.every or "")):
        connection.execute(f"SET VARIABLE h = make_timestamptz({point})")
        connection.execute(f"INSERT INTO {target} FROM ({select}) WHERE {some}")
    columns = [row[0] for row in connection.execute(f"DESCRIBE {target}").fetchall()]
    features = [c for c in columns if c not in (*table.entity, EVENT, CREATED)]
    return f"SELECT * FROM {target} ORDER BY ALL", dict.fromkeys(features, used)


def _expressions(
    connection: Any, table: definition.Table, name: str, source: sources.Table
) -> tuple[expressions.Expression, str, dict[str, expressions.Expression]]:
    what = f"table {name!r}"
    known = expressions.parse(connection, table.known_at or "", source.columns, f"{what}: known_at")
    where = table.where and expressions.parse(connection, table.where, source.columns, f"{what}: where").text
    aggregates = {
        a: expressions.parse(connection, text, source.columns, f"{what}: aggregates.{a}", aggregate=True)
        for a, text in table.aggregates.items()
    }
    return known, where or "", aggregates
