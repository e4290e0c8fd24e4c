"""The operator of releases: its key reaches the stage and nothing else."""

from __future__ import annotations

import json

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from airflow_ml_provider import models
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.edge import OtaReleaseOperator
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.edge import release, sign
from airflow_ml_provider.testing.context import context

DAY = Interval.from_key("2013-01-05")


def operator(folder, **settings):
    model = ModelRef("late", str(folder / "package"), "sha256:one", version="7")
    return OtaReleaseOperator(task_id="release", model=model, target=str(folder / "releases"), **settings)


def test_it_publishes(tmp_path, monkeypatch):
    made = Ed25519PrivateKey.generate()
    key = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    monkeypatch.setenv("AIRFLOW_CONN_EDGE_SIGNING", json.dumps({"conn_type": "generic", "password": key}))
    monkeypatch.setattr(models, "verify", lambda folder, ref: folder)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "model.onnx").write_text("one")
    value = operator(tmp_path, percent="25").execute(context(DAY))
    found = release.current(tmp_path / "releases", sign.public_key(key))
    assert (found.percent, found.target.version, found.sequence) == (25.0, "7", 1)
    assert value["release"]["digest"].startswith("sha256:")
    secret = key.splitlines()[1]
    assert secret not in json.dumps(value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and secret in p.read_text(errors="replace")]


def test_no_key(tmp_path):
    with pytest.raises(AirflowFailException, match="connection 'edge_signing' is not defined"):
        operator(tmp_path).execute(context(DAY))
