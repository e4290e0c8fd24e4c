"""What a server of a model may be told."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.deploy.server import Component, RequestLog, Scaling
from airflow_ml_provider.stages.deploy.service import Server

QUERY = {"by": "keda", "metric": "query", "target": 5, "query": "sum(waiting)", "address": "http://prometheus:9090"}


def test_no_replica_breaks_a_promise_of_latency() -> None:
    with pytest.raises(SpecError, match=r"replicas must be one at least with latency_slo_ms=200, got \(0, 4\)"):
        Server(replicas=(0, 4), scaling=Scaling(latency_slo_ms=200))
    assert Server(replicas=(0, 4)).scaling.latency_slo_ms is None
    assert Server(replicas=(1, 4), scaling=Scaling(latency_slo_ms=200))
    assert Server(replicas=(0, 4), scaling=Scaling(latency_slo_ms=200, cold_starts=True))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"target": 5}, "target must be None without a metric"),
        ({"metric": "cpu", "target": 0}, "target must be greater than 0"),
        ({"latency_slo_ms": -1}, "latency_slo_ms must be greater than 0"),
        ({"by": "keda"}, "by='keda' needs metric and target"),
        ({**QUERY, "address": ""}, "the metric 'query' needs query, address and target"),
        ({**QUERY, "metric": "cpu"}, "query and address must be empty unless"),
    ],
)
def test_scaling(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Scaling(**scaling)


def test_component_and_log() -> None:
    with pytest.raises(SpecError, match="image must be the name of an image"):
        Component("")
    with pytest.raises(SpecError, match="cpu must be greater than 0"):
        Component("i", cpu=0)
    with pytest.raises(SpecError, match="url must be one that begins with http"):
        RequestLog("s3://logs")


def test_as_plain_values() -> None:
    made = {
        "scaling": QUERY,
        "placement": {"node_selector": {"pool": "gpu"}, "tolerations": [{"key": "gpu"}]},
        "transformer": {"image": "t:1", "args": ["--a"]},
        "request_log": {"url": "http://logs"},
    }
    server = codec.decode(Server, made, "server")
    assert server.transformer == Component("t:1", args=("--a",))
    assert codec.decode(Server, codec.encode(server), "server") == server
