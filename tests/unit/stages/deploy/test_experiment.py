"""Who gets what, how many it takes, and how often an experiment that is looked at all the time is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.deploy.experiment import ExperimentPolicy, assign, judge, mismatch, sample_size
from airflow_ml_provider.stages.deploy.policy import ErrorRate, Latency
from airflow_ml_provider.stages.deploy.stats import Moments, VersionStats

POLICY = ExperimentPolicy("spring", "clicked", mde=0.02)


def users(count, clicked, errors=0):
    return VersionStats(count, errors, metrics={"clicked": Moments(count, clicked, clicked)})


@given(st.text(max_size=20), st.text(max_size=5), st.floats(0.01, 0.99))
def test_a_user_keeps_the_version(key, salt, share):
    weights = {"new": share, "old": 1 - share}
    assert assign(key, salt, weights) == assign(key, salt, dict(reversed(weights.items())))


@given(st.text(max_size=20), st.floats(0.01, 0.98), st.floats(0.01, 0.5))
def test_more_weight_takes_users_away_from_the_others_only(key, share, more):
    if assign(key, "s", {"a": share, "b": 1 - share}) == "a":
        assert assign(key, "s", {"a": share + more, "b": 1 - share}) == "a"


@pytest.mark.parametrize(
    "weights", [{"a": 0.5, "b": 0.5}, {"a": 1, "b": 9}, {"a": 0.2, "b": 0.3, "c": 0.5}, {"a": 1, "b": 0}]
)
def test_versions_get_their_shares(weights):
    found, total = Counter(assign(f"user {i}", "salt", weights) for i in range(20_000)), sum(weights.values())
    for name, weight in weights.items():
        assert found[name] / 20_000 == pytest.approx(weight / total, abs=0.015)
    assert weights["b"] or "b" not in found


def test_another_salt_mixes_the_users_anew():
    weights = {"a": 0.5, "b": 0.5}
    same = sum(assign(f"user {i}", "one", weights) == assign(f"user {i}", "two", weights) for i in range(10_000))
    assert same / 10_000 == pytest.approx(0.5, abs=0.02)
    assert assign("bc", "a", weights) == assign("bc", "a", weights)


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 1.0, "b": -0.1}])
def test_weights_that_make_no_sense(weights):
    with pytest.raises(SpecError, match="weights must be at least 0, and not all 0"):
        assign("ann", "spring", weights)


def test_sample_sizes_of_one_look_are_those_of_the_textbook():
    # The example of R's power.prop.test: n = 76.7.
    assert sample_size(0.50, 0.25, power=0.9, sequential_test=False) == 77
    assert sample_size(0.75, -0.25, power=0.9, sequential_test=False) == 77


@given(st.floats(0.05, 0.9), st.floats(0.01, 0.05), st.floats(0.01, 0.2), st.floats(0.5, 0.95))
def test_looking_at_any_time_takes_more_and_a_smaller_difference_too(baseline, mde, alpha, power):
    once = sample_size(baseline, mde, alpha=alpha, power=power, sequential_test=False)
    always = sample_size(baseline, mde, alpha=alpha, power=power)
    assert once < always < 5 * once
    assert sample_size(baseline, mde / 2, alpha=alpha, power=power) > 2 * always


@pytest.mark.parametrize(("baseline", "mde"), [(0.0, 0.1), (0.9, 0.2), (0.5, 0.0), (0.1, -0.2)])
def test_impossible_rates(baseline, mde):
    with pytest.raises(SpecError, match="different and in"):
        sample_size(baseline, mde)


@pytest.mark.parametrize(
    ("control", "treatment", "outcome"),
    [
        (users(100, 10), users(100, 90), "running"),  # too few users to say
        (users(5000, 500), users(5000, 550), "running"),
        (users(5000, 500), users(5000, 700), "better"),
        (users(5000, 700), users(5000, 500), "worse"),
        (users(50_000, 5000), users(50_000, 5010), "no_difference"),
        (users(5000, 500), users(5000, 700, errors=200), "harmful"),
        (users(5000, 500), users(5600, 560), "broken"),
        (VersionStats(), VersionStats(), "running"),
        (users(5000, 0), users(5000, 0), "running"),  # nobody has clicked yet
    ],
)
def test_outcomes(control, treatment, outcome):
    found = judge(POLICY, control, treatment)
    assert found.outcome == outcome
    assert found.over == (outcome != "running")
    assert found.reason
    codec.canonical(found)


def test_the_reason_has_the_numbers():
    found = judge(POLICY, users(5000, 500), users(5000, 700))
    assert (
        found.reason
        == f"clicked is 0.14 against 0.1, a difference of +0.04 [{found.interval[0]:+.4g}, {found.interval[1]:+.4g}]"
    )
    assert found.interval[0] < found.effect < found.interval[1]
    assert judge(POLICY, users(5000, 500), users(5600, 560)).reason == (
        "5600 of 10600 users got the treatment, not 50.0%: look for a defect"
    )


def test_it_does_not_go_on_for_ever():
    short = replace(POLICY, max_samples=5000)
    assert judge(short, users(5000, 500), users(5000, 550)).outcome == "undecided"


def test_guardrails_come_with_their_findings():
    policy = replace(POLICY, guardrails=(ErrorRate(), Latency()))
    found = judge(policy, users(5000, 500), users(5000, 700))
    assert [finding.name for finding in found.guardrails] == ["error_rate.increase", "latency.p99.ratio"]


@pytest.mark.parametrize(("treated", "broken"), [(5000, False), (5150, False), (5400, True), (4000, True)])
def test_sample_ratio_mismatch(treated, broken):
    assert mismatch(0.5, 10_000 - treated, treated) is broken


def test_a_share_that_is_not_a_half_is_no_mismatch():
    assert not mismatch(0.1, 9000, 1000)
    assert mismatch(0.1, 9000, 1500)


def simulate(effect, looks=100, each=100, runs=200):
    """Return how often an experiment on a rate of 10 % ended how, with a look after every hundred users of each."""
    np = pytest.importorskip("numpy")
    rng, ends = np.random.default_rng(11), Counter()
    for _ in range(runs):
        counts, outcome = [0, 0], "running"
        for look in range(1, looks + 1):
            counts = [counts[0] + int(rng.binomial(each, 0.1)), counts[1] + int(rng.binomial(each, 0.1 + effect))]
            outcome = judge(POLICY, users(look * each, counts[0]), users(look * each, counts[1])).outcome
            if outcome != "running":
                break
        ends[outcome] += 1
    return {name: count / runs for name, count in ends.items()}


def test_equal_versions_are_hardly_ever_told_apart():
    found = simulate(0.0)
    assert found.get("better", 0) + found.get("worse", 0) <= POLICY.alpha


def test_a_difference_is_found_with_the_promised_power():
    size = sample_size(0.1, POLICY.mde)
    found = simulate(POLICY.mde, looks=size // 100 + 1)
    assert found["better"] >= 0.8
    assert found.get("worse", 0) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"salt": ""}, "salt, metric must be given"),
        ({"mde": 0.0}, "it is a difference of means, not a ratio"),
        ({"share": 50.0}, "give a fraction"),
        ({"alpha": 0.0}, "alpha must be in"),
        ({"min_samples": 10, "max_samples": 5}, "min_samples must be between 1 and max_samples"),
    ],
)
def test_policies_that_make_no_sense(values, message):
    with pytest.raises(SpecError, match=message):
        ExperimentPolicy(**{"salt": "s", "metric": "m", "mde": 0.1, **values})


def test_policies_go_through_json():
    assert codec.decode(ExperimentPolicy, codec.encode(POLICY)) == POLICY
