"""A stage in a pod, run by a real Airflow on a real Kubernetes: what ends it, and what must not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from services import BIN

DAG, OWN = "pods", "pods_own"


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


def running(cluster, run_id: str = "") -> dict:
    """Return the pod that runs, or that of a DAG run."""

    def pods() -> list[dict]:
        found = [pod for pod in cluster.get("pods") if pod["status"]["phase"] == "Running"]
        return [pod for pod in found if run_id in pod["metadata"]["annotations"]["airflow-ml/task"]]

    return until(pods, 120, "no pod runs")[0]


def state(flights, run_id: str) -> str:
    return str(flights.api.tasks(DAG, run_id)[0]["state"])


def begun(flights, cluster, runs: int = 1) -> list[tuple[str, dict]]:
    """Start runs; return each with its pod once their tasks are deferred and the pods run."""
    run_ids = [flights.api.trigger(DAG) for _ in range(runs)]
    pods = [running(cluster, run_id) for run_id in run_ids]
    for run_id in run_ids:
        until(lambda run_id=run_id: state(flights, run_id) == "deferred", 60, "the task does not defer")
    return list(zip(run_ids, pods, strict=True))


def mark(flights, what: str, as_: str) -> None:
    key = "new_state" if "taskInstances" in what else "state"
    flights.api.call("PATCH", f"dags/{DAG}/dagRuns/{what}", {key: as_})


def held(flights, run_id: str) -> list[int]:
    """Return how far the pod has counted, as the task's log has it."""
    lines = [line.split() for line in flights.api.log(DAG, run_id, "ingest")]
    return [int(line[1]) for line in lines if line[:1] == ["held"]]


def ended(flights, run_id: str) -> dict:
    (run,) = flights.api.wait(DAG, lambda run: run["dag_run_id"] == run_id, timeout_s=300)
    return run


def test_a_stage_in_a_pod_succeeds_while_its_task_takes_no_slot(flights, cluster, hold):
    ((run_id, pod),) = begun(flights, cluster)
    assert "ml-ingest" in pod["metadata"]["name"]
    hold.unlink()
    run = ended(flights, run_id)
    assert run["state"] == "success", flights.why(DAG, run)
    assert flights.api.xcom(DAG, run_id, "ingest")["counts"]["accepted"] == 1
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def test_whatever_ends_a_deferred_task_takes_its_pod_along(flights, cluster, hold):
    """Its state is set, or its run ends and is deleted before anybody has looked."""
    (failed, _), (succeeded, _), (deleted, _) = begun(flights, cluster, runs=3)
    mark(flights, f"{failed}/taskInstances/ingest", as_="failed")
    mark(flights, f"{succeeded}/taskInstances/ingest", as_="success")
    mark(flights, deleted, as_="failed")
    flights.api.call("DELETE", f"dags/{DAG}/dagRuns/{deleted}")
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def test_a_cleared_task_starts_again_in_another_pod(flights, cluster, hold):
    ((run_id, pod),) = begun(flights, cluster)
    flights.api.clear(DAG, run_id)
    uid = pod["metadata"]["uid"]
    until(lambda: running(cluster)["metadata"]["uid"] != uid, 120, "the old pod still runs")
    hold.unlink()
    run = ended(flights, run_id)
    assert run["state"] == "success", flights.why(DAG, run)
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def test_a_triggerer_that_is_killed_is_succeeded_by_another(flights, cluster, hold):
    """The pod goes on meanwhile; the log has each of its lines once."""
    ((run_id, pod),) = begun(flights, cluster)
    until(lambda: len(held(flights, run_id)) > 3, 60, "the triggerer logs nothing")
    with flights.without("triggerer"):
        seen = held(flights, run_id)[-1]
    until(lambda: held(flights, run_id)[-1] > seen, 90, "no other triggerer takes over")
    hold.unlink()
    run = ended(flights, run_id)
    assert run["state"] == "success", flights.why(DAG, run)
    assert made_since(cluster, pod) == {pod["metadata"]["uid"]}
    counted = held(flights, run_id)
    assert counted == list(range(len(counted)))
    assert counted[-1] > seen
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def test_a_lost_pod_s_lines_stay_in_the_log_when_it_is_replaced(flights, cluster, hold):
    ((run_id, pod),) = begun(flights, cluster)
    until(lambda: len(held(flights, run_id)) > 3, 60, "the triggerer logs nothing")
    identity = pod["metadata"]["labels"]["airflow-ml/identity"].encode()
    for process in Path("/proc").glob("[0-9]*"):
        if identity in read(process / "cmdline"):
            os.kill(int(process.name), signal.SIGKILL)
    until(lambda: running(cluster, run_id)["metadata"]["uid"] != pod["metadata"]["uid"], 60, "it is not replaced")
    until(lambda: held(flights, run_id).count(0) == 2, 60, "the other pod prints nothing")
    hold.unlink()
    run = ended(flights, run_id)
    assert run["state"] == "success", flights.why(DAG, run)
    counted = held(flights, run_id)
    first = counted.index(0, 1)
    assert counted == [*range(first), *range(len(counted) - first)]
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def test_a_scheduler_that_is_killed_finds_the_task_where_it_was(flights, cluster, hold):
    """Its workers die with it; the pod ends while it is away."""
    ((run_id, pod),) = begun(flights, cluster)
    with flights.without("scheduler"):
        hold.unlink()
        until(lambda: state(flights, run_id) == "scheduled", 60, "the triggerer tells nothing")
    run = ended(flights, run_id)
    assert run["state"] == "success", flights.why(DAG, run)
    assert flights.api.tasks(DAG, run_id)[0]["try_number"] == 1
    assert made_since(cluster, pod) == {pod["metadata"]["uid"]}
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def test_what_is_deleted_while_no_triggerer_runs_is_left_to_the_reaper(flights, cluster, hold):
    (kept, pod), (deleted, lost) = begun(flights, cluster, runs=2)
    with flights.without("triggerer"):
        mark(flights, deleted, as_="failed")
        flights.api.call("DELETE", f"dags/{DAG}/dagRuns/{deleted}")
        seen = len(held(flights, kept))
    until(lambda: len(held(flights, kept)) > seen, 90, "no other triggerer takes over")
    assert {pod["metadata"]["name"], lost["metadata"]["name"]} == names(cluster)
    said = reap(flights)
    assert "in use" in next(line for line in said if pod["metadata"]["name"] in line)
    assert "left over" in next(line for line in said if lost["metadata"]["name"] in line)
    until(lambda: names(cluster) == {pod["metadata"]["name"]}, 60, "the pod of the deleted run is still there")
    hold.unlink()
    run = ended(flights, kept)
    assert run["state"] == "success", flights.why(DAG, run)
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def names(cluster) -> set[str]:
    return {pod["metadata"]["name"] for pod in cluster.get("pods")}


def reap(flights) -> list[str]:
    """Remove what is left over, whatever its age; return what was said."""
    command = [BIN / "airflow", "ml", "reap", "--exchange", flights.stack.store / "exchange"]
    environment = {**flights.stack.environment(), "COLUMNS": "300"}
    done = subprocess.run(
        [*command, "--older-than", "0", "--delete"], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def test_a_function_of_the_user_trains_in_a_pod(flights, cluster):
    rows = [f"2013-01-{1 + n // 24:02}T{n % 24:02}:00:00Z,{n % 7},{int(n % 7 > 3)}" for n in range(240)]
    (flights.stack.landing / "own.csv").write_text("\n".join(["at,x,label", *rows]))
    run_id = flights.api.trigger(OWN)
    pod = running(cluster, run_id)
    (run,) = flights.api.wait(OWN, lambda run: run["dag_run_id"] == run_id, timeout_s=300)
    assert run["state"] == "success", flights.why(OWN, run)
    line = f"training by hand in {pod['metadata']['name']} with strength 0.5"
    assert flights.api.log(OWN, run_id, "fit").count(line) == 1
    model = flights.api.xcom(OWN, run_id, "fit")["model"]
    assert (Path(model["uri"]) / "model.onnx").is_file()
    assert model["metrics"]["validation_auc"] > 0.9
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def test_an_api_server_that_is_away_for_a_while_costs_no_second_pod(flights, cluster, hold):
    ((run_id, pod),) = begun(flights, cluster)
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
        assert made_since(cluster, pod) == {pod["metadata"]["uid"]}
    finally:
        stop.unlink()
        stopped.unlink(missing_ok=True)
    until(lambda: not cluster.left(), 60, str(cluster.left()))


def made_since(cluster, pod: dict) -> set[str]:
    """Return the uids of this pod and of all that were made later."""
    made = [one for one in cluster.get("events") if one["reason"] == "Scheduled" and "ml-ingest" in one["message"]]
    began = pod["metadata"]["creationTimestamp"]
    return {one["involvedObject"]["uid"] for one in made if one["metadata"]["creationTimestamp"] >= began}


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
