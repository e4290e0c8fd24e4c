"""Counters: what they add up to, and what two readings of a server say."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.serving.stats import LATENCY_BOUNDS_MS, Latency
from airflow_ml_provider.stages.deploy.stats import (
    Histogram,
    Moments,
    VersionStats,
)

BOUNDS = (0.1, 1.0, 10.0)


@st.composite
def readings(draw):
    """Return counters of a server."""
    errors, good, agreed, differ = (draw(st.integers(0, 1000)) for _ in range(4))
    counts = draw(st.lists(st.integers(0, 100), min_size=4, max_size=4))
    total = draw(st.integers(-100, 100))
    metrics = draw(st.sampled_from([{}, {"clicks": Moments(errors + good, total, 1000 + total * total)}]))
    histogram = draw(st.sampled_from([Histogram(), Histogram(BOUNDS, tuple(counts))]))
    return VersionStats(errors + good, errors, histogram, histogram, metrics, agreed + differ, agreed)


@given(readings(), readings(), readings())
def test_windows_add_up_in_any_order(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + VersionStats() == a


@given(readings(), readings())
def test_a_later_reading_less_the_earlier_is_what_came_between(earlier, window):
    later = earlier + window
    assert not later.restarted(earlier)
    between = later - earlier
    assert earlier + between == later
    assert between.requests == window.requests
    assert later - later + later == later


@given(readings(), readings())
def test_after_a_restart_all_counts_are_new(earlier, now):
    window = now - earlier
    assert 0 <= window.errors <= window.requests
    if now.restarted(earlier):
        assert window == now


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        (VersionStats(100, 5), VersionStats(99, 5)),
        (VersionStats(100, 5), VersionStats(200, 4)),
        (VersionStats(100, 5), VersionStats(120, 30)),  # fewer answers that were right
        (VersionStats(compared=10, agreed=9), VersionStats(compared=20, agreed=8)),
        (VersionStats(compared=10, agreed=5), VersionStats(compared=11, agreed=9)),
        (VersionStats(scores=Histogram(BOUNDS, (5, 5, 5, 5))), VersionStats(scores=Histogram(BOUNDS, (4, 9, 9, 9)))),
        (VersionStats(latency_s=Histogram(BOUNDS, (5, 5, 5, 5))), VersionStats(latency_s=Histogram((0.5,), (99, 99)))),
        (VersionStats(metrics={"x": Moments(2)}), VersionStats(metrics={"x": Moments(1)})),
        (VersionStats(metrics={"x": Moments(2)}), VersionStats(metrics={"y": Moments(3)})),
    ],
    ids=["requests", "errors", "successes", "agreed", "differed", "bucket", "bounds", "metric", "lost metric"],
)
def test_a_counter_that_fell_is_a_restart(earlier, now):
    assert now.restarted(earlier)
    assert now - earlier == now


@given(readings())
def test_readings_go_through_json(stats):
    assert codec.decode(VersionStats, codec.encode(stats)) == stats


def test_histograms_of_different_bounds_do_not_add_up():
    with pytest.raises(DataError, match="histograms have different bounds: 3 up to 10 and 1 up to 2"):
        Histogram.empty(BOUNDS) + Histogram.empty((2.0,))
    assert Histogram() + Histogram.empty(BOUNDS) == Histogram.empty(BOUNDS)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Histogram((1.0, 1.0), (0, 0, 0)), "bounds must be ascending"),
        (lambda: Histogram((1.0,), (0,)), "counts must be one per bucket, 2"),
        (lambda: Histogram((1.0,), (0, -1)), "counts must be at least 0"),
        (lambda: VersionStats(1, 2), r"errors must be between 0 and requests \(1\), got 2"),
        (lambda: VersionStats(compared=1, agreed=2), r"agreed must be between 0 and compared \(1\), got 2"),
    ],
)
def test_impossible_counts_are_errors(build, message):
    with pytest.raises(SpecError, match=message):
        build()


def test_prometheus_buckets_are_cumulative():
    found = Histogram.from_cumulative({0.1: 3, 1.0: 10, 10.0: 10, math.inf: 12})
    assert found == Histogram(BOUNDS, (3, 7, 0, 2))


def test_values_are_interpolated_evenly_in_the_logarithm():
    found = Histogram((1.0, 10.0, 100.0), (0, 10, 10, 0))
    assert [found.at(rank) for rank in (0, 5, 10, 15, 20)] == pytest.approx([1, 10**0.5, 10, 10**1.5, 100])
    assert Histogram((2.0,), (10, 0)).at(5) == 1  # from 0 on, where there is no logarithm
    assert Histogram((2.0,), (1, 9)).at(5) == 2  # above the last bound nothing else is known


def test_a_quantile_says_what_is_not_known_of_it():
    few, many = Histogram((0.1, 0.2, 0.4), (90, 8, 2, 0)), Histogram((0.1, 0.2, 0.4), (90_000, 8_000, 2_000, 0))
    one, other = few.quantile(0.95, 0.05), many.quantile(0.95, 0.05)
    assert one.value == pytest.approx(other.value)
    assert one.bucket == (0.1, 0.2)
    assert one.low < other.low < other.value < other.high < 0.2
    assert few.quantile(0.99, 0.05).high == math.inf  # a hundred values do not bound it
    assert Histogram((0.1,), (90, 10)).quantile(0.95, 0.05).bucket == (0.1, math.inf)
    assert Histogram.empty(BOUNDS).quantile(0.5, 0.05) is None


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_quantiles_of_known_values(level):
    rng = random.Random(5)
    values = sorted(rng.lognormvariate(-3, 0.6) for _ in range(20_000))
    latency = Latency()
    for value in values:
        latency.add(1000 * value)
    bounds = tuple(bound / 1000 for bound in LATENCY_BOUNDS_MS)
    found = Histogram(bounds, tuple(latency.counts)).quantile(level, 0.05)
    exact = values[int(level * len(values))]
    assert found.bucket[0] <= exact <= found.bucket[1]
    assert found.value == pytest.approx(exact, rel=0.05)  # buckets are 41 % wide
    assert found.low < exact < found.high


def test_moments():
    found = Moments(4, 10, 30)
    assert found.mean == 2.5
    assert found.variance == pytest.approx((30 - 25) / 3 / 4)
    assert Moments(1, 2, 4).variance == math.inf
    assert Moments().mean == 0
    none, some = Moments(300, 0, 0), Moments(50_000, 250, 250)
    assert none.variance == 0
    assert none.variance_beside(some) == pytest.approx(0.005 / 300, rel=0.02)
    assert some.variance_beside(none) == pytest.approx(some.variance, rel=0.01)
