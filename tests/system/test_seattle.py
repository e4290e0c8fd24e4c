"""A second problem through the same templates, by configuration and a features file alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

SCORING, TRAINING, ROLLBACK = "seattle_rain_scoring", "seattle_rain_training", "seattle_rain_rollback"


def test_months_of_rain_are_ingested_learnt_and_predicted(flights):
    script = REPO / "dev-airflow" / "seattle.py"
    subprocess.run([sys.executable, script, "--landing", flights.stack.landing], check=True, capture_output=True)
    months = flights.backfill(SCORING, "2013-01-01", "2014-06-01", 18)
    for run in months:
        assert run["state"] == "success", flights.why(SCORING, run)
        assert flights.states(SCORING, run)["score"] == {"skipped"}, "no model yet"

    window = {"interval_start": "2013-01-01T00:00:00Z", "interval_end": "2014-07-01T00:00:00Z"}
    flights.api.pause(TRAINING, False)
    training = flights.run(TRAINING, {**window, "allow_backfill_promotion": True})
    assert training["state"] == "success", flights.why(TRAINING, training)
    assert flights.states(TRAINING, training)["decide.promote"] == {"success"}, flights.why(TRAINING, training)
    gate = flights.api.xcom(TRAINING, training["dag_run_id"], "decide.gate", map_index=0)
    assert gate["passed"]
    assert gate["model"]["name"] == "seattle_rain"
    optimised = flights.api.xcom(TRAINING, training["dag_run_id"], "decide.optimise", map_index=0)
    assert optimised["report"]
    loaded = flights.api.xcom(TRAINING, training["dag_run_id"], "decide.load_test", map_index=0)
    assert loaded["metrics"]["error_rate"] == 0
    assert loaded["trusted"]

    scored = flights.backfill(SCORING, "2014-07-01", "2014-08-01", 2)
    for run in scored:
        assert run["state"] == "success", flights.why(SCORING, run)
    first = flights.api.xcom(SCORING, scored[0]["dag_run_id"], "score")
    assert first["counts"]["scored"] == 31
    report = flights.api.xcom(SCORING, scored[0]["dag_run_id"], "monitor")
    assert report["report"]
