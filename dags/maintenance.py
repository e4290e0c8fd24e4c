"""Airflow DAG: what stages in pods have left behind. It begins paused, and only lists unless it is told to remove."""

from __future__ import annotations

from airflow_ml_provider.templates import maintenance_dag

maintenance_dag()
