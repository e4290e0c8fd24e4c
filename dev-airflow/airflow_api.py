"""The few calls of Airflow's public REST API that the demo and the system tests need."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

DONE = ("success", "failed")


class AirflowApi:
    """Airflow's REST API at an address, as whoever the development login gives."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._token: str | None = None

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Return the JSON answer of a call.

        Raises:
            RuntimeError: the answer was an error; the message has its body.
        """
        if self._token is None:
            with urllib.request.urlopen(f"{self.url}/auth/token", timeout=30) as answer:
                self._token = json.load(answer)["access_token"]
        address = f"{self.url}/api/v2/{path}" + (f"?{urllib.parse.urlencode(query, doseq=True)}" if query else "")
        request = urllib.request.Request(
            address, method=method, data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
                "Accept": "application/json",
            },
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from None
        return json.loads(text) if text else None

    def dag(self, dag_id: str) -> dict[str, Any] | None:
        """Return a DAG as the scheduler knows it, or none."""
        found = self.call("GET", "dags", dag_id_pattern=dag_id)["dags"]
        return next((dag for dag in found if dag["dag_id"] == dag_id), None)

    def wait_for_dags(self, dag_ids: Iterable[str], timeout_s: float = 180) -> None:
        """Wait until the DAG processor has read these DAGs; a file that cannot be imported is reported at once."""
        missing, deadline = set(dag_ids), time.monotonic() + timeout_s
        while missing:
            missing = {dag_id for dag_id in missing if self.dag(dag_id) is None}
            errors = self.call("GET", "importErrors")["import_errors"]
            if errors:
                raise SystemExit("\n".join(f"{e['filename']}:\n{e['stack_trace']}" for e in errors))
            if missing and time.monotonic() > deadline:
                raise SystemExit(f"Airflow did not find {', '.join(sorted(missing))}")
            if missing:
                time.sleep(1)

    def pause(self, dag_id: str, paused: bool) -> None:
        self.call("PATCH", f"dags/{dag_id}", {"is_paused": paused})

    def pool(self, name: str, slots: int) -> None:
        """Create or update a pool."""
        if any(pool["name"] == name for pool in self.call("GET", "pools", limit=100)["pools"]):
            return
        self.call("POST", "pools", {"name": name, "slots": slots, "description": "Training tasks"})

    def connection(self, body: dict[str, Any]) -> None:
        """Create or update a connection."""
        try:
            self.call("POST", "connections", body)
        except RuntimeError as error:
            if ": 409 " not in str(error):
                raise
            self.call("PATCH", f"connections/{body['connection_id']}", body)

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return all runs of a DAG, oldest window first."""
        runs: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", f"dags/{dag_id}/dagRuns", limit=100, offset=len(runs), order_by="run_after")
            runs += page["dag_runs"]
            if len(runs) >= page["total_entries"] or not page["dag_runs"]:
                return sorted(runs, key=lambda run: run["logical_date"] or run["run_after"])

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return all task instances of a run."""
        path, tasks = f"dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}/taskInstances", []
        while True:
            page = self.call("GET", path, limit=100, offset=len(tasks))
            tasks += page["task_instances"]
            if len(tasks) >= page["total_entries"] or not page["task_instances"]:
                return tasks

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Return an XCom value, or none when there is none."""
        path = f"dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}/taskInstances/{task_id}/xcomEntries/{key}"
        try:
            value = self.call("GET", path, map_index=map_index)["value"]
        except RuntimeError as error:
            if ": 404 " in str(error):
                return None
            raise
        return json.loads(value) if isinstance(value, str) and value[:1] in "[{" else value

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> list[str]:
        """Return the lines of a task's log, as the web site shows them."""
        path = f"dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}/taskInstances/{task_id}/logs/{try_number}"
        return [str(line["event"]) for line in self.call("GET", path, full_content=True)["content"]]

    def backfill(self, dag_id: str, start: str, end: str, *, parallel: int, conf: dict[str, Any] | None = None) -> None:
        """Create a backfill over logical dates `start` to `end` (ISO); existing runs are left alone.

        SQLite has one writer and no row locks: Airflow answers 503 while the scheduler writes, and a scheduler that
        takes up runs that are still being created dies. So the DAG is paused for that moment, and 503 is asked again.
        So is 409: the scheduler looks only every half minute whether the backfill before this one has ended.
        """
        self.pause(dag_id, True)
        time.sleep(1)
        body = {"dag_id": dag_id, "from_date": start, "to_date": end, "max_active_runs": parallel}
        for pause in (1, 2, 5, 10, 20, 30, None):
            try:
                self.call("POST", "backfills", {**body, "dag_run_conf": conf or {}, "reprocess_behavior": "none"})
                break
            except RuntimeError as error:
                if pause is None or not any(f": {code} " in str(error) for code in (409, 503)):
                    raise
                time.sleep(pause)
        self.pause(dag_id, False)

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, logical_date: str | None = None) -> str:
        """Start a run by hand; return its id."""
        run = self.call("POST", f"dags/{dag_id}/dagRuns", {"logical_date": logical_date, "conf": conf or {}})
        return str(run["dag_run_id"])

    def clear(self, dag_id: str, run_id: str) -> None:
        """Run a finished run again."""
        path = f"dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}/clear"
        self.call("POST", path, {"dry_run": False, "only_failed": False})

    def wait(
        self, dag_id: str, wanted: Callable[[dict[str, Any]], bool] = lambda run: True, *, at_least: int = 1,
        timeout_s: float = 1800, progress: Callable[[str], None] | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Wait until at least so many wanted runs exist and all of them have ended; return them."""
        deadline, shown = time.monotonic() + timeout_s, None
        while True:
            runs = [run for run in self.runs(dag_id) if wanted(run)]
            done = [run for run in runs if run["state"] in DONE]
            if progress and shown != (len(done), len(runs)):
                shown = (len(done), len(runs))
                progress(f"{dag_id}: {len(done)} of {max(at_least, len(runs))} runs done")
            if len(runs) >= at_least and len(done) == len(runs):
                return runs
            if time.monotonic() > deadline:
                raise TimeoutError(f"{dag_id}: {len(done)} of {max(at_least, len(runs))} runs done after {timeout_s} s")
            time.sleep(2)
