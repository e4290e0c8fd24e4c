"""A rollout in a real Airflow with real requests, whose workers and triggerer are killed wherever they are."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import MlError
from airflow_ml_provider.serving import launch
from airflow_ml_provider.serving.place import LocalServing
from airflow_ml_provider.stages.deploy.place import Local
from cluster import wait

DAG = "rolling"
QUICK = {
    "steps": [30, 100],
    "bake_s": 2,
    "min_samples": 20,
    "max_wait_s": 300,
    "checks": [{"kind": "error_rate", "max_increase": 0.05}],
}
# Where a worker is killed: before it does anything, and around each step of the machine's four phases. A point that
# comes later in the list is only armed once the one before it was hit where the way to it leads through that kill.
POINTS = ("begin", "after-starting", "before-shifting", "after-shifting", "after-baking", "before-baking",
          "after-finishing", "before-finishing")  # fmt: skip
THEN = {"after-starting": "before-starting"}


class Users:
    """Ask a service again and again until told to stop; note who answered, and which processes served."""

    def __init__(self, place: LocalServing, service: str) -> None:
        from airflow_ml_provider.testing import packages

        self._rows = packages.rows(200).select(["distance", "hour", "carrier"]).to_pylist()
        self._place, self._service, self._stop = place, service, threading.Event()
        self.answers: list[str] = []
        self.failures: list[str] = []
        self.processes: dict[str, set[int]] = {}
        self._threads = [threading.Thread(target=self._ask), threading.Thread(target=self._watch)]

    def __enter__(self) -> Users:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        number = 0
        while not self._stop.wait(0.01):
            number = (number + 1) % len(self._rows)
            row = {column: [value] for column, value in self._rows[number].items()}
            try:
                self.answers.append(self._place.predict(self._service, row)[1])
            except MlError as error:
                self.failures.append(str(error))

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            client = self._place._client(self._service)
            for name, status in client.status().versions.items() if client else ():
                if status.pid:
                    self.processes.setdefault(name, set()).add(status.pid)


@pytest.fixture
def models(tmp_path):
    packages = pytest.importorskip("airflow_ml_provider.testing.packages")
    pytest.importorskip("onnx")
    made = {number: packages.package(tmp_path / f"m{number}", seed=number) for number in (1, 2, 3)}
    made[4] = packages.package(tmp_path / "m4", skill=-1)
    return {number: codec.encode(ref) | {"version": str(number)} for number, ref in made.items()}


@pytest.fixture
def rolling(flights, models, request):
    """A service of its own with model 1 behind it, and the points at which workers stop."""
    name = f"r-{abs(hash(request.node.name)) % 10**8}"
    points = flights.stack.store / "rolling"
    points.mkdir(exist_ok=True)
    flights.api.wait_for_dags([DAG])
    flights.api.pause(DAG, False)

    def begin(number: int, **policy) -> str:
        conf = {"model": models[number], "policy": {**QUICK, **policy}, "service": name}
        return flights.api.trigger(DAG, conf)

    def ended(run_id: str) -> dict:
        (run,) = flights.api.wait(DAG, lambda run: run["dag_run_id"] == run_id, timeout_s=300)
        return run

    run = ended(begin(1))
    assert run["state"] == "success", flights.why(DAG, run)
    place = LocalServing(Local(str(flights.stack.serving), python=flights.stack.environment()["ML_TOOLS_PYTHON"]))
    yield SimpleNamespace(name=name, points=points, place=place, begin=begin, ended=ended, flights=flights)
    launch.stop(flights.stack.serving, name)


def state(rolling, run_id: str) -> str:
    tasks = rolling.flights.api.tasks(DAG, run_id)
    return next(str(task["state"]) for task in tasks if task["task_id"] == "rollout")


def killed(points: Path) -> str:
    """Kill the worker that has stopped, if one has; return where."""
    try:
        pid, point = (points / "pid").read_text().split()
    except (OSError, ValueError):
        return ""
    (points / "pid").unlink()
    (points / "stopped").unlink()
    os.kill(int(pid), signal.SIGKILL)
    return point


def events(rolling, asset: str, run_id: str) -> list[dict]:
    """Return the events of an asset that a run has made."""
    found = rolling.flights.api.call("GET", "assets/events", source_dag_id=DAG, source_run_id=run_id, limit=100)
    return [event for event in found["asset_events"] if event["name"] == asset]


def test_a_rollout_survives_the_death_of_its_worker_and_triggerer_in_every_phase(rolling, models):
    for point in POINTS:
        (rolling.points / point).touch()
    died, triggerer = [], 0
    with Users(rolling.place, rolling.name) as users:
        run_id = rolling.begin(2)
        deadline = time.monotonic() + 240
        while state(rolling, run_id) not in ("success", "failed", "skipped") and time.monotonic() < deadline:
            if point := killed(rolling.points):
                died.append(point)
                if point in THEN:
                    (rolling.points / THEN[point]).touch()
            elif not triggerer and "after-baking" in died and state(rolling, run_id) == "deferred":
                with rolling.flights.without("triggerer"):
                    triggerer += 1
            time.sleep(0.2)
        run = rolling.ended(run_id)
        time.sleep(0.5)
    assert run["state"] == "success", rolling.flights.why(DAG, run)
    assert set(died) == {*POINTS, *THEN.values()}
    assert triggerer == 1
    seen = rolling.place.look(rolling.name)
    assert (seen.wanted.stable.model.digest, seen.wanted.candidate) == (models[2]["digest"], None)
    assert {name: len(pids) for name, pids in users.processes.items()} == {"v1": 1, "v2": 1}
    assert len(users.failures) < 0.005 * len(users.answers), users.failures[:3]
    assert set(users.answers[-10:]) == {"v2"}
    value = rolling.flights.api.xcom(DAG, run_id, "rollout")
    assert value["metrics"]["steps"] == 2
    (event,) = events(rolling, "rolling.rolled_out", run_id)
    assert event["extra"]["digests"]["late"] == models[2]["digest"]
    assert not events(rolling, "rolling.rolled_back", run_id)


def test_a_second_rollout_is_refused_and_marking_the_first_failed_gives_its_traffic_back(rolling, models):
    api, look = rolling.flights.api, lambda: rolling.place.look(rolling.name).wanted
    with Users(rolling.place, rolling.name) as users:
        first = rolling.begin(2, bake_s=300)
        wait(lambda: look().percent == 30 and state(rolling, first) == "deferred", 60)
        second = rolling.ended(rolling.begin(3))
        assert second["state"] == "failed"
        refused = f"is being changed by {DAG}.rollout of {first}; wait until that has ended"
        assert refused in rolling.flights.why(DAG, second)
        assert look().candidate.model.digest == models[2]["digest"]
        path = f"dags/{DAG}/dagRuns/{quote(first)}/taskInstances/rollout"
        api.call("PATCH", path, {"new_state": "failed"}, map_index=-1)
        wait(lambda: look().candidate is None, 60)
        time.sleep(0.5)
    assert look().stable.model.digest == models[1]["digest"]
    assert rolling.ended(first)["state"] == "failed"
    assert not users.failures
    assert set(users.answers[-10:]) == {"v1"}


def test_what_is_rolled_back_tells_so_although_its_task_fails(rolling, models):
    shift = [{"kind": "score_shift", "max_psi": 0.2}]
    with Users(rolling.place, rolling.name) as users:
        run_id = rolling.begin(4, checks=shift, min_samples=30)
        run = rolling.ended(run_id)
    assert run["state"] == "failed", "a refused rollout is a failed run, whatever its outcome tells"
    states = rolling.flights.states(DAG, run)
    assert (states["rollout"], states["rolled_back"]) == ({"failed"}, {"success"}), rolling.flights.why(DAG, run)
    assert states["rolled_out"] == {"upstream_failed"}
    (event,) = events(rolling, "rolling.rolled_back", run_id)
    assert event["extra"]["digests"]["late"] == models[4]["digest"]
    assert event["extra"]["digests"][f"rollout of {rolling.name}"].startswith("sha256:")
    assert not users.failures
    assert rolling.place.look(rolling.name).wanted.stable.model.digest == models[1]["digest"]
