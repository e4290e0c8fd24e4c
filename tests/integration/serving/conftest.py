from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("onnx")
pytest.importorskip("pyarrow")

from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.serving import launch
from airflow_ml_provider.serving.client import Client
from airflow_ml_provider.serving.spec import ServiceStatus, Version, Wanted
from airflow_ml_provider.testing import packages

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 90.0


@pytest.fixture(scope="session")
def python() -> str:
    """The Python of gateways and servers."""
    if found := os.environ.get("ML_PROVIDER_SERVING_PYTHON"):
        return found
    for library in ("aiohttp", "prometheus_client", "onnxruntime"):
        pytest.importorskip(library)
    return sys.executable


@pytest.fixture(scope="session")
def clients() -> str:
    """A Python with KServe's and Triton's clients, which need an older protobuf than others here."""
    found = os.environ.get("ML_PROVIDER_CLIENTS_PYTHON", "")
    if not found:
        pytest.skip("ML_PROVIDER_CLIENTS_PYTHON names no Python with kserve and tritonclient[grpc]")
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return packages.package(tmp_path_factory.mktemp("models") / "1")


@pytest.fixture(scope="session")
def contrarian(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """A model that says the opposite."""
    return packages.package(tmp_path_factory.mktemp("models") / "2", skill=-1)


class Service:
    """A gateway in a folder of its own."""

    def __init__(self, root: Path, python: str, grpc_port: int | None = None) -> None:
        self.root, self.python = root, python
        self.client: Client = launch.start(root, "late", python=python, grpc_port=grpc_port)

    def restart(self) -> None:
        self.client = launch.start(self.root, "late", python=self.python)

    def want(self, stable: str, versions: dict[str, Version], **more: object) -> Wanted:
        """Have versions wanted and wait until the stable one serves."""
        found = self.client.update(lambda present: Wanted(versions, stable=stable, **more))  # type: ignore[arg-type]
        self.until(lambda status: status.ready)
        return found

    def until(self, condition: Callable[[ServiceStatus], object]) -> ServiceStatus:
        """Return the first status of which something is true."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            status = self.client.status()
            if condition(status):
                return status
            if time.monotonic() > deadline:
                raise AssertionError(f"still {status}")
            time.sleep(0.05)

    def until_ready(self) -> ServiceStatus:
        return self.until(lambda status: all(version.ready for version in status.versions.values()))


@pytest.fixture
def service(tmp_path: Path, python: str) -> Iterator[Service]:
    yield Service(tmp_path, python)
    launch.stop(tmp_path, "late")


def version(ref: ModelRef, percent: float = 0.0, **settings: object) -> Version:
    return Version(ref.uri, ref.digest, percent=percent, **settings)  # type: ignore[arg-type]
