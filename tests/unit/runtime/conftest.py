from __future__ import annotations

import os
import stat
import sys
import textwrap
from pathlib import Path

import pytest

from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.runtime import Interpreter
from airflow_ml_provider.stages.ingest.spec import Column, IngestSpec


@pytest.fixture
def spec(tmp_path) -> IngestSpec:
    """A small piece of real work."""
    (tmp_path / "landing.csv").write_text("id,n\nb,2\na,1\n")
    return IngestSpec(
        name="t",
        source=str(tmp_path / "landing.csv"),
        target=str(tmp_path / "table"),
        interval=Interval.from_key("2013-01-05"),
        columns={"id": Column("string"), "n": Column("int")},
        key=("id",),
    )


@pytest.fixture
def python_with(tmp_path):
    """A Python in which `import duckdb`, hence the ingest stage, does what some code says."""

    def make(code: str, **settings) -> Interpreter:
        folder = tmp_path / "modules"
        folder.mkdir(exist_ok=True)
        (folder / "duckdb.py").write_text(textwrap.dedent(code))
        return Interpreter(sys.executable, pythonpath=(str(folder),), **settings)

    return make


@pytest.fixture
def bare_python(tmp_path) -> str:
    """A Python without any library but its own, like the image of a pod that has nothing installed."""
    path = tmp_path / "bare-python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def pid_in(path: Path) -> int:
    """Wait for a process to write its id to a file."""
    import time

    for _ in range(600):
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"nobody wrote {path}")


def wait_until_gone(pid: int) -> None:
    import time

    for _ in range(200):
        if gone(pid):
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    raise AssertionError(f"process {pid} outlived its task")
