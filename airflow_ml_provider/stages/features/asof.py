"""The exact as-of join: for every row the feature values that were known at its moment. One pass, any density.

A feature row (event e, created c) may be used at t when e <= t and c <= t, that is from avail = max(e, c) on. Of the
usable rows the one with the greatest (e, c) counts. Read in order of avail, a row whose e is below an earlier one's
can never be that one, so it is dropped; of rows with equal avail the greatest (e, c) is kept. What remains is
increasing in e, and one plain as-of join on avail is exact. A time to live is applied afterwards: if the newest event
is too old, all others are. The join Feast offers by default compares e alone and so uses values before they were
known.
"""

# ruff: noqa: S608 - the SQL is made of quoted names and of expressions from the user's own repository

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError, unknown_name
from airflow_ml_provider.stages.features.logic import Pick, View
from airflow_ml_provider.stages.features.sources import since

AVAIL, EVENT, ROW = "__avail", "__event", "__row"
_q = tables.quote_name


def relation(connection: Any, view: View, files: Sequence[Path], where: str = "true") -> str:
    """Return SQL for the rows of a view: its join keys, features in the types it declares, and the row's times.

    `__event`, `__created` and `__avail` are the two timestamps and the later of them; `__row` says where the row
    stands, newer partitions sorting last. Rows that lack a time are left out.

    Raises:
        DataError: there are no files.
        SpecError: the files lack a column that the view declares.
    """
    if not files:
        raise DataError(f"feature view {view.name!r} has no data at {view.path}; run the features stage first")
    names = ", ".join(tables.quote(str(path)) for path in files)
    read = f"read_parquet([{names}], union_by_name = true, hive_partitioning = false)"
    found = {row[0] for row in connection.execute(f"DESCRIBE FROM {read}").fetchall()}
    needed = [*view.keys.values(), view.event, *([view.created] if view.created else []), *view.features.values()]
    for column in needed:
        if column not in found:
            raise unknown_name(f"column that feature view {view.name!r} declares:", column, found)
    event = f"CAST({_q(view.event)} AS TIMESTAMPTZ)"
    created = f"CAST({_q(view.created)} AS TIMESTAMPTZ)" if view.created else event
    columns = [f"{_q(column)} AS {_q(key)}" for key, column in view.keys.items()]
    for feature, column in view.features.items():
        cast = f"CAST({_q(column)} AS {view.types[feature]})" if feature in view.types else _q(column)
        columns.append(f"{cast} AS {_q(feature)}")
    columns += [f"{event} AS {EVENT}", f"{created} AS __created", f"greatest({event}, {created}) AS {AVAIL}"]
    columns.append(f"file_index::BIGINT * {1 << 40} + file_row_number AS {ROW}")
    return f"SELECT {', '.join(columns)} FROM {read} WHERE {event} IS NOT NULL AND {created} IS NOT NULL AND ({where})"


def history(rows: str, keys: Iterable[str]) -> str:
    """Return SQL for the rows of `rows` that are ever the answer, each from its `__avail` on."""
    partition = ", ".join(map(_q, keys))
    return (
        f"SELECT * FROM ({rows}) "
        f"WINDOW w AS (PARTITION BY {partition} ORDER BY {AVAIL}, {EVENT}, __created, {ROW}) "
        f"QUALIFY {EVENT} >= max({EVENT}) OVER w AND lead({AVAIL}) OVER w IS DISTINCT FROM {AVAIL}"
    )


def join(
    connection: Any,
    spine: str,
    moment: str,
    picks: Sequence[Pick],
    files: Mapping[str, Sequence[Path]],
    drop: Sequence[str] = (),
) -> str:
    """Return SQL for the rows of `spine` with the features of `picks` as they were known at the column `moment`.

    Parameters:
        connection: DuckDB connection on which `spine` exists.
        spine: SQL name of a table.
        moment: its TIMESTAMPTZ column with t.
        picks: what to join; output columns are `ALIAS__FEATURE`, null where nothing is known or it is too old.
        files: view name to the files that may be seen.
        drop: columns of the spine that only serve the join.

    Raises:
        DataError: a view has no files.
        SpecError: the spine or a view lacks a column.
    """
    ends = f"SELECT epoch_us(min({_q(moment)})), epoch_us(max({_q(moment)})) FROM {spine}"
    first, last = connection.execute(ends).fetchall()[0]
    have = [row[0] for row in connection.execute(f"DESCRIBE {spine}").fetchall()]
    select, joins = [f"s.{_q(c)}" for c in have if c not in drop], ""
    for i, pick in enumerate(picks):
        for column in pick.keys.values():
            if column not in have:
                raise unknown_name(f"join key of feature view {pick.view.name!r} in the spine:", column, have)
        keys = ", ".join(f"{_q(c)} AS {_q(key)}" for key, c in pick.keys.items())
        using = ", ".join(map(_q, pick.keys))
        rows = relation(connection, pick.view, *_bounds(pick.view, files[pick.view.name], first, last))
        known = f"FROM ({rows}) SEMI JOIN (SELECT DISTINCT {keys} FROM {spine}) USING ({using})"
        on = " AND ".join(f"s.{_q(c)} = f{i}.{_q(key)}" for key, c in pick.keys.items())
        joins += f"\nASOF LEFT JOIN ({history(known, pick.keys)}) f{i} ON {on} AND s.{_q(moment)} >= f{i}.{AVAIL}"
        fresh = _fresh(f"s.{_q(moment)}", f"f{i}.{EVENT}", pick.view.ttl_s)
        for column, feature in pick.columns().items():
            value = f"f{i}.{_q(feature)}"
            select.append(
                f"CASE WHEN {fresh} THEN {value} END AS {_q(column)}" if fresh else f"{value} AS {_q(column)}"
            )
    return f"SELECT {', '.join(select)}\nFROM {spine} s{joins}"


def latest(rows: str, keys: Iterable[str]) -> str:
    """Return SQL for the newest row of each entity in `rows`."""
    partition = ", ".join(map(_q, keys))
    order = f"{EVENT} DESC, __created DESC, {ROW} DESC"
    return f"SELECT * FROM ({rows}) QUALIFY row_number() OVER (PARTITION BY {partition} ORDER BY {order}) = 1"


def _bounds(view: View, files: Sequence[Path], first: Optional[int], last: Optional[int]) -> tuple[Sequence[Path], str]:
    """Return the files and the predicate for rows that can matter between two moments."""
    if first is None or last is None:
        return files[-1:], "false"
    event = f"CAST({_q(view.event)} AS TIMESTAMPTZ)"
    if not view.ttl_s:
        return files, f"{event} <= make_timestamptz({last})"
    oldest = first - round(view.ttl_s * 1e6)
    recent = (since(files, oldest) or files[-1:]) if view.table else files
    return recent, f"{event} BETWEEN make_timestamptz({oldest}) AND make_timestamptz({last})"


def _fresh(moment: str, event: str, ttl_s: float) -> Optional[str]:
    return f"epoch_us({moment}) - epoch_us({event}) <= {round(ttl_s * 1e6)}" if ttl_s else None
