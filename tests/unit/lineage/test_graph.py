"""From the events alone: what came from what."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.lineage.facets import lineage
from airflow_ml_provider.lineage.graph import Graph
from airflow_ml_provider.lineage.naming import Dataset, of_uri
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef, ModelRef, Ref, ReportRef
from airflow_ml_provider.stages import Result


def sha(text: str) -> str:
    return f"sha256:{text:0<64}"


def rows(name: str, uri: str, digest: str = "a") -> DatasetRef:
    return DatasetRef(name, uri, sha(digest))


def part(table: str, day: int, digest: str = "a") -> DatasetRef:
    return rows(table, f"/s/{table}/interval=2013-01-{day:02d}/data.parquet", digest)


def events(
    job: str, inputs: list[Ref], outputs: list[Ref], *, key: str = "2013-01-07", time: int = 0, run: str = "",
    state: str = "COMPLETE",
) -> list[dict[str, Any]]:  # fmt: skip
    """Return START and end of one run as Airflow's listener writes them."""
    found = lineage(
        Result(inputs=tuple(inputs), outputs=tuple(outputs)), RunInfo(task_id=job, interval=Interval.from_key(key))
    )
    base = {"run": {"runId": run or f"{job}-{key}", "facets": {}}, "job": {"namespace": "ns", "name": f"dag.{job}"}}
    at = f"2013-02-01T{time:02d}:00"
    end = {**base, "run": {"runId": base["run"]["runId"], "facets": found.run_facets}}
    return [
        {**base, "eventType": "START", "eventTime": f"{at}:00Z", "inputs": [], "outputs": []},
        {**end, "eventType": state, "eventTime": f"{at}:30Z", "inputs": found.inputs, "outputs": found.outputs},
    ]


PACKAGE = ModelRef("delay", "/s/models/delay-1", sha("m1"))
VERSION = ModelRef("delay", "/mlflow/delay/1", sha("m1"), version="1")
LANDING = [rows("landing", f"/landing/flights_2013-01-{day:02d}.csv.gz") for day in range(1, 9)]
EVALUATION = ReportRef("evaluation", "/s/eval/1.json", sha("e"))
EVIDENCE = ReportRef("evidence", "/s/evidence/1.json", sha("v"))


def pipeline() -> list[dict[str, Any]]:
    """Return a week of days, a training at its end, and a prediction on the day after."""
    found = []
    for day in range(1, 9):
        key = f"2013-01-{day:02d}"
        found += events("ingest", [LANDING[day - 1]], [part("raw", day)], key=key)
        found += events("validate", [part("raw", day)], [part("flights", day)], key=key, time=1)
        found += events(
            "features", [part("flights", day)], [part("view", day), part("joined", day), part("labels", day)],
            key=key, time=2,
        )  # fmt: skip
    views = [rows("view", "/s/view"), rows("labels", "/s/labels")]
    train, test = rows("train", "/s/training/train.parquet", "t"), rows("test", "/s/training/test.parquet", "u")
    found += events("training_set", views, [train, test], time=3)
    found += events("train", [train], [PACKAGE], time=4)
    found += events("evaluate", [PACKAGE, test], [PACKAGE, EVALUATION], time=5)
    found += events("register", [PACKAGE, EVALUATION], [VERSION], time=6)
    found += events("gate", [VERSION, EVALUATION, test], [EVIDENCE], time=7)
    found += events("promote", [VERSION, EVIDENCE], [VERSION], time=8)
    return found + events("score", [part("joined", 8), VERSION], [part("predictions", 8)], key="2013-01-08", time=9)


PREDICTION = of_uri("/s/predictions/interval=2013-01-08")


def jobs(graph: Graph, start: Dataset, end: Dataset) -> list[str]:
    return [step.run.job.rpartition(".")[2] if step.run else "" for step in graph.chain(start, end)]


def test_from_a_prediction_to_the_landing_file_of_a_training_day() -> None:
    graph = Graph(pipeline())
    chain = graph.chain(PREDICTION, of_uri(LANDING[3].uri))
    assert [str(step.dataset) for step in chain] == [
        "file:/s/predictions/interval=2013-01-08",
        "mlflow:delay/1",
        "file:/s/models/delay-1",
        "file:/s/training/train.parquet",
        "file:/s/view/interval=2013-01-04",
        "file:/s/flights/interval=2013-01-04",
        "file:/s/raw/interval=2013-01-04",
        "file:/landing/flights_2013-01-04.csv.gz",
    ]
    assert jobs(graph, PREDICTION, of_uri(LANDING[3].uri)) == [
        "score", "register", "train", "training_set", "features", "validate", "ingest", "",
    ]  # fmt: skip
    assert [step.depth for step in chain] == list(range(8))


def test_over_given_stops() -> None:
    graph = Graph(pipeline())
    view = of_uri("/s/view/interval=2013-01-04")
    way = graph.chain(PREDICTION, Dataset("mlflow", "delay/1"), view, of_uri(LANDING[3].uri))
    assert way == graph.chain(PREDICTION, of_uri(LANDING[3].uri))
    assert graph.chain(PREDICTION, view, Dataset("mlflow", "delay/1")) == []


def test_rows_that_came_after_the_cutoff_are_not_in_the_training() -> None:
    graph = Graph(pipeline())
    model = Dataset("mlflow", "delay/1")
    assert of_uri(LANDING[6].uri) in graph.upstream(model)  # 7 January, inside the window
    assert of_uri(LANDING[7].uri) not in graph.upstream(model)
    assert of_uri(LANDING[7].uri) in graph.upstream(PREDICTION)  # as the day that was scored


def test_downstream_finds_what_a_bad_file_has_touched() -> None:
    graph = Graph(pipeline())
    touched = graph.downstream(of_uri(LANDING[0].uri))
    assert {PREDICTION, Dataset("mlflow", "delay/1"), of_uri("/s/evidence/1.json")} <= touched
    assert Dataset("mlflow", "delay/1") not in graph.downstream(of_uri(LANDING[7].uri))


@pytest.mark.parametrize(
    ("until", "inside", "outside"),
    [
        ("2013-01-08", ["2013-01-07", "2013-01-07T23", "2013-01-07--2013-01-14"], ["2013-01-08", "2013-01-08T00"]),
        ("2013-01-08T06", ["2013-01-08", "2013-01-08T05"], ["2013-01-08T06", "2013-01-09"]),
        ("2013-02-01", ["2013-01", "2013-01-31T12--2013-02-03"], ["2013-02", "2013-02-01--2013-02-08"]),
        ("v2", ["v1"], ["v3"]),
    ],
)
def test_a_partition_is_read_if_its_window_begins_before(until: str, inside: list[str], outside: list[str]) -> None:
    condition = {"type": "compare", "comparison": "LESS_THAN", "right": {"type": "literal", "value": until}}
    subset = {"inputFacets": {"subset": {"inputCondition": condition}}}
    event = {
        "eventType": "COMPLETE", "run": {"runId": "r"}, "job": {"namespace": "n", "name": "train"},
        "inputs": [{"namespace": "file", "name": "/s/t", **subset}], "outputs": [{"namespace": "file", "name": "/s/m"}],
    }  # fmt: skip
    parts = {key: rows(key, f"/s/t/interval={key}") for key in inside + outside}
    made = [found for part in parts.values() for found in events("ingest", [], [part], run=part.name)]
    graph = Graph([*made, event])
    assert graph.upstream(of_uri("/s/m")) == {of_uri("/s/t"), *(of_uri(parts[key].uri) for key in inside)}
    for key, part in parts.items():
        assert (of_uri("/s/m") in graph.downstream(of_uri(part.uri))) == (key in inside)


def test_nothing_upstream_of_a_source_or_an_unknown_dataset() -> None:
    graph = Graph(pipeline())
    assert graph.upstream(of_uri(LANDING[0].uri)) == set()
    assert graph.upstream(of_uri("/nowhere")) == set()
    assert graph.chain(PREDICTION, of_uri("/nowhere")) == []


def test_a_table_is_everything_in_it() -> None:
    graph = Graph(pipeline())
    assert PREDICTION in graph.upstream(of_uri("/s/predictions"))
    assert of_uri(LANDING[0].uri) in graph.upstream(of_uri("/s/predictions"))


def test_the_version_decides_which_run_made_it() -> None:
    """A package folder is overwritten by a later training; the registered model still comes from the first."""
    old, new = rows("old", "/s/old.parquet"), rows("new", "/s/new.parquet")
    retrained = ModelRef("delay", PACKAGE.uri, sha("m2"))
    graph = Graph(
        events("train", [old], [PACKAGE], run="one", time=1)
        + events("train", [new], [retrained], run="two", time=2)
        + events("register", [PACKAGE], [VERSION], time=3)
    )
    assert of_uri(old.uri) in graph.upstream(Dataset("mlflow", "delay/1"))
    assert of_uri(new.uri) not in graph.upstream(Dataset("mlflow", "delay/1"))


def test_an_unknown_version_comes_from_what_had_ended_by_then() -> None:
    one, two = rows("one", "/s/one.parquet"), rows("two", "/s/two.parquet")
    graph = Graph(
        events("ingest", [one], [rows("t", "/s/t.parquet", "b")], run="one", time=1)
        + events("ingest", [two], [rows("t", "/s/t.parquet", "c")], run="two", time=3)
        + events("train", [rows("t", "/s/t.parquet", "lost")], [PACKAGE], time=2)
    )
    assert of_uri(one.uri) in graph.upstream(of_uri(PACKAGE.uri))
    assert of_uri(two.uri) not in graph.upstream(of_uri(PACKAGE.uri))


def test_mapped_tasks_share_a_job_but_are_runs_of_their_own() -> None:
    train = rows("train", "/s/train.parquet")
    packages = [ModelRef(f"delay_{o}", f"/s/models/{o}", sha(str(i))) for i, o in enumerate(("ewr", "jfk", "lga"))]
    found = [event for p in packages for event in events("train", [train], [p], run=p.name)]
    graph = Graph(found)
    assert len({run.job for run in graph.runs.values()}) == 1
    assert graph.downstream(of_uri(train.uri)) == {of_uri(p.uri) for p in packages}


def test_loops_end() -> None:
    table = rows("t", "/s/t.parquet")
    graph = Graph(events("merge", [rows("l", "/l.csv"), table], [table]))
    assert graph.upstream(of_uri(table.uri)) == {of_uri("/l.csv")}
    assert graph.downstream(of_uri(table.uri)) == set()


def facts(graph: Graph) -> Any:
    """Return what a graph knows, without the order in which it learnt it."""
    return (
        {r.id: (r.state, sorted(r.inputs), sorted(r.outputs), r.facets) for r in graph.runs.values()},
        graph.upstream(PREDICTION),
        graph.downstream(of_uri(LANDING[0].uri)),
    )


@given(st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(dice: random.Random) -> None:
    found = pipeline()
    mixed = found + dice.choices(found, k=20)
    dice.shuffle(mixed)
    assert facts(Graph(mixed)) == facts(Graph(found))


def test_reading_a_file_with_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [json.dumps(event) for event in pipeline()]
    path.write_text("\n".join([*lines, "", '{"eventType": "COM', "[]", json.dumps({"dataset": {}})]))
    graph = Graph.read(path)
    assert graph.broken == 1
    assert facts(graph) == facts(Graph(pipeline()))


def test_reading_a_folder_with_one_file_per_event(tmp_path: Path) -> None:
    for number, event in enumerate(pipeline()):
        (tmp_path / f"ol-{number}.json").write_text(json.dumps(event))
    assert facts(Graph.read(tmp_path)) == facts(Graph(pipeline()))


def test_no_events() -> None:
    with pytest.raises(DataError, match="no lineage events at /nowhere"):
        Graph.read(Path("/nowhere"))


def test_an_outlet_that_names_the_table_adds_nothing() -> None:
    """Airflow's START event lists a task's outlets; the end tells which partition it was."""
    found = pipeline()
    for event in found:
        if event["eventType"] == "START" and event["job"]["name"] == "dag.features":
            event["outputs"] = [{"namespace": "file", "name": "/s/view"}]
    graph = Graph(found)
    assert of_uri(LANDING[7].uri) not in graph.upstream(Dataset("mlflow", "delay/1"))
    assert "file:/s/view" not in [str(step.dataset) for step in graph.chain(PREDICTION, of_uri(LANDING[3].uri))]
