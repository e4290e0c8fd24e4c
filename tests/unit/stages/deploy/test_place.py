"""A place as it comes from a DAG file."""

from __future__ import annotations

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy import place
from airflow_ml_provider.stages.deploy.service import Observed, Service, Version

SERVICE = Service("one", Version("v1", ModelRef("m", "/m", "sha256:m")))


def test_grpc_is_asked_for_by_a_port() -> None:
    found = place.resolve({"local": {"root": "/srv", "grpc_port": 0}})
    assert found == place.Local("/srv", grpc_port=0)
    assert place.resolve(place.encode(found)) == found
    assert place.resolve({"local": {"root": "/srv"}}).grpc_port is None  # type: ignore[union-attr]
    with pytest.raises(SpecError, match=r"grpc_port must be in \[0, 65535\], got 65536"):
        place.Local("/srv", grpc_port=65536)


def test_a_result_links_to_the_addresses_that_there_are() -> None:
    assert Observed(SERVICE, "1", {}, "http://a:1").links == {"service": "http://a:1"}
    both = Observed(SERVICE, "1", {}, "http://a:1", "grpc://a:2")
    assert both.links == {"service": "http://a:1", "grpc": "grpc://a:2"}
