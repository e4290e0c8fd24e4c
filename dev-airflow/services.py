"""Start and stop the servers of a development Airflow: each in its own session, each known by pid and start time."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cluster as kubernetes
from airflow_ml_provider.serving import launch

if TYPE_CHECKING:
    from airflow_api import AirflowApi

REPO = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


class Services:
    """The processes of one state folder. Starting what runs and stopping what does not are no-ops."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.folder = state / "services"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: list[str], env: Mapping[str, str], *, of: str = "") -> bool:
        """Start a process that is made of `of`; return whether it had to be started.

        One that runs and is made of something else is stopped before.
        """
        if self.running(name):
            if self._record(name)["of"] == of:
                return False
            self.stop(name)
        with open(self.log(name), "ab") as log:
            process = subprocess.Popen(
                command, env=dict(env), cwd=self.state, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._own[name] = process
        record = {"pid": process.pid, "started": _start_time(process.pid), "of": of}
        (self.folder / f"{name}.json").write_text(json.dumps(record))
        return True

    def running(self, name: str) -> bool:
        """Whether the very process that was started still runs (its pid may belong to another by now)."""
        record = self._record(name)
        return record is not None and _start_time(record["pid"]) == record["started"]

    def stop(self, name: str, wait_s: float = 12) -> None:
        """Stop a process and everything in its session, politely first."""
        record = self._record(name)
        if record is None:
            return
        leader = _start_time(record["pid"]) in (record["started"], None)
        for number, patience in ((signal.SIGTERM, wait_s), (signal.SIGKILL, 10)):
            members = _session(record["pid"]) if leader else []
            for pid in members:
                _signal(pid, number)
            deadline = time.monotonic() + patience
            while members and time.monotonic() < deadline:
                time.sleep(0.2)
                members = _session(record["pid"])
            if not members:
                break
        if process := self._own.pop(name, None):
            process.wait()
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Return the names of what was started and not stopped yet."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def members(self, name: str) -> list[int]:
        """Return the live processes of a process that was started, itself among them."""
        return _session(self._record(name)["pid"]) if self.running(name) else []

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.folder / f"{name}.log"

    def _record(self, name: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None


def _start_time(pid: int) -> int | None:
    """Return the kernel's start time of a live process; none when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _session(leader: int) -> list[int]:
    """Return the live processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def free_port(preferred: int) -> int:
    """Return `preferred` if nobody listens there, else a free port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RuntimeError("no free port")


def wait_for(url: str, services: Services, name: str, timeout_s: float = 240) -> None:
    """Wait until a URL answers; fail with the end of the log when its process ends before."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if not services.running(name):
                break
            time.sleep(0.5)
    tail = "\n".join(services.log(name).read_text(errors="replace").splitlines()[-30:])
    raise SystemExit(f"{name} did not come up; the end of {services.log(name)}:\n{tail}")


class Stack:
    """A whole development Airflow in one folder: MLflow, Airflow, landing folder, store, lineage file."""

    def __init__(self, state: Path, *, dags: Path, ports: tuple[int, int] = (8080, 5000), parallelism: int = 4) -> None:
        self.state = state.resolve()
        self.services = Services(self.state)
        self.dags, self.parallelism = dags, parallelism
        self.landing, self.store = self.state / "landing", self.state / "store"
        self.lineage = self.state / "lineage.jsonl"
        self.settings = self._settings(ports)
        for folder in (self.landing, self.store):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def airflow_url(self) -> str:
        return f"http://localhost:{self.settings['airflow_port']}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.settings['mlflow_port']}"

    def _settings(self, ports: tuple[int, int]) -> dict[str, str]:
        """Return ports and keys, which stay the same as long as the folder exists."""
        path = self.state / "settings.json"
        if not path.exists():
            body = {
                "airflow_port": str(free_port(ports[0])),
                "mlflow_port": str(free_port(ports[1])),
                "key": secrets.token_urlsafe(32),
            }
            path.write_text(json.dumps(body))
        return json.loads(path.read_text())

    def environment(self) -> dict[str, str]:
        """Return the environment of Airflow's processes."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "PYTHONPATH", "MLFLOW"))}
        other = REPO / ".venv-ml" / "bin" / "python"
        transport = {"type": "file", "log_file_path": str(self.lineage), "append": True}
        return {
            **kept,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW_HOME": str(self.state / "airflow"),
            # On a busy machine the database may be locked for longer than the usual 5 s, of which a component dies.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.state}/airflow/airflow.db?timeout=60",
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": str(self.parallelism),
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.airflow_url}/execution/",
            "AIRFLOW__API__PORT": self.settings["airflow_port"],
            "AIRFLOW__API__BASE_URL": self.airflow_url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": self.settings["key"],
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "AIRFLOW__SCHEDULER__MAX_DAGRUNS_TO_CREATE_PER_LOOP": "20",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "120",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
            "AIRFLOW__OPENLINEAGE__NAMESPACE": "dev-airflow",
            "AIRFLOW__ML__DOCUMENTS": str(self.store),
            "AIRFLOW_CONN_MLFLOW_DEFAULT": json.dumps(
                {"conn_type": "mlflow", "host": "127.0.0.1", "port": int(self.settings["mlflow_port"])}
            ),
            "AIRFLOW_CONN_LINEAGE_DEFAULT": json.dumps({"conn_type": "lineage_events", "host": str(self.lineage)}),
            "ML_STORE": str(self.store),
            "ML_LANDING": str(self.landing),
            "ML_TORCH_PYTHON": str(other),
            "ML_TOOLS_PYTHON": str(other),
            "ML_TRAINING_POOL": "training",
            **self._for_pods(other),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def _for_pods(self, python: Path) -> dict[str, str]:
        """Return what the DAG that trains on pods needs: there, this machine is known by another address."""
        path, volumes = kubernetes.python(python.parent.parent)
        port = int(self.settings["mlflow_port"])
        return {
            "ML_POD_IMAGE": kubernetes.IMAGE,
            "ML_POD_PYTHON": path,
            "ML_POD_VOLUMES": json.dumps({**volumes, str(self.store): str(self.store)}),
            "ML_POD_MLFLOW": "mlflow_pods",
            "AIRFLOW_CONN_MLFLOW_PODS": json.dumps({"conn_type": "mlflow", "host": kubernetes.HOST, "port": port}),
        }

    def connect(self, cluster: kubernetes.Cluster, api: AirflowApi) -> None:
        """Let Airflow know of a cluster, and the cluster's pods reach MLflow."""
        connection = json.loads(kubernetes.connection(cluster.kubeconfig))
        body = {**connection, "connection_id": "kubernetes_default", "extra": json.dumps(connection["extra"])}
        api.connection(body)
        port = self.settings["mlflow_port"]
        command = [sys.executable, str(REPO / "dev-airflow" / "forward.py")]
        self.services.start("forward", [*command, f"{kubernetes.HOST}:{port}", f"127.0.0.1:{port}"], os.environ)

    def start(self, say: Callable[[str], None] = print) -> None:
        """Start what does not run and wait until it answers."""
        database, artifacts = self.state / "mlflow.db", self.state / "mlflow-artifacts"
        command = [
            str(BIN / "mlflow"), "server", "--workers", "1",
            "--host", "127.0.0.1", "--port", self.settings["mlflow_port"],
            "--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(artifacts),
        ]  # fmt: skip
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        if self.services.start("mlflow", command, {**os.environ, **quiet}):
            say("starting MLflow")
        # Airflow's tasks are forks of processes that have loaded the provider.
        installed = REPO / ".venv" / ".provider"
        provider = installed.read_text() if installed.exists() else ""
        if self.services.start("airflow", [str(BIN / "airflow"), "standalone"], self.environment(), of=provider):
            say("starting Airflow")
        wait_for(f"{self.mlflow_url}/health", self.services, "mlflow")
        wait_for(f"{self.airflow_url}/api/v2/monitor/health", self.services, "airflow")

    def stop(self, say: Callable[[str], None] = print) -> None:
        """Stop everything that was started here."""
        for name in self.services.names():
            say(f"stopping {name}")
            self.services.stop(name)
        for name in self.served():
            say(f"stopping the service {name}")
            launch.stop(self.serving, name)

    @property
    def serving(self) -> Path:
        """Where the rollout DAG keeps the services of predictions."""
        return self.store / "services"

    def served(self) -> dict[str, str]:
        """Return the services of predictions that answer: name to address."""
        found = {folder.name: launch.find(self.serving, folder.name) for folder in sorted(self.serving.glob("*"))}
        return {name: address.url for name, address in found.items() if address}
