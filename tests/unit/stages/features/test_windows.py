from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features import definition, sources, windows
from airflow_ml_provider.stages.features.spec import Source

TABLE = {
    "source": "flights", "entity": ["origin"], "known_at": "actual_departure", "every": "1h", "windows": ["3h"],
    "aggregates": {"mean": "avg(dep_delay)", "n": "count(*)"},
}  # fmt: skip


@pytest.fixture
def rolling(connection: Any, kit: SimpleNamespace) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that computes a rolling table of one day; keys are (entity, hour)."""

    def compute(source: Source, interval: Interval | None = None, **change: Any) -> dict[tuple[str, str], Any]:
        interval = interval or kit.day()
        table = definition.parse({"tables": {"t": {**TABLE, **change}}}).tables["t"]
        opened = sources.open_source(connection, "flights", source, interval)
        query, _ = windows.rolling(connection, table, "t", opened, interval)
        rows = kit.fetch(connection, f"SELECT * FROM ({query})")
        assert all(row["event_timestamp"] == row.pop("created_timestamp") for row in rows)
        return {(row.pop("origin"), f"{row.pop('event_timestamp'):%H:%M}"): row for row in rows}

    return compute


def test_rolling_means_by_hand(rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace) -> None:
    source = flights(
        day0=[
            kit.flight("a", kit.at("8:00"), 30),  # known at 8:30
            kit.flight("b", kit.at("9:00"), 60),  # known at 10:00
            kit.flight("c", kit.at("11:00")),  # has not left
        ]
    )
    rows = rolling(source)
    assert rows == {
        ("EWR", "09:00"): {"mean_3h": 30.0, "n_3h": 1},
        ("EWR", "10:00"): {"mean_3h": 30.0, "n_3h": 1},  # b left at 10:00, not before
        ("EWR", "11:00"): {"mean_3h": 45.0, "n_3h": 2},
        ("EWR", "12:00"): {"mean_3h": 60.0, "n_3h": 1},  # a, known at 8:30, has left the window [9:00, 12:00)
        ("EWR", "13:00"): {"mean_3h": 60.0, "n_3h": 1},
        ("EWR", "14:00"): {"mean_3h": None, "n_3h": 0},  # the empty row that ends the history
    }


def test_window_includes_its_beginning_and_not_its_end(
    rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    rows = rolling(flights(day0=[kit.flight("a", kit.at("9:00"), 0)]))
    assert ("EWR", "09:00") not in rows
    assert rows[("EWR", "12:00")]["n_3h"] == 1
    assert rows[("EWR", "13:00")]["n_3h"] == 0
    assert ("EWR", "14:00") not in rows


def test_windows_reach_back_into_earlier_days_and_end_with_the_interval(
    rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    source = flights(
        day0=[kit.flight("a", kit.at("23:00"), 10)],
        day1=[kit.flight("b", kit.at("23:00", day=1), 20)],
    )
    rows = rolling(source, kit.day(1), windows=["3h", "1d"])
    assert len(rows) == 24
    assert rows[("EWR", "00:00")] == {"mean_3h": 10.0, "n_3h": 1, "mean_1d": 10.0, "n_1d": 1}
    assert rows[("EWR", "22:00")] == {"mean_3h": None, "n_3h": 0, "mean_1d": 10.0, "n_1d": 1}


def test_a_value_that_is_not_known_yet_is_blank_whatever_the_window_is_about(
    rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    """The window is by schedule; the delay of a flight that has not left by then is not in it, its row is."""
    source = flights(day0=[kit.flight("a", kit.at("8:30"), 0), kit.flight("b", kit.at("8:45"), 120)])
    rows = rolling(source, known_at="scheduled_departure", where="dep_delay IS NULL OR dep_delay < 1000")
    assert rows[("EWR", "09:00")] == {"mean_3h": 0.0, "n_3h": 2}
    assert rows[("EWR", "10:00")] == {"mean_3h": 0.0, "n_3h": 2}
    assert rows[("EWR", "11:00")] == {"mean_3h": 60.0, "n_3h": 2}


def test_where_sees_nothing_that_is_known_later(
    rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    source = flights(day0=[kit.flight("a", kit.at("8:30"), 120)])
    rows = rolling(source, known_at="scheduled_departure", where="dep_delay > 60")
    counts = {clock: row["n_3h"] for (_, clock), row in rows.items()}
    assert counts == {"09:00": 0, "10:00": 0, "11:00": 1, "12:00": 0}


def test_of_a_corrected_row_each_grid_point_sees_the_version_of_its_time(
    rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    arrivals = {"known_at": "actual_arrival", "windows": ["7d"], "aggregates": {"mean": "avg(arr_delay)"}}
    source = flights(
        day0=[kit.flight("a", kit.at("8:00"), 0, 10)],
        day2=[kit.flight("a", kit.at("8:00"), 0, 30, corrected=kit.at("9:30", day=2))],
    )
    rows = rolling(source, kit.day(2), **arrivals)
    means = {clock: row["mean_7d"] for (_, clock), row in rows.items()}
    assert set(list(means.values())[:10]) == {10.0}  # up to 9:00
    assert set(list(means.values())[10:]) == {30.0}
    assert {row["mean_7d"] for row in rolling(source, kit.day(1), **arrivals).values()} == {10.0}


def test_rows_without_an_entity_are_left_out(
    rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    assert rolling(flights(day0=[kit.flight("a", kit.at("8:00"), 0, origin=None)])) == {}


def test_an_interval_without_rows(rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace) -> None:
    assert rolling(flights(day0=[])) == {}


def test_an_interval_without_a_grid_point(rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace) -> None:
    minutes = Interval.of(kit.at("8:05"), kit.at("8:35"))
    assert (
        rolling(flights(day0=[kit.flight("a", kit.at("8:00"), 0)]), Interval(minutes.start, minutes.end, "2013-01-10"))
        == {}
    )


def test_unknown_entity_column(rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace) -> None:
    with pytest.raises(SpecError, match="entity column 'airport' is not in source 'flights'"):
        rolling(flights(day0=[]), entity=["airport"])


versions = st.lists(
    st.tuples(
        st.sampled_from("abcd"),  # flight
        st.sampled_from(["EWR", "JFK"]),
        st.integers(0, 47),  # departure: half hours from the 9th
        st.one_of(st.none(), st.integers(-1, 6)),  # delay in half hours
        st.one_of(st.none(), st.integers(0, 95)),  # corrected at: half hours from the 9th
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(versions)
def test_equals_a_brute_force_reading_of_the_definition(
    rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace, drawn: list[tuple[Any, ...]]
) -> None:
    half, start = timedelta(minutes=30), kit.at("0", day=-1)
    rows = [
        kit.flight(
            name,
            start + half * leaves,
            None if delay is None else 30 * delay,
            origin=origin,
            corrected=None if corrected is None else start + half * corrected,
            recorded_at=start + timedelta(seconds=i),
        )
        for i, (name, origin, leaves, delay, corrected) in enumerate(drawn)
    ]
    found = rolling(flights(day0=rows), windows=["1h", "5h"])
    assert found == brute_force(rows, kit.day())


def brute_force(rows: list[dict[str, Any]], interval: Interval) -> dict[tuple[str, str], dict[str, Any]]:
    """Compute the rolling table as the definition reads."""
    expected = {}
    for hour in range(24):
        h = interval.start + timedelta(hours=hour)
        known: dict[str, dict[str, Any]] = {}
        for row in rows:  # in order of their version
            if row["corrected_at"] is None or row["corrected_at"] < h:
                known[row["flight_id"]] = row
        left = [row for row in known.values() if row["actual_departure"] and row["actual_departure"] < h]
        for origin in ("EWR", "JFK"):
            here = [row for row in left if row["origin"] == origin]
            if not any(h - timedelta(hours=6) <= left < h for left in ever(rows, origin, h)):
                continue
            line: dict[str, Any] = {}
            for length in (1, 5):
                inside = [r["dep_delay"] for r in here if r["actual_departure"] >= h - timedelta(hours=length)]
                line[f"mean_{length}h"] = sum(inside) / len(inside) if inside else None
                line[f"n_{length}h"] = len(inside)
            expected[(origin, f"{h:%H:%M}")] = line
    return expected


def ever(rows: list[dict[str, Any]], origin: str, h: datetime) -> list[datetime]:
    """Return the departures from an origin by all versions that counted before h for some time, also withdrawn ones."""
    found = []
    for i, row in enumerate(rows):
        newer = [r["corrected_at"] for r in rows[i + 1 :] if r["flight_id"] == row["flight_id"]]
        since = row["corrected_at"]
        superseded = any(moment is None or (since and moment <= since) for moment in newer)
        if row["actual_departure"] and row["origin"] == origin and not superseded and (since is None or since < h):
            found.append(row["actual_departure"])
    return found


def test_a_withdrawn_row_leaves_an_empty_window_behind(
    rolling: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    """Without a row that says so, an as-of join would find the value from before the correction."""
    fixed = kit.at("10:30")
    withdrawn = kit.flight("a", kit.at("9:00"), corrected=fixed)
    moved = kit.flight("b", kit.at("9:00"), 20, corrected=fixed, origin="JFK")
    first = [kit.flight("a", kit.at("9:00"), 10), kit.flight("b", kit.at("9:00"), 20)]
    rows = rolling(flights(day0=[*first, withdrawn, moved]), windows=["3h"])
    at_ewr = {clock: (row["n_3h"], row["mean_3h"]) for (origin, clock), row in rows.items() if origin == "EWR"}
    assert at_ewr["10:00"] == (2, 15.0)
    assert at_ewr["11:00"] == (0, None)
    assert rows["JFK", "11:00"]["n_3h"] == 1


@pytest.fixture
def snapshot(connection: Any, kit: SimpleNamespace) -> Callable[..., list[dict[str, Any]]]:
    def compute(source: Source, sql: str, every: str = "1h", entity: str = "origin") -> list[dict[str, Any]]:
        table = definition.parse({"tables": {"t": {"sql": sql, "entity": [entity], "every": every}}}).tables["t"]
        opened = sources.open_all(connection, {"flights": source}, kit.day())
        query, lineage = windows.snapshot(connection, table, "t", opened, kit.day())
        rows = kit.fetch(connection, f"SELECT * FROM ({query})")
        return [{**row, "lineage": lineage} for row in rows]

    return compute


def test_a_snapshot_sees_the_sources_as_they_were(
    snapshot: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    source = flights(day0=[kit.flight("a", kit.at("8:00"), 30), kit.flight("b", kit.at("9:00"), 60)])
    rows = snapshot(source, "SELECT origin, max(dep_delay) AS worst FROM flights GROUP BY origin", every="2h")
    worst = {f"{row['event_timestamp']:%H}": row["worst"] for row in rows}
    assert worst == {**dict.fromkeys(["00", "02", "04", "06", "08"]), "10": 30,
                     **dict.fromkeys(["12", "14", "16", "18", "20", "22"], 60)}  # fmt: skip
    assert rows[0]["lineage"] == {"worst": [("flights", "origin"), ("flights", "dep_delay")]}
    assert all(row["event_timestamp"] == row["created_timestamp"] for row in rows)


def test_a_snapshot_can_name_its_grid_point(
    snapshot: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    sql = """
        SELECT origin, avg(dep_delay) AS mean_3h, count(*) AS n_3h FROM flights
        WHERE actual_departure >= getvariable('h') - INTERVAL 3 HOURS GROUP BY origin
    """
    rows = snapshot(flights(day0=[kit.flight("a", kit.at("8:00"), 30), kit.flight("b", kit.at("9:00"), 60)]), sql)
    assert {f"{r['event_timestamp']:%H:%M}": (r["mean_3h"], r["n_3h"]) for r in rows} == {
        "09:00": (30.0, 1), "10:00": (30.0, 1), "11:00": (45.0, 2), "12:00": (60.0, 1), "13:00": (60.0, 1),
    }  # fmt: skip


def test_a_snapshot_cannot_ask_the_clock(snapshot: Any, flights: Callable[..., Source], kit: SimpleNamespace) -> None:
    sql = "SELECT origin, count(*) AS n FROM flights WHERE scheduled_departure < now() GROUP BY origin"
    with pytest.raises(SpecError, match=r"table 't': sql must give the same whenever it runs, got now\(\)"):
        snapshot(flights(day0=[kit.flight("a", kit.at("8:00"), 30)]), sql)


def test_grid_points_are_multiples_since_1970(kit: SimpleNamespace) -> None:
    assert len(windows.grid(kit.day(), 3600)) == 24
    half = windows.grid(Interval(kit.at("8:05"), kit.at("9:00"), "x"), 1800)
    assert [datetime.fromtimestamp(us / 1e6, kit.at("0").tzinfo) for us in half] == [kit.at("8:30")]
