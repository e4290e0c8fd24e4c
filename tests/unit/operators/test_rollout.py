"""The operators that roll a candidate out, and tell how it went, on a place in memory."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, AirflowTaskTimeout, TaskDeferred

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.operators.deploy import RolloutOutcomeOperator, UndeployOperator
from airflow_ml_provider.stages.deploy.experiment import sample_size
from airflow_ml_provider.stages.deploy.policy import RolloutPolicy
from airflow_ml_provider.stages.deploy.service import Server, Service, Sticky
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.serving import Behaviour
from airflow_ml_provider.testing.tasks import event_of

from .services import PLACE, QUICK, busy, clock, deferred_of, deploy, model, place, rollout, run, version

__all__ = ["clock", "place"]


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

    def test_who_rolls_back_in_a_hurry_interrupts_it(self, place, clock, tmp_path, monkeypatch):
        run(deploy(1))
        operator = rollout(2, tmp_path)
        deferred = deferred_of(operator, run_id="first")
        states = {"first": {"rollout": "deferred"}}
        monkeypatch.setattr(
            "airflow_ml_provider.testing.context.FakeTaskInstance.get_task_states", lambda self, **_: states
        )
        run(deploy(1, existing="interrupt"), run_id="second")
        seen = place.look("flights").wanted
        assert (seen.stable, seen.candidate, seen.rollout) == (version(1), None, {})
        with pytest.raises(AirflowFailException, match="changed by somebody else during its rollout"):
            operator.go_further(context(run_id="first"), event_of(deferred))
        assert place.look("flights").wanted == seen

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

    @pytest.mark.parametrize(
        ("score", "tolerance", "ends"), [(0.5, 0.01, "ok"), (0.6, 0.2, "ok"), (0.6, 0.01, "refused")]
    )
    def test_a_shadow_s_answers_are_the_users_answers(self, place, clock, tmp_path, score, tolerance, ends):
        run(deploy(1))
        place.behaviours["v2"] = Behaviour(score=score)
        checks = [{"kind": "error_rate"}, {"kind": "agreement", "tolerance": tolerance}]
        policy = {"strategy": "shadow", "bake_s": 1, "min_samples": 100, "max_wait_s": 60, "checks": checks}
        operator, traffic = rollout(2, tmp_path, policy=policy, on_refusal="skip"), lambda: place.serve("flights", 300)
        if ends == "ok":
            assert run(operator, traffic, run_id="r2")["status"] == "ok"
        else:
            with pytest.raises(AirflowSkipException, match=r"agreement is 0 \["):
                run(operator, traffic, run_id="r2")
        assert {put.tolerance for put in place.puts if put.mirror} == {tolerance}
        assert place.look("flights").wanted.stable == version(1)

    def test_an_execution_timeout_ends_what_would_be_held_for_ever(self, place, clock, tmp_path):
        run(deploy(1))
        limit = timedelta(seconds=30)
        task = rollout(2, tmp_path, policy={**codec.encode(QUICK), "on_unsure": "hold"}, execution_timeout=limit)
        began = clock[0]
        with pytest.raises(AirflowTaskTimeout):
            run(task, run_id="r2")
        assert 30 <= clock[0] - began < 60
        assert place.look("flights").wanted == Service("flights", version(1))

    def test_the_server_is_that_of_the_stable_version_unless_told(self, place, clock, tmp_path):
        run(deploy(1, server={"max_batch": 8}))
        deferred_of(rollout(2, tmp_path), run_id="r2")
        assert place.look("flights").wanted.candidate.server == Server(max_batch=8)


AB = {
    "strategy": "ab", "salt": "spring", "metric": "success", "mde": 0.05, "key": "", "baseline": 0.9, "max_s": 600,
    "guardrails": [{"kind": "latency"}],
}  # fmt: skip


class TestLeft:
    """A worker was killed in the last try: nothing of the task runs, and its traffic is where it was."""

    @pytest.fixture
    def states(self, place, clock, tmp_path, monkeypatch):
        run(deploy(1))
        operator = rollout(2, tmp_path)
        deferred = deferred_of(operator, run_id="killed")
        while place.look("flights").wanted.percent == 0:
            with pytest.raises(TaskDeferred) as found:
                operator.go_further(context(run_id="killed"), event_of(deferred))
            deferred = found.value
        states = {"killed": {"rollout": "failed"}}
        monkeypatch.setattr(
            "airflow_ml_provider.testing.context.FakeTaskInstance.get_task_states", lambda self, **_: states
        )
        return states

    def outcome(self, outcome: str = "rolled_back", **kwargs) -> RolloutOutcomeOperator:
        arguments = {"service": "flights", "place": PLACE, **kwargs}
        return RolloutOutcomeOperator(task_id="t", rollout=None, outcome=outcome, outlets=[Asset("told")], **arguments)

    def test_what_comes_after_it_gives_the_traffic_back(self, place, states):
        said = "no rollout .*; service 'flights' was left in .* dag.task of killed, .* is back at version 'v1' alone"
        with pytest.raises(AirflowSkipException, match=said):
            self.outcome().execute(context(run_id="killed"))
        assert place.look("flights").wanted == Service("flights", version(1))
        assert [(put.percent, put.candidate is None) for put in place.puts[-2:]] == [(0, False), (0, True)]
        with pytest.raises(AirflowSkipException, match=r"no rollout has come to an end$"):
            self.outcome().execute(context(run_id="killed"))

    @pytest.mark.parametrize("number", [1, 3])
    def test_the_next_rollout_does_so_first(self, place, states, tmp_path, number):
        """Also one that has nothing else to do."""
        count = len(place.puts)
        run(rollout(number, tmp_path), lambda: place.serve("flights", 3000), run_id="next")
        assert place.puts[count + 1] == Service("flights", version(1))
        assert place.look("flights").wanted.stable == version(number)
        assert place.look("flights").wanted.candidate is None

    def test_a_deployment_that_keeps_what_is_there_does_so_first(self, place, states):
        run(deploy(3, existing="keep"), run_id="next")
        assert place.look("flights").wanted == Service("flights", version(1))

    @pytest.mark.parametrize("state", ["running", "deferred", "up_for_retry", None])
    def test_a_rollout_that_goes_on_is_left_alone(self, place, states, state):
        states["killed"]["rollout"] = state
        before = place.look("flights").wanted
        with pytest.raises(AirflowSkipException, match=r"no rollout has come to an end$"):
            self.outcome().execute(context(run_id="killed"))
        run(deploy(3, existing="keep"), run_id="next")
        assert place.look("flights").wanted == before

    def test_a_first_version_stays(self, place, states):
        place.remove("flights")
        place.behaviours["v1"] = Behaviour("waits", "pulling the image")
        deferred_of(deploy(1), run_id="killed")
        run(deploy(3, existing="keep"), run_id="next")
        assert place.look("flights").wanted == Service("flights", version(1))

    def test_it_takes_a_place(self, states):
        with pytest.raises(AirflowSkipException, match=r"no rollout has come to an end$"):
            self.outcome(service="", place=None).execute(context(run_id="killed"))
        with pytest.raises(SpecError, match="service, place must be both or neither"):
            self.outcome(place=None)
        with pytest.raises(SpecError, match="place must be"):
            self.outcome(place={"moon": {}})


class TestExperiment:
    def run(self, place, folder, better=0.0, **policy):
        run(deploy(1))
        place.behaviours["v1"] = Behaviour(error_rate=0.1)
        place.behaviours["v2"] = Behaviour(error_rate=0.1 - better)
        task = rollout(2, folder, policy={**AB, **policy}, on_refusal="skip")
        busy(place, 2000)
        return run(task, run_id="r2")

    def test_a_better_candidate_becomes_the_stable_version(self, place, clock, tmp_path, capsys):
        value = self.run(place, tmp_path, better=0.1)
        assert place.look("flights").wanted.stable == version(2)
        assert [put.percent for put in place.puts if put.candidate] == [0, 50]
        said = f"it takes {sample_size(0.9, 0.05)} requests of each version to see a difference of 0.05 from 0.9"
        assert said in capsys.readouterr().out
        (step,) = json.loads(Path(value["rollout"]["uri"]).read_text())["steps"]
        assert step["verdict"] == value["verdict"]
        assert value["verdict"]["outcome"] == "better"
        low, high = value["verdict"]["interval"]
        assert 0 < low < value["verdict"]["effect"] < high

    def test_it_may_leave_the_promotion_to_others(self, place, clock, tmp_path):
        value = self.run(place, tmp_path, better=0.1, on_better="keep_stable")
        assert value["verdict"]["outcome"] == "better"
        wanted = place.look("flights").wanted
        assert (wanted.stable, wanted.candidate) == (version(1), None)

    @pytest.mark.parametrize(("better", "policy", "reason"), [
        (-0.2, {}, "worse: success is"),
        (0.0, {}, "no_difference: success is"),
        (0.0, {"mde": 0.01, "max_s": 5}, "undecided within 5 s"),
        (0.0, {"share": 0.45, "mde": 0.01, "baseline": 0.9}, "broken"),
    ])  # fmt: skip
    def test_otherwise_the_traffic_goes_back(self, place, clock, tmp_path, better, policy, reason, monkeypatch):
        if reason == "broken":
            numbers = itertools.count()

            def alternate(wanted):
                taken = wanted.candidate and wanted.percent and next(numbers) % 2
                return wanted.candidate if taken else wanted.stable

            monkeypatch.setattr(place, "_chosen", alternate)
        with pytest.raises(AirflowSkipException, match=reason):
            self.run(place, tmp_path, better, **policy)
        wanted = place.look("flights").wanted
        assert (wanted.stable, wanted.candidate) == (version(1), None)
        (file,) = (tmp_path / "rollouts").iterdir()
        assert json.loads(file.read_text())["steps"][0]["verdict"]["metric"] == "success"

    def test_another_worker_goes_on(self, place, clock, tmp_path):
        run(deploy(1))
        deferred_of(rollout(2, tmp_path, policy=AB), run_id="r2")
        place.behaviours["v1"] = Behaviour(error_rate=0.1)
        busy(place, 2000)
        value = run(rollout(2, tmp_path, policy=AB), run_id="r2", try_number=2)
        assert value["verdict"]["outcome"] == "better"
        assert [put.percent for put in place.puts if put.candidate] == [0, 50]

    @pytest.mark.parametrize(("policy", "place_", "match"), [
        ({"per_day": 10}, PLACE, "which are .* days at 10 requests a day, but max_s is"),
        ({"max_samples": 500}, PLACE, "but max_samples is 500"),
        ({"baseline": None}, PLACE, "the sample size takes a baseline"),
        ({"metric": "clicks"}, PLACE, "nothing counts 'clicks': give outcomes"),
        ({"key": "x-user"}, PLACE, "the requests of one user are not independent"),
        ({"key": "x-user"}, {"kserve": {}}, "KServe splits every request by itself"),
    ])  # fmt: skip
    def test_what_cannot_be_is_refused_before_anything_is_deployed(self, place, tmp_path, policy, place_, match):
        run(deploy(1))
        task = rollout(2, tmp_path, policy={**AB, **policy})
        task.place = place_
        with pytest.raises(AirflowFailException, match=match):
            run(task)
        assert place.look("flights").wanted == Service("flights", version(1))

    def test_users_keep_their_version_where_the_place_can_do_that(self, place, clock, tmp_path):
        run(deploy(1))
        outcomes = {"table": str(tmp_path / "late.parquet")}
        deferred = deferred_of(rollout(2, tmp_path, policy={**AB, "key": "x-user", "outcomes": outcomes}), run_id="r2")
        wanted = place.look("flights").wanted
        assert wanted.sticky == Sticky("x-user", "spring:v2")
        assert wanted.rollout["policy"]["outcomes"]["log"] == "nowhere/flights/predictions"
        asyncio.run(deferred.trigger.on_kill())
        assert place.look("flights").wanted == Service("flights", version(1))


BANDIT = {"strategy": "bandit", "metric": "success", "period_s": 2, "max_s": 60, "share": 0.2, "min_samples": 100}


class TestBandit:
    @pytest.mark.parametrize(("errors", "best"), [(0.0, 2), (0.3, 1)])
    def test_traffic_follows_the_rewards(self, place, clock, tmp_path, errors, best):
        run(deploy(1))
        place.behaviours["v1"], place.behaviours["v2"] = Behaviour(error_rate=0.15), Behaviour(error_rate=errors)
        policy = {**BANDIT, "guardrails": [{"kind": "latency"}], "max_loss": 0.0001}
        task = rollout(2, tmp_path, policy=policy, on_refusal="skip")
        busy(place, 500)
        if best == 2:
            value = run(task, run_id="r2")
            assert value["verdict"]["best"] == "candidate"
        else:
            with pytest.raises(AirflowSkipException, match="stable is the best"):
                run(task, run_id="r2")
        wanted = place.look("flights").wanted
        assert (wanted.stable, wanted.candidate) == (version(best), None)
        (file,) = (tmp_path / "rollouts").iterdir()
        steps = json.loads(file.read_text())["steps"]
        assert [step["decision"] for step in steps[:-1]] == ["reallocated"] * (len(steps) - 1)
        percents = [step["percent"] for step in steps]
        assert percents == [put.percent for put in place.puts if put.candidate and put.sticky is None][1:][: len(steps)]
        assert all(abs(a - b) <= 20 for a, b in itertools.pairwise(percents))

    @pytest.mark.parametrize(("on_limit", "ends"), [("rollback", 1), ("best", 2)])
    def test_at_its_limit(self, place, clock, tmp_path, on_limit, ends):
        run(deploy(1))
        place.behaviours["v1"] = Behaviour(error_rate=0.05)
        policy = {**BANDIT, "max_s": 2, "max_loss": 1e-9, "on_limit": on_limit, "min_samples": 20}
        task = rollout(2, tmp_path, policy=policy)
        busy(place, 60)
        if ends == 2:
            run(task, run_id="r2")
        else:
            with pytest.raises(AirflowFailException, match="undecided within 2 s"):
                run(task, run_id="r2")
        assert place.look("flights").wanted.stable == version(ends)


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
