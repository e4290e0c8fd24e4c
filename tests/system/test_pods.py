"""A stage in a pod, run by a real Airflow on a real Kubernetes: deferred, cleared, marked failed, the cluster away."""

from __future__ import annotations

import json
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


def test_a_worker_that_is_killed_goes_on_with_the_same_pod(flights, cluster, hold):
    """It dies after it has made the pod and before the task is deferred; no second pod is ever made."""
    stop, stopped = flights.stack.store / "stop", flights.stack.store / "stopped"
    stop.touch()
    try:
        run_id = flights.api.trigger(DAG)
        pid = int(until(lambda: stopped.exists() and stopped.read_text(), 120, "the worker does not get so far"))
        pod = running(cluster)
        os.kill(pid, signal.SIGKILL)
        until(lambda: state(flights, run_id) == "deferred", 120, "the task is not tried again")
        assert flights.api.tasks(DAG, run_id)[0]["try_number"] == 2
        assert [one["metadata"]["uid"] for one in cluster.get("pods")] == [pod["metadata"]["uid"]]
        hold.unlink()
        run = ended(flights, run_id)
        assert run["state"] == "success", flights.why(DAG, run)
        made = [one for one in cluster.get("events") if one["reason"] == "Scheduled" and "ml-ingest" in one["message"]]
        assert len({one["involvedObject"]["uid"] for one in made} - before(made, pod)) == 1
    finally:
        stop.unlink()
        stopped.unlink(missing_ok=True)
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def before(made: list[dict], pod: dict) -> set[str]:
    """Return the pods that were made before this one."""
    began = pod["metadata"]["creationTimestamp"]
    return {one["involvedObject"]["uid"] for one in made if one["metadata"]["creationTimestamp"] < began}


def test_the_flights_network_trains_on_two_pods(flights, cluster):
    """The DAG of the documentation, on the features that the pipeline has made."""
    dag_id = "flight_delay_training_on_pods"
    window = {"interval_start": "2013-01-01T00:00:00Z", "interval_end": "2013-01-08T00:00:00Z"}
    run_id = flights.api.trigger(dag_id, window)
    (run,) = flights.api.wait(dag_id, lambda run: run["dag_run_id"] == run_id, timeout_s=600)
    assert run["state"] == "success", flights.why(dag_id, run)
    (model,) = flights.api.xcom(dag_id, run_id, "winners")
    assert "flight_delay" in json.dumps(model)
    until(lambda: not cluster.left(), 60, str(cluster.left()))
