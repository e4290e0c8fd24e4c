"""The connection to MLflow, from connections as Airflow stores them."""

from __future__ import annotations

import json
import os

import pytest

pytest.importorskip("airflow.sdk")
pytest.importorskip("mlflow")

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.hooks.mlflow import MlflowHook
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


@pytest.fixture
def connect(monkeypatch):
    def make(**fields: object) -> MlflowHook:
        monkeypatch.setenv("AIRFLOW_CONN_ML", json.dumps({"conn_type": "mlflow", **fields}))
        return MlflowHook("ml")

    return make


@pytest.mark.parametrize(
    ("fields", "uri"),
    [
        ({"host": "mlflow"}, "http://mlflow"),
        ({"host": "mlflow", "port": 5000}, "http://mlflow:5000"),
        ({"host": "mlflow", "port": 5000, "schema": "https"}, "https://mlflow:5000"),
        ({"host": "http://127.0.0.1:5000"}, "http://127.0.0.1:5000"),
        ({"host": "https://ml.example/base/"}, "https://ml.example/base"),
        ({"host": "https://ml.example", "port": 8443}, "https://ml.example:8443"),
        ({"host": "sqlite:////data/mlflow.db"}, "sqlite:////data/mlflow.db"),
        ({"host": "/data/mlflow.db"}, "sqlite:////data/mlflow.db"),
        ({"host": "/data/ml runs"}, "file:///data/ml%20runs"),
        ({"host": "databricks://profile"}, "databricks://profile"),
    ],
)
def test_tracking_uri(connect, fields, uri):
    assert connect(**fields).environment() == {"MLFLOW_TRACKING_URI": uri}


def test_a_connection_given_as_an_address(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_ML", "mlflow://ann:s3cret@mlflow:5000")
    assert MlflowHook("ml").environment() == {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_TRACKING_USERNAME": "ann",
        "MLFLOW_TRACKING_PASSWORD": "s3cret",
    }


def test_credentials_and_the_address_for_humans(connect):
    hook = connect(host="https://ml", login="ann", password="s3cret", extra={"ui_url": "https://ui"})
    assert hook.environment() == {
        "MLFLOW_TRACKING_URI": "https://ml",
        "MLFLOW_TRACKING_USERNAME": "ann",
        "MLFLOW_TRACKING_PASSWORD": "s3cret",
        "MLFLOW_UI_URL": "https://ui",
    }


@pytest.mark.parametrize("fields", [{"password": "t0ken"}, {"extra": {"token": "t0ken"}}])
def test_a_password_without_a_login_is_a_token(connect, fields):
    assert connect(host="https://ml", **fields).environment()["MLFLOW_TRACKING_TOKEN"] == "t0ken"


def test_a_connection_that_is_missing_says_what_to_do(monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_NOWHERE", raising=False)
    with pytest.raises(SpecError, match=r"connection 'nowhere' is not defined; create it.*mlflow_conn_id=None"):
        MlflowHook("nowhere").environment()


def test_a_connection_without_a_host_says_what_to_do(connect):
    with pytest.raises(SpecError, match="connection 'ml' names no host; give the address of the tracking server"):
        connect().environment()


def test_credentials_within_the_address_are_refused_without_showing_them(connect):
    with pytest.raises(SpecError, match="use login and password") as caught:
        connect(host="https://ann:s3cret@ml").environment()
    assert "s3cret" not in str(caught.value)


def test_a_client(connect, tracking_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "unset")
    client = connect(host=tracking_uri).get_conn()
    assert client.search_experiments()[0].name == "Default"
    assert os.environ["MLFLOW_TRACKING_URI"] == tracking_uri


def test_the_test_button(connect, tracking_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "as before")
    assert connect(host=tracking_uri).test_connection() == (True, f"MLflow at {tracking_uri} answers")
    assert os.environ["MLFLOW_TRACKING_URI"] == "as before"
    ok, message = connect(host="http://127.0.0.1:9", login="ann", password="s3cret").test_connection()
    assert not ok
    assert message.startswith("MLflow at http://127.0.0.1:9 did not answer")
    assert "s3cret" not in message
    assert connect().test_connection()[0] is False
