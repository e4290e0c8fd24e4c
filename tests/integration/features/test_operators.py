"""Both operators of the features stage, executed in process and by a process of its own."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow")
pytest.importorskip("feast")
pytest.importorskip("ibis")

from airflow.sdk.exceptions import AirflowFailException

from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.features import FeaturesOperator, TrainingSetOperator
from airflow_ml_provider.testing.context import context

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

REPO = str(Path(__file__).parents[3] / "dags" / "flight_delay" / "features")


def features(spec: Any, store: Path, **change: Any) -> FeaturesOperator:
    given = spec(store, "2013-01-01")
    return FeaturesOperator(
        task_id="features", repo=REPO, sources=given.sources, store=str(store), spine=given.spine, **change
    )


def test_in_process_and_in_another_python_give_the_same(spec: Any, tmp_path: Path) -> None:
    day = context(Interval.from_key("2013-01-01"))
    here = features(spec, tmp_path / "here").execute(day)
    there = features(spec, tmp_path / "there", runtime=sys.executable).execute(day)
    assert here["status"] == "ok"
    assert here["dataset"]["digest"] == there["dataset"]["digest"]
    assert [table["digest"] for table in here["tables"]] == [table["digest"] for table in there["tables"]]


def test_a_leak_fails_without_a_retry(spec: Any, tmp_path: Path) -> None:
    operator = features(spec, tmp_path)
    operator.spine = {"source": "flights", "timestamp": "scheduled_departure", "key": ["flight_id"],
                      "request": {"late": "dep_delay > 15"}}  # fmt: skip
    with pytest.raises(AirflowFailException, match="which becomes known only at 'actual_departure'"):
        operator.execute(context(Interval.from_key("2013-01-01")))


def test_a_training_set_for_a_weekly_run(spec: Any, twelve_days: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(twelve_days / "tables", tmp_path / "tables")
    given = spec(tmp_path, "2013-01-01")
    end = datetime(2013, 1, 13, tzinfo=timezone.utc)
    operator = TrainingSetOperator(
        task_id="training_set", repo=REPO, sources=given.sources, store=str(tmp_path), name="late", spine=given.spine,
        history_days=10, split={"test_s": 172800.0, "gap_s": 21600.0},
    )  # fmt: skip
    result = operator.execute(context(Interval.of(end - timedelta(days=7), end)))
    assert result["train"]["interval"]["start"] == "2013-01-03T00:00:00+00:00"
    assert result["test"]["interval"]["end"] == "2013-01-13T00:00:00+00:00"
    assert result["metrics"]["train_rows"] > 5000
