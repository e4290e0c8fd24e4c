"""The reaper in an Airflow with a database: states as tasks learn them, and as commands do."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import pytest

pytest.importorskip("airflow.providers.cncf.kubernetes")

from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.testing.own_airflow import OwnAirflow

EXPECTED = {
    "retries": ("up_for_retry", "in use"),
    "done": ("success", "left over"),
    "failed": ("failed", "left over"),
    "no-index": ("does not exist", "left over"),
    "no-run": ("does not exist", "left over"),
    "no-dag": ("does not exist", "left over"),
    "no-task": ("", "unknown"),
}


@pytest.fixture
def own_airflow(tmp_path: Path, connected: str) -> OwnAirflow:
    exchange = tmp_path / "exchange"
    further = {"AIRFLOW__ML__EXCHANGE": str(exchange), "COLUMNS": "300"}
    airflow = OwnAirflow(tmp_path, Path(__file__).parent / "dags", further).migrate()
    airflow.run("airflow", "dags", "test", "work", fails=True)
    return airflow


@pytest.fixture
def run_id(own_airflow: OwnAirflow) -> str:
    """A run whose first instance waits for another try, whose second has succeeded, and whose third has failed."""
    with sqlite3.connect(own_airflow.home / "airflow" / "airflow.db") as database:
        database.execute("UPDATE task_instance SET state = 'up_for_retry' WHERE dag_id = 'work' AND map_index = 0")
        rows = database.execute("SELECT run_id, map_index, state FROM task_instance WHERE dag_id = 'work' ORDER BY 2")
        found = rows.fetchall()
    assert [row[1:] for row in found] == [(0, "up_for_retry"), (1, "success"), (2, "failed")]
    return found[0][0]


def leave(make, run_id: str) -> None:
    """Make a Secret for each kind of task."""
    for name, dag, run, index in (
        ("retries", "work", run_id, 0), ("done", "work", run_id, 1), ("failed", "work", run_id, 2),
        ("no-index", "work", run_id, 3), ("no-run", "work", "never", 0), ("no-dag", "never", run_id, -1),
    ):  # fmt: skip
        make("Secret", name, task={"dag_id": dag, "task_id": "one", "run_id": run, "map_index": index})
    make("Secret", "no-task", None)
    time.sleep(1.1)  # the cluster counts in seconds


def table(output: str) -> dict[str, tuple[str, str]]:
    """Return state and verdict by name from what the command has printed, among log lines."""
    line = next(line for line in output.splitlines() if line.startswith("[{"))
    return {row["name"]: (row["state"], row["verdict"]) for row in json.loads(line)}


def test_command_and_operator_see_the_same_and_remove_it(own_airflow, run_id, make, cluster):
    leave(make, run_id)
    own_airflow.run("airflow", "ml", "reap", "--older-than", "0", "--output", "json")
    assert table(own_airflow.output) == EXPECTED

    own_airflow.run("airflow", "dags", "test", "only_shows")
    for name, (state, verdict) in EXPECTED.items():
        line = next(line for line in own_airflow.output.splitlines() if f"Secret  {name}  " in line)
        assert line.count(f"  {verdict}") == 1, line
        assert f"  {state}  " in line, line
    assert left(cluster) == set(EXPECTED)

    info = RunInfo("work", "one", run_id, 2)
    call = own_airflow.home / "exchange" / "calls" / info.identity
    call.mkdir(parents=True)
    (call / "call.json").write_text(json.dumps({"info": {**about(info)}}))
    own_airflow.run("airflow", "dags", "test", "removes")
    assert left(cluster) == {"retries", "no-task"}
    assert not call.exists()

    own_airflow.run("airflow", "ml", "reap", "--older-than", "0", "--name", "no-task", "--name", "retries", "--delete")
    assert "): deleted" in own_airflow.output
    assert left(cluster) == {"retries"}


def about(info: RunInfo) -> dict[str, object]:
    return {"dag_id": info.dag_id, "task_id": info.task_id, "run_id": info.run_id, "map_index": info.map_index}


def left(cluster) -> set[str]:
    items = cluster.get("secrets")
    return {item["metadata"]["name"] for item in items if "airflow-ml/identity" in item["metadata"].get("labels", {})}
