"""The place in memory fulfils the contract of all places."""

from __future__ import annotations

import pytest

from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.service import Service, Version
from airflow_ml_provider.testing.serving import Behaviour, MemoryServing, ServingContract


class TestMemory(ServingContract):
    @pytest.fixture
    def place(self):
        return MemoryServing()

    @pytest.fixture
    def version(self):
        return lambda name: Version(name, ModelRef("m", f"models/{name}", f"sha256:{name}"))

    @pytest.fixture
    def rows(self):
        return {"x": [1.0, 2.0]}

    def ask_as(self, place, name, rows, key):
        return place.predict(name, rows, key=key)[1]

    def test_it_behaves_as_it_is_told(self, place, version):
        place.behaviours["v2"] = Behaviour(error_rate=1.0)
        place.put(Service("one", version("v1"), version("v2"), percent=50, mirror=100))
        place.serve("one", 1000)
        counted = {name: servers["memory"] for name, servers in place.readings("one").items()}
        assert counted["v1"].errors == 0
        assert counted["v2"].requests == counted["v2"].errors == 1000
        assert 400 < counted["v1"].requests < 600
