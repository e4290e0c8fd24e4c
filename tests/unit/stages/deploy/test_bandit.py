"""Traffic follows rewards: within the floor and the cap, repeatably, and to the right version."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.deploy.bandit import BanditPolicy, allocate
from airflow_ml_provider.stages.deploy.stats import Moments, VersionStats

POLICY = BanditPolicy("clicked", draws=500)
EVEN = {"a": 0.5, "b": 0.5}


def rewards(**counts):
    """Return statistics of versions from pairs of rewards and requests."""
    return {name: VersionStats(n, metrics={"clicked": Moments(n, k, k)}) for name, (k, n) in counts.items()}


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 2000)), min_size=2, max_size=5),
    st.lists(st.floats(0.01, 1), min_size=5, max_size=5),
    st.floats(0, 0.19), st.floats(0.01, 1),
)  # fmt: skip
def test_weights_keep_the_sum_the_floor_and_the_cap(counts, shares, floor, max_change):
    policy = BanditPolicy("clicked", floor, max_change, min_samples=1, draws=100)
    stats = rewards(**{f"v{i}": (k, k + more) for i, (k, more) in enumerate(counts)})
    free = 1 - floor * len(stats)
    total = sum(shares[: len(stats)])
    weights = {name: floor + free * share / total for name, share in zip(stats, shares, strict=False)}
    found = allocate(policy, stats, weights)
    assert sum(found.weights.values()) == pytest.approx(1)
    assert min(found.weights.values()) >= floor - 1e-9
    assert max(abs(found.weights[name] - weights[name]) for name in weights) <= max_change + 1e-9
    assert sum(found.chances.values()) == pytest.approx(1)
    assert found.loss >= 0
    assert found == allocate(policy, stats, weights)
    codec.canonical(found)


def test_nothing_moves_before_there_is_something_to_see():
    found = allocate(POLICY, rewards(a=(0, 299), b=(299, 299)), EVEN)
    assert (found.weights, found.over) == (EVEN, False)
    assert found.reason == "only 299 of 300 rewards of clicked for each version"


def test_traffic_goes_to_the_better_version_step_by_step():
    stats, weights, path = rewards(a=(100, 1000), b=(200, 1000)), EVEN, []
    for _ in range(4):
        found = allocate(POLICY, stats, weights)
        weights = found.weights
        path.append(round(weights["b"], 2))
    assert path == [0.7, 0.9, 0.95, 0.95]
    assert (found.best, found.over) == ("b", True)


def test_it_is_not_over_while_the_other_may_be_better():
    found = allocate(POLICY, rewards(a=(50, 500), b=(52, 500)), EVEN)
    assert not found.over
    assert found.loss > POLICY.max_loss


def test_equal_versions_keep_their_traffic_and_end_once_it_hardly_matters():
    found = allocate(POLICY, rewards(a=(50_000, 500_000), b=(50_000, 500_000)), EVEN)
    assert found.weights["a"] == pytest.approx(0.5, abs=0.1)
    assert found.over


def test_another_seed_draws_otherwise():
    stats = rewards(a=(50, 500), b=(52, 500))
    assert allocate(POLICY, stats, EVEN).chances != allocate(replace(POLICY, seed=1), stats, EVEN).chances


def test_a_bandit_earns_more_than_an_even_split_and_finds_the_best(simulation):
    import numpy as np

    rates, rng, found_best, gained = {"a": 0.10, "b": 0.12, "c": 0.15}, np.random.default_rng(4), 0, []
    for _ in range(10):
        weights, stats, clicks = dict.fromkeys(rates, 1 / 3), rewards(a=(0, 0), b=(0, 0), c=(0, 0)), 0
        for _ in range(40):
            for name, rate in rates.items():
                shown = round(1000 * weights[name])
                clicked = int(rng.binomial(shown, rate))
                stats[name] += VersionStats(shown, metrics={"clicked": Moments(shown, clicked, clicked)})
                clicks += clicked
            found = allocate(replace(POLICY, draws=200), stats, weights)
            weights = found.weights
        found_best += found.best == "c"
        gained.append(clicks / (40 * 1000))
    assert found_best >= 9
    assert sum(gained) / len(gained) > 0.14  # an even split earns 0.1233, knowing it all along with the floor 0.147


@pytest.mark.parametrize(
    ("stats", "weights", "message"),
    [
        (rewards(a=(1, 2)), {"a": 1.0}, "versions must be at least 2"),
        (rewards(a=(1, 2), b=(1, 2)), {"a": 1.0}, "weights must be shares of a, b that add up to 1"),
        (rewards(a=(1, 2), b=(1, 2)), {"a": 0.4, "b": 0.4}, "add up to 1"),
        (rewards(a=(3, 2), b=(1, 2)), EVEN, r"clicked of a must be a reward in \[0, 1\], got 1.5; scale it"),
    ],
)
def test_what_makes_no_sense_is_an_error(stats, weights, message):
    with pytest.raises(SpecError, match=message):
        allocate(POLICY, stats, weights)


def test_a_reward_of_two_hides_in_no_mean():
    stats = {**rewards(a=(1, 2)), "b": VersionStats(10, metrics={"clicked": Moments(10, 4, 8)})}
    with pytest.raises(SpecError, match="clicked of b must be a reward"):
        allocate(POLICY, stats, EVEN)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"floor": 0.5}, "floor must be in"), ({"max_change": 20.0}, "give a fraction"),
     ({"max_loss": 0.0}, "max_loss must be in"), ({"draws": 10}, "min_samples, draws must be at least 1 and 100")],
)  # fmt: skip
def test_policies_that_make_no_sense(values, message):
    with pytest.raises(SpecError, match=message):
        BanditPolicy("clicked", **values)
