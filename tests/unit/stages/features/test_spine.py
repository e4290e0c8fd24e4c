from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.features import sources, spine
from airflow_ml_provider.stages.features.logic import View, whole
from airflow_ml_provider.stages.features.spec import Source, Spine

FLIGHT = Spine(
    source="flights",
    timestamp="scheduled_departure",
    key=("flight_id",),
    request={"hour": "hour(scheduled_departure)", "origin": "origin"},
    label="CASE WHEN status = 'arrived' THEN (arr_delay >= 15)::INT END",
    label_known_at="greatest(actual_arrival, corrected_at)",
)


@pytest.fixture
def rows(connection: Any, kit: SimpleNamespace) -> Callable[..., spine.Rows]:
    def opened(source: Source, offset: int = 0, of: Spine = FLIGHT) -> spine.Rows:
        return spine.Rows(connection, of, sources.open_source(connection, "flights", source, kit.day(offset)))

    return opened


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"request": {"d": "dep_delay"}},
            "spine.request.d uses 'dep_delay', which becomes known only at 'actual_departure'",
        ),
        ({"request": {"d": "coalesce(DEP_DELAY, 0) > 15"}}, "spine.request.d uses 'dep_delay'"),
        ({"where": "status <> 'cancelled'"}, "spine.where uses 'status', which becomes known only at 'recorded_at'"),
        ({"where": "actual_departure IS NOT NULL"}, "uses 'actual_departure'"),
        ({"request": {"v": "recorded_at"}}, "uses 'recorded_at'"),
        ({"request": {"v": "corrected_at IS NULL"}}, "uses 'corrected_at'"),
        ({"request": {"m": "(SELECT max(dep_delay) FROM flights)"}}, "a subquery"),
        ({"request": {"m": "count(*) OVER ()"}}, "a window function"),
        ({"timestamp": "actual_departure"}, "spine column 'actual_departure' uses 'actual_departure'"),
        ({"key": ("flight_id", "status")}, "spine column 'status' uses 'status'"),
        ({"key": ("fligth_id",)}, "did you mean 'flight_id'"),
        ({"key": ()}, "spine.key must name the columns"),
        ({"request": {"flight_id": "origin"}}, "column 'flight_id' would be in the output twice"),
        ({"request": {"label": "1"}}, "column 'label' would be in the output twice"),
    ],
)
def test_what_is_not_known_at_t_cannot_be_asked_for(
    rows: Any, flights: Callable[..., Source], kit: SimpleNamespace, change: dict[str, Any], message: str
) -> None:
    source = flights(day0=[kit.flight("a", kit.at("8:00"), 30, 60)])
    with pytest.raises(SpecError) as error:
        rows(source, of=replace(FLIGHT, **change))
    assert message in str(error.value)


def test_a_join_key_that_is_not_known_at_t(rows: Any, flights: Callable[..., Source], kit: SimpleNamespace) -> None:
    found = rows(flights(day0=[kit.flight("a", kit.at("8:00"), 30)]))
    view = View("v", "", "event", {"status": "status"}, {"x": "x"})
    with pytest.raises(SpecError, match="join key 'status' uses 'status'"):
        found.join_keys([whole(view)])
    with pytest.raises(SpecError, match="did you mean 'origin'"):
        found.join_keys([whole(replace(view, keys={"orign": "orign"}))])


def test_rows_of_an_interval(connection: Any, rows: Any, flights: Callable[..., Source], kit: SimpleNamespace) -> None:
    source = flights(
        day0=[
            kit.flight("a", kit.at("0:00"), 30, 60),
            kit.flight("b", kit.at("23:59")),
            kit.flight("c", kit.at("0", day=1)),
        ]
    )
    interval = kit.day()
    found = kit.fetch(
        connection, f"SELECT * FROM ({rows(source).at_t(interval.start, interval.end)}) ORDER BY flight_id"
    )
    assert found == [
        {"flight_id": "a", "event_timestamp": kit.at("0:00"), "hour": 0, "origin": "EWR"},
        {"flight_id": "b", "event_timestamp": kit.at("23:59"), "hour": 23, "origin": "EWR"},
    ]


def test_a_row_is_taken_in_the_version_of_its_time(
    connection: Any, rows: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    source = flights(
        day0=[kit.flight("a", kit.at("20:00"))],
        day1=[kit.flight("a", kit.at("20:00"), corrected=kit.at("9", day=1), origin="LGA")],
    )
    interval = kit.day()
    query = rows(source, 1).at_t(interval.start, interval.end)
    assert [row["origin"] for row in kit.fetch(connection, query)] == ["EWR"]


def labels(connection: Any, kit: SimpleNamespace, found: spine.Rows, offset: int) -> list[tuple[Any, ...]]:
    query = found.labels_known_in(kit.day(offset))
    return [
        (r["flight_id"], r["label"], r["label_known_at"]) for r in kit.fetch(connection, f"SELECT * FROM ({query})")
    ]


def test_labels_come_when_they_are_known_and_again_when_corrected(
    connection: Any, rows: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    fixed = kit.at("9:30", day=2)
    source = flights(
        day0=[
            kit.flight("ontime", kit.at("8:00"), 0, 14),
            kit.flight("late", kit.at("8:01"), 0, 15),
            kit.flight("night", kit.at("23:00"), 0),
            kit.flight("cancelled", kit.at("9:00"), status="cancelled"),
        ],
        day1=[kit.flight("night", kit.at("23:00"), 0, 40)],
        day2=[kit.flight("ontime", kit.at("8:00"), 0, 34, corrected=fixed)],
    )
    known = {0: [("ontime", 0, kit.at("10:14")), ("late", 1, kit.at("10:16"))],
             1: [("night", 1, kit.at("1:40", day=1))], 2: [("ontime", 1, fixed)]}  # fmt: skip
    for offset, expected in known.items():
        assert labels(connection, kit, rows(source, offset), offset) == expected


def test_an_outcome_that_was_superseded_before_the_end_of_the_interval_is_not_told(
    connection: Any, rows: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    """Whether the newer version withdrew it, or had come before it."""
    day = {"hours": 2, "corrected": kit.at("12:00")}
    withdrawn = kit.flight("a", kit.at("8:00"), 0, None, **day)
    newer, older = kit.flight("b", kit.at("8:00"), 0, 30, **day), kit.flight("b", kit.at("8:00"), 0, 10)
    source = flights(day0=[kit.flight("a", kit.at("8:00"), 0, 30), withdrawn, newer], day1=[older])
    assert labels(connection, kit, rows(source, 0), 0) == [("b", 1, kit.at("12:00"))]
    assert labels(connection, kit, rows(source, 1), 1) == []


def test_labels_as_of_a_moment(
    connection: Any, rows: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    fixed = kit.at("9:30", day=2)
    source = flights(
        day0=[kit.flight("a", kit.at("8:00"), 0, 14)],
        day2=[kit.flight("a", kit.at("8:00"), 0, 34, corrected=fixed)],
    )
    found = rows(source, 2)
    moments = [kit.at("10:13"), kit.at("10:14"), kit.at("9:29", day=2), fixed]
    seen = [[r["label"] for r in kit.fetch(connection, found.labels_as_of(moment))] for moment in moments]
    assert seen == [[], [0], [0], [1]]


def test_a_label_is_not_known_before_its_columns_are(
    connection: Any, rows: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    hasty = replace(FLIGHT, label_known_at="scheduled_departure")
    source = flights(day0=[kit.flight("a", kit.at("8:00"), 0, 14)])
    assert labels(connection, kit, rows(source, of=hasty), 0) == [("a", 0, kit.at("10:14"))]
