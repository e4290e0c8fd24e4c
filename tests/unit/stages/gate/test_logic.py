"""The decision, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.gate.logic import Comparison, Facts, decide, signed_gain
from airflow_ml_provider.stages.gate.spec import Challenge, GatePolicy, Threshold

AUC = {"value": 0.70, "low": 0.66, "high": 0.74}
LOSS = {"value": 0.40, "low": 0.38, "high": 0.43}


def bare(**asked):
    """Return a policy that asks for nothing else."""
    return GatePolicy(parity=False, lineage=False, **asked)


def policy(**body):
    return codec.decode(GatePolicy, {"parity": False, "lineage": False, **body})


def one(policy, facts):
    """Return the only criterion."""
    decision = decide(policy, facts)
    assert len(decision.criteria) == 1
    assert decision.passed == decision.criteria[0].passed
    assert bool(decision.reason) == (not decision.passed)
    return decision.criteria[0]


@pytest.mark.parametrize(
    ("metric", "estimate", "threshold", "passed"),
    [
        ("auc", AUC, {"at_least": 0.70}, True),
        ("auc", AUC, {"at_least": 0.71}, False),
        ("auc", AUC, {"at_least": 0.66, "use_bound": True}, True),
        ("auc", AUC, {"at_least": 0.67, "use_bound": True}, False),
        ("auc", AUC, {"at_least": 0.60, "at_most": 0.69}, False),  # too good to be true
        ("auc", AUC, {"at_least": 0.60, "at_most": 0.73, "use_bound": True}, False),
        ("log_loss", LOSS, {"at_most": 0.40}, True),
        ("log_loss", LOSS, {"at_most": 0.39}, False),
        ("log_loss", LOSS, {"at_most": 0.43, "use_bound": True}, True),
        ("log_loss", LOSS, {"at_most": 0.42, "use_bound": True}, False),
    ],
)
def test_bounds_judge_the_bad_side(metric, estimate, threshold, passed):
    found = one(policy(metrics={metric: threshold}), Facts(rows=500, metrics={metric: estimate}))
    assert found.name == f"metric.{metric}"
    assert found.passed is passed
    assert found.observed == estimate["value"]
    assert found.interval == (estimate["low"], estimate["high"])
    assert found.rows == 500


def test_the_reason_is_one_sentence_with_numbers():
    decision = decide(
        policy(metrics={"auc": {"at_least": 0.8}}, min_rows=1000, worst_slice={"auc": {"at_least": 0.5}}),
        Facts(rows=500, metrics={"auc": AUC}, worst_slice={"auc": {"slice": "carrier=UA", "rows": 80, **AUC}}),
    )
    assert decision.failed == ("metric.auc", "min_rows")
    assert decision.reason == (
        "2 of 3 criteria were not met: metric.auc is 0.7 [0.66, 0.74] on 500 rows and must be at least 0.8; "
        "min_rows is 500 on 500 rows and must be at least 1000"
    )
    assert decision.criteria[2].note == "carrier=UA"


@pytest.mark.parametrize("estimate", [None, {"value": None, "low": None, "high": None}])
def test_what_nobody_measured_is_not_met(estimate):
    facts = Facts(metrics={"auc": estimate} if estimate else {})
    found = one(policy(metrics={"auc": {"at_least": 0.0}}), facts)
    assert not found.passed
    assert found.note == "the evaluation has no such value"


def test_a_bound_that_is_missing_is_not_met():
    found = one(
        policy(metrics={"auc": {"at_least": 0.1, "use_bound": True}}),
        Facts(metrics={"auc": {"value": 0.9, "low": None, "high": None}}),
    )
    assert not found.passed
    assert "no interval" in found.note


def test_without_a_judged_slice_the_worst_slice_is_not_met():
    found = one(policy(worst_slice={"auc": {"at_least": 0.1}}), Facts())
    assert (found.passed, found.note) == (False, "no slice was large enough to be judged")


@pytest.mark.parametrize(
    ("comparison", "passed", "note"),
    [
        (None, False, "not compared"),
        (Comparison(), True, "there is no champion"),
        (Comparison("3", same=True), True, "version 3, is the same model"),
        (Comparison("3", problem="the champion cannot score: it needs column 'x'", rows=9), False, "needs column 'x'"),
        (Comparison("3", 0.71, 0.70, 0.01, -0.005, 0.02, 900), True, "0.71 against 0.7"),
        (Comparison("3", 0.71, 0.70, 0.01, -0.015, 0.02, 900), False, "lower bound of its 95 % interval"),
        (Comparison("3", None, None, None, None, None, 900), False, "undefined"),
    ],
)
def test_challenge(comparison, passed, note):
    found = one(bare(challenge=Challenge(min_gain=-0.01)), Facts(comparison=comparison))
    assert found.name == "challenge.auc"
    assert found.passed is passed
    assert note in found.note
    assert found.threshold == {"at_least": -0.01}


def test_quality_is_that_of_the_worst_admitted_batch():
    batches = [
        {"interval": "2013-01-01", "overall": 0.99, "passed": True},
        {"interval": "2013-01-02", "overall": 0.93, "passed": True},
        {"interval": "2013-01-03", "overall": 0.20, "passed": False},
        {"interval": "2013-01-04", "overall": None, "passed": True, "rows": 0},  # an empty day
    ]
    found = one(policy(min_quality=0.93), Facts(quality=batches))
    assert found.passed
    assert (found.observed, found.rows) == (0.93, 2)
    assert found.note == ("worst batch 2013-01-02 of 2 from 2013-01-01 to 2013-01-02; 1 refused batches were left out")
    assert not one(policy(min_quality=0.94), Facts(quality=batches)).passed


@pytest.mark.parametrize("batches", [None, [], [{"interval": "x", "overall": 1.0, "passed": False}]])
def test_quality_that_nobody_recorded_is_not_met(batches):
    assert one(policy(min_quality=0.1), Facts(quality=batches)).note.startswith("no quality is recorded")


def test_a_quality_series_that_says_nothing_of_the_window_is_not_met_and_named():
    batches = [{"series": "flights", "interval": "2013-01-01", "overall": 0.99, "passed": True, "rows": 9}]
    found = one(policy(min_quality=0.9), Facts(quality=batches, silent=("typo",)))
    assert not found.passed
    assert found.observed == 0.99
    assert found.note == (
        "no quality is recorded for the training window in typo; worst batch 2013-01-01 of 1 from 2013-01-01 to "
        "2013-01-01"
    )
    assert one(policy(min_quality=0.9), Facts(quality=batches)).passed
    alone = one(policy(min_quality=0.9), Facts(quality=[], silent=("typo",)))
    assert (alone.passed, alone.note) == (False, "no quality is recorded for the training window in typo")


@pytest.mark.parametrize(("rows", "passed"), [(0, True), (7, False), (None, False)])
def test_an_admitted_batch_without_a_score_is_met_only_when_it_is_empty(rows, passed):
    batches = [
        {"series": "flights", "interval": "2013-01-01", "overall": 0.99, "passed": True, "rows": 9},
        {"series": "weather", "interval": "2013-01-02", "overall": None, "passed": True, "rows": rows},
    ]
    found = one(policy(min_quality=0.9), Facts(quality=batches))
    assert found.passed is passed
    assert passed or found.note.startswith("no score is recorded for 1 admitted batches, such as 2013-01-02 of weather")


def test_parity_and_lineage_are_asked_for_by_default():
    decision = decide(GatePolicy(), Facts(missing_lineage=("code", "why")))
    assert decision.failed == ("parity", "lineage")
    assert decision.criteria[1].note == "not recorded: code, why"
    fine = Facts(parity={"passed": True, "max_difference": 1e-6, "flips": 0, "rows": 200, "reason": ""})
    assert decide(GatePolicy(), fine).passed


def test_approvals_count_people_not_clicks():
    two = bare(approvals=2)
    assert not one(two, Facts(approved_by=("ann", "ann"))).passed
    assert one(two, Facts(approved_by=("ann", "bob"))).note == "approved by ann, bob"


def test_what_is_not_asked_for_is_said():
    decision = decide(bare(min_rows=1), Facts(rows=1))
    assert decision.unchecked == (
        "metrics", "worst_slice", "challenge", "quality", "parity", "lineage", "approvals", "load",
    )  # fmt: skip
    assert decision.passed
    assert "min_rows" in decide(GatePolicy(), Facts()).unchecked


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"tresholds": {}}, "unknown key 'tresholds'"),
        ({"metrics": {"acu": {"at_least": 0.5}}}, "unknown metric 'acu'; did you mean 'auc'?"),
        ({"metrics": {"auc": {"at_most": 0.5}}}, "metrics.auc lacks at_least: auc is better when it is higher"),
        ({"metrics": {"log_loss": {"at_least": 0.5}}}, "log_loss lacks at_most: log_loss is better when it is lower"),
        ({"metrics": {"auc": {"at_least": 62}}}, "must be in [0, 1], got 62.0; give a fraction, not percent"),
        ({"metrics": {"auc": {}}}, "threshold must be given as at_least or at_most"),
        ({"metrics": {"auc": {"at_least": 0.6, "at_most": 0.5}}}, "at_least <= at_most"),
        ({"challenge": {"metric": "speed"}}, "unknown metric 'speed'"),
        ({"challenge": {"confidence": 95}}, "confidence must be in (0, 1), got 95.0"),
        ({"challenge": {"resamples": 5}}, "resamples must be at least 100"),
        ({"min_quality": 90}, "min_quality must be in [0, 1]"),
        ({"approvals": -1}, "approvals must be at least 0"),
        ({"parity": False, "lineage": False}, "criteria must be at least one of metrics, min_rows, worst_slice"),
    ],
)
def test_a_bad_policy_names_place_and_remedy(body, message):
    with pytest.raises(SpecError) as caught:
        codec.decode(GatePolicy, body)
    assert message in str(caught.value)


estimates = st.floats(0, 1).flatmap(
    lambda v: st.tuples(st.floats(0, v), st.floats(v, 1)).map(lambda b: {"value": v, "low": b[0], "high": b[1]})
)


@given(estimates, st.floats(0, 1))
def test_judging_the_bound_is_never_more_lenient(estimate, bound):
    facts = Facts(metrics={"auc": estimate})
    strict, lenient = (
        decide(bare(metrics={"auc": Threshold(at_least=bound, use_bound=b)}), facts).passed for b in (True, False)
    )
    assert lenient or not strict


@given(estimates, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_is_never_more_lenient(estimate, one, two):
    facts = Facts(metrics={"auc": estimate})
    low, high = (decide(bare(metrics={"auc": Threshold(at_least=b)}), facts).passed for b in sorted((one, two)))
    assert low or not high


def test_a_gain_is_good_whatever_the_direction():
    assert signed_gain("auc", 0.8, 0.7) > 0
    assert signed_gain("brier", 0.1, 0.2) > 0


LOAD = {
    "rate": 200.0,
    "metrics": {"p99_ms": {"value": 40.0, "low": 35.0, "high": 55.0}, "knee_per_s": {"value": 300.0}},
    "judged": {"requests": 6000, "figures": {"p99_ms": {}}},
    "generator": {"trusted": True, "reason": ""},
    "target": {"own": True, "url": ""},
}


class TestLoad:
    def judge(self, found, **wanted):
        wanted = {"rate": 200, "metrics": {"p99_ms": {"at_most": 50}}, **wanted}
        return one(policy(load=wanted), Facts(load=found))

    def test_a_figure_within_its_bounds(self):
        met = self.judge(LOAD)
        assert met.passed
        assert met.sentence == (
            "load.p99_ms is 40 [35, 55] over 6000 requests and must be at most 50 (at 200 requests/s)"
        )
        assert not self.judge(LOAD, metrics={"p99_ms": {"at_most": 50, "use_bound": True}}).passed
        assert self.judge(LOAD, metrics={"knee_per_s": {"at_least": 250}}).passed
        assert not self.judge(LOAD, metrics={"knee_per_s": {"at_least": 350}}).passed

    @pytest.mark.parametrize(
        ("changes", "note"),
        [
            (None, "no load test report"),
            ({"rate": 100.0}, "tested at 100 requests/s, not at 200"),
            ({"generator": {"trusted": False, "reason": "the generator fell behind"}}, "fell behind"),
            ({"metrics": {}}, "no such value"),
            ({"metrics": {"p99_ms": {"value": None, "low": None, "high": None}}}, "no such value"),
        ],
    )
    def test_what_shows_nothing_is_not_met(self, changes, note):
        found = self.judge(None if changes is None else {**LOAD, **changes})
        assert not found.passed
        assert note in found.note

    def test_a_service_is_not_proven_to_serve_the_model(self):
        found = self.judge({**LOAD, "target": {"own": False, "url": "http://late"}})
        assert found.passed
        assert "not proven" in found.note

    @pytest.mark.parametrize(
        ("load", "message"),
        [
            ({"rate": 200, "metrics": {"p99": {"at_most": 50}}}, "did you mean 'p99_ms'"),
            ({"rate": 200, "metrics": {"p99_ms": {"at_least": 50}}}, "p99_ms is better when it is lower"),
            ({"rate": 200, "metrics": {"knee_per_s": {"at_most": 50}}}, "knee_per_s is better when it is higher"),
            ({"rate": 0, "metrics": {"p99_ms": {"at_most": 50}}}, "load.rate must be greater than 0"),
            ({"rate": 200, "metrics": {}}, "at least one figure"),
        ],
    )
    def test_bad_policies(self, load, message):
        with pytest.raises(SpecError, match=message):
            policy(load=load)
