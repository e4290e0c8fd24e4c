"""A mapped task, one instance of which fails, and the reaper."""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_ml_provider.operators.reap import ReapOperator
from airflow_ml_provider.templates import maintenance_dag

with DAG("work", schedule=None):

    @task
    def one(number: int) -> None:
        if number == 2:
            raise ValueError("this one fails")

    one.expand(number=[0, 1, 2])

with DAG("only_shows", schedule=None):
    ReapOperator(task_id="reap", older_than_min=0)

maintenance_dag("removes", schedule=None, older_than_min=0, delete=True)
