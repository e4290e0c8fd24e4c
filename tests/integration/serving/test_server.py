"""One model server as a process: what it answers, when it is ready, how it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from airflow_ml_provider import models
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.runtime.protocol import EXIT_TERMINAL
from airflow_ml_provider.serving import folder as folders
from airflow_ml_provider.testing import packages

INFER = "/v2/models/late/infer"


@dataclass
class Server:
    process: subprocess.Popen[str]
    ports: dict[str, int]

    @property
    def port(self) -> int:
        return self.ports["port"]

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, Any], dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, json.loads(response.read()), dict(response.getheaders())
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
        return sum(sample.value for sample in found if labels.items() <= sample.labels.items())

    def until_ready(self) -> None:
        while self.ask("GET", "/v2/health/ready")[0] != 200:
            assert self.process.poll() is None
            time.sleep(0.05)


@contextmanager
def running(python: str, ref: ModelRef, folder: Path, *args: str) -> Iterator[Server]:
    command = [python, "-m", "airflow_ml_provider.serving.aio.server", "--name=late", "--version=7"]
    command += [f"--package={ref.uri}", f"--digest={ref.digest}", *args]
    env = folders.environment(folders.put_package(folder))
    process = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = Server(process, json.loads(process.stdout.readline()))
        found.until_ready()
        yield found
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def server(python: str, model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(python, model, tmp_path_factory.mktemp("server"), "--nan=reject", "--max-body-mib=0.1") as found:
        yield found


def request(distance: list[Any], hour: list[Any], carrier: list[Any], **more: Any) -> bytes:
    columns = {"distance": distance, "hour": hour, "carrier": carrier}
    inputs = [
        {"name": name, "shape": [len(data), 1], "datatype": "BYTES" if name == "carrier" else "FP32", "data": data}
        for name, data in columns.items()
    ]
    return json.dumps({"inputs": inputs, **more}).encode()


ONE = request([500.0], [10.0], ["UA"], id="x")


def test_scores_are_the_model_s_own(server: Server, model: ModelRef) -> None:
    table = packages.rows(50, seed=9)
    columns = (table.column(name).to_pylist() for name in ("distance", "hour", "carrier"))
    status, found, _ = server.ask("POST", INFER, request(*columns, id="x"))
    assert (status, found["id"], found["model_name"], found["model_version"]) == (200, "x", "late", "7")
    assert found["outputs"][0]["data"] == pytest.approx(models.Scorer(Path(model.uri)).score(table).tolist(), abs=1e-7)


def test_the_protocol_s_other_questions(server: Server) -> None:
    assert server.ask("GET", "/v2")[1]["extensions"] == []
    assert server.ask("GET", "/v2/health/live")[:2] == (200, {"live": True})
    assert server.ask("GET", "/v2/health/ready")[:2] == (200, {"ready": True})
    for path in ("/v2/models/late", "/v2/models/late/versions/7"):
        assert server.ask("GET", f"{path}/ready")[:2] == (200, {"name": "late", "ready": True})
        found = server.ask("GET", path)[1]
        assert [i["name"] for i in found["inputs"]] == ["distance", "hour", "carrier"]
        assert server.ask("POST", f"{path}/infer", ONE)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "says"),
    [
        ("POST", INFER, b"{", {}, 400, "the body must be JSON"),
        ("POST", INFER, b"{}", {}, 400, "'inputs' must be a list"),
        ("POST", INFER, request(["a"], [1], ["UA"]), {}, 400, "input 'distance' must have numbers"),
        ("POST", INFER, request([1], [1], [1]), {}, 400, "input 'carrier' must have texts"),
        ("POST", INFER, request([1, 2], [1], ["UA"]), {}, 400, "inputs must have the same number of rows"),
        ("POST", INFER, request([None], [1], ["UA"]), {}, 400, "must have finite numbers, got null"),
        ("POST", INFER, b'{"inputs": []}', {}, 400, "are missing; the model needs distance, hour, carrier"),
        ("POST", INFER, ONE.replace(b'"hour"', b'"hours"'), {}, 400, "unknown input 'hours'; did you mean 'hour'?"),
        ("POST", INFER, ONE, {"Inference-Header-Content-Length": "9"}, 400, "no binary extension"),
        ("POST", INFER, b" " * 200_000, {}, 413, "the body must have at most 104857 bytes"),
        ("POST", "/v2/models/early/infer", ONE, {}, 404, "Not Found"),
        ("POST", "/v2/models/late/versions/8/infer", ONE, {}, 404, "Not Found"),
        ("GET", INFER, None, {}, 405, "Method Not Allowed"),
    ],
)
def test_wrong_requests(server: Server, method, path, body, headers, status, says) -> None:
    found, answer, _ = server.ask(method, path, body, **headers)
    assert found == status
    assert says in answer["error"]


def test_metrics(server: Server) -> None:
    before = server.metric("ml_server_requests_total", status="200")
    bad = server.metric("ml_server_requests_total", status="400")
    for _ in range(3):
        server.ask("POST", INFER, ONE)
    server.ask("POST", INFER, b"{}")
    assert server.metric("ml_server_requests_total", status="200") == before + 3
    assert server.metric("ml_server_requests_total", status="400") == bad + 1
    assert server.metric("ml_server_ready") == 1


def test_requests_are_scored_together(python: str, model: ModelRef, tmp_path: Path) -> None:
    with running(python, model, tmp_path, "--max-delay-ms=500", "--max-batch=16") as server:
        bodies = [request([float(n)], [10.0], ["UA"]) for n in range(16)]
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda body: server.ask("POST", INFER, body)[1]["outputs"][0]["data"][0], bodies))
        alone = [server.ask("POST", INFER, body)[1]["outputs"][0]["data"][0] for body in (bodies[0], bodies[-1])]
        assert [found[0], found[-1]] == pytest.approx(alone, abs=1e-7)
        assert found == sorted(found, reverse=True)  # each got its own
        assert server.metric("ml_server_batch_rows_count") < 16 + 2


@pytest.mark.parametrize("what", ["digest", "package", "graph"])
def test_what_is_not_the_model_is_not_served(what: str, python: str, model: ModelRef, tmp_path: Path) -> None:
    ref = packages.package(tmp_path / "model")
    digest = "sha256:" + "0" * 64 if what == "digest" else ref.digest
    if what == "package":
        (tmp_path / "model" / models.MANIFEST).unlink()
    if what == "graph":
        with open(tmp_path / "model" / models.ONNX, "ab") as file:
            file.write(b"\0")
    command = [python, "-m", "airflow_ml_provider.serving.aio.server", "--name=late"]
    command += [f"--package={ref.uri}", f"--digest={digest}"]
    env = folders.environment(folders.put_package(tmp_path))
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert done.returncode == EXIT_TERMINAL
    assert ("holds no complete model package" if what == "package" else f"not {digest}: it was changed") in done.stderr


def test_sigterm_finishes_what_is_in_flight(python: str, model: ModelRef, tmp_path: Path) -> None:
    with running(python, model, tmp_path, "--max-delay-ms=1000", "--linger-s=0") as server:
        waiting, asking = (http.client.HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(2))

        def ready() -> int:
            asking.request("GET", "/v2/health/ready")
            response = asking.getresponse()
            response.read()
            return response.status

        assert ready() == 200
        waiting.request("POST", INFER, ONE, {"Content-Type": "application/json"})
        assert ready() == 200  # sent later, so by now the other one has been read, too
        server.process.send_signal(signal.SIGTERM)
        while ready() == 200:
            time.sleep(0.01)
        response = waiting.getresponse()
        assert (response.status, response.headers["Connection"]) == (200, "close")
        assert len(json.loads(response.read())["outputs"][0]["data"]) == 1
        assert server.process.wait(30) == 0
        waiting.close()
        asking.close()


def test_sigterm_under_load_breaks_no_request(python: str, model: ModelRef, tmp_path: Path) -> None:
    """Clients that keep their connections, as a pool does: after SIGTERM each is told to go, and none is cut."""
    answered, broken, lock = [0], [], threading.Lock()

    def hammer(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.connect()
        try:
            while connection.sock:  # until an answer says `Connection: close`
                connection.request("POST", INFER, ONE, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                with lock:
                    answered[0] += response.status == 200
        except (OSError, http.client.HTTPException) as error:
            broken.append(repr(error))
        finally:
            connection.close()

    with running(python, model, tmp_path) as server:
        threads = [threading.Thread(target=hammer, args=(server.port,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        while answered[0] < 200:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.process.wait(60) == 0
    assert answered[0] >= 208
    assert not broken


def test_it_ends_with_its_owner(python: str, model: ModelRef, tmp_path: Path) -> None:
    """Killed owners cannot tell anybody."""
    command = [python, "-m", "airflow_ml_provider.serving.aio.server", "--name=late"]
    command += [f"--package={model.uri}", f"--digest={model.digest}"]
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:] + [f'--parent={os.getpid()}'], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    env = folders.environment(folders.put_package(tmp_path))
    owner = subprocess.Popen([python, "-c", code, *command], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert "port" in owner.stdout.readline()
    started = folders.process_start(pid)
    assert started
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    while folders.process_start(pid) == started:
        time.sleep(0.05)
