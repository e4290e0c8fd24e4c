"""Airflow DAG: every day's flights from New York are ingested, validated, scored and watched.

Everything particular to the problem is in `flight_delay/pipeline.yaml`.
"""

from __future__ import annotations

from pathlib import Path

from airflow_ml_provider.templates import load_config, scoring_dag

scoring_dag(load_config(Path(__file__).parent / "flight_delay" / "pipeline.yaml"))
