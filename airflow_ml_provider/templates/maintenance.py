"""The DAG that keeps the cluster clean: what stages in pods have left behind is listed, and removed if one wants."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.sdk import DAG, Param

from airflow_ml_provider.operators.reap import ReapOperator

_START = datetime(2025, 1, 1, tzinfo=timezone.utc)  # some moment of the past: without one Airflow schedules nothing


def maintenance_dag(
    dag_id: str = "ml_maintenance",
    *,
    schedule: Any = "@hourly",
    kubernetes_conn_id: str = "kubernetes_default",
    namespace: str | None = None,
    exchange: str | None = None,
    older_than_min: float = 10.0,
    delete: bool = False,
    tags: Sequence[str] = (),
) -> DAG:
    """Return a DAG that lists what stages in pods have left behind. It begins paused.

    Parameters:
        dag_id: its name.
        schedule: when it runs.
        kubernetes_conn_id: connection to the cluster.
        namespace: namespace of the pods; none is that of the connection.
        exchange: the folder that workers and pods share; none is `[ml] exchange` of Airflow's configuration.
        older_than_min: what is younger stays (minutes).
        delete: default of the parameter `delete`: whether runs remove what they find, scheduled ones, too.
        tags: more tags.
    """
    with DAG(
        dag_id,
        schedule=schedule,
        start_date=_START,
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=True,
        description="Stages in pods: what is left behind",
        doc_md="Lists pods and the like whose task has ended; removes them if `delete` is set.",
        tags={"ml", "maintenance", *tags},
        params={"delete": Param(delete, type="boolean", description="Remove what is left over, not only list it.")},
    ) as dag:
        ReapOperator(
            task_id="reap",
            kubernetes_conn_id=kubernetes_conn_id,
            namespace=namespace,
            exchange=exchange,
            older_than_min=older_than_min,
            delete="{{ params.delete }}",
            retries=1,
            retry_delay=timedelta(minutes=1),
            execution_timeout=timedelta(minutes=30),
        )
    return dag
