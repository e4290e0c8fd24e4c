from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.train import logic
from airflow_ml_provider.stages.train.spec import Function, Launch, TrainSpec

ROWS = DatasetRef(name="rows", uri="/a/rows.parquet", digest="sha256:r")


def make(**changes):
    return TrainSpec(**{"name": "late", "dataset": ROWS, "output": "/models", **changes})


class TestSpec:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"engine": "lightgmb"}, "unknown engine 'lightgmb'; did you mean 'lightgbm'?"),
            ({"encoding": "onehot"}, "unknown encoding 'onehot'; did you mean 'one_hot'?"),
            ({"validation": 15}, r"validation must be in \(0, 1\), got 15; give a fraction, not percent"),
            ({"name": "../late"}, "name must be letters, digits and _ . -"),
            ({"seed": -1}, "seed must be in"),
            ({"engine": "function"}, "engine 'function' and the argument function go together; use @task.train"),
            ({"function": Function("f", "def f(run): ...")}, "go together"),
            ({"launch": Launch(processes=2)}, r"launch.processes must be 1 for engine 'lightgbm', got 2"),
        ],
    )
    def test_bad_values(self, changes, message):
        with pytest.raises(SpecError, match=message):
            make(**changes)

    @pytest.mark.parametrize("field", ["processes", "keep"])
    def test_bad_launch(self, field):
        with pytest.raises(SpecError, match=f"launch.{field} must be at least 1, got 0"):
            Launch(**{field: 0})

    def test_libraries_of_each_engine(self):
        assert "torch" not in make().requires()
        assert {"lightgbm", "onnxmltools"} <= set(make().requires())
        assert {"sklearn", "skops"} <= set(make(engine="sklearn").requires())
        assert {"torch", "safetensors"} <= set(make(engine="torch").requires())
        function = make(engine="function", function=Function("f", "def f(run): ..."))
        assert not {"torch", "lightgbm", "mlflow"} & set(function.requires())
        assert "mlflow" in make(experiment="flights").requires()


class TestNames:
    @pytest.mark.parametrize(
        ("segment", "expected"),
        [
            ({}, "late"),
            ({"origin": "EWR"}, "late_ewr"),
            ({"origin": "EWR", "carrier": "UA"}, "late_ewr_ua"),
            ({"city": "New York / Newark"}, "late_new_york_newark"),
            ({"city": "東京"}, "late_empty"),
        ],
    )
    def test_model_name(self, segment, expected):
        assert logic.model_name("late", segment) == expected

    def test_identity_is_the_task_instance_and_the_engine(self):
        info = RunInfo("d", "t", "r", 1)
        assert logic.identity(make(), info) == f"{info.identity}_lightgbm"
        assert logic.identity(make(), RunInfo("d", "t", "r", 2)) != logic.identity(make(), info)
        assert logic.identity(make(engine="sklearn"), info) != logic.identity(make(), info)

    def test_recipe_is_what_decides_the_model(self):
        moved = DatasetRef(name="rows", uri="/b/rows.parquet", digest="sha256:r")
        assert logic.recipe(make()) == logic.recipe(make(output="/elsewhere", dataset=moved))
        for changes in ({"seed": 1}, {"params": {"num_leaves": 7}}, {"segment": {"origin": "EWR"}}):
            assert logic.recipe(make(**changes)) != logic.recipe(make())
        other = DatasetRef(name="rows", uri="/a/rows.parquet", digest="sha256:other")
        assert logic.recipe(make(dataset=other)) != logic.recipe(make())


TYPES = {
    "id": "string", "event_timestamp": "timestamp[us]", "hour": "float", "carrier": "string", "origin": "string",
    "label": "float",
}  # fmt: skip


class TestInputs:
    def test_all_but_what_is_left_out(self):
        spec = make(exclude=("id",), segment={"origin": "EWR"})
        assert logic.choose_inputs(spec, TYPES) == {"hour": "float", "carrier": "string"}

    def test_named_features_in_the_order_of_the_data(self):
        spec = make(features=("origin", "hour"), segment={"origin": "EWR"})
        assert list(logic.choose_inputs(spec, TYPES)) == ["hour", "origin"]

    @pytest.mark.parametrize(
        ("changes", "types", "error", "message"),
        [
            ({"features": ("huor",)}, {}, SpecError, "unknown feature 'huor'; did you mean 'hour'?"),
            ({"features": ("label",)}, {}, DataError, "feature 'label' is the label or the timestamp"),
            ({"label": "late"}, {}, DataError, "label column 'late' is missing; the training rows have id, "),
            ({"timestamp": "t"}, {}, DataError, "timestamp column 't' is missing"),
            ({}, {"known_at": "timestamp[us]"}, DataError, r"column 'known_at' has type timestamp\[us\]; models learn"),
            ({}, {"score": "float"}, DataError, "column 'score' has a name that the model's own graph uses"),
            ({"exclude": ("id", "hour", "carrier", "origin")}, {}, DataError, "no column is left to learn from"),
        ],
    )
    def test_what_cannot_be_learnt_from(self, changes, types, error, message):
        with pytest.raises(error, match=message):
            logic.choose_inputs(make(**changes), {**TYPES, **types})


class TestSplit:
    @pytest.mark.parametrize(
        ("times", "share", "expected"),
        [
            (list(range(10)), 0.2, 8),
            (list(range(10)), 0.25, 8),  # 7.5 rounds to 8
            ([0, 1, 2, 3, 3, 3], 0.2, 3),  # rows of one moment are not torn apart
            ([0, 0, 0, 0, 1], 0.5, 4),  # the oldest moment is kept for training
            ([0, 1], 0.001, 1),
            ([0, 1], 0.999, 1),
        ],
    )
    def test_by_hand(self, times, share, expected):
        assert logic.split_point(times, share) == expected

    def test_one_moment_cannot_be_divided(self):
        with pytest.raises(DataError, match="all 3 training rows have one and the same timestamp"):
            logic.split_point([5, 5, 5], 0.5)

    @given(st.lists(st.integers(0, 30), min_size=2, max_size=80), st.floats(0.01, 0.99))
    @settings(max_examples=200, deadline=None)
    def test_validation_is_strictly_later(self, times, share):
        times = sorted(times)
        if times[0] == times[-1]:
            return
        cut = logic.split_point(times, share)
        assert 0 < cut < len(times)
        assert times[cut - 1] < times[cut]


class TestQuality:
    def test_against_scikit_learn(self):
        metrics = pytest.importorskip("sklearn.metrics")
        rng = np.random.default_rng(0)
        labels, scores = rng.integers(0, 2, 500), rng.random(500).round(2)  # with ties
        found = logic.quality(labels, scores)
        assert found["auc"] == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
        assert found["brier"] == pytest.approx(metrics.brier_score_loss(labels, scores), abs=1e-12)
        clipped = np.clip(scores, 1e-7, 1 - 1e-7)
        assert found["log_loss"] == pytest.approx(metrics.log_loss(labels, clipped), abs=1e-12)

    def test_by_hand(self):
        found = logic.quality([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        assert found["auc"] == 0.75
        assert found["brier"] == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
        assert found["base_rate"] == 0.5
        assert found["mean_score"] == pytest.approx(0.4125)

    def test_no_auc_for_one_label(self):
        assert "auc" not in logic.quality([1, 1], [0.2, 0.9])


def test_recipe_knows_the_cutoff():
    day = Interval.of(datetime(2013, 1, 1, tzinfo=timezone.utc), datetime(2013, 1, 8, tzinfo=timezone.utc))
    dataset = DatasetRef(name="rows", uri="/a/rows.parquet", digest="sha256:r", interval=day)
    assert logic.recipe(make(dataset=dataset)) != logic.recipe(make())
