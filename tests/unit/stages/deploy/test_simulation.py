"""Whole rollouts under 200 simulated requests a second, looked at every ten seconds."""

from __future__ import annotations

import itertools

import pytest

from airflow_ml_provider.stages.deploy.bandit import BanditPolicy
from airflow_ml_provider.stages.deploy.experiment import ExperimentPolicy
from airflow_ml_provider.stages.deploy.policy import (
    Agreement,
    Business,
    ErrorRate,
    Latency,
    RolloutPolicy,
    ScoreShift,
)

POLICY = RolloutPolicy(checks=(ErrorRate(), Latency(), ScoreShift()))
SEEDS = 20


def test_a_good_model_gets_all_the_traffic(simulation):
    ended = simulation.run(POLICY, simulation.model(), seed=1)
    assert (ended.action, ended.highest) == ("done", 100)
    assert [record["decision"] for record in ended.state.evidence] == ["passed"] * 5
    assert ended.seconds == pytest.approx(5 * POLICY.bake_s, rel=0.05)
    assert ended.bad_share < 0.002


def test_a_better_model_too(simulation):
    ended = simulation.run(POLICY, simulation.model(errors=0.0001, median_s=0.02), seed=1, every_s=30.0)
    assert ended.action == "done"


@pytest.mark.parametrize(
    ("bad", "finding"),
    [
        ({"errors": 0.02}, "error_rate.increase"),
        ({"median_s": 0.06}, "latency.p99.ratio"),
        ({"score": 1.0}, "scores.psi"),
    ],
    ids=["2 % errors", "doubled p99", "shifted scores"],
)
def test_a_bad_model_never_gets_more_than_the_first_step(simulation, bad, finding):
    """Against 0.1 % of errors; 19 of 20 are found out within two bake periods, and all before the step runs out."""
    ended = [simulation.run(POLICY, simulation.model(**bad), seed=seed) for seed in range(SEEDS)]
    assert {e.action for e in ended} == {"failed"}
    assert {e.highest for e in ended} == {1}
    assert all(finding in e.reason for e in ended)
    assert max(e.bad_share for e in ended) < 0.005
    assert sum(e.seconds <= 2 * POLICY.bake_s for e in ended) >= SEEDS - 1
    assert max(e.seconds for e in ended) < POLICY.max_wait_s


def test_a_blatantly_bad_model_is_found_out_within_tens_of_requests(simulation):
    for seed in range(SEEDS):
        ended = simulation.run(POLICY, simulation.model(errors=0.5), seed=seed, every_s=1.0)
        assert ended.action == "failed"
        assert ended.candidate_requests < 60


def test_a_canary_that_starts_with_all_traffic_is_flipped_back_at_once(simulation):
    policy = RolloutPolicy(strategy="blue_green", checks=(ErrorRate(), Latency()))
    ended = simulation.run(policy, simulation.model(errors=0.5), seed=1, every_s=1.0)
    assert (ended.action, ended.highest) == ("failed", 100)
    assert ended.candidate_requests < 500  # two looks
    ended = simulation.run(policy, simulation.model(median_s=0.06), seed=1)
    assert (ended.action, ended.highest) == ("failed", 100)
    assert ended.seconds < policy.bake_s
    assert "latency.p99.ratio" in ended.reason
    ended = simulation.run(policy, simulation.model(), seed=1)
    assert ended.action == "done"


def test_nobody_sees_a_shadow_fail(simulation):
    policy = RolloutPolicy(strategy="shadow", checks=(ErrorRate(), Latency(), Agreement()))
    ended = simulation.run(policy, simulation.model(errors=0.5), seed=1, every_s=1.0)
    assert (ended.action, ended.highest) == ("failed", 0)
    assert ended.bad_share < 0.002
    ended = simulation.run(policy, simulation.model(), seed=1)
    assert (ended.action, ended.highest) == ("done", 0)


def test_a_model_that_earns_less_is_rolled_back(simulation):
    policy = RolloutPolicy(checks=(ErrorRate(), Business("clicks", 0.9)))
    ended = simulation.run(policy, simulation.model(clicks=0.07), seed=1)
    assert ended.action == "failed"
    assert "business.clicks.ratio" in ended.reason


def test_little_traffic_is_no_licence(simulation):
    """One request a second: the first step would take 300 of them to 1 %, which is eight hours."""
    ended = simulation.run(POLICY, simulation.model(), seed=1, rate=1.0, every_s=60.0)
    assert (ended.action, ended.highest) == ("failed", 1)
    assert ended.reason.startswith("no clear answer within 3600 s: 1 % since 3540 of 600 s; requests is 45 and must")
    patient = RolloutPolicy(steps=(20.0, 100.0), max_wait_s=7200.0)
    assert simulation.run(patient, simulation.model(), seed=1, rate=1.0, every_s=60.0).action == "done"


def test_equal_models_are_hardly_ever_rolled_back(simulation):
    """An A/A rollout: 40 of them, with 60 looks each. The policy promises 5 %."""
    policy = RolloutPolicy(bake_s=120.0, checks=POLICY.checks)
    ended = [simulation.run(policy, simulation.model(), seed=100 + seed) for seed in range(40)]
    assert sum(e.action == "failed" for e in ended) / 40 <= policy.alpha


@pytest.mark.parametrize("every_s", [2.0, 10.0])
def test_a_model_that_stands_still_for_a_moment_is_hardly_ever_rolled_back(simulation, every_s):
    """A stall of 0.6 s every 90 s: each makes 120 requests slow at once. Taken as independent, they end half."""
    policy = RolloutPolicy(steps=(10.0, 50.0, 100.0), bake_s=60.0, checks=POLICY.checks)
    brief = simulation.model(stall_s=0.6, stalls_every_s=90.0)
    ended = [simulation.run(policy, brief, seed=500 + seed, every_s=every_s) for seed in range(20)]
    assert sum(e.action == "failed" for e in ended) / 20 <= policy.alpha


def test_a_model_that_stands_still_again_and_again_is_slow(simulation):
    policy = RolloutPolicy(steps=(10.0, 50.0, 100.0), bake_s=60.0, checks=POLICY.checks)
    for seed in range(SEEDS):
        ended = simulation.run(policy, simulation.model(stalls_every_s=3.0), seed=seed, every_s=2.0)
        assert (ended.action, ended.highest) == ("failed", 10)
        assert "latency.p99.ratio" in ended.reason


def test_an_experiment_without_a_difference_hardly_ever_finds_one(simulation):
    """A/A: 40 of them with 30 looks each. The policy promises 5 %, and as much for the guardrails."""
    policy = ExperimentPolicy("spring", "clicks", mde=0.001, max_s=1800.0)
    ended = [simulation.run(policy, simulation.model(), seed=200 + seed, every_s=60.0) for seed in range(40)]
    outcomes = [e.state.evidence[-1]["verdict"]["outcome"] for e in ended]
    assert {e.action for e in ended if "undecided within" in e.reason} == {"failed"}
    assert sum(outcome != "running" for outcome in outcomes) / 40 <= policy.alpha


@pytest.mark.parametrize(("clicks", "outcome", "action"), [
    (0.12, "better", "done"), (0.08, "worse", "failed"), (0.1, "no_difference", "failed"),
])  # fmt: skip
def test_an_experiment_finds_what_there_is(simulation, clicks, outcome, action):
    policy = ExperimentPolicy("spring", "clicks", mde=0.01)
    for seed in range(5):
        ended = simulation.run(policy, simulation.model(clicks=clicks), seed=seed, every_s=60.0)
        assert (ended.action, ended.highest) == (action, 50)
        assert ended.state.evidence[-1]["verdict"]["outcome"] == outcome


def test_an_experiment_ends_when_a_guardrail_fails(simulation):
    policy = ExperimentPolicy("spring", "clicks", mde=0.01)
    ended = simulation.run(policy, simulation.model(errors=0.1, clicks=0.5), seed=1, every_s=1.0)
    assert (ended.action, ended.state.evidence[-1]["verdict"]["outcome"]) == ("failed", "harmful")
    assert "error_rate.increase" in ended.reason


@pytest.mark.parametrize(("clicks", "action"), [(0.12, "done"), (0.08, "failed")])
def test_a_bandit_ends_with_the_better_version(simulation, clicks, action):
    policy = BanditPolicy("clicks", share=0.2, period_s=60.0, max_s=6000.0, max_loss=0.001, draws=500)
    for seed in range(5):
        ended = simulation.run(policy, simulation.model(clicks=clicks), seed=seed, every_s=20.0, rate=50.0)
        assert ended.action == action
        percents = [record["percent"] for record in ended.state.evidence]
        assert all(5 <= percent <= 95 for percent in percents)
        assert all(abs(a - b) <= 20.5 for a, b in itertools.pairwise(percents))
