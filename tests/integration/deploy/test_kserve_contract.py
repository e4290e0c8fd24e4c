"""KServe fulfils the contract of places, on a real API server with the stand-in for its controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.service import Version
from airflow_ml_provider.testing.serving import ServingContract


class TestContract(ServingContract):
    @pytest.fixture
    def place(self, hook: Callable[..., Any], kserve: Callable[..., Any]) -> Any:
        return hook(mode="standard", address=kserve().address)

    @pytest.fixture
    def version(self) -> Callable[[str], Version]:
        return lambda name: Version(name, ModelRef("late", f"s3://models/late/{name}", f"sha256:{name}"))

    @pytest.fixture
    def rows(self) -> Any:
        return {"hour": [6.0, 18.0], "carrier": ["UA", "DL"]}
