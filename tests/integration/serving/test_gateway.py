"""A gateway and its servers as real processes: who answers, and what survives what."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import Conflict, DataError, MissingLibrary, SpecError, Unavailable
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.serving import folder as folders
from airflow_ml_provider.serving import launch
from airflow_ml_provider.serving.spec import Wanted

from .conftest import PATIENCE_S, Service, version

INPUTS = {"distance": [500.0], "hour": [20.0], "carrier": ["UA"]}


def answers(service: Service, count: int, **options: Any) -> Counter[str]:
    with ThreadPoolExecutor(4) as pool:
        return Counter(pool.map(lambda _: service.client.predict(INPUTS, **options).version, range(count)))


def alive(pid: int | None) -> bool:
    return bool(pid and folders.process_start(pid))


class TestTraffic:
    def test_split(self, service: Service, model: ModelRef, contrarian: ModelRef) -> None:
        service.want("1", {"1": version(model, 90), "2": version(contrarian, 10)})
        service.until_ready()
        count, share = 1500, 0.1
        found = answers(service, count)
        assert sum(found.values()) == count
        spread = (count * share * (1 - share)) ** 0.5
        assert abs(found["2"] - count * share) < 5 * spread  # once in two million runs by chance
        status = service.client.status()
        assert status.versions["2"].actual_percent == pytest.approx(100 * found["2"] / count, abs=0.01)
        stats = service.client.stats()["versions"]
        assert {name: body["live"]["requests"] for name, body in stats.items()} == found
        assert sum(stats["2"]["live"]["latency"]["counts"]) == sum(stats["2"]["live"]["scores"]["counts"]) == found["2"]
        keys = {
            str(key): {service.client.predict(INPUTS, sticky_key=str(key)).version for _ in range(3)}
            for key in range(60)
        }
        assert {len(versions) for versions in keys.values()} == {1}
        assert {v for versions in keys.values() for v in versions} == {"1", "2"}
        assert answers(service, 5, version="2") == {"2": 5}
        assert service.client.stats()["versions"]["2"]["direct"]["requests"] == 5
        self._check_metrics(service)

    def _check_metrics(self, service: Service) -> None:
        url = urlsplit(launch.find(service.root, "late").url)  # type: ignore[union-attr]
        connection = http.client.HTTPConnection(url.hostname or "", url.port)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        found = {
            sample.labels["version"]: sample.value
            for sample in samples
            if sample.name == "ml_gateway_requests_total" and sample.labels["traffic"] == "live"
        }
        stats = service.client.stats()["versions"]
        assert found == {name: body["live"]["requests"] for name, body in stats.items()}

    def test_a_mirror_changes_no_answer(self, service: Service, model: ModelRef, contrarian: ModelRef) -> None:
        service.want("1", {"1": version(model, 100), "2": replace(version(contrarian), mirror=100)})
        service.until_ready()
        expected = service.client.predict(INPUTS).scores
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: service.client.predict(INPUTS), range(200)))
        assert {(one.version, one.scores) for one in found} == {("1", expected)}

        def copied() -> int:
            stats = service.client.stats()["versions"]["2"]
            return stats["mirror"]["requests"] + stats["mirror_dropped"]

        service.until(lambda status: copied() == 201)
        stats = service.client.stats()["versions"]
        assert stats["2"]["live"]["requests"] == 0
        low, high = (
            next(at for at, n in enumerate(stats[name][kind]["scores"]["counts"]) if n)
            for name, kind in (("2", "mirror"), ("1", "live"))
        )
        assert low < high  # the copies were scored, by the other model
        compared = stats["2"]["mirror"]["requests"]
        assert (stats["2"]["compared"], stats["2"]["agreed"]) == (compared, 0)

    def test_a_timeout(self, service: Service, model: ModelRef) -> None:
        service.want("1", {"1": version(model, 100, max_delay_ms=1000)}, timeout_s=0.2)
        with pytest.raises(Unavailable, match=r"504 version '1' did not answer within 0\.2 s"):
            service.client.predict(INPUTS)
        assert service.client.stats()["versions"]["1"]["live"]["errors"]["timeout"] == 1

    def test_wrong_requests_are_their_sender_s_fault(self, service: Service, model: ModelRef) -> None:
        with pytest.raises(Unavailable, match="503 service 'late' has no versions"):
            service.client.predict(INPUTS)
        service.want("1", {"1": version(model, 100, nan="reject")})
        with pytest.raises(DataError, match="inputs 'distance', 'carrier' are missing"):
            service.client.predict({"hour": [1.0]})
        with pytest.raises(DataError, match="must have finite numbers"):
            service.client.predict({**INPUTS, "hour": [None]})
        with pytest.raises(SpecError, match="404 unknown version '3'; Known: 1"):
            service.client.predict(INPUTS, version="3")
        with pytest.raises(SpecError, match=r"404 unknown version '1\\n'"):
            service.client.predict(INPUTS, version="1\n")
        with pytest.raises(DataError, match="413 the body must have at most 16777216 bytes"):
            service.client.predict({**INPUTS, "carrier": ["x" * 17_000_000]})
        stats = service.client.stats()["versions"]["1"]["live"]
        assert (stats["rejected"], stats["errors"]) == (2, {"5xx": 0, "timeout": 0, "connection": 0})

    def test_prediction_log(self, service: Service, model: ModelRef) -> None:
        service.want("1", {"1": version(model, 100)}, log_percent=100)
        made = [service.client.predict({**INPUTS, "hour": [float(n)]}, request_id=str(n)) for n in range(20)]
        launch.stop(service.root, "late")
        files = list((service.root / "late" / folders.PREDICTIONS).glob("*.jsonl"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert {line["response"]["id"]: line["response"]["outputs"][0]["data"] for line in lines} == {
            one.id: list(one.scores) for one in made
        }
        assert {line["request"]["inputs"][1]["data"][0] for line in lines} == set(map(float, range(20)))
        assert {(line["version"], line["traffic"]) for line in lines} == {("1", "live")}


class TestCandidates:
    def test_one_that_is_not_the_model(self, service: Service, model: ModelRef) -> None:
        bad = replace(version(model, 50), digest="sha256:" + "0" * 64)
        service.want("1", {"1": version(model, 50), "2": bad})
        status = service.until(lambda status: status.versions["2"].state == "failed").versions["2"]
        assert (status.ready, status.pid, status.restarts, status.observed_generation) == (False, None, 0, 0)
        assert "IntegrityError" in status.reason
        assert "it was changed" in status.reason
        assert answers(service, 40) == {"1": 40}
        stats = service.client.stats()["versions"]["2"]
        assert 0 < stats["fallbacks"] < 40
        assert stats["live"]["requests"] == 0

    def test_a_crash_loop_is_reported(self, service: Service, model: ModelRef) -> None:
        python = service.root / "python"
        python.write_text("#!/bin/sh\necho one >&2\necho 'out of luck' >&2\nexit 3\n")
        python.chmod(0o755)
        service.want("1", {"1": version(model, 100), "2": version(model, python=str(python))})
        status = service.until(lambda status: status.versions["2"].state == "crash_loop").versions["2"]
        assert status.restarts >= 2
        assert status.reason == "exit code 3; last lines:\none\nout of luck"
        missing = service.want("1", {"1": version(model, 100), "3": version(model, python="/no/python")})
        status = service.until(lambda status: status.versions["3"].state == "failed").versions["3"]
        assert "No such file or directory: '/no/python'" in status.reason
        assert service.client.wanted() == missing

    def test_killed_ones_come_back_and_users_do_not_see_it(self, service: Service, model: ModelRef) -> None:
        service.want("1", {"1": version(model, 50), "2": version(model, 50)})
        before = service.until_ready().versions["2"]
        stop, found = threading.Event(), []

        def ask() -> None:
            while not stop.is_set():
                found.append(service.client.predict(INPUTS).version)

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            try:
                time.sleep(0.5)
                os.kill(before.pid, signal.SIGKILL)  # type: ignore[arg-type]
                after = service.until(lambda status: status.versions["2"].restarts == 1 and status.versions["2"].ready)
            finally:
                stop.set()
            for one in asking:
                one.result()  # no user saw an error
        assert after.versions["2"].pid != before.pid
        assert Counter(found).keys() == {"1", "2"}
        assert service.client.stats()["versions"]["2"]["fallbacks"] > 0

    def test_one_that_hangs_is_replaced(self, service: Service, model: ModelRef) -> None:
        service.want("1", {"1": version(model, 100)})
        pid = service.until_ready().versions["1"].pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        status = service.until(lambda status: status.versions["1"].pid not in (pid, None)).versions["1"]
        assert status.restarts == 1
        service.until_ready()

    def test_a_killed_stable_one_is_unavailable_only_for_a_while(self, service: Service, model: ModelRef) -> None:
        service.want("1", {"1": version(model, 100)})
        os.kill(service.until_ready().versions["1"].pid, signal.SIGKILL)  # type: ignore[arg-type]
        with pytest.raises(Unavailable):
            answers(service, 1000)
        service.until_ready()
        assert answers(service, 10) == {"1": 10}


class TestWanted:
    def test_nobody_overwrites_what_they_have_not_seen(self, service: Service, model: ModelRef) -> None:
        first = service.want("1", {"1": version(model, 100)}, rollout={"step": 1})
        with pytest.raises(Conflict, match="409 generation is 1 by now, not 0"):
            service.client.apply(replace(first, generation=0))
        assert self._put(service, first, {"If-Match": '"0"'})[0] == 412
        assert self._put(service, first, {"If-Match": '"1"'})[0] == 200
        assert self._put(service, first, {"Authorization": "Bearer x"})[0] == 401
        assert self._put(service, first, {"Authorization": ""})[0] == 401
        with pytest.raises(SpecError, match="422 max_batch of version '1' must stay 64"):
            service.client.update(lambda w: replace(w, versions={"1": version(model, 100, max_batch=1)}))
        present = service.client.wanted()
        assert present == replace(first, generation=2)
        assert service.until_ready().versions["1"].observed_generation == 2

    def test_those_who_do_not_give_up_all_get_through(self, service: Service) -> None:
        def add(number: int) -> None:
            service.client.update(lambda w: replace(w, rollout={**w.rollout, str(number): True}), tries=100)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(add, range(24)))
        assert set(service.client.wanted().rollout) == set(map(str, range(24)))

    def _put(self, service: Service, wanted: Wanted, headers: dict[str, str]) -> tuple[int, bytes]:
        address = launch.find(service.root, "late")
        assert address is not None
        admin = urlsplit(address.admin)
        connection = http.client.HTTPConnection(admin.hostname or "", admin.port)
        body = json.dumps(codec.encode(wanted))
        connection.request("PUT", "/admin/wanted", body, {"Authorization": f"Bearer {address.token}", **headers})
        response = connection.getresponse()
        found = response.status, response.read()
        connection.close()
        return found

    def test_one_that_leaves_under_load_loses_no_request(self, service: Service, model: ModelRef) -> None:
        service.want("1", {"1": version(model, 50), "2": version(model, 50, max_delay_ms=20)})
        before = service.until_ready()
        stop, found = threading.Event(), []

        def ask() -> None:
            while not stop.is_set():
                found.append(service.client.predict(INPUTS).version)

        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(ask) for _ in range(8)]
            try:
                time.sleep(0.5)
                service.want("1", {"1": version(model, 100)})
                while alive(before.versions["2"].pid):
                    time.sleep(0.05)
            finally:
                stop.set()
            for one in asking:
                one.result()
        assert Counter(found).keys() == {"1", "2"}
        assert service.client.status().versions.keys() == {"1"}
        log = (service.root / "late" / folders.LOG).read_text()
        assert "version 2 is down" not in log  # it left by itself


class TestGateways:
    def test_a_killed_one_leaves_nothing_behind_and_goes_on(self, service: Service, model: ModelRef) -> None:
        wanted = service.want("1", {"1": version(model, 80), "2": version(model, 20)}, rollout={"step": [1, 2]})
        before, address = service.until_ready(), launch.find(service.root, "late")
        assert address is not None
        os.kill(before.pid, signal.SIGKILL)
        while any(alive(pid) for pid in (before.pid, *(one.pid for one in before.versions.values()))):
            time.sleep(0.05)
        with pytest.raises(Unavailable, match="no gateway of service 'late' runs"):
            service.client.status()
        service.restart()
        after = service.until_ready()
        assert service.client.wanted() == wanted
        assert after.pid != before.pid
        assert (after.generation, after.rollout) == (before.generation, before.rollout)
        assert launch.find(service.root, "late").url == address.url  # type: ignore[union-attr]
        assert answers(service, 10).total() == 10

    def test_never_two(self, tmp_path: Path, python: str) -> None:
        try:
            with ThreadPoolExecutor(4) as pool:
                clients = list(pool.map(lambda _: launch.start(tmp_path, "late", python=python), range(4)))
            assert len({client.status().pid for client in clients}) == 1
        finally:
            assert launch.stop(tmp_path, "late")
        assert launch.find(tmp_path, "late") is None

    def test_it_outlives_who_started_it(self, tmp_path: Path, python: str) -> None:
        """And all of that one's process group, which is what Airflow kills."""
        code = (
            "import pathlib, sys, os, signal\n"
            "from airflow_ml_provider.serving import launch\n"
            "launch.start(pathlib.Path(sys.argv[1]), 'late', python=sys.argv[2])\n"
            "os.killpg(0, signal.SIGKILL)\n"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), python], env=env, start_new_session=True)
        assert done.returncode == -signal.SIGKILL
        try:
            assert launch.start(tmp_path, "late", python="/no/python").status().generation == 0  # found, not started
        finally:
            assert launch.stop(tmp_path, "late")

    def test_stopping_loses_no_request(self, service: Service, model: ModelRef) -> None:
        service.want("1", {"1": version(model, 100, max_delay_ms=1000)})
        pid = service.until_ready().versions["1"].pid
        url = urlsplit(launch.find(service.root, "late").url)  # type: ignore[union-attr]
        kinds = {"carrier": "BYTES"}
        body = json.dumps(
            {
                "inputs": [
                    {"name": n, "shape": [1, 1], "datatype": kinds.get(n, "FP32"), "data": v} for n, v in INPUTS.items()
                ]
            }
        )
        waiting = [http.client.HTTPConnection(url.hostname or "", url.port, timeout=60) for _ in range(8)]
        for one in waiting:
            one.request("POST", "/v2/models/late/infer", body)
        assert service.client.status().ready  # sent later, so by now the gateway has read the others, too
        assert launch.stop(service.root, "late")
        for one in waiting:
            response = one.getresponse()
            assert (response.status, response.headers["x-model-version"]) == (200, "1")
            response.read()
            one.close()
        assert not alive(pid)

    def test_what_it_cannot_read_is_said(self, tmp_path: Path, python: str) -> None:
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "wanted.json").write_text("{")
        with pytest.raises(SpecError, match=r"wanted\.json holds no wanted state"):
            launch.start(tmp_path, "late", python=python)

    def test_a_python_without_the_libraries(self, tmp_path: Path) -> None:
        bare = tmp_path / "bare"
        bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        bare.chmod(0o755)
        with pytest.raises(MissingLibrary, match=r"pip install 'airflow-ml-provider\[serving\]'"):
            launch.start(tmp_path, "late", python=str(bare))


def test_kserve_s_own_client(service: Service, model: ModelRef, clients: str) -> None:
    """Whoever speaks the protocol to KServe's servers can speak it to ours."""
    code = """
import asyncio, sys
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def main(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url) and await client.is_server_ready(url)
    assert await client.is_model_ready(url, "late")
    inputs = [InferInput(name, [2, 1], kind, data) for name, kind, data in (
        ("distance", "FP32", [500.0, 700.0]), ("hour", "FP32", [20.0, 8.0]), ("carrier", "BYTES", ["UA", "B6"]))]
    found = await client.infer(url, InferRequest("late", inputs, request_id="x"), model_name="late")
    print(found.id, found.outputs[0].data)

asyncio.run(main(sys.argv[1]))
"""
    service.want("1", {"1": version(model, 100)})
    address = launch.find(service.root, "late")
    assert address is not None
    done = subprocess.run([clients, "-c", code, address.url], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    rows = {"distance": [500.0, 700.0], "hour": [20.0, 8.0], "carrier": ["UA", "B6"]}
    name, _, scores = done.stdout.partition(" ")
    assert name == "x"
    assert json.loads(scores) == list(service.client.predict(rows).scores)
