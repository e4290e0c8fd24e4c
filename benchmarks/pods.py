"""What a stage operator costs over the bare pod: from the pod's creation to the result.

    .venv/bin/python benchmarks/pods.py [--repeat 5]

On the one-node Kubernetes for tests (`dev-airflow/cluster.py`), the same stage (ingest of two rows by `.venv-ml`) runs
in turn (1) in a bare pod, created by the Kubernetes client, until its result is there, and (2) by the operator with
`runtime=Pod(…)`: creation, deferral, trigger, log, result, removal; without Airflow's own scheduling. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "dev-airflow")]

import cluster as kubernetes  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    running = kubernetes.Cluster.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(running, Path(folder), repeat)
    finally:
        running.stop()


def measure(running: kubernetes.Cluster, folder: Path, repeat: int) -> None:
    os.environ.pop("KUBECONFIG", None)
    os.environ["AIRFLOW_CONN_KUBERNETES_DEFAULT"] = kubernetes.connection(running.kubeconfig)
    (folder / "a.csv").write_text("id,n\nb,2\na,1\n")
    operator(folder)  # imports, and the pod's pages of the disk
    bare = prepared(running, folder)
    seconds: dict[str, list[float]] = {"bare": [], "operator": []}
    for _ in range(repeat):
        seconds["bare"].append(timed(bare))
        seconds["operator"].append(timed(lambda: operator(folder)))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"{name:<9} {median[name]:5.2f} s  ({min(values):.2f} to {max(values):.2f})")
    print(f"overhead  {median['operator'] - median['bare']:5.2f} s")


def timed(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def make(folder: Path) -> Any:
    from airflow_ml_provider.operators.ingest import IngestOperator
    from airflow_ml_provider.runtime import Pod

    python, volumes = kubernetes.python(REPO / ".venv-ml")
    pod = Pod(
        kubernetes.IMAGE, python=python, exchange=str(folder / "exchange"), poll_s=1,
        volumes={**volumes, str(folder): str(folder)},
    )  # fmt: skip
    return IngestOperator(
        task_id="ingest", name="t", source=str(folder / "a.csv"), target=str(folder / "table"),
        columns={"id": "string", "n": "int"}, key=["id"], runtime=pod,
    )  # fmt: skip


def operator(folder: Path) -> None:
    """Run the stage as Airflow's worker and triggerer do."""
    from airflow_ml_provider.intervals import Interval
    from airflow_ml_provider.testing.context import context
    from airflow_ml_provider.testing.tasks import run

    run(make(folder), context(Interval.from_key("2013-01-05")))


def prepared(running: kubernetes.Cluster, folder: Path) -> Callable[[], None]:
    """Return a function that runs the same call in a bare pod and waits for its result."""
    from kubernetes import client, config  # type: ignore[attr-defined]

    from airflow_ml_provider.intervals import Interval
    from airflow_ml_provider.operators._pods import PodCall
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.testing.context import context

    config.load_kube_config(running.kubeconfig)
    api, task = client.CoreV1Api(), make(folder)
    info = RunInfo("bare", "ingest", "run", interval=Interval.from_key("2013-01-05"))
    call = PodCall(task, task.runtime, info)
    call.spec = task.build_spec(info.interval, context(info.interval))
    call.exchange.put(call.spec)
    outcome = call.exchange.outcome

    def run() -> None:
        wanted = call.carrier.build_pod_request_obj(context(info.interval))
        outcome.unlink(missing_ok=True)
        name = api.create_namespaced_pod(kubernetes.NAMESPACE, wanted).metadata.name
        while not outcome.exists():
            time.sleep(0.02)
        assert json.loads(outcome.read_text())["result"]["status"] == "ok"
        threading.Thread(target=api.delete_namespaced_pod, args=(name, kubernetes.NAMESPACE)).start()

    return run


if __name__ == "__main__":
    main()
