"""What the DAGs of a pipeline have in common."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset

from airflow_ml_provider import codec

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

    from airflow_ml_provider.templates.config import PipelineConfig, Schedule, Serving


def retrain_asset(config: PipelineConfig) -> Asset:
    """Return the asset that the monitor updates when training shall start again."""
    return asset(f"{config.name}.retrain")


def champion_asset(config: PipelineConfig) -> Asset:
    """Return the asset that is updated when a model of the pipeline has become champion."""
    return asset(f"{config.name}.champion")


def asset(name: str) -> Asset:
    """Return the asset of a name."""
    return Asset(name=name, uri=f"x-airflow-ml://{name.replace('.', '/')}")


def starter(config: PipelineConfig, name: str) -> Any:
    """Return an asset that starts training: one of this pipeline, or one that somebody else defines, by its name."""
    return asset(name) if name.startswith(f"{config.name}.") else Asset.ref(name=name)


def timetable(schedule: Schedule) -> Any:
    """Return a timetable whose runs have real windows (Airflow's plain cron schedules have empty ones)."""
    try:
        from airflow.sdk import CronDataIntervalTimetable
    except ImportError:  # before Airflow 3.2
        from airflow.timetables.interval import CronDataIntervalTimetable  # type: ignore[assignment]

    return CronDataIntervalTimetable(schedule.cron, timezone="UTC")


def default_args(config: PipelineConfig) -> dict[str, Any]:
    """Return the arguments of every task: retries with growing, jittered waits, and a timeout."""
    operations = config.operations
    return {
        "owner": operations.owner,
        "retries": operations.retries,
        "retry_delay": timedelta(seconds=operations.retry_delay_s),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(seconds=operations.max_retry_delay_s),
        "execution_timeout": timedelta(seconds=operations.timeout_s),
    }


def dag_arguments(config: PipelineConfig, schedule: Schedule | None, kind: str) -> dict[str, Any]:
    """Return the arguments of a DAG that follow from the configuration."""
    body: dict[str, Any] = {
        "description": f"{config.description or config.name}: {kind}",
        "default_args": default_args(config),
        "tags": ["ml", config.name, kind, *config.operations.tags],
        "catchup": bool(schedule and schedule.catchup),
        "max_active_runs": schedule.max_active_runs if schedule else 1,
    }
    if schedule:
        body.update(start_date=schedule.start, end_date=schedule.end)
    return body


def stage_arguments(config: PipelineConfig, stage: str) -> dict[str, Any]:
    """Return the arguments that every stage operator of the pipeline takes."""
    return {
        "runtime": codec.encode(config.operations.runtime_of(stage)) or None,
        "grain": config.grain,
        "mlflow_conn_id": config.operations.mlflow_conn_id,
    }


def serving_arguments(config: PipelineConfig, serving: Serving, service: str) -> dict[str, Any]:
    """Return the arguments that every operator on a service of the pipeline takes."""
    return {
        "service": service,
        "place": serving.place,
        "server": serving.server,
        "gate": serving.gate,
        "mlflow_conn_id": config.operations.mlflow_conn_id,
        "grain": config.grain,
    }


def interval_params() -> dict[str, Any]:
    """Return the run parameters that set the window of a manual run."""
    from airflow.sdk import Param

    text: dict[str, Any] = {"type": ["null", "string"], "format": "date-time"}
    return {
        "interval_start": Param(None, **text, description="Start of the window; empty takes the run's own."),
        "interval_end": Param(None, **text, description="End of the window, not included."),
    }


def result(operator: BaseOperator, name: str) -> Any:
    """Return one ref of an operator's result, for another operator's argument."""
    output: Any = operator.output
    return output[name]
