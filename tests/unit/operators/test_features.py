from __future__ import annotations

import inspect
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

pytest.importorskip("airflow")

from airflow.sdk import DAG

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.features import FeaturesOperator, TrainingSetOperator
from airflow_ml_provider.stages.features.spec import Source, Spine, Split

DAY = Interval.from_key("2013-01-05")
SOURCES = {"flights": Source("/tables/flights", key=("flight_id",), version="recorded_at")}
SPINE = Spine("flights", "scheduled_departure", ("flight_id",), label="late", label_known_at="actual_arrival")


def features(**changes: Any) -> FeaturesOperator:
    given = {"repo": "/repo", "sources": SOURCES, "store": "/store", "spine": SPINE, **changes}
    return FeaturesOperator(task_id="features", **given)


def training_set(**changes: Any) -> TrainingSetOperator:
    given = {"repo": "/repo", "sources": SOURCES, "store": "/store", "spine": SPINE, "name": "late", **changes}
    return TrainingSetOperator(task_id="training_set", **given)


class TestFeatures:
    def test_defaults(self) -> None:
        spec = features().build_spec(DAY, {})
        assert (spec.repo, spec.store, spec.interval, spec.spine) == ("/repo", "/store", DAY, SPINE)
        assert spec.sources == SOURCES
        assert (spec.features, spec.materialize, spec.max_skew) == ((), True, 0.0)

    def test_values_as_templates_render_them(self) -> None:
        task = features(
            sources=codec.encode(SOURCES), spine=codec.encode(SPINE), features=["v:a"], materialize="False",
            max_skew="0.1",
        )  # fmt: skip
        spec = task.build_spec(DAY, {})
        assert (spec.sources, spec.spine) == (SOURCES, SPINE)
        assert (spec.features, spec.materialize, spec.max_skew) == (("v:a",), False, 0.1)

    def test_without_a_spine(self) -> None:
        assert features(spine=None).build_spec(DAY, {}).spine is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"max_skew": 20}, r"max_skew must be in \[0, 1\], got 20; give a fraction"),
            ({"sources": {"flights": {"rot": "/x"}}}, "unknown key in sources.flights 'rot'; did you mean 'root'"),
            ({"sources": {"planes": {"root": "/x"}}}, "spine.source 'flights' is not one of the sources: planes"),
            ({"spine": {"source": "flights"}}, "spine lacks timestamp, key"),
        ],
    )
    def test_mistakes_fail_when_the_dag_is_parsed(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            features(**change)

    def test_templates_wait_until_the_task_runs(self) -> None:
        task = features(sources={"planes": {"root": "{{ var.value.root }}"}}, max_skew="{{ params.skew }}")
        with pytest.raises(SpecError, match=r"max_skew must be a number, got '\{\{ params.skew }}'"):
            task.build_spec(DAY, {})

    def test_output_is_still_the_xcom(self) -> None:
        with DAG("d", schedule=None):
            task = features()
        assert task.output.operator is task


class TestTrainingSet:
    def test_defaults(self) -> None:
        spec = training_set().build_spec(DAY, {})
        assert (spec.name, spec.interval, spec.since, spec.split, spec.min_rows) == ("late", DAY, None, Split(), 100)

    def test_history(self) -> None:
        since = datetime(2013, 1, 1, tzinfo=timezone.utc)
        assert training_set(since=since).build_spec(DAY, {}).since == since
        assert training_set(since="2013-01-01T00:00:00Z").build_spec(DAY, {}).since == since
        assert training_set(history_days="2.5").build_spec(DAY, {}).since == DAY.end - timedelta(days=2.5)
        with pytest.raises(SpecError, match=r"since .* and history_days .* say the same"):
            training_set(since=since, history_days=3)

    def test_values_as_templates_render_them(self) -> None:
        spec = training_set(split={"test_s": 86400, "gap_s": 60}, min_rows="7").build_spec(DAY, {})
        assert (spec.split, spec.min_rows) == (Split(86400.0, 60.0), 7)

    def test_mistakes_fail_when_the_dag_is_parsed(self) -> None:
        with pytest.raises(SpecError, match=r"test_s must be at least 0 \(seconds\), got -1"):
            training_set(split={"test_s": -1.0})

    def test_labels_are_needed(self) -> None:
        with pytest.raises(SpecError, match=r"a training set needs spine\.label"):
            training_set(spine=Spine("flights", "t", ("flight_id",))).build_spec(DAY, {})


@pytest.mark.parametrize("operator", [FeaturesOperator, TrainingSetOperator])
def test_every_argument_is_a_template_field_and_documented(operator: type) -> None:
    for name in set(inspect.signature(operator.__init__).parameters) - {"self", "kwargs"}:
        assert name in operator.template_fields
        assert f"\n        {name}: " in operator.__doc__
