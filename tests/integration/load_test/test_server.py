"""The load test against real servers: the package's own, and one over sockets that behaves as a test tells it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("sklearn")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("prometheus_client")
pytest.importorskip("pyarrow")

from aiohttp import web

from airflow_ml_provider.exceptions import IntegrityError, Unavailable
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages import run
from airflow_ml_provider.stages.load_test.spec import LoadProfile, LoadTestResult, LoadTestSpec
from airflow_ml_provider.testing import packages

INFO = RunInfo(interval=Interval.from_key("2013-01-05"))
# Busy machines make the generator late; what happens then is tested by itself.
QUICK = LoadProfile(rate=100, seconds=1, warmup_s=0, arrivals="constant", max_lag_ms=5000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return packages.package(tmp_path_factory.mktemp("models") / "1")


@pytest.fixture
def spec(model: ModelRef, tmp_path: Path) -> LoadTestSpec:
    rows = packages.dataset(tmp_path / "rows.parquet", packages.rows(50))
    return LoadTestSpec(model=model, output=str(tmp_path / "out"), requests=rows.uri, profile=QUICK)


def body(result: LoadTestResult) -> dict[str, Any]:
    assert result.report is not None
    assert result.report.html is not None
    assert "Where the time goes" in Path(result.report.html).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(Path(result.report.uri).read_text(encoding="utf-8"))
    return found


@contextmanager
def server(answer: Callable[[int], Any], *, one_by_one: bool = False) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve in a thread; `answer` gets the number of a request and gives seconds, or (seconds, status)."""
    loop, seen = asyncio.new_event_loop(), list[dict[str, Any]]()
    started = threading.Event()
    port = 0

    async def infer(request: web.Request) -> web.Response:
        seen.append({"at": time.monotonic(), **await request.json()})
        found = answer(len(seen))
        seconds, status = found if isinstance(found, tuple) else (found, 200)
        async with turn:
            await asyncio.sleep(seconds)
        return web.json_response({"outputs": []}, status=status)

    async def begin() -> web.AppRunner:
        nonlocal port, turn
        turn = asyncio.Semaphore(1 if one_by_one else 1000)
        app = web.Application()
        app.router.add_post("/v2/models/late/infer", infer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        return runner

    turn: asyncio.Semaphore

    def serve() -> None:
        nonlocal runner
        runner = loop.run_until_complete(begin())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    runner: web.AppRunner
    thread = threading.Thread(target=serve)
    thread.start()
    started.wait(30)
    try:
        yield f"http://127.0.0.1:{port}", seen
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_a_server_of_the_package(spec: LoadTestSpec) -> None:
    result = run(replace(spec, budget={"model": 5000.0}), INFO)
    found = body(result)
    assert (result.status, result.trusted) == ("ok", True)
    assert result.metrics["error_rate"] == 0
    assert result.metrics["cold_start_s"] > 0.1  # it has imported ONNX Runtime
    assert {part["name"] for part in found["parts"]} == {"wait", "network", "queue", "pre", "model", "post"}
    p50 = found["metrics"]["p50_ms"]
    assert p50["low"] <= p50["value"] <= p50["high"]
    assert found["model"]["digest"] == spec.model.digest
    assert found["target"]["own"]


class TestGrpc:
    @pytest.fixture(autouse=True)
    def needs(self) -> None:
        pytest.importorskip("grpc")
        pytest.importorskip("google.protobuf")

    def test_a_server_of_the_package(self, spec: LoadTestSpec) -> None:
        profile = replace(QUICK, ramp=(50.0, 100.0), ramp_s=0.5)
        result = run(replace(spec, protocol="grpc", profile=profile, budget={"model": 5000.0, "queue": 5000.0}), INFO)
        found = body(result)
        assert (result.status, result.trusted) == ("ok", True)
        assert result.metrics["error_rate"] == 0
        assert result.metrics["cold_start_s"] > 0.1
        assert {part["name"] for part in found["parts"]} == {"wait", "network", "queue", "pre", "model", "post"}
        assert found["target"] == {"url": "", "protocol": "grpc", "versions": [], "own": True}

    def test_nobody_is_there(self, spec: LoadTestSpec) -> None:
        with pytest.raises(Unavailable, match=r"did not answer a request within .*: status UNAVAILABLE"):
            run(replace(spec, protocol="grpc", url="grpc://127.0.0.1:9", start_s=0.3), INFO)


def test_another_package_is_not_tested(spec: LoadTestSpec) -> None:
    with pytest.raises(IntegrityError):
        run(replace(spec, model=replace(spec.model, digest="sha256:" + "0" * 64)), INFO)


def test_a_budget_that_is_exceeded_or_not_told_refuses(spec: LoadTestSpec) -> None:
    with server(lambda n: 0.0) as (url, _):
        result = run(replace(spec, url=url, budget={"model": 5.0}), INFO)
    assert result.status == "refused"
    assert "model is not told by the server" in result.reason
    assert "cold_start_s" not in result.metrics


def test_a_server_that_stalls_shows_in_the_tail(spec: LoadTestSpec) -> None:
    """Half a second of silence, one request at a time: those that were due meanwhile waited, and it is not hidden."""
    with server(lambda n: 0.5 if n == 30 else 0.0, one_by_one=True) as (url, _):
        result = run(replace(spec, url=url, profile=replace(QUICK, seconds=2, connections=1)), INFO)
    assert result.metrics["p95_ms"] > 250
    assert result.metrics["error_rate"] == 0


def test_a_server_that_fails_is_not_a_fast_one(spec: LoadTestSpec) -> None:
    with server(lambda n: (0.0, 500 if n > 1 and n % 10 == 0 else 200)) as (url, _):
        found = body(run(replace(spec, url=url), INFO))
    assert found["metrics"]["error_rate"]["value"] == pytest.approx(0.1, abs=0.02)
    assert found["metrics"]["p99_ms"]["value"] is None
    assert set(found["judged"]["errors"]) == {"status 500"}


def test_the_knee_of_a_server_with_a_known_capacity(spec: LoadTestSpec) -> None:
    """20 ms each, one after the other: 50 per second and no more."""
    profile = replace(QUICK, rate=10, ramp=(10.0, 20.0, 120.0), ramp_s=1, timeout_s=3)
    with server(lambda n: 0.02, one_by_one=True) as (url, _):
        result = run(replace(spec, url=url, profile=profile), INFO)
    assert result.knee == 20
    assert body(result)["knee"]["beyond"] == 120


def test_a_generator_that_fell_behind_does_not_vouch_for_its_figures(spec: LoadTestSpec) -> None:
    with server(lambda n: 0.0) as (url, _):
        result = run(replace(spec, url=url, profile=replace(QUICK, max_lag_ms=0.0001)), INFO)
    assert (result.status, result.trusted) == ("refused", False)
    assert "the generator fell behind" in result.reason


def test_recorded_requests_come_again_in_their_order_and_rhythm(spec: LoadTestSpec, tmp_path: Path) -> None:
    def line(second: float, value: float, traffic: str = "live") -> str:
        request = {"inputs": [{"name": "hour", "datatype": "FP32", "shape": [1, 1], "data": [value]}]}
        time_ = f"2013-01-05T10:00:{second:06.3f}+00:00"
        return json.dumps({"time": time_, "traffic": traffic, "milliseconds": 0, "request": request})

    log = tmp_path / "2013-01-05.jsonl"
    log.write_text("\n".join([line(2, 2), line(1, 1), line(1.5, 9, "mirror"), line(5, 3)]), encoding="utf-8")
    profile = LoadProfile(arrivals="recorded", speed=4, warmup_s=0, max_lag_ms=5000)
    with server(lambda n: 0.0) as (url, seen):
        result = run(replace(spec, url=url, requests=str(log), profile=profile), INFO)
    sent = seen[1:]  # the first looked whether the server is there
    assert [one["inputs"][0]["data"] for one in sent] == [[1], [2], [3]]
    assert sent[2]["at"] - sent[0]["at"] >= 0.9  # 4 s, four times as fast
    assert body(result)["rate"] == pytest.approx(3)


def test_a_service_that_starts_from_zero(spec: LoadTestSpec) -> None:
    with server(lambda n: (0.0, 503) if n < 4 else 0.0) as (url, _):
        result = run(replace(spec, url=url, scaled_to_zero=True), INFO)
    assert result.metrics["cold_start_s"] > 0


def test_nobody_is_there(spec: LoadTestSpec) -> None:
    with pytest.raises(Unavailable, match="did not answer a request within"):
        run(replace(spec, url="http://127.0.0.1:9", start_s=0.3), INFO)
