"""What an evaluation leaves in a real MLflow database."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mlflow")
pytest.importorskip("onnxruntime")

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.evaluate.report import run
from airflow_ml_provider.stages.evaluate.spec import EvaluateSpec
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


@pytest.fixture
def spec(tmp_path, package, test_set):
    return EvaluateSpec(
        model=package(), test=test_set(), output=str(tmp_path / "evaluations"), resamples=100, experiment="flights"
    )


def test_metrics_and_files_once(spec, tracking_uri, tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    experiment = client.create_experiment("flights", (tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.set_terminated(run_id)
    tracked = replace(spec, model=replace(spec.model, run_id=run_id))
    first, second = run(tracked, RunInfo()), run(tracked, RunInfo())
    assert first.report == second.report
    logged = client.get_run(run_id).data.metrics
    assert logged["test_auc"] == pytest.approx(first.metrics["auc"])
    assert len(client.get_metric_history(run_id, "test_auc")) == 1
    assert {Path(f.path).name for f in client.list_artifacts(run_id, "evaluation")} == {
        "evaluation.json", "evaluation.html",
    }  # fmt: skip


def test_run_that_is_gone(spec, tracking_uri):
    with pytest.raises(DataError, match=r"Run with id=.* not found|Run '.*' not found"):
        run(replace(spec, model=replace(spec.model, run_id="0" * 32)), RunInfo())


def test_no_tracking_server_is_known(spec, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SpecError, match="MLFLOW_TRACKING_URI is not set"):
        run(replace(spec, model=replace(spec.model, run_id="0" * 32)), RunInfo())


def test_model_without_a_run(spec, caplog):
    assert run(spec, RunInfo()).status == "ok"
    assert "was trained without tracking" in caplog.text
