"""What an evaluation leaves in MLflow: test metrics and the report, on the run that trained the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from airflow_ml_provider.registry import Registry, _server

FOLDER = "evaluation"


def log(run_id: str, metrics: Mapping[str, float], files: Iterable[Path], moment: datetime) -> str:
    """Log metrics as `test_…` and files to a run; return the address of its page, empty when there is none.

    MLflow keeps every value that a metric ever had, told apart by time. The time is that of the data, so logging the
    same evaluation again adds nothing.

    Parameters:
        run_id: the run that trained the model.
        metrics: values by name.
        files: kept below `evaluation`.
        moment: end of the test window.
    """
    registry = Registry.from_env()
    with _server.errors(registry.uri):
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client = MlflowClient(registry.uri)
        stamp = int(moment.timestamp() * 1000)
        client.log_batch(run_id, metrics=[Metric(f"test_{name}", v, stamp, 0) for name, v in sorted(metrics.items())])
        for file in files:
            client.log_artifact(run_id, str(file), FOLDER)
    return registry.run_url(run_id)
