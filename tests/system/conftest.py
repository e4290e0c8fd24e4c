"""A real Airflow, MLflow and upstream system for the system tests, in a temporary folder, on free ports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "dev-airflow"))

import cluster as kubernetes  # noqa: E402
from airflow_api import AirflowApi  # noqa: E402
from services import BIN, Stack  # noqa: E402

# A policy that real models of a week of flights meet, one that none does, and a DAG with each.
LENIENT = """\
metrics: {auc: {at_least: 0.5}}
min_rows: 50
challenge: {metric: auc, min_gain: -0.5}
min_quality: 0.5
"""
STRICT = "metrics: {auc: {at_least: 0.999}}\n"
STRICT_DAG = """\
# An Airflow DAG with a gate that nothing passes.
from dataclasses import replace
from pathlib import Path
from airflow_ml_provider.templates import load_config, training_dag

config = load_config(Path(__file__).parent / "flight_delay" / "pipeline.yaml")
strict = replace(config.training, gate="strict.yaml", candidates=config.training.candidates[:1])
training_dag(replace(config, training=strict), "flight_delay_strict")
"""
ORDERED_DAG = """\
# An Airflow DAG whose windows are worked off one after the other.
import os
from datetime import datetime, timezone
from airflow.sdk import DAG, CronDataIntervalTimetable
from airflow_ml_provider import IngestOperator

DAYS = {"start_date": datetime(2013, 1, 1, tzinfo=timezone.utc), "end_date": datetime(2013, 1, 2, tzinfo=timezone.utc)}
with DAG("ordered", schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"), catchup=False, **DAYS):
    IngestOperator(
        task_id="ingest", name="rows", source=os.environ["ML_LANDING"] + "/ordered_{partition}.csv",
        target=os.environ["ML_STORE"] + "/ordered", columns={"id": "int"}, wait_s=600, after_previous=True,
    )
"""
PODS_DAGS = """\
# An Airflow DAG with a stage in a pod, and one that trains in a pod by a function of its own.
import json, os, time
from datetime import timedelta
from airflow.sdk import DAG, task
from airflow_ml_provider import IngestOperator
from airflow_ml_provider.runtime import Pod

STORE, LANDING = os.environ["ML_STORE"], os.environ["ML_LANDING"]
POD = Pod(
    os.environ["ML_POD_IMAGE"], python=os.environ["ML_TOOLS_PYTHON"], exchange=STORE + "/exchange",
    volumes=json.loads(os.environ["TEST_VOLUMES"]), pythonpath=(os.environ["TEST_MODULES"],),
    env={"TEST_HOLD": STORE + "/hold"}, poll_s=1, log_every_s=2,
)

class Ingest(IngestOperator):
    def defer(self, **kwargs):
        # Once asked, the worker stops between making the pod and deferring, for somebody to kill it there.
        if os.path.exists(STORE + "/stop") and not os.path.exists(STORE + "/stopped"):
            with open(STORE + "/stopped", "w") as file:
                file.write(str(os.getpid()))
            time.sleep(600)
        super().defer(**kwargs)


with DAG("pods", schedule=None):
    Ingest(
        task_id="ingest", name="rows", source=LANDING + "/pods.csv", target=STORE + "/pods", columns={"id": "int"},
        retries=2, retry_delay=timedelta(seconds=1), execution_timeout=timedelta(minutes=10), runtime=POD,
    )

with DAG("pods_own", schedule=None):
    rows = IngestOperator(
        task_id="rows", name="rows", source=LANDING + "/own.csv", target=STORE + "/own_rows",
        columns={"at": "timestamp", "x": "float", "label": "int"},
    )

    @task.train(name="own", dataset=rows.output["dataset"], timestamp="at", output=STORE + "/own_models", runtime=POD)
    def fit(run, strength):
        import socket
        from sklearn.linear_model import LogisticRegression

        print("training by hand in", socket.gethostname(), "with strength", strength)
        return LogisticRegression(C=strength).fit(*run.train.numpy())

    fit(strength=0.5)
"""
ROLLING_DAG = """\
# An Airflow DAG that rolls a model out, whose workers stop where they are told to, for somebody to kill them there.
import os, time
from datetime import timedelta
from airflow.sdk import DAG, Asset
from airflow_ml_provider import DeployOperator, RolloutOperator, RolloutOutcomeOperator

STORE = os.environ["ML_STORE"]
PLACE = {"local": {"root": STORE + "/services", "python": os.environ["ML_TOOLS_PYTHON"]}}

def stop(point):
    asked = f"{STORE}/rolling/{point}"
    if os.path.exists(asked):
        os.rename(asked, f"{STORE}/rolling/stopped")
        with open(f"{STORE}/rolling/pid", "w") as file:
            file.write(f"{os.getpid()} {point}\\n")
        time.sleep(600)

class Rollout(RolloutOperator):
    def begin(self, context):
        stop("begin")
        return super().begin(context)

    def proceed(self, context, state):
        stop("before-" + state["phase"])
        return super().proceed(context, state)

    def defer(self, *, trigger, **kwargs):
        stop("after-" + trigger.state["phase"])
        super().defer(trigger=trigger, **kwargs)

PARAMS = {"model": {}, "policy": {}, "service": "rolling"}
with DAG("rolling", schedule=None, params=PARAMS, render_template_as_native_obj=True):
    common = {"service": "{{ params.service }}", "place": PLACE, "model": "{{ params.model }}", "gate": "waived"}
    common |= {"retries": 15, "retry_delay": timedelta(seconds=0.1)}
    deploy = DeployOperator(task_id="deploy", existing="keep", **common)
    rollout = Rollout(
        task_id="rollout", evidence=STORE + "/evidence", policy="{{ params.policy }}", poll_s=0.5, **common
    )
    deploy >> rollout
    for task_id, outcome in (("rolled_out", "done"), ("rolled_back", "rolled_back")):
        RolloutOutcomeOperator(
            task_id=task_id, rollout=rollout.output, outcome=outcome, outlets=[Asset("rolling." + task_id)],
            service=common["service"], place=PLACE,
        )
"""
# Stands before the real module in pods of these DAGs: the stage counts, and works once the file is gone.
HELD_DUCKDB = """\
import itertools, os, sys, time
for number in itertools.count():
    if not os.path.exists(os.environ["TEST_HOLD"]):
        break
    print("held", number)
    time.sleep(0.2)
sys.path.remove(os.path.dirname(__file__))
del sys.modules["duckdb"]
import duckdb
"""
# Smaller pipelines: two scheduled days, no scheduled training, quick candidates, quick retries.
FLIGHTS = {
    'start: 2013-01-31, end: "${ML_LAST_DAY:-2013-02-04T00:00:00Z}"': "start: 2013-01-08, end: 2013-01-09",
    'TUE", start: 2013-01-29, end: 2013-01-29': 'TUE", start: 2030-01-01, end: 2030-01-01',
    "split: {test_s: 259200, gap_s: 21600}": "split: {test_s: 172800, gap_s: 21600}",
    "launch: {processes: 2}": "params: {epochs: 2}, launch: {processes: 2}",
    "operations:\n": "operations:\n  retry_delay_s: 1\n  max_retry_delay_s: 5\n",
}
SEATTLE = {
    '1 * *", start: 2015-01-01, end: 2015-06-01': '1 * *", start: 2030-01-01, end: 2030-01-01',
    '1 */6 *", start: 2015-01-01, end: 2015-01-01': '1 */6 *", start: 2030-01-01, end: 2030-01-01',
    "operations: {": "operations: {retry_delay_s: 1, max_retry_delay_s: 5, ",
}


class Flights:
    """The flights pipeline in a running Airflow."""

    SCORING, TRAINING, ROLLBACK = "flight_delay_scoring", "flight_delay_training", "flight_delay_rollback"
    STRICT = "flight_delay_strict"

    def __init__(self, stack: Stack) -> None:
        self.stack, self.api = stack, AirflowApi(stack.airflow_url)

    def drop(self, first: str, last: str) -> None:
        self._upstream("drop", "--from", first, "--to", last)

    def fix(self, day: str) -> None:
        self._upstream("fix", "--day", day)

    def _upstream(self, *args: str) -> None:
        script = REPO / "dev-airflow" / "upstream.py"
        subprocess.run(
            [sys.executable, script, args[0], "--landing", self.stack.landing, *args[1:]],
            check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(REPO)},
        )  # fmt: skip

    def backfill(self, dag_id: str, first: str, last: str, days: int, **kwargs) -> list[dict]:
        """Backfill some days and return their runs once all have ended."""
        self.api.backfill(dag_id, f"{first}T00:00:00Z", f"{last}T00:00:00Z", parallel=2, **kwargs)
        return self.api.wait(
            dag_id, lambda run: run["run_type"] == "backfill" and first <= str(run["logical_date"])[:10] <= last,
            at_least=days, timeout_s=1500,
        )  # fmt: skip

    def run(self, dag_id: str, conf: dict | None = None, timeout_s: float = 900) -> dict:
        """Start a run by hand and return it once it has ended."""
        run_id = self.api.trigger(dag_id, conf)
        (run,) = self.api.wait(dag_id, lambda run: run["dag_run_id"] == run_id, timeout_s=timeout_s)
        return run

    def states(self, dag_id: str, run: dict) -> dict[str, set[str]]:
        """Return task id to the states of its task instances."""
        found: dict[str, set[str]] = {}
        for task in self.api.tasks(dag_id, run["dag_run_id"]):
            found.setdefault(task["task_id"], set()).add(str(task["state"]))
        return found

    @contextmanager
    def without(self, component: str) -> Iterator[None]:
        """Kill a component of Airflow with all its processes, and start it again afterwards, as it was."""
        services = self.stack.services
        members = [pid for name in services.names() for pid in services.members(name)]
        commands = {pid: _read(Path(f"/proc/{pid}/cmdline")).decode().split("\0")[:-1] for pid in members}
        whole = {pid for pid, command in commands.items() if command[1:] == [str(BIN / "airflow"), component]}
        first = next(pid for pid in whole if _parent(pid) not in whole)
        environment = _read(Path(f"/proc/{first}/environ")).decode().split("\0")[:-1]
        while grown := {pid for pid in members if pid not in whole and _parent(pid) in whole}:
            whole |= grown
        for pid in whole:
            os.kill(pid, signal.SIGKILL)
        try:
            yield
        finally:
            services.stop(component)  # what is left of one that was started here before
            settings = {"AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5"}  # to know sooner it was killed
            services.start(component, commands[first], dict(line.split("=", 1) for line in environment) | settings)

    def why(self, dag_id: str, run: dict) -> str:
        """Return what went wrong in a run, for the message of a failed assertion."""
        run_logs = self.stack.state / "airflow" / "logs" / f"dag_id={dag_id}" / f"run_id={run['dag_run_id']}"
        lines = [
            line for log in sorted(run_logs.rglob("*.log")) for line in log.read_text(errors="replace").splitlines()
        ]
        errors = [line[:1500] for line in lines if '"level":"error"' in line or '"level":"warning"' in line]
        return f"{self.states(dag_id, run)}\n" + "\n".join(errors[-12:])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended meanwhile
        return b""


def _parent(pid: int) -> int:
    """Return the parent of a process; 0 once it has ended."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


@pytest.fixture(scope="session")
def flights(tmp_path_factory):
    """The flights pipeline of `dags/`, started once for all system tests; backfills go before the first schedule."""
    state = tmp_path_factory.mktemp("system")
    dags = state / "dags"
    shutil.copytree(REPO / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    (dags / "flight_delay" / "gate.yaml").write_text(LENIENT)
    (dags / "flight_delay" / "strict.yaml").write_text(STRICT)
    (dags / "flight_delay_strict.py").write_text(STRICT_DAG)
    (dags / "ordered.py").write_text(ORDERED_DAG)
    (dags / "rolling.py").write_text(ROLLING_DAG)
    _prepare_pods(state, dags)
    _patch(dags / "flight_delay" / "pipeline.yaml", FLIGHTS)
    _patch(dags / "seattle_rain" / "pipeline.yaml", SEATTLE)
    stack = Stack(state / "stack", dags=dags, ports=(0, 0), parallelism=3)
    try:
        stack.start(lambda text: None)
        found = Flights(stack)
        found.api.wait_for_dags(
            [
                found.SCORING,
                found.TRAINING,
                found.ROLLBACK,
                found.STRICT,
                "ordered",
                "rolling",
                "pods",
                "pods_own",
                "flight_delay_training_on_pods",
                "seattle_rain_scoring",
                "seattle_rain_training",
            ]
        )
        found.api.pool("training", 2)
        for dag_id in (found.SCORING, found.TRAINING, found.ROLLBACK):
            found.api.pause(dag_id, False)
        yield found
    finally:
        stack.stop(lambda text: None)


def _patch(config: Path, changes: Mapping[str, str]) -> None:
    text = config.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    config.write_text(text)


def _prepare_pods(state: Path, dags: Path) -> None:
    """Let the DAGs of pods find a cluster that is started later, if there can be one, and its volumes."""
    modules = state / "modules"
    modules.mkdir()
    (modules / "duckdb.py").write_text(HELD_DUCKDB)
    (dags / "pods.py").write_text(PODS_DAGS)
    _, volumes = kubernetes.python(REPO / ".venv-ml")
    os.environ["TEST_VOLUMES"] = json.dumps({**volumes, str(state): str(state)})
    os.environ["TEST_MODULES"] = str(modules)


@pytest.fixture(scope="session")
def cluster(flights):
    """A Kubernetes that the Airflow of `flights` is connected to."""
    try:
        found = kubernetes.Cluster.start()
    except kubernetes.NoCluster as reason:
        pytest.skip(str(reason))
    flights.stack.connect(found, flights.api)
    for dag_id in ("pods", "pods_own", "flight_delay_training_on_pods"):
        flights.api.pause(dag_id, False)
    yield found
    found.stop()
