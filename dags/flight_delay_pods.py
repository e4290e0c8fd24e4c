"""Airflow DAG: the network of the flights pipeline, trained on two pods of a Kubernetes cluster; runs by hand.

Nothing but where it trains differs from `flight_delay_training.py`. `./dev-airflow/pods` runs it on a Kubernetes of
this machine. On yours it needs the connection `kubernetes_default`, and from the environment of Airflow:
`ML_POD_IMAGE`, `ML_POD_PYTHON` when it is not `python3`, and `ML_POD_VOLUMES`, a JSON object of paths to claims, one of
them with the store.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from airflow_ml_provider.runtime import Pod
from airflow_ml_provider.stages.train.spec import Launch
from airflow_ml_provider.templates import load_config, training_dag
from airflow_ml_provider.templates.config import Candidate

config = load_config(Path(__file__).parent / "flight_delay" / "pipeline.yaml")
pod = Pod(
    os.environ.get("ML_POD_IMAGE", "localhost/python:1"),
    python=os.environ.get("ML_POD_PYTHON", "python3"),
    memory_gib=2,
    volumes=json.loads(os.environ.get("ML_POD_VOLUMES", "{}")) or {config.place(): "ml-store"},
    exchange=config.place("exchange"),
    log_every_s=10,
)
network = Candidate("torch", params={"epochs": 4}, launch=Launch(nodes=2, snapshot_every=20), runtime=pod)
training = replace(config.training, candidates=(network,), segments=None, schedule=None, on_assets=())
operations = replace(
    config.operations, mlflow_conn_id=os.environ.get("ML_POD_MLFLOW", config.operations.mlflow_conn_id)
)
training_dag(replace(config, training=training, operations=operations), "flight_delay_training_on_pods")
