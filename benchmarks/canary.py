"""Canaries of good and bad candidates under load: what is found out, after how long, at what cost to users.

    .venv/bin/python benchmarks/canary.py [--rate 200] [--bake 60] [--only good errors slow shifted]

On the one-node Kubernetes for tests (`dev-airflow/cluster.py`, KServe's real definition), `testing.kserve.Controller`
stands in for KServe, its pods answer real requests, a real Prometheus (Debian's) scrapes what the router counts, as
Istio would, and `RolloutOperator` rolls out as worker and triggerer do. Requests arrive at a fixed rate, whether those
before are answered or not. Candidates: one like the stable version, one that fails 2 % of its requests, one that takes
twice as long, one with shifted scores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowFailException
from kubernetes.config import new_client_from_config

from airflow_ml_provider.hooks.kserve import KServeServing
from airflow_ml_provider.operators.deploy import DeployOperator, RolloutOperator
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.logic import version_of
from airflow_ml_provider.stages.deploy.place import KServe
from airflow_ml_provider.stages.deploy.policy import ErrorRate, Latency, RolloutPolicy, ScoreShift
from airflow_ml_provider.stages.deploy.service import Server
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.kserve import REVISIONS, Controller
from airflow_ml_provider.testing.router import Router
from airflow_ml_provider.testing.tasks import run

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO / "dev-airflow")]

import cluster as kubernetes  # noqa: E402

SPECS = Path(os.environ.get("ML_PROVIDER_SPECS", REPO.parent / "shared" / "specs"))
CANDIDATES = {"good": {}, "errors": {"ERRORS": "0.02"}, "slow": {"SLOWER": "2"}, "shifted": {"SHIFT": "1"}}
LATENCIES_MS = (
    5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 70, 80, 90, 100, 120, 140, 160, 180, 200, 250, 300, 400, 500, 1000,
)  # fmt: skip
# Takes 30 ms in the median (lognormal, 0.5; 96 ms in 1 % of the cases), so that way and router add little to it, and
# scores by the logistic of a normal number.
SERVER = """
import http.server, json, math, os, random, time
errors, slower, shift = (float(os.environ.get(n, d)) for n, d in (("ERRORS", 0), ("SLOWER", 1), ("SHIFT", 0)))
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.answer(200, {"ready": True})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.03 * slower * random.lognormvariate(0, 0.5))
        if random.random() < errors:
            return self.answer(500, {"error": "division by zero"})
        score = 1 / (1 + math.exp(-random.gauss(-1 + shift, 1)))
        output = {"name": "score", "shape": [1], "datatype": "FP32", "data": [score]}
        self.answer(200, {"model_name": "late", "outputs": [output]})
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer.request_queue_size = 128
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


def served(page: Callable[[], str]) -> ThreadingHTTPServer:
    """Show Prometheus a page of counters, on a free port, until the program ends."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(page().encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Counting(Router):
    """A router that counts as Istio's sidecars do, and the scores besides."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.took: Counter[tuple[str, float]] = Counter()
        self.scores: Counter[tuple[str, float]] = Counter()
        self.lock = threading.Lock()
        self.metrics = served(self.page)

    def send(self, target: str, path: str, body: bytes) -> tuple[int, bytes]:
        began = time.perf_counter()
        status, answer = super().send(target, path, body)
        took = (time.perf_counter() - began) * 1e3
        with self.lock:
            self.requests[target, status] += 1
            self.took[target, next((b for b in LATENCIES_MS if took <= b), float("inf"))] += 1
            if status == 200:
                score = json.loads(answer)["outputs"][0]["data"][0]
                self.scores[target, next(b / 20 for b in range(1, 21) if score <= b / 20)] += 1
        return status, answer

    def page(self) -> str:
        with self.lock:
            lines = [
                f'istio_requests_total{{{_labels(name)},response_code="{status}"}} {count}'
                for (name, status), count in self.requests.items()
            ]
            for metric, counts, bounds in (
                ("istio_request_duration_milliseconds_bucket", self.took, (*LATENCIES_MS, float("inf"))),
                ("score_bucket", self.scores, tuple(b / 20 for b in range(1, 21))),
            ):
                for name in sorted({name for name, _ in counts}):
                    total = 0
                    for bound in bounds:
                        total += counts[name, bound]
                        le = "+Inf" if bound in (float("inf"), 1.0) and bound == bounds[-1] else f"{bound:g}"
                        lines.append(f'{metric}{{{_labels(name)},le="{le}"}} {total}')
        return "\n".join(lines) + "\n"


def _labels(workload: str) -> str:
    return (
        f'reporter="destination",destination_workload_namespace="{kubernetes.NAMESPACE}",'
        f'destination_workload="{workload}",pod="{workload}-0"'
    )


class Faulty(Controller):
    """KServe's stand-in with servers that behave as their version's candidate is said to."""

    def __init__(self, *args: Any, behaviours: dict[str, dict[str, str]], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.router, self.behaviours = Counting(), behaviours

    def _deployment(self, service: Any, name: str, predictor: Any, replicas: int, further: Any) -> dict[str, Any]:
        body = super()._deployment(service, name, predictor, replicas, further)
        container = body["spec"]["template"]["spec"]["containers"][0]
        version = next(one["value"] for one in container["env"] if one["name"] == "AIRFLOW_ML_VERSION")
        more = [{"name": key, "value": value} for key, value in self.behaviours.get(version, {}).items()]
        container.update(command=["python3", "-c", SERVER], env=[*container["env"], *more])
        return body


class Users:
    """Requests at a fixed rate, whether those before are answered or not."""

    def __init__(self, address: str, host: str, rate: float) -> None:
        self.address, self.host, self.rate = address.removeprefix("http://"), host, rate
        self.statuses: Counter[int] = Counter()
        self._ended, self._local = threading.Event(), threading.local()

    def __enter__(self) -> Users:
        self._pool, self._thread = ThreadPoolExecutor(32), threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._pool.shutdown()

    def _work(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(due - time.monotonic(), 0)):
            self._pool.submit(self._ask)
            due += 1 / self.rate

    def _ask(self) -> None:
        body = json.dumps({"inputs": [{"name": "hour", "shape": [1, 1], "datatype": "FP32", "data": [6]}]})
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            connection.request("POST", "/v2/models/late/infer", body, {"Host": self.host})
            self.statuses[connection.getresponse().status] += 1
        except OSError:
            self.statuses[0] += 1
        finally:
            connection.close()


@contextmanager
def prometheus(target: str) -> Iterator[int]:
    """Run a Prometheus that scrapes `target` every second; give its port."""
    program = shutil.which("prometheus") or sys.exit("no prometheus on the PATH; Debian: apt-get install prometheus")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        job = {"job_name": "router", "honor_labels": True, "static_configs": [{"targets": [target]}]}
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
        Path(folder, "prometheus.yml").write_text(json.dumps(config))
        command = [
            program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        ]  # fmt: skip
        with subprocess.Popen(command) as process:
            try:
                kubernetes.wait(lambda: _answers(f"http://127.0.0.1:{port}/-/ready"), 30)
                yield port
            finally:
                process.terminate()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def install(running: Any) -> None:
    """Put the definitions, and KServe's configuration, into the cluster."""
    with tempfile.TemporaryDirectory() as folder:
        revisions = Path(folder, "revisions.yaml")
        revisions.write_text(json.dumps(REVISIONS))
        file = SPECS / "kserve" / "serving.kserve.io_inferenceservices.yaml"
        path = f"{kubernetes.CACHE / 'bin'}:{os.environ['PATH']}"
        env = {**os.environ, "KUBECONFIG": running.kubeconfig, "PATH": path}
        subprocess.run([sys.executable, kubernetes.SCRIPTS / "install-crds", file, revisions], check=True, env=env)
    config = {"deploy": {"defaultDeploymentMode": "Standard"}, "ingress": {"enableGatewayApi": True}}
    body = {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "inferenceservice-config"},
        "data": {key: json.dumps(value) for key, value in config.items()},
    }  # fmt: skip
    running.kubectl("apply", "-f", "-", stdin=json.dumps(body))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--bake", type=float, default=60)
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    args = parser.parse_args()
    running = kubernetes.Cluster.start()
    os.environ.pop("KUBECONFIG", None)
    os.environ["AIRFLOW_CONN_KUBERNETES_DEFAULT"] = kubernetes.connection(running.kubeconfig)
    try:
        install(running)
        models = {name: _model(name, number) for number, name in enumerate(("stable", *CANDIDATES))}
        behaviours = {version_of(models[name], Server()).name: how for name, how in CANDIDATES.items()}
        with (
            new_client_from_config(running.kubeconfig) as api,
            Faulty(api, kubernetes.NAMESPACE, image=kubernetes.IMAGE, behaviours=behaviours) as kserve,
            prometheus(f"127.0.0.1:{kserve.router.metrics.server_port}") as port,
        ):
            conn = {"conn_type": "http", "host": "127.0.0.1", "port": port}
            os.environ["AIRFLOW_CONN_PROMETHEUS"] = json.dumps(conn)
            for name in args.only:
                show(kserve, models, name, args)
    finally:
        running.stop()


def show(kserve: Faulty, models: dict[str, ModelRef], name: str, args: argparse.Namespace) -> None:
    """Deploy the stable version, roll a candidate out while users ask, and print what came of it."""
    where = 'destination_workload_namespace="{namespace}",destination_workload="{workload}"'
    by_le = f"sum by (pod, le) (score_bucket{{{where}}})"
    place = KServe(
        address=kserve.address,
        mode="standard",
        prometheus_conn_id="prometheus",
        metrics={"base": "istio", "score_bucket": by_le},
    )
    serving = KServeServing(place, system=kubernetes.NAMESPACE)
    serving.remove("late")
    settings: dict[str, Any] = {"service": "late", "place": place, "poll_s": 1.0}
    run(DeployOperator(task_id="deploy", model=models["stable"], gate="waived", **settings), context(run_id=name))
    policy = RolloutPolicy(
        steps=(10, 50, 100), bake_s=args.bake, checks=(ErrorRate(), Latency(max_ratio=1.5), ScoreShift())
    )
    host = f"late-{kubernetes.NAMESPACE}.example.test"
    with tempfile.TemporaryDirectory() as folder, Users(kserve.address, host, args.rate) as users:
        time.sleep(2)
        began = time.monotonic()
        rollout = RolloutOperator(
            task_id="rollout", model=models[name], gate="waived", evidence=folder, policy=policy, **settings
        )
        try:
            said = run(rollout, context(run_id=name))["reason"]
        except AirflowFailException as refused:
            said = str(refused)
        took = time.monotonic() - began
    total, failed = users.statuses.total(), users.statuses.total() - users.statuses[200]
    print(
        f"{name:8} {took:5.0f} s, {total} requests, {failed / total:.3%} failed {dict(users.statuses)}: {said}",
        flush=True,
    )
    serving.remove("late")
    kubernetes.wait(lambda: not kserve._deployments("late"), 60)


def _model(name: str, number: int) -> ModelRef:
    digest = random.Random(number).randbytes(32).hex()
    return ModelRef("late", f"s3://models/late/{name}", f"sha256:{digest}")


if __name__ == "__main__":
    main()
