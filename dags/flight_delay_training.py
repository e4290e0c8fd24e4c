"""Airflow DAGs: the weekly training of the flight delay models, and the button that rolls one of them back.

Everything particular to the problem is in `flight_delay/pipeline.yaml`.
"""

from __future__ import annotations

from pathlib import Path

from airflow_ml_provider.templates import load_config, rollback_dag, training_dag

config = load_config(Path(__file__).parent / "flight_delay" / "pipeline.yaml")
training_dag(config)
rollback_dag(config)
