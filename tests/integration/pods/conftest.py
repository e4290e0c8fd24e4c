"""A real Kubernetes with one node, for stages in pods."""

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
from airflow_ml_provider.intervals import Interval  # noqa: E402
from airflow_ml_provider.operators._base import StageOperator  # noqa: E402
from airflow_ml_provider.operators.ingest import IngestOperator  # noqa: E402
from airflow_ml_provider.runtime import Pod  # noqa: E402
from airflow_ml_provider.testing.context import context  # noqa: E402
from airflow_ml_provider.testing.tasks import go_on  # noqa: E402

_there = REPO / "tests" / "unit" / "stages" / "train" / "conftest.py"
_spec = importlib.util.spec_from_file_location("train_flights", _there)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
flights, flights_file, spec = _module.flights, _module.flights_file, _module.spec

DAY = Interval.from_key("2013-01-05")


class Connected(IngestOperator):
    """Needs connection settings, as the stages that speak to MLflow do."""

    def environment(self) -> dict[str, str]:
        return {"SETTING": "s3cret"}


class Given(StageOperator):
    """Runs any spec."""

    def __init__(self, *, spec: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec

    def build_spec(self, interval: Any, context: Any) -> Any:
        return self.spec


class Task:
    """A task whose stage runs in a pod; every try has an operator of its own, as every process of Airflow has.

    Parameters:
        folder: what worker and pod share; the landing files are `*.csv` in it.
        cluster: the cluster.
        settings: of the pod.
    """

    def __init__(self, folder: Path, cluster: kubernetes.Cluster, **settings: Any) -> None:
        self.folder, self.cluster = folder, cluster
        python, volumes = kubernetes.python(REPO / ".venv-ml")
        volumes |= {str(folder): str(folder), **settings.pop("volumes", {})}
        start = {"image": kubernetes.IMAGE, "python": python, "exchange": str(folder / "exchange")}
        self.pod = Pod(**{**start, "volumes": volumes, "poll_s": 1.0, **settings})

    def operator(self, connected: bool = False, runtime: Any = None) -> IngestOperator:
        return (Connected if connected else IngestOperator)(
            task_id="ingest", name="t", source=str(self.folder / "*.csv"), target=str(self.folder / "table"),
            columns={"id": "string", "n": "int"}, key=["id"], runtime=runtime or self.pod,
        )  # fmt: skip

    def given(self, spec: Any) -> StageOperator:
        return Given(task_id="given", spec=spec, runtime=self.pod)

    def begin(self, operator: StageOperator | None = None, **ids: Any) -> Any:
        """Execute until the task defers; return what it was deferred with. Fails if it did not defer."""
        from airflow.sdk.exceptions import TaskDeferred

        try:
            value = (operator or self.operator()).execute(context(DAY, **ids))
        except TaskDeferred as deferred:
            return deferred
        raise AssertionError(f"it did not defer, but returned {value}")

    def end(self, deferred: Any, operator: StageOperator | None = None, **ids: Any) -> Any:
        """Wait as the triggerer does and go on as a worker does, until the task is done; return its XCom."""
        from airflow.sdk.exceptions import TaskDeferred

        while True:
            try:
                return self.go_on(deferred, operator, **ids)
            except TaskDeferred as again:
                deferred = again

    def go_on(self, deferred: Any, operator: StageOperator | None = None, **ids: Any) -> Any:
        """Wait for one event of the trigger, and let the task go on with it."""
        return go_on(operator or self.operator(), deferred, context(DAY, **ids))

    def run(self, **ids: Any) -> Any:
        """Execute the task from beginning to end."""
        return self.end(self.begin(**ids), **ids)

    def pods(self) -> list[dict[str, Any]]:
        return self.cluster.get("pods")

    def running(self) -> dict[str, Any]:
        """Return the one pod there is, once it runs."""

        def found() -> Any:
            pods = [pod for pod in self.pods() if pod["status"]["phase"] == "Running"]
            return pods and pods[0]

        return kubernetes.wait(found, 120, "no pod runs")


@pytest.fixture(scope="session")
def cluster() -> Iterator[kubernetes.Cluster]:
    pytest.importorskip("airflow.providers.cncf.kubernetes")
    try:
        found = kubernetes.Cluster.start()
    except kubernetes.NoCluster as reason:
        pytest.skip(str(reason))
    yield found
    found.stop()


@pytest.fixture
def task(cluster: kubernetes.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Task]]:
    """Make a task; whatever it leaves fails the test."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", kubernetes.connection(cluster.kubeconfig))
    (tmp_path / "a.csv").write_text("id,n\nb,2\na,1\n")
    yield lambda **settings: Task(tmp_path, cluster, **settings)
    kubernetes.wait(lambda: not cluster.left(), 60, f"left behind: {cluster.left()}")


@pytest.fixture
def modules(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that makes `import duckdb`, hence the ingest stage, do first what some code says."""

    def make(code: str) -> str:
        folder = tmp_path / "modules"
        folder.mkdir()
        real = (
            "import sys\nsys.path[:] = [p for p in sys.path if not p.endswith('modules')]\ndel sys.modules['duckdb']\n"
        )
        (folder / "duckdb.py").write_text(f"{code}\n{real}import duckdb\n")
        return str(folder)

    return make


@pytest.fixture
def limited(cluster: kubernetes.Cluster, tmp_path: Path) -> str:
    """Return a connection that has no rights but those of the Role in the documentation."""
    return limited_to(cluster, tmp_path, "role.yaml")


def limited_to(cluster: kubernetes.Cluster, folder: Path, file: str) -> str:
    """Return a connection that has the rights of one Role in the documentation; `folder` gets its kubeconfig."""
    role = (REPO / "docs" / "kubernetes" / file).read_text()
    name = yaml.safe_load(role)["metadata"]["name"]
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": kubernetes.NAMESPACE}],
    }  # fmt: skip
    cluster.kubectl("apply", "-f", "-", stdin=f"{role}\n---\n{json.dumps(account)}\n---\n{json.dumps(binding)}")

    def token() -> str:
        secrets = [s for s in cluster.get("secrets") if s["metadata"]["name"].startswith(f"{name}-token")]
        return base64.b64decode(secrets[0]["data"]["token"]).decode() if secrets else ""

    config = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    config["users"][0]["user"] = {"token": kubernetes.wait(token, 60)}
    path = folder / "limited.yaml"
    path.write_text(yaml.safe_dump(config))
    return kubernetes.connection(str(path))


@pytest.fixture
def away(tmp_path: Path) -> str:
    """Return a connection to a cluster that does not answer."""
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
    }  # fmt: skip
    path = tmp_path / "away.yaml"
    path.write_text(yaml.safe_dump(config))
    return kubernetes.connection(str(path))


@pytest.fixture
def wait() -> Callable[..., Any]:
    """Return the function that waits until something is true, or fails."""
    return kubernetes.wait
