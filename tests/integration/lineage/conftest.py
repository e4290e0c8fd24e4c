"""An Airflow with the DAGs of this folder, and the validator of events."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_ml_provider.testing.fixtures import event_validator
from airflow_ml_provider.testing.own_airflow import OwnAirflow

__all__ = ["event_validator"]


@pytest.fixture(scope="module")
def own_airflow(tmp_path_factory: pytest.TempPathFactory) -> OwnAirflow:
    """An Airflow with the DAGs of this folder."""
    return OwnAirflow(tmp_path_factory.mktemp("airflow"), Path(__file__).parent / "dags").migrate()
