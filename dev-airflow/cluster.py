"""The one-node Kubernetes for tests, where its scripts are at hand: in `../shared/k8s`, or in `KUBE_SCRIPTS`."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
SCRIPTS = Path(os.environ.get("KUBE_SCRIPTS", REPO.parent / "shared" / "k8s"))
CACHE = Path(os.environ.get("KUBE_CACHE", "/opt/kube-1.20"))
IMAGE = "localhost/python:1"


class NoCluster(Exception):
    """There can be no cluster here; the message says why."""


class Cluster:
    """A running cluster.

    Parameters:
        kubeconfig: path of the administrator's kubeconfig.
    """

    def __init__(self, kubeconfig: str) -> None:
        self.kubeconfig = kubeconfig

    @classmethod
    def start(cls) -> Cluster:
        """Build what is not built yet, start an empty cluster unless one runs, and return it.

        Raises:
            NoCluster: this machine has no scripts for it, or they do not succeed on it.
        """
        if not (SCRIPTS / "up").is_file():
            raise NoCluster(f"no Kubernetes scripts in {SCRIPTS}")
        if os.geteuid():
            raise NoCluster("starting a Kubernetes needs root")
        _run("build")
        return cls(_run("up").strip().splitlines()[-1])

    def stop(self) -> None:
        """Stop the cluster and take away all that it made."""
        _run("down")

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """Return what `kubectl` prints."""
        command = [str(CACHE / "bin" / "kubectl"), "--kubeconfig", self.kubeconfig, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True, input=stdin).stdout

    def get(self, kind: str, namespace: str = "default") -> list[dict[str, Any]]:
        """Return the objects of a kind."""
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-n", namespace, "-o", "json"))["items"]
        return items

    def left(self, namespace: str = "default") -> list[str]:
        """Return what stages have left in a namespace: their pods and Secrets."""
        return [
            f"{item['kind']} {item['metadata']['name']}"
            for kind in ("pods", "secrets")
            for item in self.get(kind, namespace)
            if "airflow-ml/identity" in item["metadata"].get("labels", {})
        ]


def _run(script: str) -> str:
    done = subprocess.run([SCRIPTS / script], capture_output=True, text=True)
    if done.returncode:
        raise NoCluster(f"{SCRIPTS / script} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def connection(kubeconfig: str, namespace: str = "default") -> str:
    """Return the Airflow connection to a cluster as JSON. Where it is used, `KUBECONFIG` must not be set, too."""
    return json.dumps({"conn_type": "kubernetes", "extra": {"namespace": namespace, "kube_config_path": kubeconfig}})


def python(environment: Path) -> tuple[str, dict[str, str]]:
    """Return the path of a virtual environment's Python, and the volumes that bring it into a pod."""
    path = environment / "bin" / "python"
    base = path.resolve().parent.parent
    return str(path), {str(environment): str(environment), str(base): str(base)}


def wait(until: Callable[[], Any], seconds: float, what: str = "") -> Any:
    """Return the first true result of `until`.

    Raises:
        TimeoutError: there was none in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := until()):
        if time.monotonic() > deadline:
            raise TimeoutError(what or f"nothing after {seconds} s")
        time.sleep(0.2)
    return found
