"""The registry over a connection."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

pytest.importorskip("airflow.sdk")
pytest.importorskip("mlflow")

from airflow_ml_provider.hooks.registry import RegistryHook
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
JAN = datetime(2013, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def hook(tracking_uri, monkeypatch):
    monkeypatch.setenv(
        "AIRFLOW_CONN_ML", json.dumps({"conn_type": "mlflow", "host": tracking_uri, "password": "t0ken"})
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return RegistryHook("ml")


def test_holder_journal_and_rollback(hook, tmp_path):
    registry = hook.get_conn()
    for i in (1, 2):
        ref = packages.package(tmp_path / str(i), seed=i)
        ref = registry.register("late", Path(ref.uri), ref, {"airflow_ml.identity": str(i)}, "candidate")
        registry.move(
            "late", "champion", ref, action="promote", info=RunInfo("d", "p", str(i)),
            effective_from=JAN.replace(day=i), expected=str(i - 1) if i > 1 else None,
        )  # fmt: skip
    assert hook.holder("late").version == "2"
    assert hook.holder("late", at=JAN).version == "1"
    assert [entry.version for entry in hook.journal("late")] == ["1", "2"]
    result = hook.rollback("late", RunInfo("ui", "page", "ann"), reason="alarms")
    assert (result.moved, hook.holder("late").version) == (True, "1")
    assert hook.journal("late")[-1].reason == "alarms"
    assert hook.holder("nobody") is None


def test_its_credentials_do_not_stay_in_the_process(hook):
    hook.get_conn().models()
    assert "MLFLOW_TRACKING_TOKEN" not in os.environ
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_test_button(hook):
    assert hook.test_connection()[0]
