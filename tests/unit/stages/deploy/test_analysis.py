"""Findings: by hand, and how often a look at any time is wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider import codec
from airflow_ml_provider.stages.deploy.analysis import Finding, Windows, judge, known
from airflow_ml_provider.stages.deploy.policy import Agreement, Business, ErrorRate, Latency, ScoreShift
from airflow_ml_provider.stages.deploy.sequential import half_width
from airflow_ml_provider.stages.deploy.stats import Histogram, Moments, VersionStats

BOUNDS = tuple(0.01 * 1.1**i for i in range(60))


def one(check, stable, candidate, *, alpha=0.05, min_samples=100, use_bound=False) -> Finding:
    (found,) = judge([check], Windows(stable, candidate, alpha, min_samples, use_bound))
    assert found.passed == (found.verdict == "pass")
    return found


def latencies(count, factor=1.0):
    """Return a version that answers in 0.02 s to 0.2 s times a factor, evenly in the logarithm."""
    edges = [math.log(bound / factor / 0.02) / math.log(10) for bound in BOUNDS]
    below = [round(count * min(1.0, max(0.0, edge))) for edge in edges]
    counts = tuple(b - a for a, b in zip([0, *below], [*below, count], strict=True))
    return VersionStats(count, latency_s=Histogram(BOUNDS, counts))


def scores(*counts):
    return VersionStats(sum(counts), scores=Histogram(tuple(i / len(counts) for i in range(1, len(counts))), counts))


@pytest.mark.parametrize(
    ("errors", "requests", "verdict"),
    [(0, 99, "unsure"), (0, 100, "pass"), (1, 100, "unsure"), (3, 10, "fail"), (5, 10, "fail"), (30, 1000, "fail"),
     (7, 1000, "unsure"), (5, 1000, "pass"), (500, 1000, "fail")],
)  # fmt: skip
def test_error_rates(errors, requests, verdict):
    found = one(ErrorRate(0.005), VersionStats(50_000, 50), VersionStats(requests, errors))
    assert found.verdict == verdict
    assert found.name == "error_rate.increase"
    assert (found.stable, found.candidate) == (0.001, errors / requests)
    assert found.observed == pytest.approx(errors / requests - 0.001)
    assert found.interval[0] <= found.observed <= found.interval[1]
    assert (found.rows, found.stable_rows) == (requests, 50_000)
    assert found.beyond == (errors / requests - 0.001 > 0.005)


def test_the_sentence_is_for_humans():
    found = one(ErrorRate(0.005), VersionStats(50_000, 50), VersionStats(40, 20))
    assert found.sentence == (
        "error_rate.increase is 0.499 [0.1758, 0.822] on 40 rows and must be at most 0.005 (0.5 against 0.001; "
        "only 40 of 100 requests)"
    )


def test_the_strict_way_takes_more_requests():
    check, stable = ErrorRate(0.005), VersionStats(50_000, 50)
    few, many = VersionStats(1000, 1), VersionStats(10_000, 10)
    assert one(check, stable, few).verdict == "pass"
    assert one(check, stable, few, use_bound=True).verdict == "unsure"
    assert one(check, stable, many, use_bound=True).verdict == "pass"


def test_a_stable_version_without_enough_requests_compares_with_nothing():
    found = one(ErrorRate(), VersionStats(), VersionStats(1000))
    assert (found.verdict, found.observed, found.stable_rows) == ("unsure", None, 0)
    assert one(ErrorRate(), VersionStats(99), VersionStats(1000)).note.endswith("only 99 of 100 requests")


def test_an_absolute_limit_needs_nobody_to_compare_with():
    relative, absolute = judge([ErrorRate(max=0.01)], Windows(None, VersionStats(1000, 100), 0.05, 100))
    assert (relative.verdict, relative.observed, relative.stable_rows) == ("pass", None, None)
    assert relative.note == "there is no stable version to compare with"
    assert (absolute.name, absolute.verdict, absolute.stable) == ("error_rate.max", "fail", None)


@pytest.mark.parametrize(
    ("factor", "count", "verdict"),
    [
        (1.0, 2000, "pass"),
        (1.4, 2000, "pass"),
        (2.0, 2000, "fail"),
        (2.0, 20, "unsure"),
        (10.0, 20, "fail"),
        (0.5, 2000, "pass"),
    ],
)
def test_latencies(factor, count, verdict):
    found = one(Latency(0.95, 1.5), latencies(50_000), latencies(count, factor))
    assert (found.name, found.verdict) == ("latency.p95.ratio", verdict)
    assert found.observed == pytest.approx(factor, rel=0.1)
    assert found.stable == pytest.approx(0.02 * 10**0.95, rel=0.02)
    assert found.interval[0] <= found.observed <= found.interval[1]


def test_a_latency_in_seconds():
    check = Latency(0.95, None, 0.5)
    assert one(check, None, latencies(2000)).verdict == "pass"
    found = one(check, None, latencies(2000, 4.0))
    assert (found.name, found.verdict, found.threshold) == ("latency.p95.max", "fail", {"at_most": 0.5})
    assert found.observed == pytest.approx(4 * 0.02 * 10**0.95, rel=0.02)


class TestMoments:
    """Of ten moments some are slow, 0.7 s for all who come, and have a third of the requests of the others."""

    def judged(self, *slow, check=None):
        stalled = VersionStats(100, latency_s=Histogram(BOUNDS, tuple(100 * (i == 45) for i in range(len(BOUNDS) + 1))))
        each = [stalled if at in slow else latencies(300) for at in range(10)]
        candidate = sum(each, VersionStats())
        moments = [stats.latency_s for stats in each]
        (found,) = judge([check or Latency()], Windows(latencies(50_000), candidate, 0.05, 100, moments=moments))
        return found

    @pytest.mark.parametrize("check", [Latency(), Latency(0.95, None, 0.4)], ids=["ratio", "max"])
    @pytest.mark.parametrize("slow", [(4,), (4, 5), (0, 9)], ids=str)
    def test_two_slow_ones_fail_nobody(self, check, slow):
        assert self.judged(*slow, check=check).verdict != "fail"

    def test_it_is_said(self):
        found = self.judged(4, 5)
        assert found.interval[0] > 1.5
        assert found.note.endswith("but for a moment only")
        assert "moment" not in self.judged().note

    def test_three_slow_ones_do(self):
        found = self.judged(1, 4, 7)
        assert (found.verdict, "moment" in found.note) == ("fail", False)

    def test_nobody_is_failed_before_the_third(self):
        slow = latencies(2000, 2.0)
        for count, verdict in ((1, "unsure"), (2, "unsure"), (3, "fail")):
            moments = [slow.latency_s] * count
            windows = Windows(latencies(50_000), sum([slow] * count, VersionStats()), 0.05, 100, moments=moments)
            assert judge([Latency()], windows)[0].verdict == verdict


@pytest.mark.parametrize(("count", "passed"), [(0, False), (300, False), (20_000, True)])
def test_the_stable_version_is_known_once_its_bound_is_near(count, passed):
    stable = latencies(count) if count else VersionStats()
    (found,) = known([ErrorRate(), Latency(), Latency(0.5, None, 1.0)], stable, 0.05)
    assert (found.name, found.passed, found.threshold) == ("latency.p99.stable.bound", passed, {"at_most": 1.5})
    assert passed or found.observed == math.inf
    assert known([ErrorRate()], stable, 0.05) == ()


def test_coarse_buckets_are_told():
    coarse = Histogram((0.1, 0.5), (900, 90, 10))
    stats = VersionStats(1000, latency_s=coarse)
    found = one(Latency(0.95, 1.5), stats, stats)
    assert found.verdict == "pass"
    assert "interpolated in a bucket from 0.1 s to 0.5 s, wider than the ratio" in found.note


def test_latencies_that_nobody_measured_are_unsure():
    assert one(Latency(), VersionStats(1000), VersionStats(1000)).verdict == "unsure"
    assert one(Latency(), latencies(1000), VersionStats(1000)).verdict == "unsure"


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [((250, 250, 250, 250), "pass"), ((240, 260, 245, 255), "pass"), ((500, 300, 150, 50), "fail"),
     ((5, 5, 5, 60), "unsure"), ((400, 220, 200, 180), "pass"), ((1000, 0, 0, 0), "fail")],
)  # fmt: skip
def test_score_shifts(counts, verdict):
    found = one(ScoreShift(), scores(5000, 5000, 5000, 5000), scores(*counts))
    assert (found.name, found.verdict) == ("scores.psi", verdict)


def test_what_rests_on_the_central_limit_fails_nobody_too_early():
    few = scores(0, 0, 0, 90)
    assert one(ScoreShift(), scores(5000, 5000, 5000, 5000), few, min_samples=90).verdict == "fail"
    assert one(ScoreShift(), scores(5000, 5000, 5000, 5000), few, min_samples=91).verdict == "unsure"


def test_equal_shares_are_not_known_to_be_equal():
    """There the slopes of the index are 0, and its chi-square law is all that is left: k - 1 = 3, 1/n + 1/m = 0.01."""
    found = one(ScoreShift(0.2), scores(50, 50, 50, 50), scores(50, 50, 50, 50))
    width = half_width(2 * 3 * 0.01**2, 0.5, 0.05)
    assert found.interval == (0, pytest.approx(width - 3 * 0.01))


def test_the_noise_of_equal_distributions_is_taken_off():
    np = pytest.importorskip("numpy")
    rng, law = np.random.default_rng(1), [0.1] * 10
    observed = []
    for _ in range(300):
        draws = (tuple(map(int, rng.multinomial(size, law))) for size in (20_000, 200))
        observed.append(one(ScoreShift(), *(scores(*draw) for draw in draws)).observed)
    # As it is, the index would be 9 * (1/200 + 1/20,000) = 0.045 on average; cut off at 0, half of it is left at most.
    assert sum(observed) / len(observed) < 0.015
    assert sum(value == 0 for value in observed) > 100


def test_scores_that_cannot_be_compared_are_unsure():
    assert one(ScoreShift(), VersionStats(1000), VersionStats(1000)).note.startswith("no scores were seen")
    found = one(ScoreShift(), scores(500, 500), scores(200, 200, 200))
    assert (found.verdict, found.note) == ("unsure", "the versions' scores have different bins")


def clicks(count, share):
    total = round(count * share)
    return VersionStats(count, metrics={"clicks": Moments(count, total, total)})


@pytest.mark.parametrize(
    ("share", "count", "verdict"),
    [
        (0.1, 10_000, "pass"),
        (0.12, 10_000, "pass"),
        (0.05, 10_000, "fail"),
        (0.093, 1000, "unsure"),
        (0.0, 50, "unsure"),
    ],
)
def test_business_metrics(share, count, verdict):
    found = one(Business("clicks", 0.95), clicks(50_000, 0.1), clicks(count, share))
    assert (found.name, found.verdict) == ("business.clicks.ratio", verdict)
    assert found.observed == pytest.approx(share / 0.1)


def test_rare_clicks_that_have_not_come_yet_prove_nothing():
    found = one(Business("clicks", 0.95), clicks(50_000, 0.005), clicks(300, 0.0))
    assert (found.verdict, found.observed) == ("unsure", 0)
    assert one(Business("clicks", 0.95), clicks(50_000, 0.005), clicks(10_000, 0.0)).verdict == "fail"


def test_a_business_metric_without_values_or_ratio_is_unsure():
    assert one(Business("clicks"), clicks(1000, 0.1), VersionStats(1000)).note.startswith("no values were seen")
    found = one(Business("clicks"), clicks(1000, 0.0), clicks(1000, 0.1))
    assert (found.verdict, "not positive" in found.note) == ("unsure", True)


@pytest.mark.parametrize(
    ("agreed", "compared", "verdict"), [(960, 1000, "pass"), (940, 1000, "unsure"), (900, 1000, "fail"), (0, 9, "fail")]
)
def test_agreement(agreed, compared, verdict):
    found = one(Agreement(0.95), None, VersionStats(compared, compared=compared, agreed=agreed))
    assert (found.verdict, found.rows, found.threshold) == (verdict, compared, {"at_least": 0.95})
    assert found.interval[0] <= found.observed <= found.interval[1]


def test_alpha_is_shared_among_the_findings():
    check, stable, candidate = ErrorRate(0.005), VersionStats(50_000, 50), VersionStats(1000, 20)
    alone = one(check, stable, candidate, alpha=0.05 / 4)
    first, *rest = judge([check, Latency(), Agreement(), ScoreShift()], Windows(stable, candidate, 0.05, 100))
    assert first.interval == alone.interval
    assert len(rest) == 3


@given(st.integers(0, 200), st.integers(0, 2000), st.integers(0, 200), st.integers(0, 2000))
def test_nothing_is_met_and_failed_and_everything_is_plain(errors, good, old_errors, old_good):
    stable, candidate = VersionStats(old_errors + old_good, old_errors), VersionStats(errors + good, errors)
    checks = [ErrorRate(max=0.2), Latency(), ScoreShift(), Business("x"), Agreement()]
    for found in judge(checks, Windows(stable, candidate, 0.05, 100)):
        codec.canonical(found)
        assert found.verdict != "fail" or found.beyond
        assert found.verdict != "pass" or not found.beyond


@given(st.integers(0, 50), st.integers(0, 1000))
def test_more_errors_never_look_better(errors, good):
    order = {"fail": 0, "unsure": 1, "pass": 2}
    stable, candidate = VersionStats(50_000, 50), VersionStats(errors + good, errors)
    worse = replace(candidate, requests=candidate.requests + 1, errors=errors + 1)
    verdicts = [order[one(ErrorRate(), stable, c, min_samples=1).verdict] for c in (candidate, worse)]
    if candidate.requests:
        assert verdicts[1] <= verdicts[0]


ALPHA, RUNS, LOOKS = 0.05, 200, 40


@pytest.mark.parametrize(
    ("check", "candidate"),
    [
        (ErrorRate(0.005), {"errors": 0.006}),
        (Latency(0.99, 1.5), {"median_s": 0.045}),
        (Latency(0.95, 1.5), {"median_s": 0.045}),
        (ScoreShift(0.2), {"score": 0.457}),  # an index of 0.2 over the cells
        (Business("clicks", 0.9), {"clicks": 0.09}),
    ],
    ids=["errors", "p99", "p95", "scores", "clicks"],
)
def test_a_candidate_just_within_its_threshold_is_hardly_ever_failed(simulation, check, candidate):
    """The worst case of the promise: the truth is at the threshold, and there is a look after every 50 requests."""
    stable, candidate = simulation.model(), simulation.model(**candidate)
    false = 0
    for seed in range(RUNS):
        users = simulation.users(seed, stable, candidate)
        windows = [VersionStats(), VersionStats()]
        for _ in range(LOOKS):
            windows[0] += users.answers("stable", 1000)
            windows[1] += users.answers("candidate", 50)
            if one(check, *windows, alpha=ALPHA).verdict == "fail":
                false += 1
                break
    assert false / RUNS <= ALPHA
