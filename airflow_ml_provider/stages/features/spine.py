"""The rows that predictions are made for, and their labels, as SQL. What is known only later cannot get in."""

# ruff: noqa: S608 - the SQL is made of quoted names and of expressions from the user's own repository

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Optional

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import SpecError, unknown_name
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features import expressions, sources
from airflow_ml_provider.stages.features.definition import EVENT
from airflow_ml_provider.stages.features.logic import Pick, check_columns
from airflow_ml_provider.stages.features.rows import became_known, known_by, timestamp
from airflow_ml_provider.stages.features.sources import FROM, PART, ROW, UNTIL
from airflow_ml_provider.stages.features.spec import Spine
from airflow_ml_provider.stages.features.windows import Lineage

LABEL, KNOWN = "label", "label_known_at"
_q = tables.quote_name


class Rows:
    """The spine of a spec over its opened source.

    Parameters:
        connection: DuckDB connection with the source.
        spine: what the rows are.
        source: the opened source.

    Raises:
        SpecError: an expression is wrong or uses what is not known at t.
    """

    def __init__(self, connection: Any, spine: Spine, source: sources.Table) -> None:
        self.spine, self.source = spine, source
        for name in (spine.timestamp, *spine.key):
            if name not in source.columns:
                raise unknown_name(f"column in source {source.name!r}:", name, source.columns)
            sources.refuse_late(source, (name,), f"spine column {name!r}", spine.timestamp)
        if not spine.key:
            raise SpecError("spine.key must name the columns that identify a prediction")
        check_columns([*spine.key, EVENT, *spine.request, LABEL])
        self.request = {n: self._known_at_t(connection, e, f"spine.request.{n}") for n, e in spine.request.items()}
        self.where = self._known_at_t(connection, spine.where, "spine.where") if spine.where else None
        self.label = self.known = None
        if spine.label and spine.label_known_at:
            self.label = expressions.parse(connection, spine.label, source.columns, "spine.label")
            self.known = expressions.parse(connection, spine.label_known_at, source.columns, "spine.label_known_at")

    def columns(self) -> tuple[str, ...]:
        """Return the output columns before the features."""
        return (*self.spine.key, EVENT, *self.spine.request)

    def lineage(self) -> Lineage:
        """Return where key, timestamp and request columns come from."""
        name, moment = self.source.name, self.spine.timestamp
        plain = {key: [(name, key)] for key in self.spine.key}
        return {
            **plain,
            EVENT: [(name, moment)],
            **{n: [(name, c) for c in e.columns] for n, e in self.request.items()},
        }

    def join_keys(self, picks: Iterable[Pick]) -> list[str]:
        """Return the source columns that the joins need and the output does not have; they must be known at t."""
        needed = dict.fromkeys(column for pick in picks for column in pick.keys.values())
        found = [column for column in needed if column not in self.columns()]
        for column in found:
            if column not in self.source.columns:
                raise unknown_name("join key in the spine:", column, (*self.columns(), *self.source.early))
            sources.refuse_late(self.source, (column,), f"join key {column!r}", self.spine.timestamp)
        return found

    def at_t(self, since: Optional[Any], until: Any, extra: Iterable[str] = ()) -> str:
        """Return SQL for the rows with t in [since, until), each in the version that was the newest at t."""
        t = f"CAST({_q(self.spine.timestamp)} AS TIMESTAMPTZ)"
        window = f"{t} < {timestamp(until)}" + (f" AND {t} >= {timestamp(since)}" if since else "")
        early = ", ".join(map(_q, self.source.early))
        rows = f"SELECT {early} FROM ({sources.versions(self.source, window)}) WHERE {window} AND {FROM} < {t}"
        rows += f" AND {t} <= {UNTIL}"
        body = [*(_q(key) for key in self.spine.key), f"{t} AS {EVENT}"]
        body += [f"{e.text} AS {_q(name)}" for name, e in self.request.items()]
        body += [_q(column) for column in extra]
        return f"SELECT {', '.join(body)} FROM ({rows})" + (f" WHERE {self.where.text}" if self.where else "")

    def labels_known_in(self, interval: Interval) -> str:
        """Return SQL for the outcomes that became known during an interval, whatever their t; corrected ones again.

        One that was corrected or withdrawn before the interval's end is not told.
        """
        keys, end = ", ".join(map(_q, self.spine.key)), timestamp(interval.end)
        newest = f"SELECT * FROM ({sources.versions(self.source)}) WHERE {FROM} < {end} AND {end} <= {UNTIL}"
        inner = self._labelled(newest, f", {PART}, {ROW}, {self._version()} AS __version")
        return (
            f"SELECT {keys}, {EVENT}, {LABEL}, {KNOWN} FROM ({inner}) "
            f"WHERE {LABEL} IS NOT NULL AND {became_known(KNOWN, self.source, interval)} "
            f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY __version DESC, {PART} DESC, {ROW} DESC) = 1 "
            f"ORDER BY {EVENT}, {keys}"
        )

    def labels_as_of(self, moment: Any) -> str:
        """Return SQL for the outcomes known at a moment, each in the version that was the newest by then."""
        now = timestamp(moment)
        keys = ", ".join(map(_q, self.spine.key))
        newest = f"SELECT * FROM ({sources.versions(self.source)}) WHERE {FROM} <= {now} AND {now} < {UNTIL}"
        return f"SELECT {keys}, {EVENT}, {LABEL}, {KNOWN} FROM ({self._labelled(newest, '')}) WHERE {KNOWN} <= {now}"

    def label_lineage(self) -> Lineage:
        """Return where label and label_known_at come from."""
        parts: Mapping[str, Optional[expressions.Expression]] = {LABEL: self.label, KNOWN: self.known}
        return {name: [(self.source.name, c) for c in e.columns] for name, e in parts.items() if e}

    def _labelled(self, rows: str, extra: str) -> str:
        if self.label is None or self.known is None:
            raise SpecError("labels need spine.label and spine.label_known_at")
        keys = ", ".join(map(_q, self.spine.key))
        known = known_by(self.source, self.label.columns, f"CAST({self.known.text} AS TIMESTAMPTZ)")
        t = f"CAST({_q(self.spine.timestamp)} AS TIMESTAMPTZ)"
        where = f" WHERE {self.where.text}" if self.where else ""
        return (
            f"SELECT {keys}, {t} AS {EVENT}, CAST({self.label.text} AS INTEGER) AS {LABEL}, {known} AS {KNOWN}{extra} "
            f"FROM ({rows}){where}"
        )

    def _version(self) -> str:
        return _q(self.source.source.version) if self.source.source.version else "0"

    def _known_at_t(self, connection: Any, text: str, what: str) -> expressions.Expression:
        expression = expressions.parse(connection, text, self.source.columns, what)
        sources.refuse_late(self.source, expression.columns, what, self.spine.timestamp)
        return expression
