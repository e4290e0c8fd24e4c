"""Register, judge, promote, score and roll back over HTTP; killed and concurrent tasks are real processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_ml_provider import codec, models, stages, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, SpecError, Unavailable
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.runtime import protocol
from airflow_ml_provider.stages.gate.spec import GateSpec
from airflow_ml_provider.stages.promote.spec import PromoteSpec, RollbackSpec
from airflow_ml_provider.stages.register.spec import RegisterSpec
from airflow_ml_provider.stages.score.spec import ScoreSpec
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.contracts import contents

pytestmark = pytest.mark.usefixtures("registry_uri")
ROOT = Path(models.__file__).parents[1]
DAYS = [Interval.from_key(f"2013-01-{day:02d}") for day in range(1, 20)]
POLICY = "metrics: {auc: {at_least: 0.6}}\nchallenge: {min_gain: -0.05}\n"


def info(day: int, **changes: object) -> RunInfo:
    return RunInfo(**{"dag_id": "d", "task_id": "t", "run_id": f"run-{day}", "interval": DAYS[day], **changes})  # type: ignore[arg-type]


class World:
    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.test = packages.dataset(root / "test.parquet", packages.rows(400, seed=9), name="test")
        self.policy = str(tables.write_text(root / "gate.yaml", POLICY))
        self.registry = Registry.from_env()
        self.gates: dict[int, GateSpec] = {}

    def register_spec(self, day: int, **kwargs: object) -> RegisterSpec:
        body = {"seed": day, "trained_until": DAYS[day].end, **kwargs}
        ref = packages.package(self.root / f"p{day}", self.name, **body)  # type: ignore[arg-type]
        return RegisterSpec(ref, packages.evaluation(self.root / f"e{day}.json", ref, self.test))

    def judged(self, day: int, **kwargs: object):  # type: ignore[no-untyped-def]
        spec = self.register_spec(day, **kwargs)
        done = stages.run(spec, info(day))
        gate = self.gates[day] = GateSpec(
            done.model,
            spec.evaluation,
            self.policy,
            str(self.root / "out"),
            test=self.test,
            parity=done.parity,  # type: ignore[attr-defined,arg-type]
        )
        return done.model, stages.run(gate, info(day))  # type: ignore[attr-defined]


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    return World(tmp_path, re.sub(r"\W", "-", request.node.name))


def test_the_whole_life_of_a_champion(world):
    first, judged = world.judged(1)
    assert judged.passed
    assert stages.run(PromoteSpec(first), info(1)).moved
    second, judged = world.judged(8)
    assert {c["name"]: c["passed"] for c in world.registry.evidence(second)["criteria"]}["challenge.auc"]
    assert stages.run(PromoteSpec(second), info(8)).previous == "1"

    for ref in (first, second):
        shutil.rmtree(ref.uri)  # from here on the server is all there is
    rows = packages.dataset(world.root / "in.parquet", packages.rows(300, seed=4), name="rows")
    for day, version in ((3, "1"), (9, "2")):
        spec = ScoreSpec(rows, (world.name,), str(world.root / "predictions"), DAYS[day], keep=("flight_id",))
        result = stages.run(spec, info(day))
        assert [ref.version for ref in result.models] == [version]
        assert result.counts["scored"] == 300
    assert stages.run(replace(spec, interval=DAYS[1]), info(1)).status == "skipped"

    back = stages.run(RollbackSpec(world.name, reason="alarms"), info(9, task_id="rollback"))
    assert (back.moved, back.model.version) == (True, "1")
    assert world.registry.verify_journal(world.name) == []
    assert [(e.action, e.version) for e in world.registry.journal(world.name)] == [
        ("promote", "1"), ("promote", "2"), ("rollback", "1"),
    ]  # fmt: skip


def test_pages_for_humans_exist(world, registry_uri):
    ref, judged = world.judged(1)
    assert judged.links["mlflow"] == f"{registry_uri}/#/models/{world.name}/versions/1"
    assert world.registry.run_url(ref.run_id).startswith(f"{registry_uri}/#/experiments/")
    path = world.registry.tags(world.name, "1")["airflow_ml.artifact_path"]
    for artifact in (f"{path}/MLmodel", f"evidence/{judged.evidence.digest[7:]}.html"):
        with urllib.request.urlopen(f"{registry_uri}/get-artifact?run_id={ref.run_id}&path={artifact}") as page:
            assert page.status == 200
            assert page.read()


def test_mlflow_opens_the_champion_by_its_alias(world):
    import mlflow.onnx

    ref, _ = world.judged(1)
    stages.run(PromoteSpec(ref), info(1))
    graph = mlflow.onnx.load_model(f"models:/{world.name}@champion")
    assert [node.name for node in graph.graph.output] == ["score"]


def test_a_run_of_the_training_gets_the_files(world):
    from mlflow import MlflowClient

    client = MlflowClient(world.registry.uri)
    run_id = client.create_run(client.create_experiment(world.name)).info.run_id
    client.set_terminated(run_id)
    ref, _ = world.judged(1, run_id=run_id)
    assert ref.run_id == run_id
    assert {f.path.split("-")[0] for f in client.list_artifacts(run_id)} == {"model", "evidence"}


def test_a_run_that_the_server_does_not_know_is_told(world):
    with pytest.raises(DataError, match="nowhere"):
        world.judged(1, run_id="nowhere")


@pytest.mark.parametrize("what", ["model", "evidence"])
def test_what_was_changed_on_the_server_is_not_promoted(world, what):
    from mlflow import MlflowClient

    ref, judged = world.judged(1)
    client = MlflowClient(world.registry.uri)
    if what == "model":
        other = packages.package(world.root / "other", seed=77)
        path = world.registry.tags(world.name, "1")["airflow_ml.artifact_path"]
        client.log_artifact(ref.run_id, str(Path(other.uri) / models.ONNX), path)
    else:
        file = world.root / Path(judged.evidence.uri).name
        file.write_text(Path(judged.evidence.uri).read_text() + " ")
        client.log_artifact(ref.run_id, str(file), "evidence")
    with pytest.raises(IntegrityError):
        stages.run(PromoteSpec(ref), info(1))
    assert world.registry.alias(world.name, "champion") is None


_KILLED = """
import os, signal, sys
from mlflow import MlflowClient
from pathlib import Path
from airflow_ml_provider import stages
from airflow_ml_provider.runtime import protocol
method, stage, call = sys.argv[1:]
real = getattr(MlflowClient, method)
calls = []
def die(*args, **kwargs):
    calls.append(args)
    if len(calls) < int(os.environ["NTH"]):
        return real(*args, **kwargs)
    if os.environ.get("AFTER"):
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(MlflowClient, method, die)
stages.run(*protocol.read_call(Path(call), stage))
"""


def run_killed(root: Path, spec: stages.Spec, run: RunInfo, method: str, *, after: bool, nth: int = 1) -> None:
    """Run a stage in a process that is killed when it calls `method` of MLflow's client the nth time."""
    protocol.write_call(root / "call.json", spec, run)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "AFTER": "1" if after else "", "NTH": str(nth)}
    command = [sys.executable, "-c", _KILLED, method, spec.stage, str(root / "call.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("method", ["create_registered_model", "log_artifact", "create_model_version"])
def test_a_killed_registration_is_completed_by_its_retry(world, method, after):
    spec = world.register_spec(1)
    run_killed(world.root, spec, info(1), method, after=after)
    result = stages.run(spec, info(1))
    assert result.model.version == "1"
    assert len(world.registry.versions(world.name)) == 1
    assert world.registry.alias(world.name, "candidate") == "1"
    shutil.rmtree(result.model.uri)
    assert models.package_digest(world.registry.fetch(result.model)) == result.model.digest


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("method", ["set_registered_model_tag", "set_registered_model_alias"])
def test_a_killed_promotion_is_completed_by_its_retry(world, method, after):
    ref, _ = world.judged(1)
    run_killed(world.root, PromoteSpec(ref), info(1), method, after=after)
    result = stages.run(PromoteSpec(ref), info(1))
    assert result.status == "ok"
    assert world.registry.alias(world.name, "champion") == "1"
    assert len(world.registry.journal(world.name)) == 1
    assert world.registry.verify_journal(world.name) == []


@pytest.mark.parametrize(
    ("method", "nth"),
    [
        ("set_registered_model_tag", 2),  # the entry; the first one is the claim
        ("set_registered_model_tag", 3),  # the head
        ("delete_registered_model_tag", 1),  # the claim again
        ("get_registered_model", 5),  # between claim and entry
        ("get_registered_model", 9),  # between entry and head
        ("get_registered_model", 11),  # between head and alias
    ],
)
def test_a_promotion_killed_at_any_of_its_writes_keeps_nobody_waiting(world, method, nth):
    """It dies with its claim, which the retry takes over at once; and the challenge, once met, is not judged anew."""
    first, _ = world.judged(1)
    assert stages.run(PromoteSpec(first), info(1)).moved
    ref, judged = world.judged(2)
    run_killed(world.root, PromoteSpec(ref), info(2), method, after=True, nth=nth)
    result = stages.run(PromoteSpec(ref), info(2))
    assert (result.status, world.registry.alias(world.name, "champion")) == ("ok", "2")
    assert [(e.version, e.previous) for e in world.registry.journal(world.name)] == [("1", None), ("2", "1")]
    assert world.registry.verify_journal(world.name) == []
    gate = replace(world.gates[2], output=str(world.root / "again"))
    assert stages.run(gate, info(2)).evidence.digest == judged.evidence.digest


@pytest.mark.parametrize("method", ["log_artifact", "set_model_version_tag"])
def test_a_killed_gate_is_completed_by_its_retry(world, method):
    spec = world.register_spec(1)
    done = stages.run(spec, info(1))
    gate = GateSpec(
        done.model, spec.evaluation, world.policy, str(world.root / "out"), test=world.test, parity=done.parity
    )
    run_killed(world.root, gate, info(1), method, after=False)
    first = stages.run(gate, info(1))
    before = contents([world.root / "out"])
    assert stages.run(gate, info(1)).evidence == first.evidence
    assert contents([world.root / "out"]) == before
    assert world.registry.evidence(done.model)["decision"] == "passed"


_MOVE = """
import random, sys, time
from pathlib import Path
from airflow_ml_provider import stages
from airflow_ml_provider.exceptions import Conflict
from airflow_ml_provider.runtime import protocol
spec, info = protocol.read_call(Path(sys.argv[1]), "promote")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    try:
        print(stages.run(spec, info).status)
        break
    except Conflict as error:
        print("conflict", error, file=sys.stderr)
        time.sleep(random.random() / 2)
"""


def test_concurrent_promotions_lose_no_entry(world):
    """Three tasks promote at once and repeat on conflicts: the newest wins, every move is in the journal."""
    # Without a challenge: those who come second were not judged against the one who came first, and had to be refused.
    world.policy = str(tables.write_text(world.root / "metrics.yaml", "metrics: {auc: {at_least: 0.6}}"))
    refs = {day: world.judged(day)[0] for day in (2, 4, 6)}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    outcomes: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        tasks = {}
        for day, ref in refs.items():
            call = world.root / f"call-{day}.json"
            protocol.write_call(call, PromoteSpec(ref), info(day))
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            task = subprocess.Popen([sys.executable, "-c", _MOVE, str(call)], env=env, text=True, **pipes)  # type: ignore[call-overload]
            tasks[day] = stack.enter_context(task)
            stack.callback(task.kill)
        for task in tasks.values():
            assert task.stdout.readline() == "ready\n"
        for task in tasks.values():
            task.stdin.write("go\n")
            task.stdin.flush()
        for day, task in tasks.items():
            out, err = task.communicate(timeout=240)
            assert task.returncode == 0, err
            outcomes[day] = out.strip()
    log = world.registry.journal(world.name)
    assert world.registry.verify_journal(world.name) == []
    assert log[-1].version == refs[6].version == world.registry.alias(world.name, "champion")
    promoted = {entry.version for entry in log}
    assert promoted == {refs[day].version for day, outcome in outcomes.items() if outcome == "ok"}
    assert [entry.previous for entry in log] == [None, *[entry.version for entry in log[:-1]]]


def test_a_server_that_is_away_is_worth_another_try(world, monkeypatch):
    ref, _ = world.judged(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable, match="did not answer"):
        stages.run(PromoteSpec(ref), info(1))
    with pytest.raises(Unavailable):
        stages.run(RollbackSpec(world.name), info(1))


def test_the_evidence_on_the_server_is_the_file_of_the_gate(world):
    ref, judged = world.judged(1)
    local = json.loads(Path(judged.evidence.uri).read_text())
    assert world.registry.evidence(ref) == local
    assert codec.digest(local) == judged.evidence.digest == tables.file_digest(Path(judged.evidence.uri))


def test_errors_of_the_server_have_names(world):
    with pytest.raises(DataError, match="not found"):
        world.registry.get("never_heard_of", "1")
    with pytest.raises(SpecError, match="model name must be"):
        world.registry.get("a/b", "1")
