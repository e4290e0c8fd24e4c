"""The choice among candidates."""

from __future__ import annotations

import pytest

from airflow_ml_provider.stages.optimise.logic import Measured, choose, quantiles, refusal, slice_losses
from airflow_ml_provider.stages.optimise.spec import OptimisePolicy

BEFORE = Measured(size=1000, latency_ms=1.0, value=0.9)


def measured(size=500, latency_ms=0.5, loss=0.001, bound=0.002, **changes):
    return Measured(size=size, latency_ms=latency_ms, value=0.9 - loss, loss=loss, loss_bound=bound, **changes)


class TestChoose:
    def test_the_fastest_and_the_smallest_may_differ(self):
        candidates = {"fast": measured(900, 0.2), "small": measured(100, 0.8)}
        assert choose(OptimisePolicy(choose="fastest"), BEFORE, candidates).name == "fast"
        found = choose(OptimisePolicy(choose="smallest"), BEFORE, candidates)
        assert (found.name, found.verdicts["fast"], found.verdicts["small"][0]) == (
            "small", ("allowed", "size +10.0% saved"), "chosen"
        )  # fmt: skip
        assert found.reason == "small is the smallest of 2 allowed: 90.0% less size than the model"
        assert found.verdicts["original"] == ("allowed", "small is better by policy")

    def test_a_gain_within_the_noise_is_no_reason_for_another_model(self):
        found = choose(OptimisePolicy(min_gain=0.1), BEFORE, {"a": measured(latency_ms=0.95)})
        assert (found.name, found.verdicts["original"][0]) == ("original", "chosen")
        assert found.reason == (
            "nothing beats the original: the best of 1 allowed, a, saves 5.0% of its latency; at least 10.0% is asked"
        )

    def test_slower_ones_say_so(self):
        found = choose(OptimisePolicy(), BEFORE, {"slow": measured(latency_ms=2.0), "fast": measured(latency_ms=0.5)})
        assert found.verdicts["slow"] == ("allowed", "latency 100.0% more")

    def test_refused_ones_are_never_chosen_however_fast(self):
        found = choose(OptimisePolicy(), BEFORE, {"bad": measured(latency_ms=0.001, loss=0.1, bound=0.2)})
        assert found.name == "original"
        assert found.reason == "nothing beats the original: none of 1 measured candidates is allowed by policy"

    def test_nothing_to_choose_from(self):
        assert choose(OptimisePolicy(), BEFORE, {}).name == "original"

    def test_equal_costs_are_told_apart_by_size_then_name(self):
        candidates = {"b": measured(500), "a": measured(500), "c": measured(400)}
        assert choose(OptimisePolicy(), BEFORE, candidates).name == "c"
        del candidates["c"]
        assert choose(OptimisePolicy(), BEFORE, candidates).name == "a"


class TestRefusal:
    def test_the_upper_end_of_the_interval_counts(self):
        found = measured(loss=0.001, bound=0.02)
        assert refusal(OptimisePolicy(), found) == ["it may lose up to 0.02 of auc; 0.005 is allowed"]
        assert refusal(OptimisePolicy(judge="value"), found) == []

    def test_without_an_interval_the_loss_itself(self):
        assert refusal(OptimisePolicy(), measured(loss=0.01, bound=None)) == ["it loses 0.01 of auc; 0.005 is allowed"]

    def test_one_slice_is_enough(self):
        found = measured(slice_losses={"carrier=AA": 0.001, "carrier=UA": 0.05})
        assert refusal(OptimisePolicy(), found) == ["it loses 0.05 of auc in carrier=UA; 0.02 is allowed"]
        assert refusal(OptimisePolicy(max_slice_loss=0.05), found) == []

    def test_other_decisions_and_all_reasons_together(self):
        found = measured(loss=0.1, bound=0.2, flips=0.5, slice_losses={"a=1": 0.3})
        assert len(refusal(OptimisePolicy(), found)) == 3

    @pytest.mark.parametrize("changes", [{"finite": False}, {"loss": None}])
    def test_what_cannot_be_measured(self, changes):
        found = Measured(size=1, latency_ms=0.1, value=None, **changes)
        assert choose(OptimisePolicy(), BEFORE, {"broken": found}).name == "original"

    def test_a_gain_is_no_loss(self):
        assert refusal(OptimisePolicy(max_loss=0.0), measured(loss=-0.01, bound=-0.001)) == []


def test_losses_of_slices_are_of_those_that_both_judge():
    before = [{"slice": "a=1", "value": 0.9}, {"slice": "a=2", "value": None}, {"slice": "a=3", "value": 0.5}]
    after = [{"slice": "a=1", "value": 0.8}, {"slice": "a=2", "value": 0.7}, {"slice": "a=4", "value": 0.1}]
    assert slice_losses(lambda a, b: a - b, before, after) == {"a=1": pytest.approx(0.1)}


def test_quantiles_are_values_that_were_seen():
    assert quantiles([0.003, 0.001, 0.002, 0.004, 0.1]) == {"p50_ms": 3.0, "p95_ms": 100.0}
    assert quantiles([0.002]) == {"p50_ms": 2.0, "p95_ms": 2.0}
