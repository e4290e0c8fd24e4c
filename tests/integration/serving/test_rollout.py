"""Rollouts on this machine with real servers, real requests, and the trigger of the deferred task."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")
pytest.importorskip("sklearn")
pytest.importorskip("onnx")
pytest.importorskip("pyarrow")
pytest.importorskip("aiohttp")

from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_ml_provider.exceptions import MlError
from airflow_ml_provider.operators.deploy import DeployOperator, RolloutOperator
from airflow_ml_provider.serving import launch
from airflow_ml_provider.serving.place import LocalServing
from airflow_ml_provider.stages.deploy.place import Local
from airflow_ml_provider.stages.deploy.policy import ErrorRate, RolloutPolicy, ScoreShift
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.triggers.serving import ServingTrigger

QUICK = RolloutPolicy(
    steps=(20, 100), bake_s=2, min_samples=60, max_wait_s=120, checks=(ErrorRate(max_increase=0.05), ScoreShift())
)
ROWS = packages.rows(200).select(["distance", "hour", "carrier"]).to_pylist()


class Users:
    """Ask a service again and again, with real rows, until told to stop."""

    def __init__(self, place: LocalServing) -> None:
        self._place, self._stop = place, threading.Event()
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(2)]

    def __enter__(self) -> Users:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        while not self._stop.wait(0.005):
            number = (number + 2) % len(ROWS)
            try:
                self.answers.append(self._place.predict("late", {k: [v] for k, v in ROWS[number].items()})[1])
            except MlError as error:
                self.failures.append(str(error))


@pytest.fixture
def models(tmp_path):
    """The model that serves, one like it, and one that says the opposite."""
    made = {"stable": {}, "good": {"seed": 1}, "bad": {"skill": -1}}
    return {name: packages.package(tmp_path / "models" / name, **how) for name, how in made.items()}


@pytest.fixture
def place(tmp_path, models):
    local = Local(str(tmp_path / "services"), python=sys.executable)
    deploy = DeployOperator(
        task_id="deploy", service="late", place=local, model=models["stable"], poll_s=0.2, gate="waived"
    )
    run(deploy)
    yield LocalServing(local)
    launch.stop(tmp_path / "services", "late")


def rollout(tmp_path: Path, model) -> RolloutOperator:
    local = {"local": {"root": str(tmp_path / "services"), "python": sys.executable}}
    return RolloutOperator(
        task_id="rollout", service="late", place=local, model=model, evidence=str(tmp_path), policy=QUICK, poll_s=0.2,
        gate="waived",
    )  # fmt: skip


def run(operator, **ids):
    """Execute a task to its end, as worker and triggerer do."""
    deadline = time.monotonic() + 150
    try:
        return operator.execute(context(**ids))
    except TaskDeferred as deferred:
        pending = deferred
    while time.monotonic() < deadline:
        arguments = json.loads(json.dumps(pending.trigger.serialize()[1]))

        async def first(arguments=arguments):
            return (await anext(ServingTrigger(**arguments).run())).payload

        event = json.loads(json.dumps(asyncio.run(first())))
        try:
            return operator.go_further(context(**ids), event)
        except TaskDeferred as deferred:
            pending = deferred
    raise AssertionError("the rollout does not end")


def test_a_good_candidate_takes_over_and_no_request_fails(place, models, tmp_path):
    with Users(place) as users:
        value = run(rollout(tmp_path, models["good"]), run_id="r")
        time.sleep(0.5)
    assert value["status"] == "ok"
    assert place.look("late").wanted.stable.model.digest == models["good"].digest
    assert not users.failures
    names = list(dict.fromkeys(users.answers))
    assert len(names) == 2
    assert set(users.answers[-20:]) == {names[1]}
    body = json.loads(Path(value["rollout"]["uri"]).read_text())
    assert [step["percent"] for step in body["steps"]] == [20, 100]


def test_a_candidate_with_other_scores_is_taken_away(place, models, tmp_path):
    with Users(place) as users, pytest.raises(AirflowFailException, match=r"scores\.psi"):
        run(rollout(tmp_path, models["bad"]), run_id="r")
    seen = place.look("late")
    assert seen.wanted.stable.model.digest == models["stable"].digest
    assert set(seen.states) == {seen.wanted.stable.name}
    assert not users.failures


def test_a_candidate_that_cannot_be_loaded_never_gets_a_request(place, models, tmp_path):
    (Path(models["good"].uri) / "model.onnx").write_bytes(b"no model")
    with Users(place) as users, pytest.raises(AirflowFailException, match=r"(?s)the candidate has failed: .*digest"):
        run(rollout(tmp_path, models["good"]), run_id="r")
    assert not users.failures
    assert len(set(users.answers)) == 1
