"""Two sensors that wait in the triggerer; the test brings what they wait for."""

from __future__ import annotations

import os

from airflow.sdk import DAG

from airflow_ml_provider.sensors.alias import ModelAliasSensor
from airflow_ml_provider.sensors.partition import PartitionSensor

with DAG("waiting", schedule=None):
    rows = PartitionSensor(
        task_id="rows",
        table=os.environ.get("ML_TEST_FOLDER", "") + "/table",
        interval="2013-01-05",
        deferrable=True,
        poke_interval=0.2,
        timeout=300,
    )
    champion = ModelAliasSensor(task_id="champion", name="late", deferrable=True, poke_interval=0.2, timeout=300)
    rows >> champion
