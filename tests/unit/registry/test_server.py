"""Addresses with credentials: they open the server and are shown to nobody."""

from __future__ import annotations

import traceback

import pytest

from airflow_ml_provider.exceptions import MlError, Unavailable
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.registry import Registry, _server

pytest.importorskip("mlflow")

DEAD = "http://user:hunter2@127.0.0.1:9"
MODEL = ModelRef("late", "/models/late", "sha256:0", version="3")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:hunter2@mlflow.example:5000/ui", "http://mlflow.example:5000/ui"),
        ("https://hunter2@mlflow.example", "https://mlflow.example"),
        ("http://user:hunter@2@mlflow.example", "http://mlflow.example"),
        ("http://user:hunter2@[::1]:5000", "http://[::1]:5000"),
        ("http://user:hunter2@mlflow.example/of/me@example", "http://mlflow.example/of/me@example"),
        ("postgresql://user:hunter2@db.example/mlflow", "postgresql://db.example/mlflow"),
        ("postgresql://user:hunter/2@db.example/mlflow", "postgresql://db.example/mlflow"),
        *(
            (same, same)
            for same in (
                "https://mlflow.example/of/me@example",
                "http://mlflow.example:5000/of/me@example",
                "http://[::1]:5000/of/me@example",
                "sqlite:////data/me@example/mlflow.db",
                "/data/me@example/mlflow",
                "databricks",
                "",
            )
        ),
    ],
)
def test_an_address_is_shown_without_credentials(uri, shown):
    assert _server.shown(uri) == shown


@pytest.mark.parametrize("settings", [{"uri": DEAD}, {"uri": "sqlite://", "ui_url": f"{DEAD}/"}])
def test_links_carry_no_credentials(settings):
    assert Registry(**settings).version_url(MODEL) == "http://127.0.0.1:9/#/models/late/versions/3"


def chain(error: BaseException) -> str:
    """Return what a log shows of an error."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def test_errors_of_a_server_that_is_away_carry_no_credentials(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = Registry(DEAD)
    with pytest.raises(Unavailable, match=r"MLflow at http://127\.0\.0\.1:9 did not answer: API request to") as caught:
        registry.ping()
    assert "http://127.0.0.1:9/api" in str(caught.value)
    assert "hunter2" not in chain(caught.value)
    assert registry.uri == DEAD  # with them it is asked


@pytest.mark.parametrize("status", [400, 401, 404, 409, 500])
def test_errors_of_a_server_that_answers_carry_no_credentials(status):
    from mlflow.exceptions import MlflowException

    class Answer(MlflowException):
        def get_http_status_code(self) -> int:
            return status

    with pytest.raises(MlError) as caught, _server.errors(DEAD):
        raise Answer(f"{DEAD}/api and user:hunter2@127.0.0.1:9 said no") from ValueError(DEAD)
    assert "http://127.0.0.1:9/api and 127.0.0.1:9 said no" in str(caught.value)
    assert "hunter2" not in chain(caught.value)


def test_errors_of_requests_carry_no_credentials():
    import requests

    with pytest.raises(Unavailable) as caught, _server.errors(DEAD):
        raise requests.exceptions.InvalidURL(f"cannot read {DEAD}")
    assert str(caught.value) == "MLflow at http://127.0.0.1:9 did not answer: cannot read http://127.0.0.1:9"
    assert "hunter2" not in chain(caught.value)


def test_other_errors_keep_their_cause():
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlError) as caught, _server.errors("http://127.0.0.1:9"):
        raise MlflowException("no", 1)
    assert isinstance(caught.value.__cause__, MlflowException)
