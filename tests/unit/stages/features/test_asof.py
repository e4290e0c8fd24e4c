from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.stages.features import asof
from airflow_ml_provider.stages.features.logic import Pick, View, whole

TYPES = {"customer": "BIGINT", "event": "TIMESTAMPTZ", "created": "TIMESTAMPTZ", "value": "BIGINT"}
START = datetime(2023, 3, 1, tzinfo=timezone.utc)


def view(**change: Any) -> View:
    return View(**{"name": "v", "path": "", "event": "event", "created": "created", "keys": {"customer": "customer"},
                   "features": {"value": "value"}, **change})  # fmt: skip


@pytest.fixture
def lookup(connection: Any, write: Callable[..., Path]) -> Callable[..., list[Any]]:
    """Return a function that joins `(customer, t)` to `(customer, event, created, value)` and returns the values."""

    def join(
        rows: Sequence[tuple[Any, ...]], asked: Sequence[tuple[Any, datetime]], shown: View | None = None
    ) -> list[Any]:
        shown = shown or view()
        parts = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]  # two files, as a table of two days
        files = [
            write("v", f"part{i}", [dict(zip(TYPES, row, strict=True)) for row in part], TYPES) / f"interval=part{i}"
            for i, part in enumerate(parts)
        ]
        connection.execute("CREATE OR REPLACE TEMP TABLE asked (number INTEGER, customer BIGINT, t TIMESTAMPTZ)")
        for i, (customer, t) in enumerate(asked):
            connection.execute("INSERT INTO asked VALUES (?, ?, ?)", [i, customer, t])
        names = {"v": [folder / "data.parquet" for folder in files]}
        query = asof.join(connection, "asked", "t", [whole(shown)], names)
        return [value for (value,) in connection.execute(f"SELECT v__value FROM ({query}) ORDER BY number").fetchall()]

    return join


def test_textbook_case(lookup: Any) -> None:
    """A balance that was recorded only later must not be used, nor one that lies in the future."""

    def date(month: int, day: int) -> datetime:
        return datetime(2023, month, day, tzinfo=timezone.utc)

    rows = [
        (7, date(3, 29), date(3, 30), 1200),
        (7, date(3, 30), date(3, 31), 850),
        (7, date(4, 2), date(4, 3), 100),
        (9, date(4, 10), date(4, 11), 5400),
        (9, date(4, 18), date(4, 19), 5100),
    ]
    asked = [
        (7, date(3, 31)),
        (9, date(4, 15)),
        (7, date(3, 30)),
        (7, date(3, 29)),
        (8, date(4, 1)),
        (None, date(4, 1)),
    ]
    assert lookup(rows, asked) == [850, 5400, 1200, None, None, None]


def test_a_correction_counts_from_when_it_was_known(lookup: Any) -> None:
    day = [START + timedelta(days=i) for i in range(8)]
    rows = [(1, day[0], day[0], 10), (1, day[2], day[2], 20), (1, day[0], day[3], 11), (1, day[2], day[5], 21)]
    assert lookup(rows, [(1, day[i]) for i in range(7)]) == [10, 10, 20, 20, 20, 21, 21]


def test_time_to_live_is_inclusive(lookup: Any) -> None:
    asked = [(1, START + timedelta(seconds=s)) for s in (0, 60, 61)]
    assert lookup([(1, START, START, 5)], asked, view(ttl_s=60.0)) == [5, 5, None]


def test_rows_without_a_time_are_left_out(lookup: Any) -> None:
    assert lookup([(1, None, START, 1), (1, START, None, 2)], [(1, START)]) == [None]


def test_without_a_created_timestamp_the_event_decides(lookup: Any) -> None:
    late = START + timedelta(days=9)
    assert lookup([(1, START, late, 1)], [(1, START)], view(created=None)) == [1]


def test_of_equal_rows_the_newer_file_counts(lookup: Any) -> None:
    assert lookup([(1, START, START, 1), (1, START, START, 2)], [(1, START)]) == [2]


seconds = st.integers(0, 8)
history = st.lists(st.tuples(st.integers(1, 2), seconds, seconds), max_size=25)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history, st.sampled_from([0.0, 1.0, 3.0]))
@example([(1, 3, 0), (1, 1, 4), (1, 3, 5), (1, 0, 8)], 0.0)
def test_equals_brute_force(lookup: Any, drawn: list[tuple[int, int, int]], ttl_s: float) -> None:
    def moment(second: int) -> datetime:
        return START + timedelta(seconds=second)

    # Without ties in (event, created): which of two such rows counts is a matter of their place, tested above.
    unique = list(dict.fromkeys(drawn))
    rows = [(customer, moment(e), moment(c), i) for i, (customer, e, c) in enumerate(unique)]
    asked = [(customer, moment(s)) for customer in (1, 2, 3) for s in range(10)]
    expected = []
    for customer, t in asked:
        usable = [r for r in rows if r[0] == customer and r[1] <= t and r[2] <= t]
        usable = [r for r in usable if not ttl_s or r[1] + timedelta(seconds=ttl_s) >= t]
        expected.append(max(usable, key=lambda r: r[1:3])[3] if usable else None)
    assert lookup(rows, asked, view(ttl_s=ttl_s)) == expected


def test_several_views_other_key_names_and_declared_types(
    connection: Any, write: Callable[..., Path], kit: SimpleNamespace
) -> None:
    weather = {"airport": "VARCHAR", "event": "TIMESTAMPTZ", "warm": "INTEGER"}
    rows = [{"airport": a, "event": START, "warm": w} for a, w in (("EWR", 7), ("IAH", 25))]
    file = write("weather", "a", rows, weather) / "interval=a" / "data.parquet"
    shown = view(
        name="weather", created=None, keys={"airport": "airport"}, features={"temp": "warm"}, types={"temp": "FLOAT"}
    )
    picks = [
        Pick(shown, ("temp",), "here", {"airport": "origin"}),
        Pick(shown, ("temp",), "there", {"airport": "dest"}),
    ]
    connection.execute(
        "CREATE TEMP TABLE s AS SELECT 'x' AS id, 'EWR' AS origin, 'IAH' AS dest, "
        "TIMESTAMPTZ '2023-03-02 00:00:00Z' AS t"
    )
    query = asof.join(connection, "s", "t", picks, {"weather": [file]}, drop=["origin"])
    (row,) = kit.fetch(connection, query)
    assert row == {"id": "x", "dest": "IAH", "t": START + timedelta(days=1), "here__temp": 7.0, "there__temp": 25.0}
    types = {r[0]: r[1] for r in connection.execute(f"DESCRIBE {query}").fetchall()}
    assert types["here__temp"] == "FLOAT"


def test_no_rows_to_join_to(lookup: Any) -> None:
    assert lookup([(1, START, START, 1)], []) == []


def test_what_is_missing_is_named(connection: Any, write: Callable[..., Path]) -> None:
    file = write("v", "a", [], TYPES) / "interval=a" / "data.parquet"
    with pytest.raises(DataError, match=r"feature view 'v' has no data at .*; run the features stage first"):
        asof.relation(connection, view(), [])
    with pytest.raises(SpecError, match="did you mean 'value'"):
        asof.relation(connection, view(features={"f": "valeu"}), [file])
    connection.execute("CREATE TEMP TABLE s AS SELECT 1 AS custmer, TIMESTAMPTZ '2023-03-02 00:00:00Z' AS t")
    with pytest.raises(SpecError, match="did you mean 'custmer'"):
        asof.join(connection, "s", "t", [whole(view())], {"v": [file]})
