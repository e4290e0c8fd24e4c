"""What the stage is asked."""

from __future__ import annotations

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.refs import DatasetRef, ModelRef
from airflow_ml_provider.stages.optimise.spec import OptimisePolicy, OptimiseSpec, Recipe, recipe

MODEL, ROWS = ModelRef("late", "/m", "sha256:m"), DatasetRef("train", "/t", "sha256:t")


def spec(**changes):
    return OptimiseSpec(MODEL, ROWS, "/out", **changes)


def test_a_recipe_is_its_steps():
    assert recipe("distill+int8_dynamic") == Recipe(steps=("distill", "int8_dynamic"), name="distill+int8_dynamic")
    assert recipe({"steps": ["int4"], "block": 64}).name == "int4"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("int9", "must be one of"),
        ("int8_dynamic+distill", "with structured, distill, qat only at the front"),
        ({"steps": []}, "at least one"),
        ({"steps": ["graph"], "name": "original"}, "this one is the model's as it came"),
        ({"steps": ["magnitude"], "share": 50.0}, "give a fraction, not percent"),
        ({"steps": ["int4"], "block": 24}, "a power of two from 16 on"),
        ({"steps": ["distill"], "weight": 1.5}, r"weight must be in \[0, 1\]"),
        ({"steps": ["distill"], "epochs": 0}, "must be positive"),
        ({"steps": ["graph"], "sher": 1}, "did you mean 'share'"),
    ],
)
def test_recipes_are_checked(value, says):
    with pytest.raises(SpecError, match=says):
        recipe(value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recipes": ()}, "recipes must be at least one"),
        ({"recipes": (recipe("int4"), recipe("int4"))}, "of different names"),
        ({"batch_sizes": (0,)}, "batch_sizes must be"),
        ({"policy": OptimisePolicy(batch_size=7)}, r"policy.batch_size must be one of batch_sizes \(1, 64, 1024\)"),
        ({"providers": ()}, "at least one execution provider"),
        ({"older_share": 1.0}, "older_share, confidence must be"),
        ({"resamples": 5}, "resamples must be at least 100"),
        ({"repeats": 0}, "repeats must be at least 1"),
    ],
)
def test_specs_are_checked(changes, says):
    with pytest.raises(SpecError, match=says):
        spec(**changes)


@pytest.mark.parametrize("changes", [{"max_loss": -1}, {"max_flips": 2.0}, {"min_gain": -0.1}])
def test_policies_are_checked(changes):
    with pytest.raises(SpecError, match="must be"):
        OptimisePolicy(**changes)


def test_only_steps_that_train_need_pytorch():
    assert spec(recipes=(recipe("int4"),)).requires()["onnx_ir"] == "onnx-ir"
    assert "onnx_ir" not in spec().requires()
    assert "torch" not in spec().requires()
    assert {"torch", "onnxscript"} <= set(spec(recipes=(recipe("qat+graph"),)).requires())


def test_it_survives_the_way_to_another_python():
    asked = spec(recipes=(recipe("distill+int8_dynamic"),), others=(MODEL,), policy=OptimisePolicy(batch_size=64))
    assert codec.decode(OptimiseSpec, codec.encode(asked)) == asked
