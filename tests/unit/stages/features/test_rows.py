from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.features import definition, rows, sources
from airflow_ml_provider.stages.features.spec import Source

LAST_LEG = {
    "source": "flights",
    "entity": ["origin"],
    "columns": {"delay": "arr_delay"},
    "event_timestamp": "actual_arrival",
}


@pytest.fixture
def plain(connection: Any, kit: SimpleNamespace) -> Callable[..., list[dict[str, Any]]]:
    def compute(source: Source, offset: int = 0, **change: Any) -> list[dict[str, Any]]:
        table = definition.parse({"tables": {"t": {**LAST_LEG, **change}}}).tables["t"]
        opened = sources.open_source(connection, "flights", source, kit.day(offset))
        query, _ = rows.query(connection, table, "t", opened, kit.day(offset))
        return kit.fetch(connection, f"SELECT * FROM ({query})")

    return compute


def test_a_value_counts_from_when_it_was_known(
    plain: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    source = flights(day0=[kit.flight("a", kit.at("8:00"), 0, 30), kit.flight("b", kit.at("9:00"), 0)])
    landed = kit.at("10:30")
    assert plain(source) == [{"origin": "EWR", "event_timestamp": landed, "created_timestamp": landed, "delay": 30}]


def test_a_correction_is_a_further_row_that_was_known_later(
    plain: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    corrected = kit.at("9:30", day=2)
    source = flights(
        day0=[kit.flight("a", kit.at("8:00"), 0, 30)],
        day2=[{**kit.flight("a", kit.at("8:00"), 0, 30, corrected=corrected), "arr_delay": 50}],
    )
    assert [row["delay"] for row in plain(source)] == [30]
    assert plain(source, 1) == []
    (late,) = plain(source, 2)
    assert (late["event_timestamp"], late["created_timestamp"], late["delay"]) == (kit.at("10:30"), corrected, 50)


def test_every_row_belongs_to_exactly_one_interval(
    plain: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    """Known on its day; known after its day; delivered a day late."""
    source = flights(
        day0=[kit.flight("a", kit.at("8:00"), 0, 1), kit.flight("b", kit.at("23:00"), 0, 2)],
        day1=[kit.flight("c", kit.at("9:00"), 0, 3, origin="JFK")],
        day2=[],
    )
    assert [[row["delay"] for row in plain(source, i)] for i in range(3)] == [[1], [2, 3], []]


def test_created_is_never_before_the_columns_it_uses(
    plain: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    source = flights(day0=[kit.flight("a", kit.at("8:00"), 5, 30)])
    (row,) = plain(source, event_timestamp="scheduled_departure", created_timestamp="scheduled_departure")
    assert (row["event_timestamp"], row["created_timestamp"]) == (kit.at("8:00"), kit.at("10:30"))
    (row,) = plain(
        source, event_timestamp="scheduled_departure", columns={"d": "dep_delay"}, where="status = 'arrived'"
    )
    assert row["created_timestamp"] == kit.at("10:30")  # the condition was known only then


def test_a_row_that_is_known_later_than_it_was_declared_by_the_user(
    plain: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    source = flights(day0=[kit.flight("a", kit.at("8:00"), 5)])
    when = "scheduled_departure + INTERVAL 20 HOURS"
    declared = {"columns": {"one": "1"}, "event_timestamp": "scheduled_departure", "created_timestamp": when}
    assert plain(source, **declared) == []
    (row,) = plain(source, 1, **declared)
    assert row["created_timestamp"] == kit.at("4:00", day=1)


def test_of_rows_with_equal_times_the_newest_version_counts(
    plain: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    one = kit.flight("a", kit.at("8:00"), 0, 30)
    two = {**kit.flight("b", kit.at("8:00"), 0, 30), "arr_delay": 31, "recorded_at": kit.at("10:40")}
    assert [row["delay"] for row in plain(flights(day0=[two, one]))] == [31]


def test_unknown_entity_column(plain: Any, flights: Callable[..., Source], kit: SimpleNamespace) -> None:
    with pytest.raises(SpecError, match="entity column 'airport' is not in source 'flights'"):
        plain(flights(day0=[]), entity=["airport"])
