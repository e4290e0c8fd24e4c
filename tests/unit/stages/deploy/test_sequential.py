"""The intervals: by their definition, by properties, and by how often they ever miss."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.stages.deploy import experiment, sequential
from airflow_ml_provider.stages.deploy.sequential import half_width, log_ratio, proportion, ranks

ALPHA = 0.05


@given(st.integers(0, 5000), st.integers(0, 5000), st.floats(1e-6, 0.5))
def test_a_proportion_lies_in_its_interval_whose_ends_are_where_the_ratio_says(events, others, alpha):
    total = events + others
    low, high = proportion(events, total, alpha)
    assert 0 <= low <= high <= 1
    if total:
        assert low <= events / total <= high
    for end in (low, high):
        if 1e-6 < end < 1 - 1e-6:  # nearer to them a float cannot tell
            assert log_ratio(events, total, end) == pytest.approx(-math.log(alpha), rel=1e-3, abs=1e-3)


@given(st.integers(0, 300), st.integers(1, 300), st.floats(0.001, 0.1))
def test_a_smaller_alpha_and_fewer_trials_widen_it(events, others, alpha):
    total = events + others
    low, high = proportion(events, total, alpha)
    wide_low, wide_high = proportion(events, total, alpha / 10)
    more_low, more_high = proportion(4 * events, 4 * total, alpha)
    assert wide_low <= low
    assert high <= wide_high
    assert more_high - more_low <= high - low + 1e-9


def test_without_trials_nothing_is_known():
    assert proportion(0, 0, ALPHA) == (0, 1)
    assert ranks(0.99, 0, ALPHA) == (0, 0)


def test_an_impossible_probability_is_infinitely_unlikely():
    assert log_ratio(1, 10, 0.0) == log_ratio(9, 10, 1.0) == math.inf
    assert log_ratio(0, 10, 0.0) < math.inf


@given(st.floats(0.5, 0.999), st.integers(1, 100_000))
def test_ranks_embrace_the_quantile(level, total):
    low, high = ranks(level, total, ALPHA)
    assert 0 <= low <= level * total <= high <= total
    assert ranks(level, total, ALPHA / 100)[0] <= low


def test_few_values_do_not_bound_a_high_quantile():
    assert ranks(0.99, 100, ALPHA)[1] == 100
    assert ranks(0.99, 10_000, ALPHA)[1] < 10_000


def test_the_half_width_is_that_of_the_mixture_sprt():
    """At its end the mixture likelihood ratio of normal observations is 1 / alpha (Johari et al., equation 5)."""
    variance, spread = 0.04, 0.5
    width = half_width(variance, spread, ALPHA)
    mixed = variance + spread**2
    ratio = math.sqrt(variance / mixed) * math.exp(spread**2 * width**2 / (2 * variance * mixed))
    assert ratio == pytest.approx(1 / ALPHA)
    assert half_width(0.0, spread, ALPHA) == 0


@pytest.mark.parametrize("truth", [0.001, 0.006, 0.05, 0.5])
def test_looking_after_every_trial_hardly_ever_misses_the_truth(truth):
    """Whether a likelihood ratio ever reaches 1 / alpha, in 1,000 runs of 2,000 trials with a look at every one."""
    np = pytest.importorskip("numpy")
    trials, runs = 2000, 1000
    events = (np.random.default_rng(7).random((runs, trials)) < truth).cumsum(axis=1)
    # A look that comes after so many trials misses the truth from so many events on, or below so many.
    missed = np.zeros(runs, bool)
    for total in range(1, trials + 1):
        counts, inverse = np.unique(events[:, total - 1], return_inverse=True)
        outside = np.array([log_ratio(int(k), total, truth) >= -math.log(ALPHA) for k in counts])
        missed |= outside[inverse]
    assert missed.mean() <= ALPHA
    # An ordinary interval of the same level, looked at as often, is missed far more often.
    spread = np.sqrt(truth * (1 - truth) / np.arange(1, trials + 1))
    off = np.abs(events / np.arange(1, trials + 1) - truth) > 1.96 * spread
    assert off[:, 100:].any(axis=1).mean() > 3 * ALPHA


def test_means_hardly_ever_miss_either():
    np = pytest.importorskip("numpy")
    trials, runs, first = 2000, 1000, 300  # first: the `min_samples` of a default policy
    draws = np.random.default_rng(3).exponential(size=(runs, trials))  # skewed: the central limit has to work
    sizes = np.arange(1, trials + 1)
    means = draws.cumsum(axis=1) / sizes
    variances = (((draws**2).cumsum(axis=1) / sizes - means**2) / sizes)[:, first:]
    mixed = variances + 0.2**2
    widths = np.sqrt(variances * mixed / 0.2**2 * (np.log(mixed / variances) - 2 * math.log(ALPHA)))
    assert widths[5, 500] == pytest.approx(half_width(float(variances[5, 500]), 0.2, ALPHA))
    assert (np.abs(means[:, first:] - 1) > widths).any(axis=1).mean() <= ALPHA


@pytest.mark.parametrize("module", [sequential, experiment], ids=["sequential", "experiment"])
def test_the_examples_in_the_documentation(module):
    assert doctest.testmod(module) == (0, {"sequential": 3, "experiment": 2}[module.__name__.rpartition(".")[2]])
