"""Sensors of services, on a place in memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, TaskDeferred

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.sensors.serving import RolloutSensor, ServiceReadySensor
from airflow_ml_provider.stages.deploy.logic import rollout_of
from airflow_ml_provider.stages.deploy.service import Service, Version
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.serving import Behaviour, MemoryServing
from airflow_ml_provider.triggers.check import CheckTrigger

PLACE = {"local": {"root": "nowhere"}}
MODELS = {n: ModelRef("late", f"/m/{n}", f"sha256:{n}", version=str(n)) for n in (1, 2)}
VERSIONS = {n: Version(f"v{n}", model) for n, model in MODELS.items()}


@pytest.fixture
def place(monkeypatch):
    found = MemoryServing()
    monkeypatch.setattr("airflow_ml_provider.hooks._serving.serving", lambda _: found)
    return found


def put(place: MemoryServing, **wanted: Any) -> None:
    seen = place.look("late")
    place.put(Service("late", **wanted), seen and seen.revision)


def rollout(phase: str) -> dict[str, Any]:
    state = {"phase": phase, "reason": "error_rate"}
    return rollout_of(RunInfo(dag_id="d", task_id="t", run_id="r"), VERSIONS[1], VERSIONS[2], state=state)


def found(cls: type, **kwargs: Any) -> Any:
    """Return what a sensor finds; none when it finds nothing in its time."""
    task = cls(task_id="wait", service="late", place=PLACE, timeout=0, poke_interval=0.01, **kwargs)
    try:
        return task.execute(context())
    except AirflowSensorTimeout:
        return None


class TestReady:
    def test_it_waits_for_the_service_and_for_its_readiness(self, place):
        assert found(ServiceReadySensor) is None
        place.behaviours["v1"] = Behaviour("waits", "pulling")
        put(place, stable=VERSIONS[1])
        assert found(ServiceReadySensor) is None
        place.behaviours.clear()
        value = found(ServiceReadySensor, rows={"x": [1.0]})
        assert (value["model"]["digest"], value["version"]) == ("sha256:1", "v1")
        assert value["address"] == "memory://late"

    def test_a_candidate_is_not_what_all_users_get(self, place):
        put(place, stable=VERSIONS[1], candidate=VERSIONS[2], percent=50)
        assert found(ServiceReadySensor, model=MODELS[2]) is None
        assert found(ServiceReadySensor, version="2") is None
        assert found(ServiceReadySensor, model=MODELS[1], version="1")
        put(place, stable=VERSIONS[2])
        assert found(ServiceReadySensor, model={"status": "ok", "model": {"kind": "model", **vars(MODELS[2])}})

    def test_what_does_not_answer_is_waited_for_and_what_does_not_fit_is_not(self, place, monkeypatch):
        put(place, stable=VERSIONS[1])
        place.away = True
        assert found(ServiceReadySensor, rows={"x": [1.0]}) is None
        place.away = False
        with pytest.raises(AirflowFailException, match="all columns need as many values"):
            found(ServiceReadySensor, rows={"x": [1.0], "y": []})

    def test_in_the_triggerer(self, place):
        task = ServiceReadySensor(
            task_id="wait", service="late", place=PLACE, model=MODELS[1], deferrable=True, poke_interval=0.01
        )
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(context())
        _, arguments = deferred.value.trigger.serialize()

        async def watch() -> Any:
            waiting = asyncio.ensure_future(anext(aiter(CheckTrigger(**json.loads(json.dumps(arguments))).run())))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            put(place, stable=VERSIONS[1])
            return (await waiting).payload

        value = task.execute_complete(context(), asyncio.run(watch()))
        assert value["model"]["digest"] == "sha256:1"

    def test_a_bad_place_fails_when_the_dag_is_parsed(self):
        with pytest.raises(SpecError, match="place must be"):
            ServiceReadySensor(task_id="t", service="late", place={"heroku": {}})


class TestRollout:
    def test_it_waits_while_one_is_under_way(self, place):
        assert found(RolloutSensor) is None
        put(place, stable=VERSIONS[1], candidate=VERSIONS[2], rollout=rollout("baking"))
        assert found(RolloutSensor) is None
        put(place, stable=VERSIONS[1], rollout=rollout("rolled_back"))
        value = found(RolloutSensor)
        assert (value["outcome"], value["reason"], value["model"]["version"]) == ("rolled_back", "error_rate", "1")

    def test_without_one_it_does_not_wait(self, place):
        put(place, stable=VERSIONS[1])
        assert found(RolloutSensor)["outcome"] == ""

    def test_it_may_be_about_one_model(self, place):
        put(place, stable=VERSIONS[1])
        assert found(RolloutSensor, model=MODELS[2]) is None
        put(place, stable=VERSIONS[1], rollout=rollout("rolled_back"))
        assert found(RolloutSensor, model=MODELS[2])["outcome"] == "rolled_back"
        put(place, stable=VERSIONS[2], rollout=rollout("done"))
        assert found(RolloutSensor, model=MODELS[2])["outcome"] == "done"
