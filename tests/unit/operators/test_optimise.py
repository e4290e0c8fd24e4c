"""OptimiseOperator."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("airflow.sdk")

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.optimise import OptimiseOperator
from airflow_ml_provider.refs import DatasetRef, ModelRef
from airflow_ml_provider.stages.evaluate.spec import OperatingPoint
from airflow_ml_provider.stages.optimise.spec import DEFAULT_RECIPES, Instances, OptimisePolicy, Recipe, TritonSettings
from airflow_ml_provider.testing.context import context

DAY = Interval.from_key("2013-01-05")
MODEL = ModelRef(name="late", uri="/models/late", digest="sha256:m")
ROWS = DatasetRef(name="train", uri="/training/train.parquet", digest="sha256:t")


def operator(**changes):
    return OptimiseOperator(task_id="optimise", **{"model": MODEL, "dataset": ROWS, "output": "/out", **changes})


class TestSpec:
    def test_defaults(self):
        spec = operator().build_spec(DAY, {})
        assert (spec.model, spec.dataset, spec.output, spec.label) == (MODEL, ROWS, "/out", "label")
        assert tuple(r.name for r in spec.recipes) == DEFAULT_RECIPES
        assert (spec.policy, spec.triton) == (OptimisePolicy(), None)

    def test_refs_and_settings_as_they_come_from_xcom_and_templates(self):
        spec = operator(
            model={"status": "ok", "model": codec.encode(MODEL)},
            dataset=codec.encode(ROWS),
            recipes=["int4", {"steps": ["distill", "int8_dynamic"], "hidden": [16]}],
            others=[{"status": "ok", "model": codec.encode(MODEL)}],
            policy={"choose": "smallest", "max_loss": 0.01},
            operating_point={"by": "share", "value": 0.2},
            batch_sizes=["1", "8"],
            repeats="7",
            triton={"instances": [{"count": 2}], "version": 3},
        ).build_spec(DAY, {})
        assert (spec.model, spec.dataset, spec.others) == (MODEL, ROWS, (MODEL,))
        assert spec.recipes == (Recipe(steps=("int4",)), Recipe(steps=("distill", "int8_dynamic"), hidden=(16,)))
        assert spec.policy == OptimisePolicy(choose="smallest", max_loss=0.01)
        assert spec.operating_point == OperatingPoint("share", 0.2)
        assert (spec.batch_sizes, spec.repeats) == ((1, 8), 7)
        assert spec.triton == TritonSettings(version=3, instances=(Instances(2),))

    def test_one_recipe_and_an_empty_triton(self):
        spec = operator(recipes="int4", triton={}).build_spec(DAY, {})
        assert ([r.name for r in spec.recipes], spec.triton) == (["int4"], TritonSettings())

    @pytest.mark.parametrize("changes", [{"recipes": ["int9"]}, {"policy": {"max_los": 1}}])
    def test_bad_values_fail_at_parse_time(self, changes):
        with pytest.raises(SpecError, match=r"must be one of|did you mean"):
            operator(**changes)

    def test_templates_wait(self):
        assert operator(recipes="{{ params.recipes }}", policy={"max_loss": "{{ params.loss }}"})


def test_it_runs_and_hands_on_the_model(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("sklearn")
    from airflow_ml_provider.testing import packages

    ref = packages.package(tmp_path / "models" / "late")
    rows = packages.dataset(tmp_path / "train.parquet", packages.rows(900, seed=2), name="train")
    ctx = context(DAY)
    value = operator(
        model=ref, dataset=rows, output=str(tmp_path / "out"), recipes=["graph", "int8_dynamic"], repeats=2,
        resamples=100, policy={"min_gain": 1.0}, triton={"warm_up": [4]},
    ).execute(ctx)  # fmt: skip
    assert value["status"] == "ok"
    assert (value["chosen"], value["model"]["digest"]) == ("original", ref.digest)  # nothing saves all
    assert ctx["ti"].xcoms["model"]["digest"] == ref.digest
    assert Path(ctx["ti"].xcoms["report"]["html"]).exists()
    assert (Path(value["repository"]) / "late" / "config.pbtxt").exists()
