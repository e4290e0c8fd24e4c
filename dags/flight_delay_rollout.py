"""An Airflow DAG that serves the champions of the flight delay models on this machine, one service per airport.

Everything particular to the problem is in `flight_delay/pipeline.yaml`.
"""

from __future__ import annotations

from pathlib import Path

from airflow_ml_provider.templates import load_config, rollout_dag

rollout_dag(load_config(Path(__file__).parent / "flight_delay" / "pipeline.yaml"))
