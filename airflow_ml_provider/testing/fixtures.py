"""Pytest fixtures for DAGs and stages.

In `conftest.py` at the root of the tests: `pytest_plugins = ["airflow_ml_provider.testing.fixtures"]`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import Runtime, resolve
from airflow_ml_provider.stages import Result, Spec
from airflow_ml_provider.testing import context
from airflow_ml_provider.testing.lineage import EventValidator

__all__ = ["airflow_context", "event_validator", "ml_store", "run_stage"]


@pytest.fixture
def ml_store(tmp_path: Path) -> Path:
    """An empty store: the root folder that a pipeline's tables, models and reports go to."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def run_stage() -> Callable[..., Result]:
    """Call a stage: `run_stage(spec, interval="2013-01-05", runtime=None, env={}, **info)`."""

    def run(
        spec: Spec,
        interval: Interval | str = "2013-01-05",
        runtime: Runtime | str | None = None,
        env: Mapping[str, str] | None = None,
        **info: Any,
    ) -> Result:
        window = Interval.from_key(interval) if isinstance(interval, str) else interval
        return resolve(runtime).call(spec, RunInfo(interval=window, **info), env or {})

    return run


@pytest.fixture
def airflow_context() -> Callable[..., dict[str, Any]]:
    """Make the context of a task, to call `operator.execute(context)`; see `airflow_ml_provider.testing.context`."""
    return context.context


@pytest.fixture(scope="session")
def event_validator() -> EventValidator:
    """A validator of OpenLineage events; skips where `ML_PROVIDER_SPECS` names no folder with the specification."""
    folder = Path(os.environ.get("ML_PROVIDER_SPECS", "../shared/specs"), "openlineage")
    if not (folder / "OpenLineage.json").is_file():
        pytest.skip(f"no OpenLineage specification in {folder}; set ML_PROVIDER_SPECS to the folder of specs")
    return EventValidator(folder)
