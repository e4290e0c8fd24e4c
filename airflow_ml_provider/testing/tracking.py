"""A real MLflow for tests: a database without a server, or a server of its own."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pytest


def database(folder: Path) -> Path:
    """Make an empty MLflow database in `folder`; copy the file instead of making a second one, it takes seconds."""
    from mlflow import MlflowClient

    path = folder / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def embedded(template: Path, folder: Path) -> str:
    """Return the tracking URI of a fresh copy of `template` in `folder`."""
    shutil.copy(template, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@contextmanager
def server(folder: Path, *, wait_s: float = 120.0) -> Iterator[str]:
    """Run an MLflow server on a free port with its database and files in `folder`; give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for page in ("health", "api/2.0/mlflow/experiments/get?experiment_id=0"):  # the second opens the database
            _await(f"http://127.0.0.1:{port}/{page}", process, wait_s, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await(url: str, process: subprocess.Popen[bytes], wait_s: float, log: Path) -> None:
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=wait_s):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"MLflow server did not start:\n{log.read_text(errors='replace')[-2000:]}")


@lru_cache(maxsize=1)
def template() -> Path:
    """Return an empty MLflow database, made once per process."""
    folder = Path(tempfile.mkdtemp(prefix="mlflow-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return database(folder)


@pytest.fixture
def tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh MLflow database, named by `MLFLOW_TRACKING_URI`; downloads go below `tmp_path`, too."""
    uri = embedded(template(), tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("AIRFLOW_ML_CACHE", str(tmp_path / "cache"))
    return uri
