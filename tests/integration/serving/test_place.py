"""This machine as a place that serves, by the contract of all places and in a whole rollout with real requests."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from dataclasses import replace

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("onnx")
pytest.importorskip("pyarrow")
pytest.importorskip("aiohttp")

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.serving import launch
from airflow_ml_provider.serving.client import Client
from airflow_ml_provider.serving.place import LocalServing
from airflow_ml_provider.stages.deploy.place import Local
from airflow_ml_provider.stages.deploy.service import Server, Service, Version
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.serving import ServingContract


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {f"v{n}": packages.package(folder / str(n), seed=n) for n in (1, 2)}


@pytest.fixture
def place(tmp_path):
    found = LocalServing(Local(str(tmp_path / "services"), python=sys.executable))
    yield found
    for folder in (tmp_path / "services").glob("*"):
        launch.stop(tmp_path / "services", folder.name)


class TestContract(ServingContract):
    @pytest.fixture
    def place(self, place):
        return place

    @pytest.fixture
    def version(self, models):
        return lambda name: Version(name, models[name])

    @pytest.fixture
    def rows(self):
        return {"distance": [500.0, 2000.0], "hour": [8.0, 21.0], "carrier": ["AA", "UA"]}

    def ask_as(self, place, name, rows, key):
        return Client(place._root, name).predict(rows, sticky_key=key).version

    def test_a_gateway_that_was_killed_goes_on(self, place, version, rows):
        place.put(Service("one", version("v1")))
        seen = self.ready(place, "one")
        os.kill(launch.find(place._root, "one").pid, signal.SIGKILL)
        while launch.find(place._root, "one"):
            threading.Event().wait(0.05)
        assert self.ready(place, "one").wanted == seen.wanted
        assert place.predict("one", rows)[1] == "v1"

    def test_requests_are_counted_by_version_and_grpc_has_an_address(self, place, version, rows, tmp_path):
        pytest.importorskip("grpc")
        place = LocalServing(Local(str(tmp_path / "services"), python=sys.executable, grpc_port=0))
        place.put(Service("one", version("v1")))
        links = place.look("one").links
        assert links == {"service": launch.find(place._root, "one").url, "grpc": launch.find(place._root, "one").grpc}
        assert links["grpc"].startswith("grpc://127.0.0.1:")
        place.put(
            Service("one", version("v1"), version("v2"), percent=50, mirror=100), self.ready(place, "one").revision
        )
        self.ready(place, "one")
        by = [place.predict("one", rows)[1] for _ in range(40)]
        threading.Event().wait(1)  # copies are sent afterwards
        counted = {name: servers["gateway"] for name, servers in place.readings("one").items()}
        assert counted["v1"].requests == by.count("v1")
        assert counted["v2"].requests == 40
        assert counted["v2"].errors == 0
        assert counted["v2"].latency_s.total == 40
        assert counted["v2"].scores.total == 80

    def test_a_model_that_was_changed_is_never_served(self, place, version, tmp_path):
        changed = shutil.copytree(version("v1").model.uri, tmp_path / "changed")
        (changed / "model.onnx").write_bytes(b"something else")
        bad = Version("bad", replace(version("v1").model, uri=str(changed)))
        place.put(Service("one", version("v1")))
        place.put(Service("one", version("v1"), bad), self.ready(place, "one").revision)
        for _ in range(300):
            state = place.look("one").states["bad"]
            if state.phase != "waits":
                break
            threading.Event().wait(0.1)
        assert state.phase == "failed"
        assert "digest" in state.why
        assert place.look("one").states["v1"].phase == "ready"

    def test_what_this_machine_cannot_do_is_refused(self, place, version):
        with pytest.raises(SpecError, match="gpus of the server cannot be had on this machine"):
            place.put(Service("one", replace(version("v1"), server=Server(gpus=1))))
        with pytest.raises(SpecError, match="format must be onnx on this machine"):
            place.put(Service("one", replace(version("v1"), server=Server(format="sklearn"))))
