"""A rollout by operators and trigger, for places whose outside is a double."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Users:
    """Ask a service whenever somebody reads what was counted."""

    def __init__(self, place: Any, serve: Callable[..., None], errors: int) -> None:
        self.read, self.serve, self.errors = place.readings, serve, errors

    def __call__(self, name: str) -> Any:
        self.serve(name, 1000, {"v2": self.errors} if "v2" in self.read(name) else None)
        return self.read(name)


@pytest.fixture
def rolled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Deploy one model and roll out another; return the name of the version that is stable then."""
    from airflow.sdk.exceptions import AirflowFailException

    from airflow_ml_provider.operators.deploy import DeployOperator, RolloutOperator
    from airflow_ml_provider.stages.deploy import place as places
    from airflow_ml_provider.testing.context import context
    from airflow_ml_provider.testing.tasks import run

    def roll(value: Any, place: Any, serve: Any, models: list[Any], strategy: str, errors: int) -> str:
        opened = {value: place}
        monkeypatch.setattr("airflow_ml_provider.hooks._serving.serving", lambda asked: opened[asked])
        monkeypatch.setattr(place, "readings", Users(place, serve, errors))
        settings: dict[str, Any] = {"service": "late", "poll_s": 0.01, "gate": "waived"}
        settings["place"] = places.encode(value)
        run(DeployOperator(task_id="deploy", model=models[0], rows={"hour": [6.0]}, **settings), context())
        policy = {
            "strategy": strategy, "steps": [50, 100], "bake_s": 0.01, "min_samples": 100, "max_wait_s": 30,
            "checks": [{"kind": "error_rate"}],
        }  # fmt: skip
        rollout = RolloutOperator(task_id="rollout", model=models[1], evidence=str(tmp_path), policy=policy, **settings)
        if errors:
            with pytest.raises(AirflowFailException, match="error_rate"):
                run(rollout, context())
        else:
            assert run(rollout, context())["status"] == "ok"
        return str(place.look("late").wanted.stable.name)

    return roll
