from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.evaluate import metrics
from airflow_ml_provider.stages.evaluate.metrics import METRICS, Cells, Rows, better, estimate, measure

np = pytest.importorskip("numpy")
sklearn = pytest.importorskip("sklearn.metrics")


def draw(n, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    scores = rng.beta(2, 6, n).astype(np.float32)
    if ties:
        scores = np.round(scores, 1).astype(np.float32)
    return (rng.random(n) < scores).astype(int), scores


def reference(labels, scores, threshold):
    flagged = scores >= np.float32(threshold)  # as the score stage
    negatives = labels == 0
    return {
        "auc": sklearn.roc_auc_score(labels, scores),
        "pr_auc": sklearn.average_precision_score(labels, scores),
        "log_loss": sklearn.log_loss(labels, np.column_stack([1 - scores, scores])),
        "brier": sklearn.brier_score_loss(labels, scores.astype(np.float64)),
        "precision": sklearn.precision_score(labels, flagged),
        "recall": sklearn.recall_score(labels, flagged),
        "f1": sklearn.f1_score(labels, flagged),
        "fpr": flagged[negatives].mean(),
    }


class TestMeasure:
    @pytest.mark.parametrize("ties", [False, True])
    @pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7])
    def test_equals_scikit_learn(self, ties, threshold):
        labels, scores = draw(5000, ties=ties)
        got = measure(Rows.of(labels, scores), threshold)
        want = reference(labels, scores, threshold)
        assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-6)

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10)), min_size=2, max_size=40))
    def test_equals_scikit_learn_on_small_sets(self, pairs):
        labels, scores = np.array([p[0] for p in pairs]), np.array([p[1] / 10 for p in pairs], np.float32)
        rows = Rows.of(labels, scores)
        if not rows.both_labels:
            assert measure(rows, 0.5)["auc"] is None
            return
        got = measure(rows, 0.5)
        assert got["auc"] == pytest.approx(sklearn.roc_auc_score(labels, scores))
        assert got["pr_auc"] == pytest.approx(sklearn.average_precision_score(labels, scores))

    def test_by_hand(self):
        # Pairs (positive, negative): 0.9 beats 0.6 and 0.2, 0.6 ties with 0.6 and beats 0.2 -> 3.5 of 4.
        got = measure(Rows.of([1, 0, 1, 0], [0.9, 0.6, 0.6, 0.2]), 0.6)
        assert got["auc"] == 3.5 / 4
        assert got["pr_auc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
        assert (got["precision"], got["recall"], got["fpr"]) == (2 / 3, 1.0, 0.5)
        assert got["brier"] == pytest.approx((0.01 + 0.36 + 0.16 + 0.04) / 4)
        # Bins [.2,.3): 0.2 against 0; [.6,.7): 0.6 against 0.5; [.9,1]: 0.9 against 1.
        assert got["ece"] == pytest.approx((1 * 0.2 + 2 * 0.1 + 1 * 0.1) / 4)

    def test_threshold_is_compared_in_float32(self):
        """0.7 is greater than its float32, which is what models score."""
        scores = np.float32([0.7] * 10 + [0.2] * 10)
        got = measure(Rows.of([1] * 7 + [0] * 13, scores), 0.7)
        assert (got["precision"], got["recall"], got["fpr"]) == (0.7, 1.0, 3 / 13)
        assert got == measure(Rows.of([1] * 7 + [0] * 13, scores.astype(np.float64).round(7)), 0.7)

    def test_undefined_values_are_none(self):
        nothing_flagged = measure(Rows.of([1, 0], [0.2, 0.1]), 0.5)
        assert nothing_flagged["precision"] is None
        assert (nothing_flagged["recall"], nothing_flagged["f1"], nothing_flagged["fpr"]) == (0.0, 0.0, 0.0)
        one_label = measure(Rows.of([0, 0], [0.2, 0.1]), 0.15)
        assert (one_label["auc"], one_label["recall"], one_label["fpr"]) == (None, None, 0.5)

    def test_certain_and_wrong_costs_what_float32_can_tell(self):
        assert measure(Rows.of([1, 0], [0.0, 1.0]), 0.5)["log_loss"] == pytest.approx(-np.log(2.0**-23))

    @pytest.mark.parametrize("ties", [False, True])
    def test_order_of_rows_does_not_matter_to_the_last_bit(self, ties):
        labels, scores = draw(997, ties=ties)
        first = measure(Rows.of(labels, scores), 0.3)
        for seed in range(20):
            order = np.random.default_rng(seed).permutation(997)
            assert measure(Rows.of(labels[order], scores[order]), 0.3) == first


class TestCalibration:
    def test_equals_scikit_learn(self):
        from sklearn.calibration import calibration_curve

        labels, scores = draw(5000)
        got = metrics.calibration(Rows.of(labels, scores))
        frequency, score = calibration_curve(labels, scores, n_bins=10)
        assert [b["frequency"] for b in got] == pytest.approx(frequency)
        assert [b["score"] for b in got] == pytest.approx(score)
        assert sum(b["rows"] for b in got) == 5000


class TestCells:
    @pytest.mark.parametrize("n", [50, 3000, 100_000])
    def test_cells_lose_almost_nothing(self, n):
        rows = Rows.of(*draw(n))
        exact, cells = measure(rows, 0.3), Cells.of(rows, 0.3)
        got = {name: values[0] for name, values in metrics.from_cells(cells, cells.counts[None]).items()}
        assert cells.counts.sum() == n
        for name in ("log_loss", "brier", "ece", "precision", "recall", "f1", "fpr"):
            assert got[name] == pytest.approx(exact[name]), name
        assert got["auc"] == pytest.approx(exact["auc"], abs=2e-3 if n > 1000 else 0.05)

    @pytest.mark.parametrize("ties", [False, True])
    @pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 0.6, 0.7, 1.0, 2.0])
    def test_threshold_anywhere(self, threshold, ties):
        rows = Rows.of(*draw(2000, ties=ties))
        cells = Cells.of(rows, threshold)
        got, exact = metrics.from_cells(cells, cells.counts[None]), measure(rows, threshold)
        assert got["recall"][0] == pytest.approx(exact["recall"])
        assert got["fpr"][0] == pytest.approx(exact["fpr"])


class TestEstimate:
    def test_deterministic_by_seed(self):
        rows = Rows.of(*draw(2000))
        a, b, c = (estimate(rows, 0.3, resamples=200, confidence=0.95, seed=(s,)) for s in (1, 1, 2))
        assert a == b
        assert a != c
        assert {n: v["value"] for n, v in a.items()} == {n: v["value"] for n, v in c.items()}

    def test_intervals_hold_the_value_and_grow_with_confidence(self):
        rows = Rows.of(*draw(2000))
        narrow = estimate(rows, 0.3, resamples=400, confidence=0.5, seed=(0,))
        wide = estimate(rows, 0.3, resamples=400, confidence=0.99, seed=(0,))
        for name in METRICS:
            assert wide[name]["low"] <= narrow[name]["low"] <= wide[name]["value"]
            assert wide[name]["value"] <= narrow[name]["high"] <= wide[name]["high"]

    def test_widths_match_a_bootstrap_of_rows(self):
        labels, scores = draw(3000)
        got = estimate(Rows.of(labels, scores), 0.3, resamples=1000, confidence=0.9, seed=(0,))
        rng = np.random.default_rng(5)
        drawn = []
        for _ in range(300):
            index = rng.integers(0, 3000, 3000)
            drawn.append(measure(Rows.of(labels[index], scores[index]), 0.3))
        for name in ("auc", "pr_auc", "log_loss", "brier", "precision", "recall", "f1", "fpr"):
            low, high = np.quantile([d[name] for d in drawn], [0.05, 0.95])
            assert got[name]["high"] - got[name]["low"] == pytest.approx(high - low, rel=0.2), name
            assert got[name]["low"] == pytest.approx(low, abs=0.2 * (high - low)), name

    def test_undefined_metric_has_no_interval(self):
        got = estimate(Rows.of([1, 0, 1], [0.2, 0.1, 0.3]), 0.5, resamples=100, confidence=0.9, seed=(0,))
        assert got["precision"] == {"value": None, "low": None, "high": None}


class TestDirection:
    def test_belongs_to_the_metric(self):
        assert better("auc", 0.8, 0.7)
        assert better("log_loss", 0.3, 0.4)
        assert not better("ece", 0.3, 0.3)
        assert [m.name for m in METRICS.values() if not m.higher_is_better] == ["log_loss", "brier", "ece", "fpr"]

    def test_unknown_metric_names_the_nearest(self):
        with pytest.raises(SpecError, match="unknown metric 'logloss'; did you mean 'log_loss'"):
            better("logloss", 1, 2)
