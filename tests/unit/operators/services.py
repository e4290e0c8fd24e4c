"""Tasks that deploy and roll out, on a place in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.sdk.exceptions import TaskDeferred

from airflow_ml_provider.operators.deploy import (
    DeployOperator,
    RolloutOperator,
)
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.policy import ErrorRate, RolloutPolicy
from airflow_ml_provider.stages.deploy.service import Version
from airflow_ml_provider.testing import tasks
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.serving import MemoryServing

PLACE = {"local": {"root": "nowhere"}}
QUICK = RolloutPolicy(steps=(10, 100), bake_s=1, min_samples=100, max_wait_s=60, checks=(ErrorRate(),))


def model(number: int) -> ModelRef:
    return ModelRef("flights", f"models/{number}", f"sha256:{number:064}", version=str(number))


def version(number: int) -> Version:
    return Version(f"v{number}", model(number))


@pytest.fixture
def place(monkeypatch):
    found = MemoryServing()
    monkeypatch.setattr("airflow_ml_provider.hooks._serving.serving", lambda _: found)
    return found


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a second at each look."""
    now = [1_000_000.0]

    def tick() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr("airflow_ml_provider.triggers.serving.time.time", tick)
    return now


def deploy(number: int, **kwargs) -> DeployOperator:
    settings = {"gate": "waived", **kwargs}
    return DeployOperator(task_id="deploy", service="flights", place=PLACE, model=model(number), **settings)


def rollout(number: int, folder: Path, **kwargs) -> RolloutOperator:
    settings = {"policy": QUICK, "poll_s": 0.01, "gate": "waived", **kwargs}
    return RolloutOperator(
        task_id="rollout", service="flights", place=PLACE, model=model(number), evidence=str(folder), **settings
    )


def run(operator, traffic=None, **ids):
    """Execute a task to its end; users ask before each look."""
    return tasks.run(operator, context(**ids), traffic)


def busy(place, requests):
    """Let users ask so many times before each reading."""
    readings = place.readings

    def asked(name):
        place.serve(name, requests)
        return readings(name)

    place.readings = asked


def deferred_of(operator, **ids) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as found:
        operator.execute(context(**ids))
    return found.value
