"""What a policy may say, and what it means."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.deploy.policy import (
    Agreement,
    Business,
    ErrorRate,
    Latency,
    RolloutPolicy,
    ScoreShift,
    Step,
    thresholds,
)


def test_the_default_is_a_canary_that_checks_what_every_server_counts():
    policy = RolloutPolicy()
    assert [step.percent for step in policy.plan] == [1, 5, 25, 50, 100]
    assert [(step.bake_s, step.min_samples, step.mirror_percent) for step in policy.plan] == [(600, 300, 0)] * 5
    assert policy.checks == (ErrorRate(0.005), Latency(0.99, 1.5))
    assert policy.on_unsure == "rollback"


def test_blue_green_reads_the_stable_version_first_and_switches_at_once():
    smoke, switch = RolloutPolicy(strategy="blue_green", smoke_samples=7).plan
    assert smoke == Step(0, min_samples=7, smoke=True)
    assert (switch.percent, switch.bake_s, switch.min_samples) == (100, 600, 300)


def test_a_shadow_stops_or_goes_on_as_a_canary():
    shadow = RolloutPolicy(strategy="shadow", mirror_percent=20.0)
    assert shadow.plan == (Step(0, 20, 600, 300),)
    onward = replace(shadow, after_shadow="canary").plan
    assert [(step.percent, step.mirror_percent) for step in onward] == [
        (0, 20),
        (1, 0),
        (5, 0),
        (25, 0),
        (50, 0),
        (100, 0),
    ]


def test_checks_are_made_where_they_can_be():
    policy = RolloutPolicy(
        strategy="shadow", after_shadow="canary", checks=(ErrorRate(), Agreement(), Business("clicks"))
    )
    mirrored, canary, *_ = policy.plan
    assert policy.checks_at(mirrored) == (ErrorRate(), Agreement())
    assert policy.checks_at(canary) == (ErrorRate(), Business("clicks"))


@pytest.mark.parametrize(
    ("check", "count"),
    [(ErrorRate(), 1), (ErrorRate(max=0.1), 2), (ErrorRate(None, 0.1), 1), (Latency(max_s=1.0), 2), (ScoreShift(), 1),
     (Business("clicks"), 1), (Agreement(), 1)],
)  # fmt: skip
def test_thresholds_of_a_check(check, count):
    assert thresholds(check) == count


@pytest.mark.parametrize(
    "policy",
    [
        RolloutPolicy(),
        RolloutPolicy(
            strategy="shadow", checks=(ErrorRate(max=0.1), Latency(0.95, None, 0.5), ScoreShift(), Agreement())
        ),
        RolloutPolicy(strategy="blue_green", checks=(Business("revenue.eur", 0.9),), on_unsure="hold", use_bound=True),
    ],
)
def test_policies_go_through_json(policy):
    assert codec.decode(RolloutPolicy, codec.encode(policy)) == policy


def test_a_policy_can_be_written_by_hand():
    found = codec.decode(
        RolloutPolicy,
        {"steps": [10, 100], "checks": [{"kind": "error_rate", "max_increase": 0.01}, {"kind": "score_shift"}]},
    )
    assert found == RolloutPolicy(steps=(10.0, 100.0), checks=(ErrorRate(0.01), ScoreShift()))
    with pytest.raises(SpecError, match="unknown key in policy 'step'; did you mean 'steps'"):
        codec.decode(RolloutPolicy, {"step": [10, 100]}, "policy")
    with pytest.raises(SpecError, match=r"unknown key in checks\[0\] 'max_rise'; did you mean"):
        codec.decode(RolloutPolicy, {"checks": [{"kind": "error_rate", "max_rise": 0.01}]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": ()}, r"steps must be growing percentages that end with 100, got \(\)"),
        ({"steps": (1.0, 50.0)}, "end with 100"),
        ({"steps": (5.0, 5.0, 100.0)}, "growing"),
        ({"steps": (0.0, 100.0)}, "growing"),
        ({"steps": (50.0, 120.0)}, "end with 100"),
        ({"bake_s": 0.0}, "bake_s must be greater than 0"),
        ({"bake_s": float("nan")}, "bake_s must be greater than 0"),
        ({"max_start_s": float("inf")}, "max_start_s must be greater than 0"),
        ({"max_wait_s": 599.0}, r"max_wait_s must be at least bake_s \(600 s\), got 599.0"),
        ({"min_samples": 0}, "min_samples must be at least 1"),
        ({"smoke_samples": -1}, "smoke_samples must be at least 0"),
        ({"alpha": 5.0}, "give a fraction, not percent"),
        ({"mirror_percent": 0.0}, "mirror_percent must be in"),
        ({"checks": ()}, "nothing would stop a bad candidate"),
        ({"checks": (ErrorRate(), ErrorRate())}, "checks must be different ones"),
        ({"checks": (ErrorRate(), Agreement())}, "only a shadow's requests are mirrored, not a canary's"),
        ({"strategy": "shadow", "checks": (Business("x"),)}, "nothing would be checked at a copy of 100 %: business"),
        (
            {"strategy": "shadow", "after_shadow": "canary", "checks": (Agreement(),)},
            "nothing would be checked at 1 %: agreement cannot be measured there; add error_rate",
        ),
    ],
)
def test_what_makes_no_sense_is_an_error(values, message):
    with pytest.raises(SpecError, match=message):
        RolloutPolicy(**values)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ErrorRate(None), "error_rate must be given as max_increase or max"),
        (lambda: ErrorRate(2.0), r"max_increase must be in \[0, 1\], got 2.0; give a fraction"),
        (lambda: ErrorRate(max=-0.1), "max must be in"),
        (lambda: Latency(max_ratio=None), "latency must be given as max_ratio or max_s"),
        (lambda: Latency(95.0), r"quantile must be in \(0, 1\), got 95.0; give a fraction"),
        (lambda: Latency(max_ratio=1.0), "max_ratio must be greater than 1"),
        (lambda: Latency(max_s=0.0), "max_s must be greater than 0"),
        (lambda: ScoreShift(0.0), "max_psi must be greater than 0"),
        (lambda: Business("a b"), "metric must be a name"),
        (lambda: Business("a", 95.0), "min_ratio must be in"),
        (lambda: Agreement(99.0), "min_share must be in"),
    ],
)
def test_checks_that_make_no_sense_are_errors(build, message):
    with pytest.raises(SpecError, match=message):
        build()


@given(st.lists(st.floats(0.1, 99.9), unique=True, max_size=6))
def test_every_growing_list_is_a_plan(percents):
    policy = RolloutPolicy(steps=(*sorted(percents), 100.0))
    assert [step.percent for step in policy.plan] == [*sorted(percents), 100]
