"""Airflow DAGs: rain in Seattle, by the templates of the flights; only configuration and features differ."""

from __future__ import annotations

from pathlib import Path

from airflow_ml_provider.templates import load_config, rollback_dag, scoring_dag, training_dag

config = load_config(Path(__file__).parent / "seattle_rain" / "pipeline.yaml")
scoring_dag(config)
training_dag(config)
rollback_dag(config)
