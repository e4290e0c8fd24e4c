"""Events as Airflow's OpenLineage provider writes them, from a run of a DAG in a real Airflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow.providers.openlineage", reason="needs Airflow's OpenLineage provider")

from airflow_ml_provider.lineage.graph import Graph
from airflow_ml_provider.lineage.naming import Dataset, of_uri

DAG = str(Path(__file__).parent / "dags" / "emission.py")


@pytest.fixture(scope="module")
def events(own_airflow: Any) -> Path:
    """Run the DAG, whose last task refuses, and return the file with its events."""
    own_airflow.run("airflow", "dags", "test", "emission", "2013-01-05T00:00:00+00:00", "-f", DAG, fails=True)
    return own_airflow.events


@pytest.fixture(scope="module")
def graph(events: Path) -> Graph:
    return Graph.read(events)


def lines(events: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in events.read_text().splitlines()]


def run(graph: Graph, task: str) -> Any:
    (found,) = [run for run in graph.runs.values() if run.job == f"test/emission.{task}"]
    return found


def test_every_event_is_valid(events: Path, event_validator: Any) -> None:
    found = {error for event in lines(events) for error in event_validator.errors(event)}
    assert not found


def test_the_graph_connects(graph: Graph) -> None:
    assert graph.broken == 0
    key = run(graph, "ingest").facets["ml_provenance"]["interval"]["key"]
    chain = graph.chain(of_uri(f"/s/predictions/interval={key}"), of_uri(f"/landing/{key}.csv"))
    assert [step.dataset.name for step in chain][-3:] == [
        f"/s/good/interval={key}", f"/s/raw/interval={key}", f"/landing/{key}.csv",
    ]  # fmt: skip
    way = graph.chain(Dataset("mlflow", "delay/1"), of_uri(f"/landing/{key}.csv"))
    assert [step.dataset.name for step in way] == [
        "delay/1", "/s/models/delay", "/s/training/train.parquet", f"/s/view/interval={key}",
        f"/s/good/interval={key}", f"/s/raw/interval={key}", f"/landing/{key}.csv",
    ]  # fmt: skip


def test_facets_arrive_whole(graph: Graph) -> None:
    validate = run(graph, "validate")
    (use,) = validate.inputs.values()
    assert use.facets["dataQualityAssertions"]["assertions"][0]["assertion"] == "not_null"
    assert use.facets["dataQualityMetrics"]["columnMetrics"]["id"] == {"nullCount": 0, "min": 1.0, "max": 3.0}
    assert [f["name"] for f in use.facets["schema"]["fields"]] == ["id", "delay"]
    (view,) = [use for dataset, use in run(graph, "features").outputs.items() if dataset.partition]
    assert view.facets["columnLineage"]["fields"]["delay"]["inputFields"][0]["field"] == "delay"
    assert view.facets["outputStatistics"]["rowCount"] == 3
    (version,) = run(graph, "register").outputs.values()
    assert version.facets["ml_model"]["metrics"] == {"auc": 0.7}
    origin = validate.facets["ml_provenance"]
    assert origin["why"]["reason"] == "manual"
    assert origin["data"] == {"raw": "sha256:" + "a" * 64}


def test_a_refusal_tells_its_reasons_though_the_task_failed(graph: Graph) -> None:
    gate = run(graph, "gate")
    assert gate.state == "FAIL"
    assert gate.facets["ml_gate"]["failed"] == ["auc"]
    assert gate.facets["ml_gate"]["model"]["version"] == "1"
    assert gate.facets["test"]["tests"][0]["status"] == "fail"
    assert of_uri("/s/evidence.json") in gate.outputs


def test_outlets_are_kept_unless_the_result_names_them(events: Path, graph: Graph) -> None:
    ends = {event["job"]["name"]: event for event in lines(events) if event["eventType"] == "COMPLETE"}
    names = {task: [d["name"] for d in ends[f"emission.{task}"]["outputs"]] for task in ("score", "features")}
    assert "/other" in names["score"]
    assert [name.rpartition("=")[0] for name in names["features"]] == ["/s/view/interval"]
