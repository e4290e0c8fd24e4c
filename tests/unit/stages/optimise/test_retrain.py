"""The steps that train, on real packages."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("safetensors")

import json
import re
from pathlib import Path

from airflow_ml_provider import models
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages import run
from airflow_ml_provider.stages.optimise.spec import OptimisePolicy, OptimiseSpec, recipe

PAGE = Path(__file__).parents[4] / "docs" / "stages" / "optimise.md"


@pytest.fixture(scope="module")
def found(trained, flights, tmp_path_factory):
    """A network of engine `torch` with every step that trains, and one after another."""
    ref = trained("torch", epochs=4, hidden=[128, 64], batch_size=256)
    asked = OptimiseSpec(
        model=ref, dataset=flights, output=str(tmp_path_factory.mktemp("out")), repeats=2, resamples=100,
        recipes=tuple(map(recipe, ("structured", "qat", "distill+int8_dynamic"))),
        policy=OptimisePolicy(choose="smallest", max_loss=0.1, max_slice_loss=1.0, max_flips=0.5),
    )  # fmt: skip
    result = run(asked, RunInfo())
    body = json.loads(Path(result.report.uri).read_text())
    return result, {entry["name"]: entry for entry in body["candidates"]}


def test_they_shrink_the_model(found):
    _, entries = found
    share = {name: entry["bytes"] / entries["original"]["bytes"] for name, entry in entries.items()}
    assert share["structured"] < 0.5  # half of the units are a quarter of the weights between
    assert share["qat"] < 0.5
    assert share["distill+int8_dynamic"] < 0.2


def test_they_keep_what_the_model_knows(found):
    _, entries = found
    for name, entry in entries.items():
        assert entry["loss"]["value"] < 0.05, name


def test_the_rounded_network_holds_integers(found, trained, flights, tmp_path):
    import onnx

    result, _ = found
    qat = OptimiseSpec(
        model=result.parent, dataset=flights, output=str(tmp_path), recipes=(recipe("qat"),), repeats=1, resamples=100,
        policy=OptimisePolicy(choose="smallest", max_loss=1.0, max_slice_loss=1.0, max_flips=1.0),
    )  # fmt: skip
    chosen = run(qat, RunInfo())
    assert chosen.chosen == "qat"
    graph = onnx.load(Path(chosen.model.uri) / models.ONNX).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") == 3
    assert sum(w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 2 for w in graph.initializer) == 3


def test_trees_can_be_distilled_and_nothing_else(trees, flights, tmp_path):
    asked = OptimiseSpec(
        model=trees, dataset=flights, output=str(tmp_path), repeats=1, resamples=100,
        recipes=tuple(map(recipe, ("distill", "qat", "structured"))),
    )  # fmt: skip
    body = json.loads(Path(run(asked, RunInfo()).report.uri).read_text())
    entries = {entry["name"]: entry for entry in body["candidates"]}
    assert entries["distill"]["metrics"]["auc"]["value"] > 0.75
    for step in ("qat", "structured"):
        assert entries[step]["verdict"] == "not applicable"
        assert "takes the network of engine 'torch'" in entries[step]["why"]


def test_the_training_function_of_the_documentation(trees, flights, tmp_path):
    """Distilled and rounded by the trainer kit, in the table as another package."""
    from airflow_ml_provider.stages.train.spec import Function, TrainSpec

    source = re.search(r"^```python\n(def student.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S).group(1)
    spec = TrainSpec(
        name="late", dataset=flights, output=str(tmp_path / "models"), engine="function", exclude=("flight_id",),
        function=Function("student", source, {"teacher": trees.uri}),
    )  # fmt: skip
    student = run(spec, RunInfo()).model
    asked = OptimiseSpec(
        model=trees, dataset=flights, output=str(tmp_path / "out"), recipes=(), others=(student,), repeats=1,
        resamples=100,
    )  # fmt: skip
    body = json.loads(Path(run(asked, RunInfo()).report.uri).read_text())
    other = {entry["name"]: entry for entry in body["candidates"]}["other 1"]
    assert other["digest"] == student.digest
    assert other["metrics"]["auc"]["value"] > 0.75
