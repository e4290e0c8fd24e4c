from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features import sources
from airflow_ml_provider.stages.features.spec import Source


def newest_before(connection: Any, table: sources.Table, moment: datetime) -> dict[str, tuple[Any, ...]]:
    """Return what is known of each flight strictly before a moment."""
    h = f"TIMESTAMPTZ '{moment.isoformat()}'"
    rows = connection.execute(
        f"SELECT flight_id, status, dep_delay, arr_delay FROM (SELECT {sources.masked(table, h)} FROM "
        f"({sources.versions(table)}) WHERE __from < {h} AND {h} <= __until) ORDER BY flight_id"
    ).fetchall()
    return {row[0]: row[1:] for row in rows}


def test_what_is_known_of_a_flight_grows_and_is_corrected(
    connection: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    departure = kit.at("20:00")
    source = flights(
        day0=[kit.flight("a", departure, 10)],
        day1=[kit.flight("a", departure, 10, 30, hours=6)],
        day2=[kit.flight("a", departure, 10, 50, hours=6, corrected=kit.at("9:30", day=2))],
    )
    table = sources.open_source(connection, "flights", source, kit.day(2))
    moments = {
        "20:10": (kit.at("20:10"), (None, None, None)),  # at the very moment it is not known strictly before
        "20:11": (kit.at("20:11"), (None, 10, None)),
        "before landing": (kit.at("2:30", day=1), (None, 10, None)),
        "landed": (kit.at("3:00", day=1), ("arrived", 10, 30)),
        "at the correction": (kit.at("9:30", day=2), ("arrived", 10, 30)),
        "corrected": (kit.at("9:31", day=2), ("arrived", 10, 50)),
    }
    for name, (moment, expected) in moments.items():
        assert newest_before(connection, table, moment) == {"a": expected}, name


def test_later_partitions_are_invisible(connection: Any, flights: Callable[..., Source], kit: SimpleNamespace) -> None:
    departure = kit.at("20:00")
    source = flights(day0=[kit.flight("a", departure, 10)], day1=[kit.flight("a", departure, 10, 30)])
    table = sources.open_source(connection, "flights", source, kit.day(0))
    assert newest_before(connection, table, kit.at("0:00", day=9)) == {"a": ("departed", 10, None)}
    assert [path.parent.name for path in table.files] == ["interval=2013-01-10"]


def test_a_week_sees_its_days_and_owns_them(
    connection: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    source = flights(**{f"day{i}": [kit.flight("a", kit.at("9:00"))] for i in range(0, 14, 2)})
    week = Interval.of_grain(datetime(2013, 1, 16, tzinfo=timezone.utc), "week")  # Monday 14th to Sunday 20th
    table = sources.open_source(connection, "flights", source, week)
    assert [path.parent.name[-2:] for path in table.files] == ["10", "12", "14", "16", "18", "20"]
    assert table.own == ("2013-01-14", "2013-01-16", "2013-01-18", "2013-01-20")


def test_columns_that_are_not_known_from_the_start(
    connection: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    table = sources.open_source(connection, "flights", flights(day0=[kit.flight("a", kit.at("9"))]), kit.day())
    assert table.early == ("flight_id", "origin", "scheduled_departure")
    assert table.late["recorded_at"] == "recorded_at"  # when something became known tells that it did


def test_timestamps_without_a_zone_are_utc(connection: Any, write: Callable[..., Any], kit: SimpleNamespace) -> None:
    root = write("naive", kit.day(), [{"t": datetime(2013, 1, 10, 9)}], {"t": "TIMESTAMP"})
    table = sources.open_source(connection, "naive", Source(str(root)), kit.day())
    assert connection.execute(f"SELECT t FROM {table.view}").fetchall() == [(kit.at("9"),)]


def test_one_file_is_a_source_too(connection: Any, write: Callable[..., Any], kit: SimpleNamespace) -> None:
    root = write("planes", kit.day(), [{"tailnum": "N1"}], {"tailnum": "VARCHAR"})
    file = root / "interval=2013-01-10" / "data.parquet"
    table = sources.open_source(connection, "planes", Source(str(file), key=("tailnum",)), kit.day())
    assert connection.execute(f"SELECT tailnum FROM ({sources.versions(table)})").fetchall() == [("N1",)]


def test_descriptions_that_do_not_fit(connection: Any, flights: Callable[..., Source], kit: SimpleNamespace) -> None:
    source = flights(day0=[kit.flight("a", kit.at("9"))])
    with pytest.raises(SpecError, match="did you mean 'corrected_at'"):
        sources.open_source(connection, "f", replace(source, corrected_at="correct_at"), kit.day())
    with pytest.raises(SpecError, match="'dep_delay' says when something became known and must be a timestamp"):
        sources.open_source(connection, "f", replace(source, known_at={"status": "dep_delay"}), kit.day())
    with pytest.raises(DataError, match=r"'f' has no partition up to 2013-01-09 in .*; run its ingest first"):
        sources.open_source(connection, "f", source, kit.day(-1))


def test_a_file_that_is_no_parquet(connection: Any, tmp_path: Any, kit: SimpleNamespace) -> None:
    (tmp_path / "f" / "interval=2013-01-10").mkdir(parents=True)
    (tmp_path / "f" / "interval=2013-01-10" / "data.parquet").write_text("no")
    with pytest.raises(DataError, match="source 'f' cannot be read"):
        sources.open_source(connection, "f", Source(str(tmp_path / "f")), kit.day())


def test_ref_has_a_digest_over_all_partitions(
    connection: Any, flights: Callable[..., Source], kit: SimpleNamespace
) -> None:
    source = flights(day0=[kit.flight("a", kit.at("9"))], day1=[kit.flight("b", kit.at("9", day=1))])
    first, both = (sources.open_source(connection, "f", source, kit.day(i)).ref() for i in (0, 1))
    assert (first.rows, both.rows) == (1, 2)
    assert first.uri == both.uri == source.root
    assert first.digest != both.digest


WEATHER = {"origin": "VARCHAR", "observed_at": "TIMESTAMPTZ", "temp": "INTEGER", "recorded_at": "TIMESTAMPTZ"}


def observed(kit: SimpleNamespace, temp: int, recorded: str) -> dict[str, Any]:
    return {"origin": "EWR", "observed_at": kit.at("9"), "temp": temp, "recorded_at": kit.at(recorded)}


def test_a_version_that_is_a_timestamp_says_when_a_later_version_became_known(
    connection: Any, write: Callable[..., Any], kit: SimpleNamespace
) -> None:
    """The first version counts always: what says that its values became known later is `known_at`."""
    rows = [observed(kit, 1, "9:30"), observed(kit, 99, "18:00"), observed(kit, 5, "12:00"), observed(kit, 1, "9:30")]
    root = write("weather", kit.day(), rows, WEATHER)
    source = Source(str(root), key=("origin", "observed_at"), version="recorded_at")
    table = sources.open_source(connection, "weather", source, kit.day())

    def temp_before(clock: str) -> list[int]:
        h = f"TIMESTAMPTZ '{kit.at(clock).isoformat()}'"
        query = f"SELECT temp FROM ({sources.versions(table)}) WHERE __from < {h} AND {h} <= __until"
        return [row[0] for row in connection.execute(query).fetchall()]

    seen = {clock: temp_before(clock) for clock in ("9", "12", "12:01", "18", "18:01")}
    assert seen == {"9": [1], "12": [1], "12:01": [5], "18": [5], "18:01": [99]}


def test_a_version_that_says_nothing_of_time_needs_a_moment_of_correction(
    connection: Any, write: Callable[..., Any], kit: SimpleNamespace
) -> None:
    types = {"origin": "VARCHAR", "revision": "INTEGER", "fixed": "TIMESTAMPTZ"}
    rows = [{"origin": o, "revision": r, "fixed": kit.at("9") if r > 1 else None} for o, r in [("A", 1), ("B", 1)]]
    root = write("t", kit.day(), rows, types)
    source = Source(str(root), key=("origin",), version="revision")
    assert sources.open_source(connection, "t", source, kit.day()).files
    rows.append({"origin": "B", "revision": 2, "fixed": kit.at("9")})
    write("t", kit.day(), rows, types)
    with pytest.raises(DataError, match=r"row \['B'\] has versions 1 to 2, and 'revision', which is no timestamp"):
        sources.open_source(connection, "t", source, kit.day())
    table = sources.open_source(connection, "t", replace(source, corrected_at="fixed"), kit.day())
    count = f"SELECT count(*) FROM ({sources.versions(table)}) WHERE __until = TIMESTAMPTZ 'infinity'"
    assert connection.execute(count).fetchall() == [(2,)]


def of(start: str, end: str) -> Interval:
    return Interval.of(*(datetime.fromisoformat(text) for text in (start, end)))


@pytest.mark.parametrize(
    ("parts", "until", "seen"),
    [
        # A delivery of a week is complete only at its end: its own first days do not see it.
        ([("2013-01-07T00Z", "2013-01-14T00Z")], ("2013-01-08T00Z", "2013-01-09T00Z"), 0),
        ([("2013-01-07T00Z", "2013-01-14T00Z")], ("2013-01-13T00Z", "2013-01-14T00Z"), 1),
        # Six-hour windows: those that end by the end of the run's.
        (
            [("2013-01-07T00Z", "2013-01-07T06Z"), ("2013-01-07T06Z", "2013-01-07T12Z")],
            ("2013-01-07T00Z", "2013-01-07T06Z"), 1,
        ),
        (
            [("2013-01-07T00Z", "2013-01-07T06Z"), ("2013-01-07T06Z", "2013-01-07T12Z")],
            ("2013-01-07T00Z", "2013-01-08T00Z"), 2,
        ),
        # Days of New York, and the day of UTC, which ends earlier.
        (
            [("2013-01-06T00-05", "2013-01-07T00-05"), ("2013-01-07T00-05", "2013-01-08T00-05")],
            ("2013-01-07T00-05", "2013-01-08T00-05"), 2,
        ),
        (
            [("2013-01-06T00-05", "2013-01-07T00-05"), ("2013-01-07T00-05", "2013-01-08T00-05")],
            ("2013-01-07T00Z", "2013-01-08T00Z"), 1,
        ),
    ],
)  # fmt: skip
def test_windows_that_are_no_days_neither_leak_nor_get_lost(
    write: Callable[..., Any], parts: list[tuple[str, str]], until: tuple[str, str], seen: int
) -> None:
    def fixed(text: str) -> str:
        return text.replace("Z", ":00+00:00").replace("T00-05", "T00:00-05:00")

    for start, end in parts:
        root = write("t", of(fixed(start), fixed(end)), [{"a": 1}], {"a": "INTEGER"})
    assert len(sources.visible(str(root), of(*map(fixed, until)))) == seen
