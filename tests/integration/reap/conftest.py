"""The cluster of the tests of stages in pods, and one object after the other in it."""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO / "dev-airflow"))

import cluster as kubernetes  # noqa: E402
from airflow_ml_provider.provenance import RunInfo  # noqa: E402

_there = REPO / "tests" / "integration" / "pods" / "conftest.py"
_spec = importlib.util.spec_from_file_location("pods_cluster", _there)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
cluster, away = _module.cluster, _module.away

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def connected(cluster: kubernetes.Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make `kubernetes_default` a connection to the cluster, and return it."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    connection = kubernetes.connection(cluster.kubeconfig)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", connection)
    return connection


@pytest.fixture
def make(cluster: kubernetes.Cluster) -> Iterator[Make]:
    """Make an object as a stage would, of any kind, and return it; what is left at the end is removed."""

    def one(
        kind: str,
        name: str,
        run_id: str | None = "run",
        owner: dict[str, Any] | None = None,
        task: dict[str, Any] | None = None,
        **body: Any,
    ) -> dict[str, Any]:
        about = task or {"dag_id": "dag", "task_id": "task", "run_id": run_id or "", "map_index": -1}
        meta: dict[str, Any] = {"name": name, "labels": {"airflow-ml/identity": RunInfo(**about).identity}}
        if run_id:
            meta["annotations"] = {"airflow-ml/task": json.dumps(about)}
        if owner:
            reference = {key: owner["metadata"][key] for key in ("name", "uid")}
            meta["ownerReferences"] = [{"apiVersion": owner["apiVersion"], "kind": owner["kind"], **reference}]
        manifest = {"apiVersion": "v1", "kind": kind, "metadata": meta, **body}
        made: dict[str, Any] = json.loads(
            cluster.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(manifest))
        )
        return made

    yield one
    cluster.kubectl("delete", "pods,secrets,services", "-l", "airflow-ml/identity", "--grace-period=0", "--force")


@pytest.fixture
def pod(make: Make) -> Make:
    """Make a pod that waits."""

    def one(name: str, run_id: str | None = "run", **further: Any) -> dict[str, Any]:
        container = {"name": "base", "image": kubernetes.IMAGE, "command": ["sleep", "600"]}
        return make(
            "Pod", name, run_id, spec={"containers": [container], "terminationGracePeriodSeconds": 1}, **further
        )

    return one


@pytest.fixture
def limited(cluster: kubernetes.Cluster, tmp_path: Path) -> Iterator[str]:
    """Return a connection that has no rights but those of the reaper's Role in the documentation."""
    role = (REPO / "docs" / "kubernetes" / "reaper-role.yaml").read_text()
    cluster.kubectl("apply", "-f", "-", stdin=role)
    cluster.kubectl("create", "serviceaccount", "reaper")
    account = f"--serviceaccount={kubernetes.NAMESPACE}:reaper"
    cluster.kubectl("create", "rolebinding", "reaper", "--role=airflow-ml-reaper", account)

    def token() -> str:
        secrets = [s for s in cluster.get("secrets") if s["metadata"]["name"].startswith("reaper-token")]
        return base64.b64decode(secrets[0]["data"]["token"]).decode() if secrets else ""

    config = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    config["users"][0]["user"] = {"token": kubernetes.wait(token, 60)}
    path = tmp_path / "limited.yaml"
    path.write_text(yaml.safe_dump(config))
    yield kubernetes.connection(str(path))
    cluster.kubectl("delete", "serviceaccount/reaper", "rolebinding/reaper", "role/airflow-ml-reaper")
