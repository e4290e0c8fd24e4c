"""The flights pipeline in small; run as a script, Airflow scores four days, trains on them and scores the fifth.

The folder in `ML_TEST_FOLDER` has the landing files and gets everything else.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import yaml

from airflow_ml_provider import codec
from airflow_ml_provider.templates import PipelineConfig, load_config, scoring_dag, training_dag

FLIGHTS = Path(__file__).parents[4] / "dags" / "flight_delay"
FIRST = datetime(2013, 1, 1, tzinfo=timezone.utc)
DAYS = 4
GATE = {"metrics": {"auc": {"at_least": 0.4}}, "min_rows": 50}
TRAINING = {
    "segments": {"column": "origin", "values": ["EWR"]},
    "candidates": [{"engine": "lightgbm", "params": {"num_leaves": 15}}],
    "exclude": ["tailnum"],
    "split": {"test_s": 86400, "gap_s": 21600},
    "min_rows": 200,
    "slices": ["carrier"],
    "gate": "gate.yaml",
}


def config(folder: Path) -> PipelineConfig:
    """Return the configuration of the flights in small, with the store and the landing files in `folder`."""
    (folder / "gate.yaml").write_text(yaml.safe_dump(GATE))
    whole = codec.encode(load_config(FLIGHTS / "pipeline.yaml"))
    datasets = whole["datasets"]
    for dataset in datasets.values():
        dataset["source"] = f"{folder}/landing/{Path(dataset['source']).name}"
        dataset["suite"] = None
    whole["features"]["repo"] = str(FLIGHTS / "features")
    training = {**TRAINING, "gate": str(folder / "gate.yaml")}
    operations = {"retries": 0}
    body = {
        **whole, "store": f"{folder}/store", "training": training, "operations": operations, "folder": str(folder),
        "schedule": {"cron": "0 0 * * *", "start": FIRST.isoformat()},
    }  # fmt: skip
    return codec.decode(PipelineConfig, body)


def run() -> None:
    """Run the DAGs, one after the other, in this process."""
    for day in range(1, DAYS + 1):
        scoring.test(logical_date=FIRST + timedelta(days=day))  # a manual run is about the window before its date
    window = {"interval_start": FIRST.isoformat(), "interval_end": (FIRST + timedelta(days=DAYS)).isoformat()}
    training.test(run_conf=window)
    scoring.test(logical_date=FIRST + timedelta(days=DAYS + 1))


if folder := os.environ.get("ML_TEST_FOLDER"):
    pipeline = config(Path(folder))
    scoring, training = scoring_dag(pipeline), training_dag(pipeline)
    if __name__ == "__main__":
        run()
