"""Small source tables, written as the ingest stage would write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

from airflow_ml_provider import tables
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features import sources
from airflow_ml_provider.stages.features.spec import Source

FLIGHTS = {
    "flight_id": "VARCHAR",
    "origin": "VARCHAR",
    "scheduled_departure": "TIMESTAMPTZ",
    "status": "VARCHAR",
    "actual_departure": "TIMESTAMPTZ",
    "dep_delay": "INTEGER",
    "actual_arrival": "TIMESTAMPTZ",
    "arr_delay": "INTEGER",
    "recorded_at": "TIMESTAMPTZ",
    "corrected_at": "TIMESTAMPTZ",
}
DAY = datetime(2013, 1, 10, tzinfo=timezone.utc)


def at(clock: str, day: int = 0) -> datetime:
    """Return a time on 10 January 2013, or `day` days later."""
    hour, _, minute = clock.partition(":")
    return DAY + timedelta(days=day, hours=int(hour), minutes=int(minute or 0))


def day(offset: int = 0) -> Interval:
    """Return the interval of 10 January 2013, or of the day `offset` days later."""
    return Interval.of_grain(DAY + timedelta(days=offset), "day")


def flight(
    name: str,
    departure: datetime,
    dep_delay: int | None = None,
    arr_delay: int | None = None,
    *,
    hours: int = 2,
    corrected: datetime | None = None,
    origin: str = "EWR",
    **more: Any,
) -> dict[str, Any]:
    """Return a version of a flight; delays in minutes, none when they are not known yet."""
    left = None if dep_delay is None else departure + timedelta(minutes=dep_delay)
    landed = None if arr_delay is None else departure + timedelta(hours=hours, minutes=arr_delay)
    row = {
        "flight_id": name, "origin": origin, "scheduled_departure": departure,
        "status": "arrived" if landed else "departed" if left else "scheduled",
        "actual_departure": left, "dep_delay": dep_delay, "actual_arrival": landed, "arr_delay": arr_delay,
        "recorded_at": corrected or landed or left or departure.replace(hour=0, minute=0), "corrected_at": corrected,
    }  # fmt: skip
    return {**row, **more}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes rows as the partition of an interval and returns the table's root."""

    def to(name: str, interval: Interval | str, rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> Path:
        key = interval if isinstance(interval, str) else interval.key
        root = tmp_path / "tables" / name
        connection = tables.connect()
        columns = ", ".join(f"{tables.quote_name(c)} {kind}" for c, kind in types.items())
        connection.execute(f"CREATE TABLE data ({columns})")
        for row in rows:
            marks = ", ".join("?" for _ in types)
            connection.execute(f"INSERT INTO data VALUES ({marks})", [row.get(c) for c in types])
        tables.write(connection, "SELECT * FROM data", root / f"interval={key}" / tables.DATA)
        return root

    return to


@pytest.fixture
def flights(write: Callable[..., Path]) -> Callable[..., Source]:
    """Return a function that writes versions of flights by day and returns the source."""

    def source(**days: Sequence[Mapping[str, Any]]) -> Source:
        for name, rows in days.items():
            root = write("flights", day(int(name.removeprefix("day"))), rows, FLIGHTS)
        return Source(
            root=str(root),
            key=("flight_id",),
            version="recorded_at",
            corrected_at="corrected_at",
            known_at={
                "status": "recorded_at",
                "actual_departure": "actual_departure",
                "dep_delay": "actual_departure",
                "actual_arrival": "actual_arrival",
                "arr_delay": "actual_arrival",
            },
        )

    return source


@pytest.fixture
def connection() -> Any:
    return sources.connect()


def fetch(connection: Any, query: str) -> list[dict[str, Any]]:
    """Return the rows of a query as dicts."""
    names = [row[0] for row in connection.execute(f"DESCRIBE {query}").fetchall()]
    return [dict(zip(names, row, strict=True)) for row in connection.execute(query).fetchall()]


@pytest.fixture
def kit() -> SimpleNamespace:
    """Return the functions of this file that tests call: `at`, `day`, `flight`, `fetch`."""
    return SimpleNamespace(at=at, day=day, flight=flight, fetch=fetch)
