"""What a batch is like, counted by DuckDB: one scan for all counts, one more per column for distinct values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.stages.validate.logic import Counts
from airflow_ml_provider.stages.validate.spec import ProfileSpec
from airflow_ml_provider.tables import quote_name

_NUMBER = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\([0-9,]+\))\Z")
_TIME = re.compile(r"(DATE|TIMESTAMP[A-Z_ ]*)\Z")


@dataclass(frozen=True)
class Profile:
    """What was counted.

    Attributes:
        counts: per dimension.
        columns: column to `type`, `null_count`, `distinct_count` and, for numbers and times, `min` and `max`.
        details: dimension to what it is made of: per column, rule or key, how many are not as they should be.
    """

    counts: Counts
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    details: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def measure(connection: Any, spec: ProfileSpec, relation: str = "batch") -> Profile:
    """Return the profile of a relation of a DuckDB connection.

    Raises:
        SpecError: a predicate of the profile is not SQL over the relation's columns.
        DataError: a predicate fails on a value, such as a cast of a text that is no number.
    """
    import duckdb

    types = {row[0]: str(row[1]) for row in connection.execute(f"DESCRIBE {relation}").fetchall()}
    plan = _plan(spec, types)
    for key, expression in plan.items():
        if key[0] in ("accuracy", "consistency", "timeliness"):
            _probe(connection, relation, key, expression)
    try:
        row = connection.execute(f"SELECT {', '.join(plan.values())} FROM {relation}").fetchone()  # noqa: S608
        distinct = {name: _distinct(connection, relation, [name]) for name in types}
        keys = _distinct(connection, relation, spec.key) if set(spec.key) <= set(types) else 0
    except duckdb.Error as error:
        raise DataError(
            f"the profile cannot be measured: {error}; use TRY_CAST where a value may be malformed"
        ) from error
    found = dict(zip(plan, row))
    columns = {name: _column(name, kind, found, distinct[name]) for name, kind in types.items()}
    named = (*spec.required, *spec.valid, *spec.key, *filter(None, (spec.event_time, spec.known_time)))
    missing = tuple(dict.fromkeys(name for name in named if name not in types))
    return _summed(spec, found, columns, keys, missing)


def _plan(spec: ProfileSpec, types: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Return what the one scan counts: (what, of what) to an SQL aggregate."""
    plan = {("rows", ""): "count(*)"}
    for name, kind in types.items():
        plan["values", name] = f"count({quote_name(name)})"
        for end in ("min", "max"):
            if _NUMBER.match(kind):
                plan[end, name] = f"{end}({quote_name(name)})"
            elif _TIME.match(kind):  # as text: DuckDB hands out zoned times only where pytz is installed
                plan[end, name] = f"CAST({end}({quote_name(name)}) AS VARCHAR)"
    # The line breaks keep an SQL comment at the end of a predicate from swallowing what follows.
    for name, predicate in spec.valid.items():
        if name in types:
            plan["accuracy", name] = (
                f"count(*) FILTER (WHERE {quote_name(name)} IS NOT NULL AND CAST((\n{predicate}\n) AS BOOLEAN))"
            )
    for name, predicate in spec.rules.items():
        plan["consistency", name] = f"count(*) FILTER (WHERE CAST((\n{predicate}\n) AS BOOLEAN) IS FALSE)"
    if spec.event_time in types and spec.known_time in types:
        delay = f"epoch({quote_name(str(spec.known_time))}) - epoch({quote_name(str(spec.event_time))})"
        plan["timeliness", "late"] = f"count(*) FILTER (WHERE {delay} > {float(spec.max_delay_s)!r})"
        plan["timeliness", "timed"] = f"count({delay})"
    return plan


def _probe(connection: Any, relation: str, key: tuple[str, str], expression: str) -> None:
    import duckdb

    try:
        connection.execute(f"SELECT {expression} FROM (SELECT * FROM {relation} LIMIT 0)")  # noqa: S608
    except duckdb.Error as error:
        what = {"accuracy": "valid", "consistency": "rules", "timeliness": "event_time, known_time:"}[key[0]]
        raise SpecError(
            f"profile {what} {key[1]!r} is not SQL over the columns of the batch: {str(error).strip()}"
        ) from error


def _distinct(connection: Any, relation: str, names: Iterable[str]) -> int:
    columns = [quote_name(name) for name in names]
    if not columns:
        return 0
    complete = " AND ".join(f"{c} IS NOT NULL" for c in columns)
    query = f"SELECT count(*) FROM (SELECT DISTINCT {', '.join(columns)} FROM {relation} WHERE {complete})"  # noqa: S608
    return int(connection.execute(query).fetchone()[0])


def _column(name: str, kind: str, found: Mapping[tuple[str, str], Any], distinct: int) -> dict[str, Any]:
    nulls = found["rows", ""] - found["values", name]
    body: dict[str, Any] = {"type": kind, "null_count": nulls, "distinct_count": distinct}
    if ("min", name) in found and nulls < found["rows", ""]:
        for end in ("min", "max"):
            value = found[end, name]
            body[end] = float(value) if isinstance(value, Decimal) else value
    return body


def _summed(
    spec: ProfileSpec,
    found: Mapping[tuple[str, str], Any],
    columns: Mapping[str, Mapping[str, Any]],
    keys: int,
    missing: tuple[str, ...],
) -> Profile:
    rows = found["rows", ""]
    bad: dict[str, dict[str, int]] = {
        "completeness": {c: columns[c]["null_count"] if c in columns else rows for c in spec.required},
        "accuracy": {c: found["values", c] - found["accuracy", c] for c in spec.valid if c in columns},
        "consistency": {r: found["consistency", r] for r in spec.rules},
        "timeliness": {"late": found["timeliness", "late"]} if ("timeliness", "late") in found else {},
        "uniqueness": {", ".join(spec.key): rows - keys} if spec.key else {},
    }
    total = {
        "completeness": rows * len(spec.required),
        "accuracy": sum(found["values", c] for c in bad["accuracy"]),
        "consistency": rows * len(spec.rules),
        "timeliness": found.get(("timeliness", "timed"), 0),
        "uniqueness": rows if spec.key else 0,
    }
    good = {name: total[name] - sum(bad[name].values()) for name in total}
    details = {name: counts for name, counts in bad.items() if counts}
    return Profile(Counts(rows, good, total, missing), columns, details)
