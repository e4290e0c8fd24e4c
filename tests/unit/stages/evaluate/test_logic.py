from __future__ import annotations

import pytest

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.stages.evaluate.logic import choose_threshold, winners, worst_slices
from airflow_ml_provider.stages.evaluate.metrics import Rows, measure
from airflow_ml_provider.stages.evaluate.spec import OperatingPoint
from airflow_ml_provider.stages.register.logic import ROUNDING

np = pytest.importorskip("numpy")


@pytest.fixture
def rows():
    return Rows.of([1, 1, 0, 1, 0, 0], [0.9, 0.8, 0.7, 0.6, 0.3, 0.1])


class TestChooseThreshold:
    @pytest.mark.parametrize(
        ("by", "value", "threshold"),
        [
            ("threshold", 0.42, 0.42),
            ("recall", 0.6, 0.75),  # two of three
            ("recall", 0.7, 0.45),
            ("recall", 0.0, 0.85),
            ("recall", 1.0, 0.45),
            ("precision", 1.0, 0.75),
            ("precision", 0.75, 0.45),
            ("precision", 0.1, 0.1 - ROUNDING),  # all
            ("fpr", 0.0, 0.75),
            ("fpr", 0.34, 0.45),
            ("fpr", 1.0, 0.1 - ROUNDING),
            ("share", 0.5, 0.65),
            ("share", 0.4, 0.75),
        ],
    )
    def test_by_hand(self, rows, by, value, threshold):
        assert choose_threshold(OperatingPoint(by, value), rows) == pytest.approx(threshold)

    def test_nothing_can_be_flagged(self, rows):
        threshold = choose_threshold(OperatingPoint("share", 0.0), rows)
        assert measure(rows, threshold)["recall"] == 0.0
        worst_first = Rows.of([0, 1], [0.9, 0.1])
        assert measure(worst_first, choose_threshold(OperatingPoint("fpr", 0.0), worst_first))["fpr"] == 0.0

    @pytest.mark.parametrize("off", [0, 5e-7, -5e-7])
    @pytest.mark.parametrize(("point", "flagged"), [(("share", 0.1), 0), (("recall", 1.0), 30)])
    def test_none_and_all_hold_for_served_scores(self, point, flagged, off):
        """The export scores in float32, and a little aside."""
        native = np.repeat([0.9638009049773756, 0.3], [20, 10])  # in float32 the first is greater
        served = (native + off).astype(np.float32)
        threshold = choose_threshold(OperatingPoint(*point), Rows.of([1, 0] * 15, native))
        assert (served >= np.float32(threshold)).sum() == flagged

    @pytest.mark.parametrize("value", [0.05, 0.1, 0.35, 0.6, 1.0])
    def test_is_a_float32_that_divides_float32_scores(self, value):
        native = np.nextafter(np.float32(0.7), np.float32(0)) + np.linspace(0, 3e-7, 40)
        threshold = choose_threshold(OperatingPoint("share", value), Rows.of([1, 0] * 20, native))
        assert threshold == float(np.float32(threshold))
        assert (native.astype(np.float32) >= np.float32(threshold)).mean() <= value

    def test_certain_scores(self):
        certain = Rows.of([1, 0], [1.0, 0.0])
        assert choose_threshold(OperatingPoint("share", 0.1), certain) > 1
        assert choose_threshold(OperatingPoint("share", 1.0), certain) == 0

    def test_unreachable_precision_takes_the_best(self):
        rows = Rows.of([0, 1, 0], [0.9, 0.8, 0.1])
        assert choose_threshold(OperatingPoint("precision", 0.9), rows) == pytest.approx(0.45)

    def test_ties_are_flagged_together(self):
        tied = Rows.of([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.2])
        assert choose_threshold(OperatingPoint("recall", 0.1), tied) == pytest.approx(0.35)
        assert choose_threshold(OperatingPoint("share", 0.5), tied) > 0.5

    def test_label_that_the_choice_needs(self):
        with pytest.raises(DataError, match="none of the 2 validation rows is positive"):
            choose_threshold(OperatingPoint("recall", 0.5), Rows.of([0, 0], [0.1, 0.2]))
        with pytest.raises(DataError, match="none of the 2 validation rows is negative"):
            choose_threshold(OperatingPoint("fpr", 0.5), Rows.of([1, 1], [0.1, 0.2]))

    def test_percent_is_an_error(self):
        with pytest.raises(SpecError, match=r"operating point value must be in \[0, 1\], got 80"):
            OperatingPoint("recall", 80)


def entry(name, auc, log_loss, rows=100):
    return {
        "slice": name,
        "rows": rows,
        "metrics": {
            "auc": {"value": auc, "low": 0.0, "high": 1.0},
            "log_loss": {"value": log_loss, "low": 0.0, "high": 1.0},
        },
    }


class TestWorstSlices:
    def test_direction_decides(self):
        worst = worst_slices([entry("a", 0.8, 0.2), entry("b", 0.6, 0.3), entry("c", 0.7, 0.5)])
        assert {name: body["slice"] for name, body in worst.items()} == {"auc": "b", "log_loss": "c"}
        assert worst["auc"] == {"slice": "b", "rows": 100, "value": 0.6, "low": 0.0, "high": 1.0}

    def test_undefined_and_unjudged_take_no_part(self):
        assert worst_slices([entry("a", None, 0.2), {"slice": "b", "rows": 1, "metrics": {}}]).keys() == {"log_loss"}
        assert worst_slices([]) == {}


def candidate(name, digest, status="ok", **metrics):
    return {"status": status, "model": {"name": name, "digest": digest}, "metrics": metrics}


class TestWinners:
    def test_best_per_model_in_order_of_names(self):
        candidates = [
            candidate("late_lga", "d", auc=0.7, log_loss=0.4),
            candidate("late_ewr", "b", auc=0.8, log_loss=0.5),
            candidate("late_ewr", "a", auc=0.7, log_loss=0.3),
        ]
        assert [c["model"]["digest"] for c in winners(candidates, "auc")] == ["b", "d"]
        assert [c["model"]["digest"] for c in winners(candidates, "log_loss")] == ["a", "d"]

    def test_ties_do_not_depend_on_order(self):
        a, b = candidate("m", "a", auc=0.7), candidate("m", "b", auc=0.7)
        assert winners([a, b], "auc") == winners([b, a], "auc") == [a]

    def test_refused_missing_and_undefined_take_no_part(self):
        assert winners([candidate("m", "a", status="refused"), None, candidate("m", "b")], "auc") == []

    def test_unknown_metric(self):
        with pytest.raises(SpecError, match="unknown metric 'acu'; did you mean 'auc'"):
            winners([], "acu")
