"""The protocol over gRPC, by real clients: one model server, and a gateway that splits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("prometheus_client")
pytest.importorskip("google.protobuf")
pytest.importorskip("grpc")

import grpc

from airflow_ml_provider.exceptions import DataError, MissingLibrary, Unavailable
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.serving import folder as folders
from airflow_ml_provider.serving import launch
from airflow_ml_provider.serving.client import Prediction
from airflow_ml_provider.stages import run
from airflow_ml_provider.stages.deploy import messages
from airflow_ml_provider.stages.load_test.spec import LoadProfile, LoadTestSpec
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.tls import self_signed

from .conftest import Service, version
from .test_server import Server, request, running

ROWS = {"distance": [500.0, 2000.0], "hour": [20.0, 8.0], "carrier": ["UA", "AA"]}
BODY = messages.ask("late", "", json.loads(request(*ROWS.values(), id="x")))


TRITON = """
import json, sys
import numpy as np
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2

client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("late", "1")
kinds = {i.name: i.datatype for i in client.get_model_metadata("late").inputs}
raw, typed = [], service_pb2.ModelInferRequest(model_name="late", model_version="1")
for name, values in json.loads(sys.argv[2]).items():
    raw.append(triton.InferInput(name, [2, 1], kinds[name]))
    texts = kinds[name] == "BYTES"
    raw[-1].set_data_from_numpy(np.array(values, object if texts else np.float32).reshape(2, 1))
    one = typed.inputs.add(name=name, datatype=kinds[name], shape=[2, 1])
    if texts:
        one.contents.bytes_contents.extend(value.encode() for value in values)
    else:
        one.contents.fp32_contents.extend(values)
found = client.infer("late", raw, model_version="1", outputs=[triton.InferRequestedOutput("score")], priority=1)
answer = client._client_stub.ModelInfer(typed)
print(json.dumps([found.as_numpy("score").tolist(), list(answer.outputs[0].contents.fp32_contents)]))
"""

KSERVE = """
import asyncio, json, sys
from kserve import InferenceGRPCClient, InferInput, InferRequest

async def main(target, rows):
    async with InferenceGRPCClient(target) as client:
        assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("late")
        kinds = {name: "BYTES" if isinstance(values[0], str) else "FP32" for name, values in rows.items()}
        inputs = [InferInput(name, [2, 1], kinds[name], values) for name, values in rows.items()]
        found = await client.infer(InferRequest("late", inputs, model_version="1"))
        print(json.dumps([found.outputs[0].as_numpy().tolist()]))

asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""


@contextmanager
def encrypted(target: str, certificate: Path, key: Path) -> Iterator[str]:
    """Pass calls on to a service, as a proxy that ends TLS does; give its address."""

    class Proxy(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            there = channel.unary_unary(details.method)
            return grpc.unary_unary_rpc_method_handler(lambda body, _: there(body))

    with grpc.insecure_channel(urlsplit(target).netloc) as channel, ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, [Proxy()])
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield f"grpcs://127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@dataclass
class Answer:
    code: str
    scores: tuple[float, ...] = ()
    version: str = ""
    timing: str = ""
    says: str = ""


class Stub:
    """A client by grpcio alone."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(target)
        self._infer = self.channel.unary_unary(messages.INFER)

    def infer(self, body: bytes = BODY, timeout: float = 60.0, **metadata: str) -> Answer:
        sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        return settled(self._infer.future(body, timeout=timeout, metadata=sent))

    def begin(self, body: bytes = BODY) -> Any:
        return self._infer.future(body, timeout=60)

    def ask(self, method: str, **fields: str) -> Any:
        asked = messages.pack(f"{method}Request", **fields)
        return messages.parse(f"{method}Response", self.channel.unary_unary(f"/{messages.SERVICE}/{method}")(asked))

    def is_ready(self) -> str:
        """Return what `ServerReady` says, or its error."""
        try:
            return str(self.ask("ServerReady").ready)
        except grpc.RpcError as error:
            return str(error.code().name)


def settled(call: Any) -> Answer:
    told = messages.told(call.trailing_metadata())
    tail = {"version": told.get("x-model-version", ""), "timing": told.get("server-timing", "")}
    if call.code() is not grpc.StatusCode.OK:
        return Answer(call.code().name, says=call.details(), **tail)
    found = messages.parse("ModelInferResponse", call.result())
    (output,) = messages.tensors(found.outputs, found.raw_output_contents)
    return Answer("OK", tuple(output["data"]), **tail)


@contextmanager
def server(python: str, ref: ModelRef, folder: Path, *args: str) -> Iterator[tuple[Server, Stub]]:
    with running(python, ref, folder, "--grpc-port=0", *args) as found:
        stub = Stub(f"127.0.0.1:{found.ports['grpc']}")
        yield found, stub
        stub.channel.close()


@pytest.fixture(scope="module")
def both(python: str, model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Stub]]:
    args = ("--nan=reject", "--max-body-mib=0.1", "--max-delay-ms=500", "--max-batch=4")
    with server(python, model, tmp_path_factory.mktemp("server"), *args) as found:
        yield found


class TestServer:
    def test_it_says_what_rest_says(self, both: tuple[Server, Stub]) -> None:
        rest, stub = both
        asked = threading.Thread(target=rest.ask, args=("POST", "/v2/models/late/infer", request(*ROWS.values())))
        batches = rest.metric("ml_server_batch_rows_count")
        asked.start()
        found = stub.infer()
        asked.join()
        assert rest.metric("ml_server_batch_rows_count") == batches + 1  # scored together
        status, answer, headers = rest.ask("POST", "/v2/models/late/infer", request(*ROWS.values()))
        assert (found.code, status) == ("OK", 200)
        assert found.scores == pytest.approx(answer["outputs"][0]["data"], abs=1e-7)
        for timing in (found.timing, headers["Server-Timing"]):
            assert [part.partition(";")[0] for part in timing.split(", ")] == ["pre", "queue", "model", "post"]
        assert stub.ask("ServerLive").live
        assert stub.ask("ServerReady").ready
        assert stub.ask("ModelReady", name="late", version="7").ready
        assert stub.ask("ServerMetadata").name == rest.ask("GET", "/v2")[1]["name"]
        metadata = stub.ask("ModelMetadata", name="late")
        described = rest.ask("GET", "/v2/models/late")[1]
        for which in ("inputs", "outputs"):
            found_ = [
                {"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(metadata, which)
            ]
            assert found_ == described[which]

    def test_wrong_requests_have_codes_and_are_counted(self, both: tuple[Server, Stub]) -> None:
        rest, stub = both
        good = json.loads(request(*ROWS.values()))
        counted = {s: rest.metric("ml_server_requests_total", status=s) for s in ("200", "400", "404")}
        missing = {"inputs": good["inputs"][:2]}
        nan = json.loads(request([None], [1.0], ["UA"]))
        for body, code, says in (
            (b"\xff", "INVALID_ARGUMENT", "the body must be a ModelInferRequest"),
            (messages.ask("late", "", missing), "INVALID_ARGUMENT", "inputs 'carrier' are missing"),
            (messages.ask("late", "", nan), "INVALID_ARGUMENT", "must have finite numbers, got NaN in row 0"),
            (messages.ask("early", "", good), "NOT_FOUND", "unknown model 'early'"),
            (messages.ask("late", "8", good), "NOT_FOUND", "unknown version '8'"),
            (BODY + b"\0" * 200_000, "RESOURCE_EXHAUSTED", "larger than max"),
        ):
            found = stub.infer(body)
            assert (found.code, says in found.says) == (code, True), found
        assert stub.infer().code == "OK"
        now = {s: rest.metric("ml_server_requests_total", status=s) for s in counted}
        assert {s: now[s] - counted[s] for s in now} == {"200": 1, "400": 3, "404": 2}
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            stub.channel.unary_unary(f"/{messages.SERVICE}/RepositoryModelUnload")(b"")

    def test_who_does_not_wait_is_not_the_model_s_fault(self, both: tuple[Server, Stub]) -> None:
        rest, stub = both
        deadline = time.monotonic() + 30
        while not rest.metric("ml_server_requests_total", status="499"):
            assert time.monotonic() < deadline
            stub.infer(timeout=0.1)
        assert not rest.metric("ml_server_requests_total", status="500")

    def test_sigterm_finishes_what_is_in_flight(self, python: str, model: ModelRef, tmp_path: Path) -> None:
        with server(python, model, tmp_path, "--max-delay-ms=1000", "--linger-s=0.3") as (found, stub):
            waiting, said = stub.begin(), []
            found.process.send_signal(signal.SIGTERM)
            while (late := stub.is_ready()) != "UNAVAILABLE":
                said.append(late)
            assert said[-1] == "False"
            assert not waiting.done()
            assert settled(waiting).code == "OK"
            assert found.process.wait(30) == 0


@pytest.fixture(scope="module")
def shared(
    python: str, model: ModelRef, contrarian: ModelRef, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Stub]]:
    """A gateway with two versions, the second of which is the opposite of the first and slower."""
    root = tmp_path_factory.mktemp("services")
    service = Service(root, python, grpc_port=0)
    service.want("1", {"1": version(model, 80), "2": version(contrarian, 20, max_delay_ms=10)})
    service.until_ready()
    stub = Stub(urlsplit(launch.find(root, "late").grpc).netloc)  # type: ignore[union-attr]
    yield service, stub
    stub.channel.close()
    launch.stop(root, "late")


def live(service: Service) -> dict[str, Any]:
    return {name: body["live"] for name, body in service.client.stats()["versions"].items()}


class TestGateway:
    def test_a_canary_is_one(self, shared: tuple[Service, Stub]) -> None:
        service, stub = shared
        before, count, share = live(service), 500, 0.2
        with ThreadPoolExecutor(8) as pool:
            found = Counter(answer.version for answer in pool.map(lambda _: stub.infer(), range(count)))
        spread = (count * share * (1 - share)) ** 0.5
        assert abs(found["2"] - count * share) < 5 * spread  # once in two million runs by chance
        after = live(service)
        for name in ("1", "2"):
            assert after[name]["requests"] - before[name]["requests"] == found[name]
            for what in ("latency", "scores"):
                rows = 1 if what == "latency" else 2
                assert sum(after[name][what]["counts"]) - sum(before[name][what]["counts"]) == rows * found[name]

    def test_a_key_keeps_its_version_whatever_the_protocol(self, shared: tuple[Service, Stub]) -> None:
        service, stub = shared
        by = {key: {stub.infer(x_sticky_key=key).version for _ in range(2)} for key in map(str, range(20))}
        assert {len(versions) for versions in by.values()} == {1}
        assert {v for versions in by.values() for v in versions} == {"1", "2"}
        for key, versions in list(by.items())[:10]:
            assert {service.client.predict(ROWS, sticky_key=key).version} == versions

    def test_a_version_can_be_asked_by_name(self, shared: tuple[Service, Stub]) -> None:
        service, stub = shared
        direct = service.client.stats()["versions"]["2"]["direct"]["requests"]
        found = stub.infer(messages.ask("late", "2", json.loads(request(*ROWS.values()))))
        rest: Prediction = service.client.predict(ROWS, version="2")
        assert (found.version, found.scores) == ("2", pytest.approx(rest.scores, abs=1e-7))
        assert "model;dur=" in found.timing
        assert service.client.stats()["versions"]["2"]["direct"]["requests"] == direct + 2
        assert stub.ask("ModelReady", name="late", version="2").ready
        assert not stub.ask("ModelReady", name="late", version="3").ready
        assert list(stub.ask("ModelMetadata", name="late", version="2").versions) == ["2"]
        assert stub.ask("ServerReady").ready

    def test_wrong_requests_are_their_sender_s_fault(self, shared: tuple[Service, Stub]) -> None:
        service, stub = shared
        before = live(service)
        good = json.loads(request(*ROWS.values()))
        found = stub.infer(messages.ask("late", "", {"inputs": good["inputs"][1:]}))
        assert (found.code, "'distance' are missing" in found.says) == ("INVALID_ARGUMENT", True)
        assert stub.infer(messages.ask("early", "", good)).code == "NOT_FOUND"
        assert stub.infer(messages.ask("late", "9", good)).code == "NOT_FOUND"
        assert stub.infer(b"\0" * (17 * 2**20)).code == "RESOURCE_EXHAUSTED"
        after = live(service)
        assert sum(after[v]["rejected"] - before[v]["rejected"] for v in after) == 1
        assert sum(after[v]["requests"] - before[v]["requests"] for v in after) == 1
        assert {v: one["errors"] for v, one in after.items()} == {v: one["errors"] for v, one in before.items()}

    def test_who_does_not_wait_hides_no_slow_version(self, shared: tuple[Service, Stub]) -> None:
        service, stub = shared
        direct = messages.ask("late", "2", json.loads(request(*ROWS.values())))
        before = service.client.stats()["versions"]["2"]["direct"]
        pid = service.client.status().versions["2"].pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        try:
            assert stub.infer(direct, timeout=0.5).code == "DEADLINE_EXCEEDED"
        finally:
            os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + 30
        while (after := service.client.stats()["versions"]["2"]["direct"])["requests"] == before["requests"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert after["latency"]["sum_ms"] - before["latency"]["sum_ms"] >= 300

    def test_a_load_test(self, shared: tuple[Service, Stub], model: ModelRef, tmp_path: Path) -> None:
        """Versions share the requests; what the model does not take is no load test; a missing model is said."""
        service, _ = shared
        rows = packages.dataset(tmp_path / "rows.parquet", packages.rows(50))
        spec = LoadTestSpec(
            model=model, output=str(tmp_path / "out"), protocol="grpc", requests=rows.uri,
            url=launch.find(service.root, "late").grpc,  # type: ignore[union-attr]
            profile=LoadProfile(rate=100, seconds=1, warmup_s=0, max_lag_ms=5000),
        )  # fmt: skip
        before = live(service)
        found = json.loads(Path(run(spec, RunInfo()).outputs[0].uri).read_text(encoding="utf-8"))
        assert found["target"] == {"url": spec.url, "protocol": "grpc", "versions": ["1", "2"], "own": False}
        assert found["metrics"]["error_rate"]["value"] == 0
        assert {"queue", "pre", "model", "post"} <= {part["name"] for part in found["parts"]}
        asked = sum(after["requests"] - before[name]["requests"] for name, after in live(service).items())
        assert asked == found["judged"]["requests"] + 1  # the first looked whether the service is there
        (tmp_path / "wrong.jsonl").write_text(json.dumps({"request": {"inputs": []}}), encoding="utf-8")
        with pytest.raises(DataError, match=r"refuses the requests of .*: status INVALID_ARGUMENT"):
            run(replace(spec, requests=str(tmp_path / "wrong.jsonl")), RunInfo())
        with pytest.raises(DataError, match="NOT_FOUND unknown model 'early'"):
            run(replace(spec, service="early", model=replace(model, uri=str(tmp_path / "nowhere"))), RunInfo())

    def test_a_load_test_by_tls(
        self, shared: tuple[Service, Stub], model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a service behind a proxy whose certificate is that of an authority of one's own."""
        service, _ = shared
        certificate, key = self_signed(tmp_path / "authority.pem")
        with encrypted(launch.find(service.root, "late").grpc, certificate, key) as url:  # type: ignore[union-attr]
            spec = LoadTestSpec(
                model=model, output=str(tmp_path / "out"), protocol="grpc", url=url,
                requests=packages.dataset(tmp_path / "rows.parquet", packages.rows(50)).uri,
                profile=LoadProfile(rate=50, seconds=1, warmup_s=0, max_lag_ms=5000),
            )  # fmt: skip
            monkeypatch.delenv("SSL_CERT_FILE", raising=False)
            with pytest.raises(Unavailable, match=r"grpcs://127.0.0.1:\d+ did not answer .* within 2 s: .*UNAVAILABLE"):
                run(replace(spec, start_s=2), RunInfo())
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            found = json.loads(Path(run(spec, RunInfo()).outputs[0].uri).read_text(encoding="utf-8"))
        assert found["metrics"]["error_rate"]["value"] == 0
        assert found["judged"]["requests"] > 20

    @pytest.mark.parametrize("code", [TRITON, KSERVE], ids=["triton", "kserve"])
    def test_its_own_client(self, shared: tuple[Service, Stub], clients: str, code: str) -> None:
        service, _ = shared
        target = urlsplit(launch.find(service.root, "late").grpc).netloc  # type: ignore[union-attr]
        done = subprocess.run([clients, "-c", code, target, json.dumps(ROWS)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        expected = service.client.predict(ROWS, version="1").scores
        found = json.loads(done.stdout)
        assert found
        assert found == [pytest.approx(expected, abs=1e-7)] * len(found)

    def test_one_that_dies_is_not_seen_by_users(self, shared: tuple[Service, Stub]) -> None:
        service, stub = shared
        key = next(key for key in map(str, range(500)) if stub.infer(x_sticky_key=key).version == "2")
        before = service.client.stats()["versions"]["2"]["fallbacks"]
        os.kill(service.client.status().versions["2"].pid, signal.SIGKILL)  # type: ignore[arg-type]
        assert [stub.infer(x_sticky_key=key).version for _ in range(5)] == ["1"] * 5
        assert service.client.stats()["versions"]["2"]["fallbacks"] == before + 5
        service.until(lambda status: status.versions["2"].restarts and status.versions["2"].ready)
        assert stub.infer(x_sticky_key=key).version == "2"  # at its new port

    def test_copies_the_log_and_the_last_request(self, shared: tuple[Service, Stub], model: ModelRef) -> None:
        """In the end the gateway stops, and answers what it had begun with."""
        service, stub = shared
        old = service.client.wanted().versions
        wanted = {"1": replace(old["1"], percent=100), "2": replace(old["2"], percent=0, mirror=100)}
        service.want("1", wanted, log_percent=100)
        found = stub.infer()
        assert found.version == "1"
        deadline = time.monotonic() + 30
        while not (stats := service.client.stats()["versions"]["2"])["compared"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert (stats["compared"], stats["agreed"]) == (1, 0)  # the other model says the opposite
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(launch.stop, service.root, "late")
            codes = Counter[str]()
            while not stopping.done():
                codes[stub.infer(timeout=10).code] += 1
        assert codes["OK"]
        assert codes["UNAVAILABLE"]
        assert codes.total() - codes["OK"] - codes["UNAVAILABLE"] <= 1  # CANCELLED at the very moment
        files = (service.root / "late" / folders.PREDICTIONS).glob("*.jsonl")
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert {line["traffic"] for line in lines} == {"live", "mirror"}
        first = next(line for line in lines if line["traffic"] == "live")
        assert [one["data"] for one in first["request"]["inputs"]] == [*ROWS.values()]
        assert first["response"]["outputs"][0]["data"] == pytest.approx(found.scores)
        assert first["response"]["id"] == "x"
        example = next(line for line in lines if "user" in line)
        assert (example["traffic"], example["version"], example["user"]["version"]) == ("mirror", "2", "1")
        assert example["user"]["response"]["outputs"][0]["data"] == pytest.approx(found.scores)


def test_a_python_without_the_libraries(tmp_path: Path, python: str) -> None:
    bare = tmp_path / "bare"
    (tmp_path / "grpc.py").write_text("raise ModuleNotFoundError(\"No module named 'grpc'\")")
    bare.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}:$PYTHONPATH exec "{python}" "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(MissingLibrary, match=r"pip install 'airflow-ml-provider\[serving,grpc\]'"):
        launch.start(tmp_path / "root", "late", python=str(bare), grpc_port=0)
