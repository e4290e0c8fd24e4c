"""One real MLflow server for the session; every test has model names of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("mlflow")
pytest.importorskip("sklearn")

from airflow_ml_provider.testing import tracking


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tracking.server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@pytest.fixture
def registry_uri(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("AIRFLOW_ML_CACHE", str(tmp_path / "cache"))
    return server
