"""ScoreOperator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("airflow.sdk")
pytest.importorskip("mlflow")

from airflow.sdk.exceptions import AirflowSkipException

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.score import ScoreOperator
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
DAY = Interval.from_key("2013-01-07")


@pytest.fixture
def rows(tracking_uri, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": tracking_uri}))
    path = tables.partition(str(tmp_path / "joined"), DAY)
    return packages.dataset(path, packages.rows(200), name="joined", interval=DAY)


def test_it_scores_the_interval_of_the_rows(rows, tmp_path):
    registry = Registry.from_env()
    ref = packages.package(tmp_path / "p")
    ref = registry.register("late", tmp_path / "p", ref, {}, "candidate")
    registry.move(
        "late", "champion", ref, action="promote", info=RunInfo(), effective_from=DAY.start, expected=None
    )  # fmt: skip
    features = {"status": "ok", "dataset": codec.encode(rows)}  # the whole result of the features stage
    operator = ScoreOperator(task_id="score", dataset=features, models="late", target=str(tmp_path / "out"))
    ctx = context(run_type="manual")  # a run without any interval
    value = operator.execute(ctx)
    assert value["counts"] == {"rows": 200, "scored": 200, "without_model": 0, "late": 200}
    assert Path(value["dataset"]["uri"]).parent.name == "interval=2013-01-07"
    assert ctx["ti"].xcoms["dataset"]["digest"] == value["dataset"]["digest"]


def test_without_a_champion_the_task_is_skipped(rows, tmp_path):
    operator = ScoreOperator(task_id="score", dataset=rows, models=("late",), target=str(tmp_path / "out"))
    with pytest.raises(AirflowSkipException, match="no champion for data of 2013-01-07"):
        operator.execute(context(DAY))


def test_an_interval_of_choice_goes_first(rows):
    operator = ScoreOperator(task_id="s", dataset=rows, models=("late",), target="/out", interval="2013-01-09")
    other = Interval.from_key("2013-01-09")
    assert operator.build_spec(other, {}).interval == other
    operator.interval = None
    assert operator.build_spec(other, {}).interval == DAY


def test_bad_arguments_fail_when_the_dag_is_parsed():
    with pytest.raises(SpecError, match="models must be at least one registered name"):
        ScoreOperator(task_id="score", dataset={}, models=(), target="/out")
