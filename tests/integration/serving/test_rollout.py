"""Rollouts on this machine with real servers, real requests, and the trigger of the deferred task."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")
pytest.importorskip("sklearn")
pytest.importorskip("onnx")
pytest.importorskip("pyarrow")
pytest.importorskip("aiohttp")

import pyarrow as pa
import pyarrow.parquet as pq
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import MlError
from airflow_ml_provider.operators.deploy import DeployOperator, RolloutOperator, RolloutOutcomeOperator
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.serving import launch
from airflow_ml_provider.serving.aio.predictions import EXAMPLES
from airflow_ml_provider.serving.client import Client
from airflow_ml_provider.serving.place import LocalServing
from airflow_ml_provider.stages.deploy.experiment import assign
from airflow_ml_provider.stages.deploy.logic import version_of
from airflow_ml_provider.stages.deploy.place import Local
from airflow_ml_provider.stages.deploy.policy import ErrorRate, RolloutPolicy, ScoreShift
from airflow_ml_provider.stages.deploy.service import Server
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.tasks import run

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
    run(deploy, context())
    yield LocalServing(local)
    launch.stop(tmp_path / "services", "late")


def rollout(tmp_path: Path, model, policy=QUICK) -> RolloutOperator:
    local = {"local": {"root": str(tmp_path / "services"), "python": sys.executable}}
    return RolloutOperator(
        task_id="rollout", service="late", place=local, model=model, evidence=str(tmp_path), policy=policy, poll_s=0.2,
        gate="waived",
    )  # fmt: skip


def test_a_good_candidate_takes_over_and_no_request_fails(place, models, tmp_path):
    with Users(place) as users:
        value = run(rollout(tmp_path, models["good"]), context(run_id="r"))
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
        run(rollout(tmp_path, models["bad"]), context(run_id="r"))
    seen = place.look("late")
    assert seen.wanted.stable.model.digest == models["stable"].digest
    assert set(seen.states) == {seen.wanted.stable.name}
    assert not users.failures


SHADOW = {
    "strategy": "shadow", "bake_s": 1, "min_samples": 60, "max_wait_s": 60,
    "checks": [{"kind": "error_rate"}, {"kind": "agreement", "min_share": 0.9, "tolerance": 0.2}],
}  # fmt: skip


def test_a_shadow_compares_each_answer_with_the_user_s(place, models, tmp_path):
    with Users(place) as users:
        value = run(rollout(tmp_path, models["good"], SHADOW), context(run_id="r"))
        with pytest.raises(AirflowFailException, match=r"agreement is 0\.\d+ \["):
            run(rollout(tmp_path, models["bad"], SHADOW), context(run_id="s"))
    assert not users.failures
    assert len(set(users.answers)) == 1
    (step,) = json.loads(Path(value["rollout"]["uri"]).read_text())["steps"]
    found = next(criterion for criterion in step["criteria"] if criterion["name"] == "agreement")
    assert found["passed"]
    assert found["observed"] >= 0.9
    assert found["rows"] >= 60
    launch.stop(tmp_path / "services", "late")  # then all is written
    log = "".join(path.read_text() for path in (tmp_path / "services/late/predictions").glob("*")).splitlines()
    examples = [line for line in map(json.loads, log) if line["version"] == version_of(models["bad"], Server()).name]
    assert 0 < len(examples) <= EXAMPLES
    for line in examples:
        mine, users_own = (answer["outputs"][0]["data"][0] for answer in (line["response"], line["user"]["response"]))
        assert abs(mine - users_own) > 0.2


def test_a_candidate_that_cannot_be_loaded_never_gets_a_request(place, models, tmp_path):
    (Path(models["good"].uri) / "model.onnx").write_bytes(b"no model")
    with Users(place) as users, pytest.raises(AirflowFailException, match=r"(?s)the candidate has failed: .*digest"):
        run(rollout(tmp_path, models["good"]), context(run_id="r"))
    assert not users.failures
    assert len(set(users.answers)) == 1


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def roll_out(folder: str, model: str) -> None:
    """Begin a rollout that would last: what the killed process does."""
    slow = replace(QUICK, bake_s=600, max_wait_s=600)
    run(rollout(Path(folder), codec.decode(ModelRef, json.loads(model)), slow), context(run_id="killed"))


def test_the_traffic_of_a_process_that_was_killed_is_given_back(place, models, tmp_path, monkeypatch):
    """As when the worker is killed in the last try: Airflow only marks the task, and goes on with what follows it."""
    script = "import runpy, sys; runpy.run_path(sys.argv[1])['roll_out'](*sys.argv[2:])"
    command = [sys.executable, "-c", script, __file__, str(tmp_path), json.dumps(codec.encode(models["good"]))]
    with Users(place) as users:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            until(lambda: place.look("late").wanted.percent == 20 or process.poll() is not None)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        last = len(users.answers)
        until(lambda: len(set(users.answers[last:])) == 2)  # both still answer
        states = {"killed": {"rollout": "failed"}}
        monkeypatch.setattr(
            "airflow_ml_provider.testing.context.FakeTaskInstance.get_task_states", lambda *_, **__: states
        )
        local = {"local": {"root": str(tmp_path / "services"), "python": sys.executable}}
        told = RolloutOutcomeOperator(task_id="t", rollout=None, outcome="rolled_back", service="late", place=local)
        with pytest.raises(AirflowSkipException, match=r"was left in .* which has ended: .* alone"):
            told.execute(context(run_id="killed"))
        last = len(users.answers) + 2  # of the two users, each may be asking
        until(lambda: len(users.answers) >= last + 20)
    seen = place.look("late")
    assert seen.wanted.stable.model.digest == models["stable"].digest
    assert set(seen.states) == {seen.wanted.stable.name} == set(users.answers[last:])
    assert not users.failures


class People(Users):
    """Users who say who they are: each of them asks again and again, in turn."""

    KEYS = tuple(f"user {number}" for number in range(600))

    def __init__(self, place: LocalServing) -> None:
        super().__init__(place)
        self.asked: list[tuple[str, str]] = []

    def _ask(self, number: int) -> None:
        client, row = Client(self._place._root, "late"), {name: [value] for name, value in ROWS[0].items()}
        while not self._stop.wait(0.001):
            number = (number + 2) % len(self.KEYS)
            try:
                answer = client.predict(row, sticky_key=self.KEYS[number])
                self.asked.append((self.KEYS[number], answer.version))
            except MlError as error:
                self.failures.append(str(error))


def test_an_experiment_with_users_who_keep_their_version(place, models, tmp_path):
    """Labels come in a table; of the candidate's users half do what they shall, of the others a fifth."""
    names = [version_of(models[name], Server()).name for name in ("stable", "good")]
    shares = dict.fromkeys(names, 50.0)
    due = {key: assign(key, f"spring:{names[1]}", shares) for key in People.KEYS}
    values = [float(number % 10 < (5 if due[key] == names[1] else 2)) for number, key in enumerate(People.KEYS)]
    table = pa.table(
        {"key": People.KEYS, "value": values, "time": [datetime(2100, 1, 1, tzinfo=timezone.utc)] * len(due)}
    )
    pq.write_table(table, tmp_path / "outcomes.parquet")
    policy = {
        "strategy": "ab", "salt": "spring", "metric": "accepted", "mde": 0.2, "baseline": 0.2, "min_samples": 100,
        "outcomes": {"table": str(tmp_path / "outcomes.parquet")}, "max_s": 100, "guardrails": [{"kind": "error_rate"}],
    }  # fmt: skip
    with People(place) as users:
        value = run(rollout(tmp_path, models["good"], policy), context(run_id="r"))
    assert not users.failures
    assert value["verdict"]["outcome"] == "better"
    assert value["verdict"]["effect"] == pytest.approx(0.3, abs=0.15)
    assert place.look("late").wanted.stable.model.digest == models["good"].digest
    both = [at for at, (_, answered) in enumerate(users.asked) if answered == names[1]]
    split = users.asked[both[0] + 10 :]  # of two threads, one may have been asking when the split began
    last = next(at for at, (key, answered) in enumerate(split) if answered != due[key])  # all are its users by then
    assert len({key for key, _ in split[:last]}) >= 2 * 100
