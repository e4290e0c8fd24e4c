"""The one-node Kubernetes for tests, where its scripts are at hand: in `../shared/k8s`, or in `KUBE_SCRIPTS`.

`cluster.py up` starts it, and fails if there is none to start; `cluster.py down` stops it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
SCRIPTS = Path(os.environ.get("KUBE_SCRIPTS", REPO.parent / "shared" / "k8s"))
CACHE = Path(os.environ.get("KUBE_CACHE", "/opt/kube-1.20"))
STATE = Path(os.environ.get("KUBE_STATE", "/var/lib/kube-test"))
# So that two test runs, or two workers of one, can share a cluster.
NAMESPACE = os.environ.get("KUBE_NAMESPACE") or os.environ.get("PYTEST_XDIST_WORKER", "default")
IMAGE = "localhost/python:1"
HOST = "10.244.0.1"  # this machine, seen from a pod


class NoCluster(Exception):
    """There can be no cluster here; the message says why."""


class Cluster:
    """A running cluster.

    Parameters:
        kubeconfig: path of the administrator's kubeconfig.
        ours: it was started here, and will be stopped.
    """

    def __init__(self, kubeconfig: str, ours: bool = True) -> None:
        self.kubeconfig, self.ours = kubeconfig, ours
        self._client: Any = None

    @classmethod
    def start(cls) -> Cluster:
        """Build what is not built yet, start an empty cluster unless one runs, and return it.

        Raises:
            NoCluster: this machine has no scripts for it, or they do not succeed on it.
        """
        check()
        _run("build")
        ours = not STATE.exists()
        cluster = cls(_run("up").strip().splitlines()[-1], ours)
        if f"namespace/{NAMESPACE}" not in cluster.kubectl("get", "namespaces", "-o", "name").split():
            cluster.kubectl("create", "namespace", NAMESPACE)
        return cluster

    def stop(self) -> None:
        """Stop the cluster and take away all that it made, unless it ran before."""
        if self.ours:
            _run("down")

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """Return what `kubectl` prints."""
        command = [str(CACHE / "bin" / "kubectl"), "--kubeconfig", self.kubeconfig, "--namespace", NAMESPACE, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True, input=stdin).stdout

    def get(self, kind: str, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
        """Return the objects of a kind, named as for `kubectl`: `pods`, `rayjobs.ray.io`.

        Not by `kubectl`: tests ask until something is true, and each start of it takes 0.2 s of CPU.
        """
        plural, _, group = kind.partition(".")
        versions = ["/api/v1"]
        if group:
            versions = [f"/apis/{one['groupVersion']}" for one in self._read(f"/apis/{group}")["versions"]]
        served = [one for one in versions if plural in [known["name"] for known in self._read(one)["resources"]]]
        if not served:
            raise LookupError(f"the cluster does not know {kind}")
        found = self._read(f"{served[0]}/namespaces/{namespace}/{plural}")
        whose = {"apiVersion": found["apiVersion"], "kind": found["kind"].removesuffix("List")}
        return [{**whose, **item} for item in found["items"]]

    def log(self, pod: str) -> str:
        """Return what a pod has printed; nothing before it has begun."""
        from kubernetes.client import ApiException

        try:
            return str(self._read(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/log", "str"))
        except ApiException as error:
            if error.status != 400:
                raise
            return ""

    def _read(self, path: str, kind: str = "object") -> Any:
        from kubernetes.config import new_client_from_config

        if self._client is None:
            self._client = new_client_from_config(self.kubeconfig)
        return self._client.call_api(
            path, "GET", header_params={"Accept": "*/*"}, auth_settings=["BearerToken"],
            response_types_map={200: kind}, _return_http_data_only=True, _request_timeout=60,
        )  # fmt: skip

    def left(self, namespace: str = NAMESPACE) -> list[str]:
        """Return what stages have left in a namespace: their pods and Secrets."""
        return [
            f"{item['kind']} {item['metadata']['name']}"
            for kind in ("pods", "secrets")
            for item in self.get(kind, namespace)
            if "airflow-ml/identity" in item["metadata"].get("labels", {})
        ]


def check() -> None:
    """Fail where there can be no cluster.

    Raises:
        NoCluster: this machine has no scripts for it, or we may not run them.
    """
    if not (SCRIPTS / "up").is_file():
        raise NoCluster(f"no Kubernetes scripts in {SCRIPTS}: set KUBE_SCRIPTS to their folder")
    if os.geteuid():
        raise NoCluster("starting a Kubernetes needs root")


def _run(script: str) -> str:
    done = subprocess.run([SCRIPTS / script], capture_output=True, text=True)
    if done.returncode:
        raise NoCluster(f"{SCRIPTS / script} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def connection(kubeconfig: str, namespace: str = NAMESPACE) -> str:
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


def main(command: str) -> int:
    """Start or stop it; return 0 when there was something to do."""
    if command == "down":
        _run("down")
        return 0
    if STATE.exists():
        print("a Kubernetes runs already")
        return 1
    try:
        Cluster.start()
    except NoCluster as reason:
        print(f"no Kubernetes here, its tests will be skipped: {reason}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
