"""RegisterOperator."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("airflow.sdk")
pytest.importorskip("mlflow")

from airflow.sdk.exceptions import AirflowFailException

from airflow_ml_provider import codec
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.register import RegisterOperator
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
DAY = Interval.from_key("2013-01-07")


@pytest.fixture
def connection(tracking_uri, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": tracking_uri}))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def test_it_takes_what_the_stages_before_it_return(connection, tmp_path):
    ref = packages.package(tmp_path / "p")
    test = packages.dataset(tmp_path / "test.parquet", packages.rows(400, seed=9))
    report = packages.evaluation(tmp_path / "e.json", ref, test)
    evaluation = {"status": "ok", "model": codec.encode(ref), "report": codec.encode(report)}
    ctx = context(DAY, run_type="asset_triggered")
    value = RegisterOperator(task_id="register", model=evaluation, evaluation=evaluation).execute(ctx)
    assert value["model"]["version"] == "1"
    assert ctx["ti"].xcoms["model"]["digest"] == ref.digest
    assert ctx["ti"].xcoms["parity"]["passed"] is True


def test_defaults_and_templates(connection, tmp_path):
    ref = packages.package(tmp_path / "p")
    operator = RegisterOperator(task_id="register", model=ref, name="", max_flips="0.5")
    spec = operator.build_spec(DAY, {})
    assert (spec.name, spec.alias, spec.max_flips, spec.evaluation) == (None, "candidate", 0.5, None)
    assert set(operator.template_fields) >= {"model", "evaluation", "name", "tags", "mlflow_conn_id", "interval"}


def test_without_a_connection_the_task_fails_without_retries(tmp_path, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_MLFLOW_DEFAULT", raising=False)
    operator = RegisterOperator(task_id="register", model=packages.package(tmp_path / "p"))
    with pytest.raises(AirflowFailException, match="connection 'mlflow_default' is not defined"):
        operator.execute(context(DAY))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    operator.mlflow_conn_id = None
    with pytest.raises(AirflowFailException, match="MLFLOW_TRACKING_URI is not set"):
        operator.execute(context(DAY))


def test_a_value_that_is_no_model_names_the_parameter(connection):
    with pytest.raises(AirflowFailException, match="model"):
        RegisterOperator(task_id="register", model={"nonsense": 1}).execute(context(DAY))
