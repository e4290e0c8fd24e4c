"""What is known of a gateway before it is asked anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.serving import folder as folders
from airflow_ml_provider.serving import launch


def test_a_gateway_that_was_started_without_grpc_says_so(tmp_path: Path) -> None:
    place, pid = folders.place(tmp_path, "late"), os.getpid()
    place.mkdir()
    url = "http://127.0.0.1:9"
    folders.write_address(place, folders.Address("late", pid, folders.process_start(pid), url, url, "token"))
    with pytest.raises(SpecError, match="the gateway of service 'late' was started without gRPC: end it"):
        launch.start(tmp_path, "late", grpc_port=0)
