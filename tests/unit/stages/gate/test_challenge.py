"""The paired bootstrap against a plain one, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from airflow_ml_provider.stages.evaluate.metrics import METRICS, Rows, measure
from airflow_ml_provider.stages.gate.challenge import paired


def rows(n: int, seed: int = 0, noise: float = 0.3):
    """Labels, a good and a somewhat worse model's scores that err on the same rows."""
    rng = np.random.default_rng(seed)
    truth = rng.beta(2, 3, n)
    labels = (rng.random(n) < truth).astype(float)
    good = np.clip(truth + rng.normal(0, 0.05, n), 0.001, 0.999)
    worse = np.clip(good + rng.normal(0, noise, n), 0.001, 0.999)
    return labels, good, worse


def gain(labels, a, b, metric="auc", **changes):
    arguments = {"thresholds": (0.5, 0.5), "confidence": 0.95, "resamples": 1000, "seed": 1, **changes}
    return paired(labels, a, b, metric=metric, **arguments)


def plain(labels, a, b, metric, resamples=1000):
    """The textbook paired bootstrap: draw rows with replacement, measure both models on them."""
    rng, sample = np.random.default_rng(7), []
    for _ in range(resamples):
        index = rng.integers(0, len(labels), len(labels))
        one, two = (measure(Rows.of(labels[index], s[index]), 0.5)[metric] for s in (a, b))
        sample.append((one - two) * (1 if METRICS[metric].higher_is_better else -1))
    return np.quantile(sample, [0.025, 0.975])


@pytest.mark.parametrize("metric", ["auc", "pr_auc", "log_loss", "brier", "recall"])
def test_it_agrees_with_the_textbook_bootstrap(metric):
    labels, a, b = rows(1500)
    found = gain(labels, a, b, metric)
    low, high = plain(labels, a, b, metric)
    width = high - low
    assert found.low == pytest.approx(low, abs=0.15 * width)
    assert found.high == pytest.approx(high, abs=0.15 * width)


def test_the_gain_itself_is_exact():
    labels, a, b = rows(3000)
    found = gain(labels, a, b)
    one, two = (measure(Rows.of(labels, s), 0.5)["auc"] for s in (a, b))
    assert (found.challenger, found.champion) == (one, two)
    assert found.gain == one - two
    assert found.low < found.gain < found.high


def test_pairing_makes_the_interval_narrower_than_two_separate_ones():
    labels, a, b = rows(1500, noise=0.1)
    found = gain(labels, a, b)
    spread = [plain(labels, s, np.full_like(s, 0.5), "auc", 300) for s in (a, b)]
    separate = np.hypot(*(high - low for low, high in spread))
    assert found.high - found.low < 0.7 * separate


def test_swapping_the_models_turns_the_sign():
    labels, a, b = rows(800)
    there, back = gain(labels, a, b), gain(labels, b, a)
    assert there.gain == -back.gain
    assert there.low == pytest.approx(-back.high, abs=0.01)


def test_equal_scores_gain_nothing():
    labels, a, _ = rows(500)
    found = gain(labels, a, a)
    assert (found.gain, found.low, found.high) == (0, 0, 0)


def test_equal_arguments_give_an_equal_result_and_another_seed_another_one():
    labels, a, b = rows(500)
    assert gain(labels, a, b) == gain(labels, a, b)
    assert gain(labels, a, b) != gain(labels, a, b, seed=2)


def test_the_order_of_the_rows_does_not_matter():
    labels, a, b = (values + np.arange(500) * scale for values, scale in zip(rows(500), (0, 1e-9, 1e-9), strict=True))
    order = np.random.default_rng(3).permutation(500)
    assert gain(labels, a, b) == gain(labels[order], a[order], b[order])


def test_a_lower_loss_is_a_gain():
    labels, a, b = rows(1500)
    assert gain(labels, a, b, "log_loss").low > 0
    assert gain(labels, b, a, "log_loss").high < 0


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_rows_of_one_label_measure_nothing(label):
    found = gain(np.full(50, label), np.linspace(0, 1, 50), np.linspace(1, 0, 50))
    assert (found.gain, found.low, found.challenger) == (None, None, None)


def test_a_million_rows_are_counted_once():
    labels, a, b = rows(1_000_000)
    found = gain(labels, a, b)
    assert found.high - found.low < 0.005
    assert found.low > 0.02
