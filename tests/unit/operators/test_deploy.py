"""The operators that change a service, on a place in memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, AirflowTaskTimeout, TaskDeferred

from airflow_ml_provider.exceptions import SpecError, StageCrashed, Unavailable
from airflow_ml_provider.operators.deploy import (
    DeployOperator,
    RolloutOperator,
    RolloutOutcomeOperator,
    UndeployOperator,
)
from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages.deploy.policy import ErrorRate, RolloutPolicy
from airflow_ml_provider.stages.deploy.service import Server, Service, Version
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.serving import Behaviour, MemoryServing
from airflow_ml_provider.triggers.serving import ServingTrigger

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


def event_of(deferred: TaskDeferred) -> dict:
    path, arguments = deferred.trigger.serialize()
    assert path == "airflow_ml_provider.triggers.serving.ServingTrigger"

    async def first():
        return (await anext(ServingTrigger(**json.loads(json.dumps(arguments))).run())).payload

    return json.loads(json.dumps(asyncio.run(first())))


def run(operator, traffic=None, **ids):
    """Execute a task to its end, as worker and triggerer do; users ask before each look."""
    try:
        return operator.execute(context(**ids))
    except TaskDeferred as deferred:
        pending = deferred
    while True:
        if traffic:
            traffic()
        event = event_of(pending)
        try:
            return getattr(operator, pending.method_name)(context(**ids), event)
        except TaskDeferred as deferred:
            pending = deferred


def deferred_of(operator, **ids) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as found:
        operator.execute(context(**ids))
    return found.value


class TestDeploy:
    def test_a_new_service_serves(self, place):
        value = run(deploy(1, rows={"x": [1.0]}))
        assert place.look("flights").wanted == Service("flights", version(1))
        assert value["links"] == {"service": "memory://flights"}
        assert value["outputs"][0]["digest"] == model(1).digest

    def test_the_same_again_changes_nothing(self, place):
        run(deploy(1))
        before = place.look("flights").revision
        run(deploy(1))
        assert place.look("flights").revision == before

    def test_what_is_there_may_be_kept(self, place):
        run(deploy(1, existing="keep"))
        value = run(deploy(2, existing="keep"), run_id="another")
        assert place.look("flights").wanted == Service("flights", version(1))
        assert value["outputs"][0]["digest"] == model(1).digest
        with pytest.raises(SpecError, match="existing must be replace or keep"):
            deploy(2, existing="both")

    def test_it_waits_for_what_is_not_ready(self, place):
        place.behaviours["v1"] = Behaviour("waits", "pulling the image")
        operator = deploy(1, poll_s=0.01)
        deferred = deferred_of(operator)
        place.behaviours["v1"] = Behaviour()
        assert operator.go_further(context(), event_of(deferred))["status"] == "ok"

    @pytest.mark.parametrize("before", [None, 1])
    def test_what_cannot_serve_gives_way_to_what_was_there(self, place, before):
        if before:
            run(deploy(before))
        place.behaviours["v2"] = Behaviour("failed", "CrashLoopBackOff")
        with pytest.raises(StageCrashed, match=r"version 'v2' of service 'flights' cannot serve: CrashLoopBackOff"):
            run(deploy(2))
        seen = place.look("flights")
        assert seen.wanted == Service("flights", version(1)) if before else seen is None

    def test_what_is_not_ready_in_time_gives_way(self, place):
        run(deploy(1))
        place.behaviours["v2"] = Behaviour("waits", "pulling the image")
        operator = deploy(2, wait_s=0.05, poll_s=0.01)
        deferred = deferred_of(operator)
        with pytest.raises(AirflowTaskTimeout):
            operator.go_further(context(), event_of(deferred))
        assert place.look("flights").wanted.stable == version(1)

    def test_a_retry_goes_on_after_the_place_was_away(self, place):
        run(deploy(1))
        place.behaviours["v2"] = Behaviour("waits")
        deferred_of(deploy(2), max_tries=1)
        event = {"status": "error", "message": "away for long", "state": None, "deadline": None}
        with pytest.raises(Unavailable, match="away for long"):
            deploy(2).go_further(context(max_tries=1), event)
        assert place.look("flights").wanted.stable == version(2)
        with pytest.raises(Unavailable, match="away for long"):
            deploy(2).go_further(context(max_tries=1, try_number=2), event)
        assert place.look("flights").wanted == Service("flights", version(1))

    def test_a_killed_task_gives_back(self, place):
        run(deploy(1))
        place.behaviours["v2"] = Behaviour("waits")
        operator = deploy(2)
        deferred = deferred_of(operator)
        operator.on_kill()
        assert place.look("flights").wanted == Service("flights", version(1))
        asyncio.run(deferred.trigger.on_kill())  # nothing is left to do
        assert place.look("flights").wanted == Service("flights", version(1))

    def test_bad_arguments(self):
        with pytest.raises(SpecError, match=r"runtime must be left out"):
            deploy(1, runtime="/usr/bin/python3")
        with pytest.raises(SpecError, match="wait_s must be greater than 0"):
            deploy(1, wait_s=0)
        with pytest.raises(SpecError, match="place must be"):
            DeployOperator(task_id="t", service="s", place={"heroku": {}}, model=model(1))


class TestRollout:
    def test_a_good_candidate_becomes_the_stable_version(self, place, clock, tmp_path):
        run(deploy(1))
        value = run(rollout(2, tmp_path), lambda: place.serve("flights", 3000), run_id="r2")
        assert value["status"] == "ok"
        assert place.look("flights").wanted.stable == version(2)
        assert [put.percent for put in place.puts if put.candidate] == [0, 10, 100]
        body = json.loads(Path(value["rollout"]["uri"]).read_text())
        assert [step["percent"] for step in body["steps"]] == [10, 100]
        assert body["outcome"] == "done"
        assert value["metrics"]["requests"] >= 200

    def test_a_bad_candidate_is_taken_away(self, place, clock, tmp_path):
        run(deploy(1))
        place.behaviours["v2"] = Behaviour(error_rate=0.2)
        with pytest.raises(AirflowFailException, match=r"rollout refused: .*error_rate"):
            run(rollout(2, tmp_path), lambda: place.serve("flights", 3000), run_id="r2")
        assert place.look("flights").wanted.stable == version(1)
        assert place.look("flights").wanted.candidate is None
        (file,) = (tmp_path / "rollouts").iterdir()
        assert json.loads(file.read_text())["outcome"] == "rolled_back"
        with pytest.raises(AirflowSkipException):  # another try does not begin again
            run(rollout(2, tmp_path, on_refusal="skip"), run_id="r2")

    def test_a_retry_goes_on_where_the_killed_worker_was(self, place, clock, tmp_path):
        run(deploy(1))
        deferred_of(rollout(2, tmp_path), run_id="r2")
        assert place.look("flights").wanted.percent == 10
        value = run(rollout(2, tmp_path), lambda: place.serve("flights", 3000), run_id="r2", try_number=2)
        assert value["status"] == "ok"
        assert [put.percent for put in place.puts if put.candidate] == [0, 10, 100]

    def test_killed_while_deferred_it_gives_the_traffic_back(self, place, clock, tmp_path):
        run(deploy(1))
        deferred = deferred_of(rollout(2, tmp_path), run_id="r2")
        asyncio.run(deferred.trigger.on_kill())
        assert place.look("flights").wanted == Service("flights", version(1))

    def test_a_second_rollout_is_refused_until_the_first_has_ended(self, place, clock, tmp_path, monkeypatch):
        run(deploy(1))
        deferred_of(rollout(2, tmp_path), run_id="first")
        states = {"first": {"rollout": "deferred"}}
        monkeypatch.setattr(
            "airflow_ml_provider.testing.context.FakeTaskInstance.get_task_states", lambda self, **_: states
        )
        for operator in (
            rollout(3, tmp_path),
            deploy(3),
            UndeployOperator(task_id="u", service="flights", place=PLACE),
        ):
            with pytest.raises(AirflowFailException, match=r"is being changed by dag.task of first; wait"):
                operator.execute(context(run_id="second"))
        assert place.look("flights").wanted.candidate == version(2)
        states["first"]["rollout"] = "failed"
        run(rollout(3, tmp_path), lambda: place.serve("flights", 3000), run_id="second")
        assert place.look("flights").wanted.stable == version(3)

    def test_somebody_else_s_change_ends_it_without_being_undone(self, place, clock, tmp_path):
        run(deploy(1))
        operator = rollout(2, tmp_path)
        deferred = deferred_of(operator, run_id="r2")
        by_hand = Service("flights", version(9))
        place.put(by_hand, place.look("flights").revision)
        event = event_of(deferred)
        with pytest.raises(AirflowFailException, match="deleted or changed by somebody else"):
            operator.go_further(context(run_id="r2"), event)
        assert place.look("flights").wanted == by_hand

    def test_what_serves_already_stays(self, place, tmp_path):
        run(deploy(1))
        before = place.look("flights").revision
        assert "already" in run(rollout(1, tmp_path))["reason"]
        assert place.look("flights").revision == before

    def test_without_a_service_it_says_what_to_do(self, place, tmp_path):
        with pytest.raises(AirflowFailException, match="deploy its first version with DeployOperator"):
            run(rollout(1, tmp_path))

    def test_a_check_that_nothing_counts_is_refused_before_anything_is_deployed(self, place, tmp_path):
        run(deploy(1))
        task = rollout(2, tmp_path, policy=RolloutPolicy())
        task.place = {"kserve": {"metrics": "triton"}}
        with pytest.raises(AirflowFailException, match="nothing in Prometheus tells latency, which the policy checks"):
            run(task)
        assert place.look("flights").wanted == Service("flights", version(1))

    def test_the_server_is_that_of_the_stable_version_unless_told(self, place, clock, tmp_path):
        run(deploy(1, server={"max_batch": 8}))
        deferred_of(rollout(2, tmp_path), run_id="r2")
        assert place.look("flights").wanted.candidate.server == Server(max_batch=8)


def test_a_place_that_is_away_is_waited_for(place, caplog):
    run(deploy(1))
    place.behaviours["v2"] = Behaviour("waits")
    operator = deploy(2, poll_s=0.01)
    deferred = deferred_of(operator)
    place.away = True

    async def watch():
        trigger = ServingTrigger(**deferred.trigger.serialize()[1])
        waiting = asyncio.ensure_future(anext(trigger.run()))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        place.away, place.behaviours["v2"] = False, Behaviour()
        return (await waiting).payload

    assert operator.go_further(context(), asyncio.run(watch()))["status"] == "ok"


def test_a_place_that_refuses_is_not_asked_again(place, monkeypatch):
    run(deploy(1))
    place.behaviours["v2"] = Behaviour("waits")
    operator = deploy(2, poll_s=0.01)
    deferred = deferred_of(operator, max_tries=1)
    looks = []

    def refuse(name):
        looks.append(name)
        raise SpecError("connection 'c' may not do this")

    with monkeypatch.context() as patch:
        patch.setattr(place, "look", refuse)
        event = event_of(deferred)
    assert (event["status"], looks) == ("refused", ["flights"])
    with pytest.raises(AirflowFailException, match="connection 'c' may not do this"):
        operator.go_further(context(max_tries=1), event)
    assert place.look("flights").wanted == Service("flights", version(1))


class TestUndeploy:
    def test_it_removes(self, place):
        run(deploy(1))
        run(UndeployOperator(task_id="u", service="flights", place=PLACE))
        assert place.look("flights") is None

    def test_what_is_not_there_is_skipped(self, place):
        with pytest.raises(AirflowSkipException, match="does not exist"):
            run(UndeployOperator(task_id="u", service="flights", place=PLACE))


class TestGate:
    @pytest.fixture
    def judged(self, tmp_path):
        """Make the evidence of a decision about a model."""
        from airflow_ml_provider import codec, tables

        def write(number: int, decision: str = "passed") -> dict:
            criteria = [{"name": "metric.auc", "passed": decision == "passed"}]
            subject = {"digest": model(number).digest, "trained_until": None}
            body = {"kind": "airflow_ml.evidence/1", "decision": decision, "reason": "auc is 0.5", "model": subject}
            file = tables.write_text(tmp_path / "e.json", codec.canonical({**body, "criteria": criteria}))
            ref = ReportRef("evidence", str(file), tables.file_digest(file))
            return {"status": "ok", "evidence": codec.encode(ref)}

        return write

    def test_what_it_let_pass_is_served(self, place, clock, judged, tmp_path):
        run(deploy(1, gate=judged(1)))
        run(rollout(2, tmp_path, gate=judged(2)), lambda: place.serve("flights", 3000), run_id="r2")
        assert place.look("flights").wanted.stable == version(2)

    def test_nothing_is_touched_for_what_it_did_not(self, place, judged, tmp_path):
        refused = r"refused: not deployed to 'flights': the evidence speaks against flights version 2: auc is 0\.5"
        with pytest.raises(AirflowFailException, match=refused):
            run(deploy(2, gate=judged(2, "refused")))
        assert place.look("flights") is None
        run(deploy(1))
        before = place.look("flights")
        for make in (deploy, lambda number, **kwargs: rollout(number, tmp_path, **kwargs)):
            with pytest.raises(AirflowFailException, match=refused):
                run(make(2, gate=judged(2, "refused")))
            with pytest.raises(AirflowSkipException):
                run(make(2, gate=judged(2, "refused"), on_refusal="skip"))
            with pytest.raises(AirflowFailException, match="it is about model"):  # altered: whatever on_refusal says
                run(make(2, gate=judged(3), on_refusal="skip"))
        assert place.look("flights") == before

    def test_what_serves_already_is_not_judged_again(self, place, judged):
        run(deploy(1))
        assert run(deploy(1, gate=judged(1, "refused")))["status"] == "ok"
        assert run(deploy(2, gate=judged(2, "refused"), existing="keep"))["status"] == "ok"

    def test_the_registry_is_asked_by_default(self, place, monkeypatch):
        asked = []

        def from_env(cls, env):
            asked.append(env)
            raise Unavailable("MLflow did not answer")

        monkeypatch.setenv("AIRFLOW_CONN_ML", '{"conn_type": "mlflow", "host": "https://mlflow.example"}')
        monkeypatch.setattr("airflow_ml_provider.registry.Registry.from_env", classmethod(from_env))
        task = DeployOperator(task_id="t", service="flights", place=PLACE, model=model(1), mlflow_conn_id="ml")
        with pytest.raises(Unavailable):
            run(task)
        assert asked == [{"MLFLOW_TRACKING_URI": "https://mlflow.example"}]
        assert place.look("flights") is None

    def test_bad_values(self):
        with pytest.raises(SpecError, match="gate must be 'required', 'waived'"):
            deploy(1, gate="optional")


class TestOutcome:
    def told(self, value, outcome: str):
        asset = Asset(f"flights.{outcome}")
        task = RolloutOutcomeOperator(task_id="t", rollout=value, outcome=outcome, outlets=[asset])
        body = context()
        task.execute(body)
        return body["outlet_events"][asset].extra

    def test_each_outcome_has_its_task(self, place, clock, tmp_path):
        run(deploy(1))
        value = run(rollout(2, tmp_path), lambda: place.serve("flights", 3000), run_id="r2")
        extra = self.told(value, "done")
        assert extra["digests"] == {"flights": model(2).digest, "rollout of flights": value["rollout"]["digest"]}
        with pytest.raises(AirflowSkipException, match="the rollout ended done, not rolled_back"):
            self.told(value, "rolled_back")

    def test_a_refused_task_s_result_is_there(self, place, clock, tmp_path):
        run(deploy(1))
        place.behaviours["v2"] = Behaviour(error_rate=0.2)
        operator, body = rollout(2, tmp_path), context(run_id="r2")
        with pytest.raises(AirflowFailException):
            run(operator, lambda: place.serve("flights", 3000), run_id="r2")
        with pytest.raises(AirflowFailException):  # another try, which finds what has become of it
            operator.execute(body)
        value = body["ti"].xcoms["return_value"]
        assert self.told(value, "rolled_back")["digests"]["flights"] == model(2).digest
        with pytest.raises(AirflowSkipException):
            self.told(value, "done")

    @pytest.mark.parametrize("value", [None, {"status": "ok", "reason": "this model already"}])
    @pytest.mark.parametrize("outcome", ["done", "rolled_back"])
    def test_without_an_outcome_both_are_skipped(self, value, outcome):
        with pytest.raises(AirflowSkipException, match="no rollout has come to an end"):
            self.told(value, outcome)

    def test_other_outcomes(self):
        with pytest.raises(SpecError, match="outcome must be done or rolled_back"):
            RolloutOutcomeOperator(task_id="t", rollout=None, outcome="good")
