"""The stage as a whole: candidates of real models, the table, the choice and the package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("pyarrow")

from airflow_ml_provider import models
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages import run
from airflow_ml_provider.stages.optimise.spec import OptimisePolicy, OptimiseSpec, recipe

GRAPH_STEPS = ("graph", "fp16", "int8_dynamic", "int8_static", "int4", "magnitude")
LENIENT = OptimisePolicy(choose="smallest", max_loss=0.2, max_slice_loss=0.5, max_flips=1.0)


def spec(ref, flights, output, *recipes, **changes):
    body = {"policy": LENIENT, "slices": ("carrier",), "batch_sizes": (1, 16), "repeats": 3, "resamples": 100, **changes}
    return OptimiseSpec(
        model=ref, dataset=flights, output=str(output), recipes=tuple(map(recipe, recipes)), **body
    )


def report(result):
    return json.loads(Path(result.report.uri).read_text())


def by_name(result):
    return {entry["name"]: entry for entry in report(result)["candidates"]}


@pytest.fixture(scope="module")
def optimised(network, flights, tmp_path_factory):
    """The network with every step that changes a graph."""
    return run(spec(network, flights, tmp_path_factory.mktemp("out"), *GRAPH_STEPS), RunInfo())


def test_every_graph_step_gives_a_model_that_scores(optimised):
    found = by_name(optimised)
    assert list(found) == ["original", *GRAPH_STEPS]
    for name, entry in found.items():
        assert entry["verdict"] in ("chosen", "allowed"), (name, entry["why"])
        assert entry["parity"]["max_difference"] < 0.1 or name == "magnitude"


def test_sizes_are_those_that_the_bits_promise(optimised):
    found = by_name(optimised)
    size = {name: entry["bytes"] / found["original"]["bytes"] for name, entry in found.items()}
    print(size)
