"""Sensors ask the right question, here or in the triggerer."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow.sdk import DAG, Param
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.sensors._base import CheckSensor, parts
from airflow_ml_provider.sensors.alias import ModelAliasSensor
from airflow_ml_provider.sensors.drift import DriftSensor
from airflow_ml_provider.sensors.freshness import FeatureFreshnessSensor
from airflow_ml_provider.sensors.labels import LabelsSensor
from airflow_ml_provider.sensors.partition import PartitionSensor
from airflow_ml_provider.stages.checks import AliasCheck, DriftCheck, FreshnessCheck, LabelsCheck, PartitionCheck
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.tasks import go_on
from airflow_ml_provider.triggers.check import CheckTrigger

UTC = timezone.utc
DAY = Interval.from_key("2013-01-05")
WEEK = Interval.of_grain(datetime(2013, 1, 9, tzinfo=UTC), "week")


def complete(root: Path, *keys: str) -> None:
    for key in keys:
        folder = root / f"interval={key}"
        folder.mkdir(parents=True)
        (folder / "data.parquet").touch()


def sensor(root: Path, **kwargs: Any) -> PartitionSensor:
    return PartitionSensor(task_id="wait", table=str(root), poke_interval=0.01, **kwargs)


class TestQuestions:
    def test_a_day(self) -> None:
        assert sensor(Path("/t")).question(DAY) == PartitionCheck("/t", ("2013-01-05",))

    def test_a_week_over_a_table_by_day(self) -> None:
        days = tuple(f"2013-01-{day:02d}" for day in range(7, 14))
        week = "2013-01-07--2013-01-14"  # of a table by week, which answers, too
        assert sensor(Path("/t")).question(WEEK) == PartitionCheck("/t", days, whole=week)
        assert sensor(Path("/t"), need="last").question(WEEK) == PartitionCheck("/t", days[-1:], whole=week)
        reached = PartitionCheck("/t", days[-1:], later=True, whole=week)
        assert sensor(Path("/t"), need="reached").question(WEEK) == reached
        assert sensor(Path("/t"), grain="week").question(WEEK) == PartitionCheck("/t", (week,))

    def test_hours_over_a_table_by_day_are_partitions_of_their_own(self) -> None:
        hour = Interval.from_key("2013-01-05T03")
        assert sensor(Path("/t")).question(hour) == PartitionCheck("/t", ("2013-01-05T03",))

    def test_cutting_covers_the_whole_interval(self) -> None:
        odd = Interval.of(datetime(2013, 1, 5, 6, tzinfo=UTC), datetime(2013, 1, 7, 6, tzinfo=UTC))
        assert parts(odd, "day") == ("2013-01-05", "2013-01-06", "2013-01-07")

    def test_a_day_of_new_york_is_a_partition_itself(self) -> None:
        day = Interval.of(datetime(2013, 1, 5, 5, tzinfo=UTC), datetime(2013, 1, 6, 5, tzinfo=UTC))
        assert sensor(Path("/t")).question(day) == PartitionCheck("/t", ("2013-01-05T05--2013-01-06T05",))

    def test_a_week_over_points_and_predictions_by_day(self) -> None:
        days = tuple(f"2013-01-{day:02d}" for day in range(7, 14))
        found = DriftSensor(task_id="w", series="/m", name="late").question(WEEK)
        assert found == DriftCheck("/m", "late", "2013-01-07--2013-01-14", parts=days)
        found = LabelsSensor(task_id="w", predictions="/p", labels="/l", key=["id"]).question(WEEK)
        assert found == LabelsCheck("/p", "/l", ("id",), "2013-01-07--2013-01-14", parts=days)

    def test_labels(self) -> None:
        found = LabelsSensor(task_id="w", predictions="/p", labels="/l", key=["id"], min_share="0.5").question(DAY)
        assert found == LabelsCheck("/p", "/l", ("id",), "2013-01-05", min_share=0.5)

    def test_freshness_looks_from_the_end_of_the_run(self) -> None:
        found = FeatureFreshnessSensor(task_id="w", table="/t", max_age_s=3600).question(DAY)
        assert found == FreshnessCheck("/t", datetime(2013, 1, 6, tzinfo=UTC), 3600.0)

    def test_alias(self) -> None:
        found = ModelAliasSensor(task_id="w", name="late", version="", moved_after="2013-01-05T00:00:00Z")
        assert found.question(DAY) == AliasCheck("late", moved_after=DAY.start)
        with pytest.raises(SpecError, match="moved_after must be an ISO 8601 time"):
            ModelAliasSensor(task_id="x", name="late", moved_after="yesterday").question(DAY)

    def test_drift(self) -> None:
        found = DriftSensor(task_id="w", series="/m", name="late", severity="warn", share=0.3).question(DAY)
        assert found == DriftCheck("/m", "late", "2013-01-05", "warn", 0.3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PartitionSensor(task_id="w", table="/t", need="some"), "need must be one of all, last, reached"),
        (lambda: DriftSensor(task_id="w", series="/m", name="n", severity="huge"), "severity must be one of warn"),
        (lambda: DriftSensor(task_id="w", series="/m", name="n", share=30), "give a fraction, not percent"),
        (lambda: LabelsSensor(task_id="w", predictions="p", labels="l", key=["i"], min_share=90), "not percent"),
        (lambda: FeatureFreshnessSensor(task_id="w", table="/t", max_age_s=-1), r"at least 0 \(seconds\)"),
    ],
)
def test_bad_values_fail_when_the_dag_is_parsed(make: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_templates_are_not_judged_when_the_dag_is_parsed() -> None:
    PartitionSensor(task_id="w", table="{{ params.table }}", need="{{ params.need }}")


def test_fields_are_rendered() -> None:
    with DAG("d", params={"table": Param("/store/labels"), "need": Param("last")}):
        task = PartitionSensor(task_id="w", table="{{ params.table }}", need="{{ params.need }}")
    task.render_template_fields({"params": {"table": "/store/labels", "need": "last"}})
    assert task.question(WEEK) == PartitionCheck("/store/labels", ("2013-01-13",), whole="2013-01-07--2013-01-14")


class TestPoking:
    def test_it_returns_what_it_found(self, tmp_path: Path) -> None:
        complete(tmp_path, "2013-01-05")
        found = sensor(tmp_path).execute(context(DAY))
        assert found == {"table": str(tmp_path), "partitions": ["2013-01-05"]}

    def test_runs_without_a_window_take_the_last_complete_grain(self, tmp_path: Path) -> None:
        complete(tmp_path, "2013-01-06")
        found = sensor(tmp_path).execute(context(run_type="manual", run_after=datetime(2013, 1, 7, 5, tzinfo=UTC)))
        assert found["partitions"] == ["2013-01-06"]

    def test_it_times_out(self, tmp_path: Path) -> None:
        with pytest.raises(AirflowSensorTimeout):
            sensor(tmp_path, timeout=0).execute(context(DAY))
        with pytest.raises(AirflowSkipException):
            sensor(tmp_path, timeout=0, soft_fail=True).execute(context(DAY))

    def test_wrong_parameters_are_not_retried(self) -> None:
        task = ModelAliasSensor(task_id="w", name="late", moved_after="yesterday", mlflow_conn_id=None)
        with pytest.raises(AirflowFailException, match="moved_after must be"):
            task.execute(context(DAY))


class TestDeferring:
    def deferred(self, task: CheckSensor) -> TaskDeferred:
        with pytest.raises(TaskDeferred) as caught:
            task.execute(context(DAY))
        return caught.value

    def test_nothing_is_deferred_when_it_is_there_already(self, tmp_path: Path) -> None:
        complete(tmp_path, "2013-01-05")
        assert sensor(tmp_path, deferrable=True).execute(context(DAY))["partitions"] == ["2013-01-05"]

    def test_the_whole_way(self, tmp_path: Path) -> None:
        task = sensor(tmp_path, deferrable=True, timeout=50)
        away = self.deferred(task)
        assert away.timeout == timedelta(seconds=50)
        assert isinstance(away.trigger, CheckTrigger)
        complete(tmp_path, "2013-01-05")
        found = go_on(task, away, context(DAY))
        assert found == {"table": str(tmp_path), "partitions": ["2013-01-05"]}

    def test_errors_of_the_trigger_are_not_retried(self, tmp_path: Path) -> None:
        event = {"status": "error", "message": "min_rows must be …"}
        with pytest.raises(AirflowFailException, match="min_rows must be"):
            sensor(tmp_path).resume_execution("execute_complete", {"event": event}, context(DAY))
        with pytest.raises(AirflowSkipException):
            sensor(tmp_path, soft_fail=True).resume_execution("execute_complete", {"event": event}, context(DAY))

    def test_the_timeout_is_that_of_a_sensor(self, tmp_path: Path) -> None:
        with pytest.raises(AirflowSensorTimeout):
            sensor(tmp_path).resume_execution("__fail__", {"error": "Trigger timeout"}, context(DAY))

    @pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
    def test_only_the_connection_s_name_leaves(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        pytest.importorskip("mlflow")
        monkeypatch.setenv("AIRFLOW_CONN_ML", f'{{"conn_type": "mlflow", "host": "sqlite:///{tmp_path}/m.db"}}')
        monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
        task = ModelAliasSensor(task_id="w", name="late", mlflow_conn_id="ml", deferrable=True)
        _, kwargs = self.deferred(task).trigger.serialize()
        assert kwargs["mlflow_conn_id"] == "ml"
        assert "m.db" not in str(kwargs)

    def test_the_default_is_that_of_the_configuration(self) -> None:
        assert sensor(Path("/t")).deferrable is False
