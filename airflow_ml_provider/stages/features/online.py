"""The online store: newest values go in, older ones never do, and what is in it is compared with the tables."""

# ruff: noqa: S608 - the SQL is made of quoted names and of expressions from the user's own repository

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timezone
from pathlib import Path
from typing import Any

from airflow_ml_provider import tables
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features import asof, logic
from airflow_ml_provider.stages.features.asof import AVAIL, EVENT
from airflow_ml_provider.stages.features.logic import View, ViewSkew
from airflow_ml_provider.stages.features.repository import Session
from airflow_ml_provider.stages.features.sources import micros, since

PAGE = 2000
COMPARED = 2000
_q = tables.quote_name


def materialise(
    connection: Any, session: Session, view: View, own: Sequence[Path], files: Sequence[Path], interval: Interval
) -> int:
    """Write the newest values of the entities that an interval updated; return how many entities that were.

    The value that goes in is the newest one of all intervals up to the newest that was materialised, so running an
    old interval again, in whatever order, leaves the store as it should be. A value that somebody else wrote for a
    later moment stays. Pages of 2,000 entities bound the memory.

    Parameters:
        own: the interval's own files of the view.
        files: the view's files of all intervals up to the newest that was materialised.
    """
    newest = session.newest(view.name, interval)
    keys = ", ".join(map(_q, view.keys))
    updated, count, oldest = _updated(connection, view, own, interval)
    if count:
        event = f"CAST({_q(view.event)} AS TIMESTAMPTZ)"
        kept = since(files, oldest) if view.table else files
        rows = asof.relation(connection, view, kept, f"{event} >= make_timestamptz({oldest})")
        mine = f"SELECT * FROM ({rows}) SEMI JOIN {updated} USING ({keys}) "
        mine += f"WHERE {AVAIL} <= make_timestamptz({micros(newest)})"
        names = [*map(_q, view.features), f"{EVENT} AS {_q(view.event)}"]
        names += [f"__created AS {_q(view.created)}"] if view.created else []
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE __newest AS SELECT {keys}, {', '.join(names)}, "
            f"row_number() OVER (ORDER BY {keys}) AS __number FROM ({asof.latest(mine, view.keys)})"
        )
        _write(connection, session, view)
    session.record(view.name, interval)
    return count


def skew(
    connection: Any, session: Session, view: View, own: Sequence[Path], files: Sequence[Path], interval: Interval
) -> ViewSkew:
    """Compare online values with the as-of values at the end of the interval, for the entities that it updated.

    At most 2,000 entities are compared, chosen by a hash of their keys. The time to live is left out on both sides:
    the online store keeps a value until a newer one comes.
    """
    updated, count, oldest = _updated(connection, view, own, interval)
    keys, names = list(view.keys), list(view.features)
    kept = since(files, oldest) if view.table else files
    select = ", ".join(map(_q, keys))
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE __compared AS SELECT {select}, make_timestamptz({micros(interval.end)}) AS __t "
        f"FROM {updated} ORDER BY md5(concat_ws('|', {select})), {select} LIMIT {COMPARED}"
    )
    pick = logic.Pick(replace(view, ttl_s=0.0), tuple(names), view.name, {key: key for key in keys})
    query = asof.join(connection, "__compared", "__t", [pick], {view.name: kept})
    wanted = ", ".join([select, *(f"{_q(c)} AS {_q(f)}" for c, f in pick.columns().items())])
    rows = connection.execute(f"SELECT {wanted} FROM ({query}) ORDER BY {select}").fetchall()
    offline = [dict(zip((*keys, *names), row)) for row in rows]
    online: Mapping[str, Sequence[Any]] = {name: [] for name in names}
    if offline:
        entities = [{key: row[key] for key in keys} for row in offline]
        features = [f"{view.name}:{name}" for name in names]
        online = session.store.get_online_features(features=features, entity_rows=entities).to_dict()
    return logic.compare(keys, names, offline, online, count)


def _updated(connection: Any, view: View, own: Sequence[Path], interval: Interval) -> tuple[str, int, int]:
    """Fill a table with the entities that an interval updated.

    Return its name, how many there are, and a moment (microseconds since 1970) that no older event can be the newest
    one of any of them.
    """
    keys = ", ".join(map(_q, view.keys))
    within = "true"
    if view.table is None:
        within = f"{AVAIL} >= make_timestamptz({micros(interval.start)})"
        within += f" AND {AVAIL} < make_timestamptz({micros(interval.end)})"
    rows = asof.relation(connection, view, own)
    some = " AND ".join(f"{_q(key)} IS NOT NULL" for key in view.keys)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE __updated AS SELECT {keys}, max({EVENT}) AS newest FROM ({rows}) "
        f"WHERE {within} AND {some} GROUP BY ALL"
    )
    ends = "SELECT count(*), coalesce(epoch_us(min(newest)), 0) FROM __updated"
    count, oldest = connection.execute(ends).fetchall()[0]
    return "__updated", int(count), int(oldest)


def _write(connection: Any, session: Session, view: View) -> None:
    from feast.utils import _convert_arrow_to_proto

    store = session.store
    feature_view = store.get_feature_view(view.name)
    join_keys = {column.name: column.dtype.to_value_type() for column in feature_view.entity_columns}
    provider = store._get_provider()
    total = connection.execute("SELECT count(*) FROM __newest").fetchall()[0][0]
    for first in range(1, total + 1, PAGE):
        page = f"SELECT * EXCLUDE (__number) FROM __newest WHERE __number BETWEEN {first} AND {first + PAGE - 1}"
        table = connection.sql(f"{page} ORDER BY __number").to_arrow_table().combine_chunks()
        rows = _convert_arrow_to_proto(table, feature_view, join_keys)
        there = provider.online_read(store.config, feature_view, [row[0] for row in rows])
        fresh = [row for row, (moment, _) in zip(rows, there) if moment is None or _naive(moment) <= _naive(row[2])]
        provider.online_write_batch(store.config, feature_view, fresh, None)


def _naive(moment: Any) -> Any:
    """Return a time as Feast keeps it, UTC without a zone."""
    return moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment
