"""The flights pipeline in a real Airflow: backfilled, scheduled, by hand, by assets, refused, repeated, killed.

The tests tell one story and run in order.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from datetime import date, timedelta
from pathlib import Path

import pytest

from airflow_ml_provider import tables
from airflow_ml_provider.lineage.graph import Graph
from airflow_ml_provider.lineage.naming import of_uri
from airflow_ml_provider.testing.fixtures import event_validator

__all__ = ["event_validator"]

PROMOTE = {"allow_backfill_promotion": True}


def outputs(flights, day: str) -> dict[str, str]:
    """Return the digest of everything that the pipeline keeps for a day."""
    store = flights.stack.store
    found = [p for p in store.rglob("*") if p.is_file() and f"interval={day}" in str(p.relative_to(store))]
    return {str(p.relative_to(store)): tables.file_digest(p) for p in sorted(found) if "data_docs" not in str(p)}


def summary(flights, run, task_id, map_index=-1, dag_id=None):
    return flights.api.xcom(dag_id or flights.SCORING, run["dag_run_id"], task_id, map_index=map_index)


def test_a_week_is_backfilled_before_there_is_a_model(flights):
    flights.drop("2013-01-01", "2013-01-07")
    runs = flights.backfill(flights.SCORING, "2013-01-01", "2013-01-07", 7)
    for run in runs:
        assert run["state"] == "success", flights.why(flights.SCORING, run)
        states = flights.states(flights.SCORING, run)
        assert states["score"] == {"skipped"}, "there is no champion for these days"
        assert states["features"] == {"success"}
    assert summary(flights, runs[0], "ingest_flights")["counts"]["accepted"] > 600


def test_a_backfilled_challenger_is_refused_unless_the_run_allows_it(flights):
    (refused,) = flights.backfill(flights.TRAINING, "2013-01-01", "2013-01-01", 1)
    assert refused["state"] == "success", flights.why(flights.TRAINING, refused)
    states = flights.states(flights.TRAINING, refused)
    assert states["decide.gate"] == {"success"}
    assert states["decide.promote"] == {"skipped"}
    report = summary(flights, refused, "decide.promote", 0, flights.TRAINING)
    assert report["status"] == "refused"
    assert "backfill" in report["reason"]

    conf = {**PROMOTE, "interval_start": "2013-01-01T00:00:00Z", "interval_end": "2013-01-08T00:00:00Z"}
    allowed = flights.run(flights.TRAINING, conf)
    assert allowed["state"] == "success", flights.why(flights.TRAINING, allowed)
    states = flights.states(flights.TRAINING, allowed)
    assert states["decide.promote"] == {"success"}
    assert len([t for t in flights.api.tasks(flights.TRAINING, allowed["dag_run_id"]) if t["task_id"] == "train"]) == 6
    assert len(flights.api.xcom(flights.TRAINING, allowed["dag_run_id"], "winners")) == 3, "one winner per airport"


def test_scheduled_days_wait_for_their_files_and_are_scored(flights):
    flights.drop("2013-01-08", "2013-01-09")
    runs = flights.api.wait(flights.SCORING, lambda run: run["run_type"] == "scheduled", at_least=2, timeout_s=900)
    for run in runs:
        assert run["state"] == "success", flights.why(flights.SCORING, run)
        scored = summary(flights, run, "score")
        assert scored["counts"]["scored"] == scored["counts"]["rows"] > 600
        assert len(scored["models"]) == 3
    twice = next(r for r in runs if str(r["logical_date"]).startswith("2013-01-09"))
    assert summary(flights, twice, "ingest_flights")["counts"]["duplicate_files"] == 1


def test_bad_data_is_refused_with_a_reason_and_replayed_after_the_fix(flights):
    flights.drop("2013-01-20", "2013-01-20")
    (run,) = flights.backfill(flights.SCORING, "2013-01-20", "2013-01-20", 1)
    assert run["state"] == "failed"
    report = summary(flights, run, "ingest_flights")
    assert report["status"] == "refused"
    assert "carrier" in report["reason"]
    assert "airline" in report["reason"]

    flights.fix("2013-01-20")
    flights.api.clear(flights.SCORING, run["dag_run_id"])
    time.sleep(1)
    (again,) = flights.api.wait(flights.SCORING, lambda r: r["dag_run_id"] == run["dag_run_id"])
    assert again["state"] == "success", flights.why(flights.SCORING, again)
    assert summary(flights, again, "ingest_flights")["counts"]["accepted"] > 600


def test_a_cleared_day_gives_the_same_digests(flights):
    run = next(r for r in flights.api.runs(flights.SCORING) if str(r["logical_date"]).startswith("2013-01-08"))
    before = outputs(flights, "2013-01-08")
    assert any("predictions" in name for name in before)
    flights.api.clear(flights.SCORING, run["dag_run_id"])
    time.sleep(1)
    (again,) = flights.api.wait(flights.SCORING, lambda r: r["dag_run_id"] == run["dag_run_id"])
    assert again["state"] == "success", flights.why(flights.SCORING, again)
    assert outputs(flights, "2013-01-08") == before


@pytest.mark.parametrize("task_id", ["ingest_flights", "features", "score"])
def test_a_task_killed_at_any_moment_ends_in_the_same_digests_after_its_retry(flights, task_id):
    run = next(r for r in flights.api.runs(flights.SCORING) if str(r["logical_date"]).startswith("2013-01-09"))
    before = outputs(flights, "2013-01-09")
    flights.api.clear(flights.SCORING, run["dag_run_id"])
    _kill_task(flights, run["dag_run_id"], task_id)
    (again,) = flights.api.wait(flights.SCORING, lambda r: r["dag_run_id"] == run["dag_run_id"])
    assert again["state"] == "success", flights.why(flights.SCORING, again)
    (task,) = [t for t in flights.api.tasks(flights.SCORING, run["dag_run_id"]) if t["task_id"] == task_id]
    assert task["state"] == "success"
    assert outputs(flights, "2013-01-09") == before


def _kill_task(flights, run_id: str, task_id: str, timeout_s: float = 240) -> None:
    """Kill -9 the process of a task instance while it runs."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        (task,) = [t for t in flights.api.tasks(flights.SCORING, run_id) if t["task_id"] == task_id]
        if task["state"] == "running" and task["pid"]:
            try:
                os.kill(task["pid"], signal.SIGKILL)
            except ProcessLookupError:
                continue
            return
        time.sleep(0.1)
    raise TimeoutError(f"{task_id} never ran")


def test_a_run_without_dates_takes_its_window_from_its_parameters(flights):
    before = outputs(flights, "2013-01-08")
    conf = {"interval_start": "2013-01-08T00:00:00Z", "interval_end": "2013-01-09T00:00:00Z"}
    run = flights.run(flights.SCORING, conf)
    assert run["logical_date"] is None
    assert run["state"] == "success", flights.why(flights.SCORING, run)
    assert outputs(flights, "2013-01-08") == before


def test_a_weak_model_is_refused_with_evidence(flights):
    flights.api.pause(flights.STRICT, False)
    run = flights.run(
        flights.STRICT, {"interval_start": "2013-01-01T00:00:00Z", "interval_end": "2013-01-08T00:00:00Z"}
    )
    assert run["state"] == "success", flights.why(flights.STRICT, run)
    states = flights.states(flights.STRICT, run)
    assert states["decide.gate"] == {"skipped"}
    assert states["decide.promote"] == {"skipped"}
    gate = summary(flights, run, "decide.gate", 0, flights.STRICT)
    assert gate["status"] == "refused"
    assert gate["failed"]
    evidence = json.loads(Path(gate["evidence"]["uri"]).read_text())
    assert tables.file_digest(Path(gate["evidence"]["uri"])) == gate["evidence"]["digest"]
    assert "0.999" in json.dumps(evidence)


@pytest.mark.parametrize("name", ["flight_delay.retrain", "flight_delay.history"])
def test_an_asset_starts_training_and_is_recorded_as_the_reason(flights, name):
    assets = flights.api.call("GET", "assets", name_pattern=name)["assets"]
    (asset,) = [a for a in assets if a["name"] == name]
    before = {r["dag_run_id"] for r in flights.api.runs(flights.TRAINING)}
    extra = {"interval_start": "2013-01-08T00:00:00Z", "interval_end": "2013-01-09T00:00:00Z"}
    flights.api.call("POST", "assets/events", {"asset_id": asset["id"], "extra": extra})
    (run,) = flights.api.wait(flights.TRAINING, lambda r: r["dag_run_id"] not in before, timeout_s=900)
    assert run["run_type"] == "asset_triggered"
    assert run["state"] == "success", flights.why(flights.TRAINING, run)
    index = 0
    model = summary(flights, run, "decide.register", index, flights.TRAINING)["model"]
    version = _mlflow(flights, f"model-versions/get?name={model['name']}&version={model['version']}")["model_version"]
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert "asset" in json.dumps(tags)
    assert name in json.dumps(tags)


def _mlflow(flights, path: str) -> dict:
    with urllib.request.urlopen(f"{flights.stack.mlflow_url}/api/2.0/mlflow/{path}", timeout=30) as answer:
        return json.load(answer)


def test_rollback_is_one_task_and_one_run(flights):
    name = "flight_delay_ewr"
    holder = _champion(flights, name)
    before = [v["version"] for v in _versions(flights, name)]
    run = flights.run(flights.ROLLBACK, {"model": name, "reason": "complaints from the airport"})
    assert run["state"] == "success", flights.why(flights.ROLLBACK, run)
    assert flights.states(flights.ROLLBACK, run) == {"rollback": {"success"}, "serve": {"success"}}
    assert _champion(flights, name) != holder
    assert "flight-delay-ewr" in flights.stack.served()
    assert [v["version"] for v in _versions(flights, name)] == before


def _champion(flights, name: str) -> str:
    return str(_mlflow(flights, f"registered-models/alias?name={name}&alias=champion")["model_version"]["version"])


def _versions(flights, name: str) -> list[dict]:
    found = _mlflow(flights, f"model-versions/search?filter=name%3D%27{name}%27")
    return sorted(found["model_versions"], key=lambda v: int(v["version"]))


def test_every_event_is_valid(flights, event_validator):
    events = [json.loads(line) for line in flights.stack.lineage.read_text().splitlines()]
    assert len(events) > 200
    assert not {error for event in events for error in event_validator.errors(event)}


def test_lineage_leads_from_a_prediction_back_to_the_landing_file(flights):
    """Which deliveries is a prediction of the 8th made from, by way of the model that learnt from the days before?"""
    graph, store = Graph.read(flights.stack.lineage), flights.stack.store
    prediction = of_uri(f"{store}/predictions/interval=2013-01-08")
    (score,) = [step.run for step in graph.walk(prediction) if step.depth == 0]
    versions = sorted(dataset for dataset in score.inputs if dataset.namespace == "mlflow")
    assert [version.name.rpartition("/")[0] for version in versions] == [
        "flight_delay_ewr", "flight_delay_jfk", "flight_delay_lga",
    ]  # fmt: skip
    view = of_uri(f"{store}/features/tables/carrier_arrivals/interval=2013-01-02")
    landing = of_uri(f"{flights.stack.landing}/flights_2013-01-02.csv.gz")
    for version in versions:
        (train,) = [d for d in graph.upstream(version) if d.name.endswith("/train.parquet")]
        chain = graph.chain(prediction, version, train, view, landing)
        assert [step.run.job.rpartition(".")[2] if step.run else "" for step in chain] == [
            "score", "register", "train", "training_set", "features", "validate_flights", "ingest_flights", "",
        ]  # fmt: skip
        assert all(step.version for step in chain)


def test_every_day_has_its_own_partition_and_nothing_else_was_touched(flights):
    days = [date(2013, 1, 1) + timedelta(days=n) for n in range(9)] + [date(2013, 1, 20)]
    found = {
        p.parent.name.removeprefix("interval=") for p in tables.partitions(str(flights.stack.store / "raw" / "flights"))
    }
    assert found == {day.isoformat() for day in days}
