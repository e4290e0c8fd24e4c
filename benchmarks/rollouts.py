"""What many rollouts cost one triggerer, and how soon it sees that they go wrong.

    .venv/bin/python benchmarks/rollouts.py [--rollouts 200] [--poll 5]

In an Airflow of its own (`dev-airflow/services.py`: SQLite, four workers), the trigger of `RolloutOperator` watches so
many canaries that bake: InferenceServices of a real API server (the one-node Kubernetes for tests), whose versions a
real Prometheus (Debian's) counts. Nobody answers requests: the statuses are those of `testing.kserve.Controller`
without its pods, the counters are made up. After a minute all candidates begin to fail.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from canary import LATENCIES_MS, install, prometheus, served
from deferred import WATCHED_S, watch
from kubernetes.config import new_client_from_config

from airflow_ml_provider import codec
from airflow_ml_provider.hooks.kserve import KServeServing
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy import place as places
from airflow_ml_provider.stages.deploy import rollout, strategies
from airflow_ml_provider.stages.deploy.logic import rollout_of
from airflow_ml_provider.stages.deploy.place import KServe
from airflow_ml_provider.stages.deploy.service import Server, Service, Version
from airflow_ml_provider.stages.deploy.state import Seen
from airflow_ml_provider.testing.kserve import Controller

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO / "dev-airflow")]

import cluster as kubernetes  # noqa: E402
from airflow_api import AirflowApi  # noqa: E402
from services import Stack  # noqa: E402

RATE = 50  # requests per second of each service
STABLE, CANDIDATE = "v1", "v2"
POLICY = strategies.decode({"steps": [10, 100], "bake_s": 86400, "max_wait_s": 86400})
PLACE = KServe(mode="standard", prometheus_conn_id="prometheus", metrics="istio")
DAG = """\
# An Airflow DAG whose tasks wait for rollouts, as RolloutOperator does.
import json, os
from airflow.sdk import DAG, BaseOperator
from airflow_ml_provider.triggers.serving import ServingTrigger

WAITS = json.loads(os.environ["BENCHMARK_WAITS"])

class Watch(BaseOperator):
    def __init__(self, *, service, **kwargs):
        super().__init__(**kwargs)
        self.service = service

    def execute(self, context):
        self.defer(trigger=ServingTrigger(service=self.service, identity=self.service, **WAITS), method_name="seen")

    def seen(self, context, event):
        print(event["status"], event["message"])

with DAG("rollouts", schedule=None, max_active_tasks=1000):
    Watch.partial(task_id="watch").expand(service=json.loads(os.environ["BENCHMARK_SERVICES"]))
"""


class Podless(Controller):
    """KServe's stand-in whose Deployments have no pods, and are said to have one."""

    def _deploy(self, service: Any, name: str, predictor: Any, replicas: int, *more: Any) -> dict[str, Any]:
        found = super()._deploy(service, name, predictor, 0, *more)
        found.setdefault("status", {})["availableReplicas"] = 1
        return found

    def _reaches(self, name: str) -> bool:
        return True


class Counters:
    """A page of counters that grow with time, as Istio's sidecars would show them."""

    def __init__(self, services: list[str]) -> None:
        self.services, self.began, self.fails_since = services, time.time(), None
        self.server = served(self.page)

    def page(self) -> str:
        now = time.time()
        lines = []
        for service in self.services:
            for version, share in ((STABLE, 0.9), (CANDIDATE, 0.1)):
                workload = f"{service}-{version}-predictor"
                labels = (
                    f'reporter="destination",destination_workload_namespace="{kubernetes.NAMESPACE}",'
                    f'destination_workload="{workload}",pod="{workload}-0"'
                )
                total = int(share * RATE * (now - self.began))
                failing = self.fails_since is not None and version == CANDIDATE
                failed = int(0.5 * share * RATE * (now - self.fails_since)) if failing else 0
                lines.append(f'istio_requests_total{{{labels},response_code="200"}} {total - failed}')
                lines.append(f'istio_requests_total{{{labels},response_code="500"}} {failed}')
                for bound in (*LATENCIES_MS, float("inf")):
                    below, le = int(total * min(1.0, bound / 20)), "+Inf" if bound == float("inf") else bound
                    lines.append(f'istio_request_duration_milliseconds_bucket{{{labels},le="{le}"}} {below}')
        return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=200)
    parser.add_argument("--poll", type=float, default=5.0)
    args = parser.parse_args()
    services = [f"service-{number}" for number in range(args.rollouts)]
    running = kubernetes.Cluster.start()
    os.environ.pop("KUBECONFIG", None)
    try:
        install(running)
        counters = Counters(services)
        with (
            tempfile.TemporaryDirectory() as folder,
            new_client_from_config(running.kubeconfig) as api,
            Podless(api, kubernetes.NAMESPACE, image=kubernetes.IMAGE, poll_s=1.0),
            prometheus(f"127.0.0.1:{counters.server.server_port}") as port,
        ):
            os.environ["AIRFLOW_CONN_KUBERNETES_DEFAULT"] = kubernetes.connection(running.kubeconfig)
            conn = {"conn_type": "http", "host": "127.0.0.1", "port": port}
            os.environ["AIRFLOW_CONN_PROMETHEUS"] = json.dumps(conn)
            state = begun(services)
            waits = {"place": places.encode(PLACE), "poll_s": args.poll, "state": codec.encode(state)}
            os.environ["BENCHMARK_WAITS"], os.environ["BENCHMARK_SERVICES"] = json.dumps(waits), json.dumps(services)
            measure(running, Path(folder), counters, port, args)
    finally:
        running.kubectl("delete", "inferenceservices.serving.kserve.io", "--all")
        running.stop()


def begun(services: list[str]) -> Any:
    """Put all services in the middle of a rollout; return its state, which is the same for all."""
    serving = KServeServing(PLACE, system=kubernetes.NAMESPACE)
    stable, candidate = (Version(name, model(name), Server()) for name in (STABLE, CANDIDATE))
    ready = Seen("ready", settled=True)
    state = rollout.begin(POLICY, ready, time.time(), candidate=candidate.model.digest, stable=stable.model.digest)
    state = rollout.advance(state, POLICY, ready, time.time()).state
    began = time.monotonic()
    for service in services:
        more = {"identity": service, "policy": codec.encode(POLICY), "state": codec.encode(state)}
        record = rollout_of(RunInfo("rollouts", "watch"), stable, candidate) | more
        first = serving.put(Service(service, stable))
        serving.put(Service(service, stable, candidate, percent=10, rollout=record), first)
    print(f"{len(services)} services made in {time.monotonic() - began:.0f} s", flush=True)
    return state


def model(name: str) -> ModelRef:
    return ModelRef("late", f"s3://models/late/{name}", f"sha256:{random.Random(name).randbytes(32).hex()}")


def measure(running: Any, folder: Path, counters: Counters, port: int, args: argparse.Namespace) -> None:
    (folder / "dags").mkdir()
    (folder / "dags" / "rollouts.py").write_text(DAG)
    stack = Stack(folder / "stack", dags=folder / "dags", ports=(0, 0))
    try:
        stack.start(lambda text: None)
        api = AirflowApi(stack.airflow_url)
        api.wait_for_dags(["rollouts"])
        stack.connect(running, api)
        api.connection({"connection_id": "prometheus", "conn_type": "http", "host": "127.0.0.1", "port": port})
        api.pause("rollouts", False)
        run_id, began = api.trigger("rollouts"), time.monotonic()

        def states() -> list[str]:
            """Return the states of all tasks; once one has not waited, all has been for nothing."""
            found = [str(task["state"]) for task in api.tasks("rollouts", run_id)]
            if counters.fails_since is None and {"success", "failed"} & set(found):
                logs = sorted((stack.state / "airflow" / "logs" / "dag_id=rollouts").rglob("*.log"))
                raise SystemExit(f"a trigger did not wait: {logs[0].read_text()[-2000:] if logs else found}")
            return found

        kubernetes.wait(lambda: states() == ["deferred"] * args.rollouts, 1800)
        print(f"all {args.rollouts} wait  {time.monotonic() - began:.0f} s after the trigger", flush=True)
        time.sleep(2 * args.poll)
        before = queries(port)
        watch(stack)
        rate, wanted = (queries(port) - before) / WATCHED_S, args.rollouts / args.poll
        print(f"{rate:.1f} looks per second of {wanted:.1f} that a poll every {args.poll:g} s would be", flush=True)
        counters.fails_since = time.time()
        times = ended(states, args.rollouts)
        print(
            f"{len(times)} of {args.rollouts} seen to fail: the first after {times[0]:.1f} s, half of them after "
            f"{times[len(times) // 2]:.1f} s, the last after {times[-1]:.1f} s", flush=True,
        )  # fmt: skip
        blocked = [line for log in stack.services.folder.glob("airflow.log") for line in log.read_text().splitlines()
                   if "async thread was blocked" in line]  # fmt: skip
        print(f"the triggerer's event loop was blocked {len(blocked)} times", *blocked[-1:])
    finally:
        stack.stop(lambda text: None)


def ended(states: Callable[[], list[str]], count: int) -> list[float]:
    """Wait until no task waits any more, for ten minutes at most; return after how many seconds they were seen to."""
    began, seen = time.monotonic(), {}
    while len(seen) < count and time.monotonic() - began < 600:
        now = time.monotonic() - began
        for index, state in enumerate(states()):
            if state != "deferred":
                seen.setdefault(index, now)
        time.sleep(0.5)
    return sorted(seen.values())


def queries(port: int) -> float:
    """Return how many queries Prometheus has answered."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    counted = 'prometheus_http_requests_total{code="200",handler="/api/v1/query"}'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(counted))


if __name__ == "__main__":
    main()
