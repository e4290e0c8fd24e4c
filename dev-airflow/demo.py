"""The flights demo: five weeks of a pipeline's life, backfilled and scheduled, in a real Airflow.

`up` starts the servers and brings the pipeline to where it should be, doing only what is not done; `down` stops them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path

import cluster as kubernetes
import report
from airflow_api import AirflowApi
from services import BIN, REPO, Stack

SCORING, TRAINING, ROLLBACK = "flight_delay_scoring", "flight_delay_training", "flight_delay_rollback"
ROLLOUT = "flight_delay_rollout"
PODS = "flight_delay_training_on_pods"
# Days that are backfilled, and the week whose training follows them: (first day, last day, first day of the week).
BACKFILLS = (
    (date(2013, 1, 1), date(2013, 1, 14), date(2013, 1, 8)),
    (date(2013, 1, 15), date(2013, 1, 21), date(2013, 1, 15)),
    (date(2013, 1, 22), date(2013, 1, 28), date(2013, 1, 22)),
    (date(2013, 1, 29), date(2013, 1, 30), None),
)
SCHEDULED = (date(2013, 1, 31), date(2013, 2, 4))
BEGAN = time.monotonic()


def say(text: str) -> None:
    """Print a line of progress with the seconds since the start."""
    print(f"\033[1m[{time.monotonic() - BEGAN:4.0f}s]\033[0m {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up")
    up.add_argument("--no-wait", action="store_true", help="start the servers and return")
    pods = commands.add_parser("pods")
    down = commands.add_parser("down")
    down.add_argument("--purge", action="store_true", help="also delete everything that was written")
    for command in (up, pods, down):
        command.add_argument("--state", type=Path, required=True)
    args = parser.parse_args()
    stack = Stack(args.state, dags=REPO / "dags")
    if args.command == "down":
        stack.stop(say)
        if (args.state / "kubernetes").exists():
            say("stopping Kubernetes")
            kubernetes.Cluster("").stop()
            (args.state / "kubernetes").unlink()
        if args.purge:
            shutil.rmtree(args.state)
            say(f"deleted {args.state}")
        return
    if args.command == "pods":
        try:
            kubernetes.check()  # before all else, which takes a quarter of an hour
        except kubernetes.NoCluster as reason:
            raise SystemExit(str(reason)) from None
    stack.start(say)
    if args.command == "pods" or not args.no_wait:
        Demo(stack).run()
    if args.command == "pods":
        on_pods(stack)
    report.addresses(stack)


def on_pods(stack: Stack) -> None:
    """Start a Kubernetes and train the flights network on two pods of it."""
    say("starting a Kubernetes of one node (building it the first time takes some minutes)")
    try:
        cluster = kubernetes.Cluster.start()
    except kubernetes.NoCluster as reason:
        raise SystemExit(str(reason)) from None
    if cluster.ours:
        (stack.state / "kubernetes").touch()
    api = AirflowApi(stack.airflow_url)
    stack.connect(cluster, api)
    api.pause(PODS, False)
    window = {"interval_start": "2013-01-22T00:00:00Z", "interval_end": "2013-01-29T00:00:00Z"}
    run_id = api.trigger(PODS, window)
    say(f"training on two pods: {stack.airflow_url}/dags/{PODS}/runs/{run_id}")
    (run,) = api.wait(PODS, lambda run: run["dag_run_id"] == run_id, progress=say)
    api.pause(PODS, True)  # or sustained drift would start it, whether the cluster runs or not
    if run["state"] != "success":
        raise SystemExit(f"the run is {run['state']}")
    (model,) = api.xcom(PODS, run_id, "winners")
    found = model["model"]
    say(f"the model: {found['name']} {found['digest'][:19]}, AUC {found['metrics']['auc']:.3f} on the test rows")
    say(f"left in the cluster: {cluster.left() or 'nothing'}")


class Demo:
    """The five weeks, step by step; every step looks first at what is there."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.api = AirflowApi(stack.airflow_url)

    def run(self) -> None:
        self.api.wait_for_dags((SCORING, TRAINING, ROLLBACK, ROLLOUT))
        self.api.pool("training", 2)
        for dag_id in (SCORING, TRAINING, ROLLBACK):
            self.api.pause(dag_id, False)
        self.upstream("drop", "--from", "2013-01-01", "--to", _iso(BACKFILLS[-1][1]))
        for first, last, week in BACKFILLS:
            self.backfill(SCORING, first, last, parallel=3)
            self.replay(first, last)
            if week:
                self.backfill(TRAINING, week, week, parallel=1, conf={"allow_backfill_promotion": True})
        self.scheduled()
        self.serve()
        print(report.render(self.stack, self.api, SCORING, TRAINING))

    def backfill(
        self, dag_id: str, first: date, last: date, *, parallel: int, conf: dict[str, object] | None = None
    ) -> None:
        """Backfill the windows of some days that have no run yet, and wait for them."""
        days = {_iso(first + timedelta(days=n)) for n in range((last - first).days + 1)}
        there = {str(run["logical_date"])[:10] for run in self.api.runs(dag_id)}
        if missing := sorted(days - there):
            say(f"backfilling {dag_id}: {missing[0]} to {missing[-1]}")
            self.api.backfill(
                dag_id, f"{missing[0]}T00:00:00Z", f"{missing[-1]}T00:00:00Z", parallel=parallel, conf=conf
            )
        self.api.wait(dag_id, lambda run: str(run["logical_date"])[:10] in days, at_least=len(days), progress=say)

    def replay(self, first: date, last: date) -> None:
        """Have the upstream system mend the deliveries that were refused; clear their runs and those that followed."""
        runs = {str(run["logical_date"])[:10]: run for run in self.api.runs(SCORING)}
        days = [day for day in sorted(runs) if _iso(first) <= day <= _iso(last)]
        refused = [day for day in days if runs[day]["state"] == "failed"]
        for day in refused:
            delivery = self.api.xcom(SCORING, runs[day]["dag_run_id"], "ingest_flights") or {}
            if delivery.get("status") != "refused":
                raise SystemExit(f"{day} failed, but not for its delivery: see {self.stack.airflow_url}/dags/{SCORING}")
            say(f"{day} was refused; the upstream system delivers it again")
            self.upstream("fix", "--day", day)
        if not refused:
            return
        again = [day for day in days if day >= refused[0]]  # those after it have looked back on a gap
        say(f"clearing {again[0]} to {again[-1]}")
        for day in again:
            self.api.clear(SCORING, runs[day]["dag_run_id"])
        time.sleep(2)
        self.api.wait(SCORING, lambda run: str(run["logical_date"])[:10] in again, progress=say)

    def scheduled(self) -> None:
        """Let the upstream system deliver the next days, a day at a time, and the scheduler do the rest."""
        first, last = SCHEDULED
        days = (last - first).days + 1
        if not (self.stack.landing / f"flights_{_iso(last)}.csv.gz").exists():
            say("the upstream system delivers a day every few seconds; the scheduler's runs wait for them")
            self.stack.services.start(
                "upstream",
                [
                    sys.executable,
                    str(REPO / "dev-airflow" / "upstream.py"),
                    "serve",
                    "--landing",
                    str(self.stack.landing),
                    "--from",
                    _iso(first),
                    "--to",
                    _iso(last),
                    "--every",
                    "3",
                ],
                self.stack.environment(),
            )
        self.api.wait(SCORING, lambda run: run["run_type"] == "scheduled", at_least=days, progress=say)
        self.api.wait(TRAINING, lambda run: run["run_type"] != "backfill", progress=say)

    def serve(self) -> None:
        """Have the champions answer requests."""
        if self.stack.served():
            return
        say("the champions are deployed, a service for each airport")
        self.api.pause(ROLLOUT, False)
        run_id = self.api.trigger(ROLLOUT)
        self.api.wait(ROLLOUT, lambda run: run["dag_run_id"] == run_id, progress=say)

    def upstream(self, command: str, *args: str) -> None:
        script = REPO / "dev-airflow" / "upstream.py"
        subprocess.run([sys.executable, script, command, "--landing", self.stack.landing, *args], check=True)


def _iso(day: date) -> str:
    return day.isoformat()


def airflow(state: str, *command: str) -> None:
    """Become Airflow's command line in the environment of `state`; its options are its own."""
    os.execve(BIN / "airflow", ["airflow", *command], Stack(Path(state), dags=REPO / "dags").environment())


if __name__ == "__main__":
    if sys.argv[1:2] == ["airflow"]:
        airflow(*sys.argv[2:])
    main()
