"""The operators that deploy and remove a service, on a place in memory."""

from __future__ import annotations

import asyncio

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, StageCrashed, Unavailable
from airflow_ml_provider.operators.deploy import DeployOperator, UndeployOperator
from airflow_ml_provider.refs import ReportRef
from airflow_ml_provider.stages.deploy.service import Service
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.serving import Behaviour
from airflow_ml_provider.testing.tasks import event_of
from airflow_ml_provider.triggers.serving import ServingTrigger

from .services import PLACE, clock, deferred_of, deploy, model, place, rollout, run, version

__all__ = ["clock", "place"]


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
        with pytest.raises(SpecError, match="existing must be replace, interrupt or keep"):
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
        from airflow_ml_provider import tables

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
