"""From the events of a real run alone: which landing files is a prediction made from?"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow.providers.openlineage", reason="needs Airflow's OpenLineage provider")

from airflow_ml_provider.lineage.graph import Graph
from airflow_ml_provider.lineage.naming import Dataset, of_uri

# The libraries are used in processes of their own, so they are not imported here.
pytestmark = pytest.mark.skipif(not (find_spec("feast") and find_spec("lightgbm")), reason="needs feast and lightgbm")
ROOT = Path(__file__).parents[3]
DAY, NEXT = "2013-01-02", "2013-01-05"  # of the training rows; the day that is scored by the model made of them


@pytest.fixture(scope="module")
def folder(own_airflow: Any) -> Path:
    """Run the flights pipeline in small and return its folder."""
    landing = own_airflow.home / "landing"
    upstream = str(ROOT / "dev-airflow" / "upstream.py")
    own_airflow.run("python", upstream, "drop", "--landing", str(landing), "--from", "2013-01-01", "--to", NEXT)
    own_airflow.run("python", str(Path(__file__).parent / "dags" / "flights.py"))
    return own_airflow.home


@pytest.fixture(scope="module")
def graph(folder: Path) -> Graph:
    return Graph.read(folder / "events.jsonl")


def test_every_event_is_valid(folder: Path, event_validator: Any) -> None:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert not {error for event in events for error in event_validator.errors(event)}


def test_every_task_ended_well_and_every_stage_told_its_datasets(graph: Graph) -> None:
    states = {run.job: run.state for run in graph.runs.values()}
    assert set(states.values()) == {"COMPLETE"}, states
    stages = "ingest_flights validate_flights features score monitor training_set train evaluate register gate promote"
    for stage in stages.split():
        runs = [run for run in graph.runs.values() if run.job.rpartition(".")[2] == stage]
        assert runs, stage
        assert all(run.inputs for run in runs), stage
        assert all("ml_provenance" in run.facets for run in runs), stage


def test_from_the_prediction_to_the_landing_file(graph: Graph, folder: Path) -> None:
    (version,) = [d for d in graph.datasets if d.namespace == "mlflow"]
    (train,) = [d for d in graph.datasets if d.name.endswith("/train.parquet")]
    prediction = of_uri(f"{folder}/store/predictions/interval={NEXT}")
    view = of_uri(f"{folder}/store/features/tables/carrier_arrivals/interval={DAY}")
    landing = of_uri(f"{folder}/landing/flights_{DAY}.csv.gz")
    chain = graph.chain(prediction, version, train, view, landing)
    assert [step.run.job.rpartition(".")[2] if step.run else "" for step in chain] == [
        "score", "register", "train", "training_set", "features", "validate_flights", "ingest_flights", "",
    ]  # fmt: skip
    assert all(step.version for step in chain)


def test_the_model_has_seen_nothing_of_the_day_it_scores(graph: Graph, folder: Path) -> None:
    landing = of_uri(f"{folder}/landing/flights_{NEXT}.csv.gz")
    (version,) = [d for d in graph.datasets if d.namespace == "mlflow"]
    assert landing not in graph.upstream(version)
    assert landing in graph.upstream(of_uri(f"{folder}/store/predictions/interval={NEXT}"))


def test_the_digest_of_the_model_is_one_from_training_to_prediction(graph: Graph) -> None:
    (version,) = [d for d in graph.datasets if d.namespace == "mlflow"]
    digests = {
        use.version for run in graph.runs.values() for side in (run.inputs, run.outputs) for d, use in side.items()
        if d == version or ("/models/" in d.name and "ml_model" in use.facets)
    }  # fmt: skip
    assert len(digests) == 1


def test_column_lineage_reaches_the_raw_columns(graph: Graph, folder: Path) -> None:
    view = of_uri(f"{folder}/store/features/tables/carrier_arrivals/interval={DAY}")
    run = graph.producer(view)
    assert run
    fields = run.outputs[view].facets["columnLineage"]["fields"]
    sources = {(f["name"], f["field"]) for body in fields.values() for f in body["inputFields"]}
    assert (f"{folder}/store/valid/flights", "arr_delay") in sources


def test_the_gate_tells_its_criteria(graph: Graph) -> None:
    (gate,) = [run for run in graph.runs.values() if run.job.endswith(".gate")]
    assert gate.facets["ml_gate"]["passed"] is True
    tests = {test["name"]: test["status"] for test in gate.facets["test"]["tests"]}
    assert set(tests.values()) <= {"pass", "skip"}, tests
    assert any("auc" in name for name in tests), tests
    assert Dataset("mlflow", f"{gate.facets['ml_gate']['model']['name']}/1") in gate.inputs
