"""Deferred sensors in a real Airflow: triggers run as they would in the triggerer, connections come from Airflow."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")
pytest.importorskip("mlflow")
pytest.importorskip("sklearn")

from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.testing import packages, tracking
from airflow_ml_provider.testing.own_airflow import OwnAirflow

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


@pytest.fixture
def own_airflow(tmp_path: Path) -> OwnAirflow:
    airflow = OwnAirflow(tmp_path, Path(__file__).parent / "dags")
    tracking.embedded(tracking.template(), tmp_path)
    return airflow.migrate()


def await_output(airflow: OwnAirflow, text: str, process: object, wait_s: float = 240) -> None:
    until = time.monotonic() + wait_s
    while text not in airflow.output:
        assert process.poll() is None, airflow.output[-3000:]
        assert time.monotonic() < until, airflow.output[-3000:]
        time.sleep(0.1)


def promote(registry: Registry, folder: Path) -> None:
    ref = packages.package(folder / "package")
    version = registry.register("late", Path(ref.uri), ref, {"airflow_ml.identity": "1"}, "candidate")
    at = datetime(2013, 1, 1, tzinfo=timezone.utc)
    registry.move("late", "champion", version, action="promote", info=RunInfo(), effective_from=at, expected=None)


def test_they_go_on_when_what_they_wait_for_has_come(own_airflow: OwnAirflow, tmp_path: Path) -> None:
    with own_airflow.running("airflow", "dags", "test", "waiting") as process:
        await_output(own_airflow, "table lacks 1 of 1: 2013-01-05", process)
        part = tmp_path / "table" / "interval=2013-01-05"
        part.mkdir(parents=True)
        (part / "data.parquet").touch()
        await_output(own_airflow, "late@champion points to no version yet", process)
        promote(Registry(own_airflow.tracking_uri), tmp_path)
        assert process.wait(240) == 0, own_airflow.output[-3000:]
    assert "late@champion points to version 1" in own_airflow.output
