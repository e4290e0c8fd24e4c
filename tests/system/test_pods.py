"""A stage in a pod, run by a real Airflow on a real Kubernetes: deferred, cleared, marked failed, the cluster away."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

DAG = "pods"


@pytest.fixture
def hold(flights, cluster):
    """The stage waits in its pod as long as this file is there."""
    (flights.stack.landing / "pods.csv").write_text("id\n1\n")
    path = flights.stack.store / "hold"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def until(found, seconds: float, what: str):
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, what
        time.sleep(0.5)
    return value


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended meanwhile
        return b""


def running(cluster) -> dict:
    def pods() -> list[dict]:
        return [pod for pod in cluster.get("pods") if pod["status"]["phase"] == "Running"]

    return until(pods, 120, "no pod runs")[0]


def state(flights, run_id: str) -> str:
    return str(flights.api.tasks(DAG, run_id)[0]["state"])


def begun(flights, cluster) -> tuple[str, dict]:
    """Start a run; return it and its pod once the task is deferred and the pod runs."""
    run_id = flights.api.trigger(DAG)
    pod = running(cluster)
    until(lambda: state(flights, run_id) == "deferred", 60, "the task does not defer")
    return run_id, pod


def ended(flights, run_id: str) -> dict:
    (run,) = flights.api.wait(DAG, lambda run: run["dag_run_id"] == run_id, timeout_s=300)
    return run


def test_a_stage_in_a_pod_succeeds_while_its_task_takes_no_slot(flights, cluster, hold):
    run_id, pod = begun(flights, cluster)
    assert "ml-ingest" in pod["metadata"]["name"]
    hold.unlink()
    run = ended(flights, run_id)
    assert run["state"] == "success", flights.why(DAG, run)
    assert flights.api.xcom(DAG, run_id, "ingest")["counts"]["accepted"] == 1
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def test_a_deferred_task_that_is_marked_failed_leaves_nothing(flights, cluster, hold):
    run_id, _ = begun(flights, cluster)
    flights.api.call("PATCH", f"dags/{DAG}/dagRuns/{run_id}/taskInstances/ingest", {"new_state": "failed"})
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def test_a_cleared_task_starts_again_in_another_pod(flights, cluster, hold):
    run_id, pod = begun(flights, cluster)
    flights.api.clear(DAG, run_id)
    uid = pod["metadata"]["uid"]
    until(lambda: running(cluster)["metadata"]["uid"] != uid, 120, "the old pod still runs")
    hold.unlink()
    run = ended(flights, run_id)
    assert run["state"] == "success", flights.why(DAG, run)
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def test_an_api_server_that_is_away_for_a_while_costs_no_second_pod(flights, cluster, hold):
    run_id, pod = begun(flights, cluster)
    servers = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if b"kube-apiserver" in read(p)]
    assert servers
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(subprocess.CalledProcessError):
        cluster.kubectl("get", "pods", "--request-timeout=3s")
    time.sleep(20)
    for pid in servers:
        os.kill(pid, signal.SIGCONT)
    time.sleep(10)
    assert [one["metadata"]["uid"] for one in cluster.get("pods")] == [pod["metadata"]["uid"]]
    hold.unlink()
    run = ended(flights, run_id)
    assert run["state"] == "success", flights.why(DAG, run)
    until(lambda: not cluster.left(), 60, str(cluster.left()))
