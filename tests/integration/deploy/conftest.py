"""A real Kubernetes with the real definition of InferenceServices, and a stand-in for KServe's controller."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
cluster, wait, away = pods.cluster, pods.wait, pods.away

SPECS = Path(os.environ.get("ML_PROVIDER_SPECS", pods.REPO.parent / "shared" / "specs"))
CONFIG = {"deploy": {"defaultDeploymentMode": "Standard"}, "ingress": {"enableGatewayApi": True}}


@pytest.fixture(scope="session")
def definitions(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The definitions are in the cluster, and KServe's configuration beside the services."""
    from airflow_ml_provider.testing.kserve import REVISIONS

    kinds = ("inferenceservices", "inferencegraphs", "llminferenceservices")
    files = [SPECS / "kserve" / f"serving.kserve.io_{kind}.yaml" for kind in kinds]
    script = kubernetes.SCRIPTS / "install-crds"
    if missing := [str(path) for path in (*files, script) if not path.is_file()]:
        pytest.skip(f"no definition of InferenceService: {', '.join(missing)}; set ML_PROVIDER_SPECS")
    revisions = tmp_path_factory.mktemp("definitions") / "revisions.yaml"
    revisions.write_text(json.dumps(REVISIONS))
    env = {
        **os.environ,
        "KUBECONFIG": cluster.kubeconfig,
        "PATH": f"{kubernetes.CACHE / 'bin'}:{os.environ['PATH']}",
    }
    subprocess.run([sys.executable, script, *files, revisions], check=True, env=env)
    config = {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "inferenceservice-config"},
        "data": {key: json.dumps(value) for key, value in CONFIG.items()},
    }  # fmt: skip
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(config))


@pytest.fixture
def hook(cluster: Any, definitions: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Open KServe; whatever services are left are removed, and what they leave fails the test."""
    from airflow_ml_provider.hooks.kserve import KServeServing
    from airflow_ml_provider.stages.deploy.place import KServe

    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", kubernetes.connection(cluster.kubeconfig))

    def make(system: str = kubernetes.NAMESPACE, timeout_s: float = 30, **settings: Any) -> KServeServing:
        return KServeServing(KServe(**settings), system=system, timeout_s=timeout_s)

    yield make
    for kind in ("inferenceservices", "inferencegraphs", "llminferenceservices"):
        for one in cluster.get(f"{kind}.serving.kserve.io"):
            cluster.kubectl("delete", f"{kind}.serving.kserve.io", one["metadata"]["name"])

    def left() -> list[str]:
        kinds = ("configmaps", "deployments.apps", "pods", "services", "revisions.serving.knative.dev")
        return [
            f"{one['kind']} {one['metadata']['name']}"
            for kind in kinds
            for one in cluster.get(kind)
            if "airflow-ml/service" in one["metadata"].get("labels", {})
        ]

    kubernetes.wait(lambda: not left(), 90, f"left behind: {left()}")


@pytest.fixture
def kserve(cluster: Any, definitions: None) -> Iterator[Callable[..., Any]]:
    """Start the stand-in; it ends after the test, and fails it if something was refused to it."""
    from kubernetes.config import new_client_from_config

    from airflow_ml_provider.testing.kserve import Controller

    with ExitStack() as stack, new_client_from_config(cluster.kubeconfig) as api:

        def start(**settings: Any) -> Any:
            return stack.enter_context(Controller(api, kubernetes.NAMESPACE, image=kubernetes.IMAGE, **settings))

        yield start


@pytest.fixture
def limited(cluster: Any, tmp_path: Path) -> str:
    """Return a connection that has no rights but those of the two Roles in the documentation."""
    role = (pods.REPO / "docs" / "kubernetes" / "role-kserve-config.yaml").read_text()
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "kserve-config"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "airflow-ml-kserve-config"},
        "subjects": [{"kind": "ServiceAccount", "name": "airflow-ml-kserve", "namespace": kubernetes.NAMESPACE}],
    }  # fmt: skip
    cluster.kubectl("apply", "-f", "-", stdin=f"{role}\n---\n{json.dumps(binding)}\n")
    found: str = pods.limited_to(cluster, tmp_path, "role-kserve.yaml")
    return found


@pytest.fixture
def gitops(
    cluster: Any, hook: Any, kserve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Open a place with a bare repository that Argo CD or Flux follows; its connection may only read the cluster."""
    from kubernetes.config import new_client_from_config

    from airflow_ml_provider.hooks.gitops import gitops as opened
    from airflow_ml_provider.stages.deploy.place import GitOps, KServe
    from airflow_ml_provider.testing.gitops import Sync, definition, repository

    url, here = repository(tmp_path / "env.git"), kubernetes.NAMESPACE
    for controller in ("argocd", "flux"):
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(definition(controller)))
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{definition(controller)['metadata']['name']}")
    reader = pods.limited_to(cluster, tmp_path, "role-gitops.yaml")
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", reader)
    with ExitStack() as stack, new_client_from_config(cluster.kubeconfig) as api:

        def start(controller: str) -> Any:
            stack.enter_context(Sync(api, here, url, controller=controller))
            place = GitOps(
                url, path="models", kserve=KServe(mode="standard", address=kserve().address), controller=controller,
                application="models", application_namespace=here, copy=str(tmp_path / "copies"),
            )  # fmt: skip
            return opened(place, system=here)

        yield start
    cluster.kubectl("delete", "configmaps", "-l", "test/synced")  # as a controller that goes on would
