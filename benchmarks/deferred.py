"""What many deferred stages in pods cost one triggerer.

    .venv/bin/python benchmarks/deferred.py [--tasks 50]

In an Airflow of its own (`dev-airflow/services.py`: SQLite, four workers) on the one-node Kubernetes for tests, a
mapped task runs a stage in so many pods, which wait until all tasks are deferred and the triggerer was watched for a
minute. Then they work. Most of the seconds are those of making and ending pods and tasks on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO / "dev-airflow")]

import cluster as kubernetes  # noqa: E402
from airflow_api import AirflowApi  # noqa: E402
from services import BIN, Stack  # noqa: E402

WATCHED_S = 60
DAG = """\
# An Airflow DAG with one mapped task in many pods.
import json, os
from airflow.sdk import DAG
from airflow_ml_provider import IngestOperator
from airflow_ml_provider.runtime import Pod

STORE, LANDING = os.environ["ML_STORE"], os.environ["ML_LANDING"]
pod = Pod(
    os.environ["ML_POD_IMAGE"], python=os.environ["ML_TOOLS_PYTHON"], exchange=STORE + "/exchange",
    memory_gib=0.25, volumes=json.loads(os.environ["BENCHMARK_VOLUMES"]), pythonpath=(LANDING,),
)
with DAG("deferred", schedule=None, max_active_tasks=1000):
    IngestOperator.partial(
        task_id="ingest", name="rows", source=LANDING + "/rows.csv", columns={"id": "int"}, runtime=pod
    ).expand(target=[f"{STORE}/{number}" for number in range(int(os.environ["BENCHMARK_TASKS"]))])
"""
# Stands before the real module: the stage waits as long as the file is there.
HELD_DUCKDB = """\
import os, sys, time
while os.path.exists(os.path.dirname(__file__) + "/hold"):
    time.sleep(1)
sys.path.remove(os.path.dirname(__file__))
del sys.modules["duckdb"]
import duckdb
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50)
    tasks = parser.parse_args().tasks
    running = kubernetes.Cluster.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(running, Path(folder), tasks)
    finally:
        running.stop()


def measure(running: kubernetes.Cluster, folder: Path, tasks: int) -> None:
    stack = prepared(folder, tasks)
    try:
        stack.start(lambda text: None)
        api = AirflowApi(stack.airflow_url)
        api.wait_for_dags(["deferred"])
        stack.connect(running, api)
        api.pause("deferred", False)
        run_id, began = api.trigger("deferred"), time.monotonic()

        def are(state: str) -> bool:
            return [task["state"] for task in api.tasks("deferred", run_id)] == [state] * tasks

        def run() -> bool:
            return sum(pod["status"]["phase"] == "Running" for pod in running.get("pods")) == tasks

        kubernetes.wait(lambda: are("deferred") and run(), 1800)
        print(f"all {tasks} deferred, their pods running  {time.monotonic() - began:6.1f} s after the trigger")
        watch(stack)
        (stack.landing / "hold").unlink()
        began = time.monotonic()
        (ended,) = api.wait("deferred", timeout_s=1800)
        print(f"the run is {ended['state']}  {time.monotonic() - began:6.1f} s after the pods went on")
        print(f"all succeeded: {are('success')}; left in the cluster: {running.left() or 'nothing'}")
    finally:
        stack.stop(lambda text: None)


def prepared(folder: Path, tasks: int) -> Stack:
    _, volumes = kubernetes.python(REPO / ".venv-ml")
    os.environ["BENCHMARK_VOLUMES"] = json.dumps({**volumes, str(folder): str(folder)})
    os.environ["BENCHMARK_TASKS"] = str(tasks)
    (folder / "dags").mkdir()
    (folder / "dags" / "deferred.py").write_text(DAG)
    stack = Stack(folder / "stack", dags=folder / "dags", ports=(0, 0))
    (stack.landing / "rows.csv").write_text("id\n1\n")
    (stack.landing / "duckdb.py").write_text(HELD_DUCKDB)
    (stack.landing / "hold").touch()
    return stack


def watch(stack: Stack) -> None:
    """Print what the triggerer's processes take while all tasks wait."""
    command = [str(BIN / "airflow"), "triggerer"]
    mine = [pid for pid in stack.services.members("airflow") if read(pid, "cmdline").split("\0")[1:-1] == command]
    before = [ticks(pid) for pid in mine]
    time.sleep(WATCHED_S)
    spent = (sum(map(ticks, mine)) - sum(before)) / os.sysconf("SC_CLK_TCK")
    memory = sum(int(line.split()[1]) for pid in mine for line in pss(pid)) / 1024
    print(f"triggerer, {len(mine)} processes: {100 * spent / WATCHED_S:.1f} % of a core, {memory:.0f} MiB")


def ticks(pid: int) -> int:
    """Return the processor time of a process so far."""
    return sum(map(int, read(pid, "stat").rpartition(")")[2].split()[11:13]))


def pss(pid: int) -> list[str]:
    return [line for line in read(pid, "smaps_rollup").splitlines() if line.startswith("Pss:")]


def read(pid: int, what: str) -> str:
    return Path(f"/proc/{pid}/{what}").read_text()


if __name__ == "__main__":
    main()
