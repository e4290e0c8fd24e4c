"""A real Kubernetes with the real definitions of TrainJob and RayJob, and stand-ins for their controllers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_there = Path(__file__).resolve().parents[1] / "pods" / "conftest.py"
_spec = importlib.util.spec_from_file_location("pods_conftest", _there)
assert _spec is not None
assert _spec.loader is not None
pods = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pods)
kubernetes = pods.kubernetes
cluster, modules, wait = pods.cluster, pods.modules, pods.wait
flights, flights_file, spec = pods.flights, pods.flights_file, pods.spec

SPECS = Path(os.environ.get("ML_PROVIDER_SPECS", pods.REPO.parent / "shared" / "specs"))
DEFINITIONS = ("kubeflow-trainer/trainer.kubeflow.org_trainjobs.yaml", "kuberay/ray.io_rayjobs.yaml")
KINDS = ("trainjobs.trainer.kubeflow.org", "rayjobs.ray.io")


class Task(pods.Task):
    """A task whose stage runs in a job; `ray` is on the PATH of its pods."""

    def __init__(self, folder: Path, cluster: Any, **settings: Any) -> None:
        ray = Path(__file__).with_name("ray.py").read_text()
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / "ray").write_text(ray)
        (folder / "bin" / "ray").chmod(0o755)
        path = {"PATH": f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"}
        soon = {"spec": {"terminationGracePeriodSeconds": 1}}
        start = {"controller": "trainjob", "pod_template": soon}
        super().__init__(folder, cluster, **{**start, **settings, "env": {**path, **settings.get("env", {})}})

    def jobs(self) -> list[dict[str, Any]]:
        return [job for kind in KINDS for job in self.cluster.get(kind)]

    def left(self) -> list[str]:
        return [job["metadata"]["name"] for job in self.jobs()] + self.cluster.left()


@pytest.fixture(scope="session")
def definitions(cluster: Any) -> None:
    """The definitions are in the cluster."""
    files = [SPECS / name for name in DEFINITIONS]
    script = kubernetes.SCRIPTS / "install-crds"
    if missing := [str(path) for path in (*files, script) if not path.is_file()]:
        pytest.skip(f"no definitions of TrainJob and RayJob: {', '.join(missing)}; set ML_PROVIDER_SPECS")
    path = f"{kubernetes.CACHE / 'bin'}:{os.environ['PATH']}"
    env = {**os.environ, "KUBECONFIG": cluster.kubeconfig, "PATH": path}
    subprocess.run([sys.executable, script, *files], check=True, env=env)


@pytest.fixture
def task(
    cluster: Any, definitions: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Task]]:
    """Make a task; whatever it leaves fails the test."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", kubernetes.connection(cluster.kubeconfig))
    (tmp_path / "a.csv").write_text("id,n\nb,2\na,1\n")
    made = []

    def make(**settings: Any) -> Task:
        made.append(Task(tmp_path, cluster, **settings))
        return made[-1]

    yield make
    for one in made:
        kubernetes.wait(lambda one=one: not one.left(), 120, f"left behind: {one.left()}")


@pytest.fixture
def controllers(cluster: Any, definitions: None) -> Iterator[Callable[..., Any]]:
    """Start the stand-ins; they end after the test, and fail it if something was refused to them."""
    from contextlib import ExitStack

    from kubernetes.config import new_client_from_config

    from airflow_ml_provider.testing.controllers import Controllers

    with ExitStack() as stack, new_client_from_config(cluster.kubeconfig) as api:

        def start(**settings: Any) -> Any:
            return stack.enter_context(Controllers(api, kubernetes.NAMESPACE, **settings))

        yield start


@pytest.fixture
def limited(cluster: Any, tmp_path: Path) -> str:
    """Return a connection that has no rights but those of the Role for jobs in the documentation."""
    limited: str = pods.limited_to(cluster, tmp_path, "role-jobs.yaml")
    return limited
