from __future__ import annotations

import inspect
from datetime import datetime, timezone

import pytest

pytest.importorskip("airflow")

from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.train import TrainOperator
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.train.spec import Launch
from airflow_ml_provider.testing.context import context

DAY = Interval.from_key("2013-01-05")
ROWS = DatasetRef(name="rows", uri="/training/rows.parquet", digest="sha256:r", interval=DAY, rows=10)


def operator(**changes):
    return TrainOperator(**{"task_id": "train", "name": "late", "dataset": ROWS, "output": "/models", **changes})


class TestSpec:
    def test_defaults(self):
        spec = operator().build_spec(DAY, {})
        assert (spec.name, spec.dataset, spec.output, spec.label) == ("late", ROWS, "/models", "label")
        assert (spec.engine, spec.launch, spec.experiment) == ("lightgbm", Launch(), None)

    def test_values_as_they_come_from_xcom_and_templates(self):
        task = operator(
            dataset=codec.encode(ROWS),
            engine="torch",
            engine_params={"epochs": 3},
            launch={"processes": 2, "keep": 3},
            segment={"origin": "EWR", "month": 1},
            exclude=["flight_id"],
            validation="0.2",
            seed="7",
            experiment="",
        )
        spec = task.build_spec(DAY, {})
        assert spec.dataset == ROWS
        assert (spec.engine, spec.params, spec.launch) == ("torch", {"epochs": 3}, Launch(processes=2, keep=3))
        assert (spec.segment, spec.exclude) == ({"origin": "EWR", "month": "1"}, ("flight_id",))
        assert (spec.validation, spec.seed, spec.experiment) == (0.2, 7, None)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"engine": "lightgmb"}, "unknown engine 'lightgmb'; did you mean 'lightgbm'?"),
            ({"validation": 15}, r"validation must be in \(0, 1\), got 15.0"),
            ({"validation": "much"}, "validation must be a number, got 'much'"),
            ({"launch": {"processes": 2}}, "launch.processes must be 1 for engine 'lightgbm', got 2"),
            ({"engine": "torch", "launch": {"nodes": "1:2"}}, "launch.nodes must be 1 without pods, got '1:2'"),
            ({"engine": "torch", "launch": {"nodes": "2:1"}}, "launch.nodes must be a number of 1 or more"),
            ({"launch": {"procesess": 2}}, "unknown key in launch 'procesess'; did you mean 'processes'?"),
            ({"segment": "EWR"}, "segment must be a mapping of columns to values"),
            ({"name": "a/b"}, "name must be letters"),
        ],
    )
    def test_bad_values_fail_at_parse_time(self, changes, message):
        with pytest.raises(SpecError, match=message):
            operator(**changes)

    def test_templates_are_checked_when_they_are_rendered(self):
        task = operator(validation="{{ params.share }}", engine="{{ params.engine }}")
        task.validation, task.engine = "15", "lightgbm"
        with pytest.raises(SpecError, match=r"validation must be in \(0, 1\)"):
            task.build_spec(DAY, {})

    def test_not_a_ref(self):
        with pytest.raises(SpecError, match="dataset must be a DatasetRef or its XCom form"):
            operator(dataset="rows").build_spec(DAY, {})

    def test_engine_function_needs_the_decorator(self):
        with pytest.raises(SpecError, match=r"use @task\.train"):
            operator(engine="function").build_spec(DAY, {})


class TestOperator:
    def test_output_is_still_the_xcom(self):
        with DAG("d", schedule=None):
            task = operator()
        assert task.output.operator is task
        assert task.output_root == "/models"

    def test_every_argument_is_a_template_field_and_documented(self):
        names = set(inspect.signature(TrainOperator.__init__).parameters) - {"self", "kwargs"}
        attributes = {"output": "output_root", "label": "label_column"}
        for name in names:
            assert attributes.get(name, name) in TrainOperator.template_fields
            assert f"\n        {name}: " in TrainOperator.__doc__

    def test_needs_no_connection_without_an_experiment(self):
        assert operator(mlflow_conn_id="missing").environment() == {}

    def test_title(self):
        assert operator(engine="torch", segment={"origin": "EWR"}).title == "torch EWR"

    def test_terminal_errors_fail_without_retries(self, tmp_path):
        task = operator(dataset=codec.encode(ROWS), output=str(tmp_path))
        with pytest.raises(AirflowFailException, match=r"there is no Parquet file at /training/rows\.parquet"):
            task.execute(context(DAY))


class TestMapped:
    def test_segments_engines_and_settings(self):
        candidates = [
            {"segment": {"origin": "EWR"}, "engine": "lightgbm", "engine_params": {"num_leaves": 7}},
            {
                "segment": {"origin": "JFK"},
                "engine": "torch",
                "launch": {"processes": 2},
                "runtime": "/opt/ml/bin/python",
            },
        ]
        with DAG("d", schedule=None, params={"note": "x"}):
            mapped = TrainOperator.partial(
                task_id="train", name="late", dataset=codec.encode(ROWS), output="/models", exclude=("id",)
            ).expand_kwargs(candidates)
        first, second = (mapped.unmap(candidate) for candidate in candidates)
        assert first.build_spec(DAY, {}).params == {"num_leaves": 7}
        assert second.build_spec(DAY, {}).launch == Launch(processes=2)
        assert [task.title for task in (first, second)] == ["lightgbm EWR", "torch JFK"]

    def test_dataset_from_upstream_is_a_dependency(self):
        with DAG("d", schedule=None):
            upstream = operator(task_id="rows")
            mapped = TrainOperator.partial(
                task_id="train", name="late", dataset=upstream.output["train"], output="/models"
            ).expand(segment=[{"origin": "EWR"}])
        assert upstream.downstream_task_ids == {"train"}
        assert mapped.upstream_task_ids == {"rows"}


def test_same_result_as_the_stage(tmp_path):
    """Through the operator, in process, on made-up rows; a second run changes nothing."""
    pytest.importorskip("lightgbm")
    from airflow_ml_provider.testing import packages

    start = datetime(2013, 1, 1, tzinfo=timezone.utc)
    rows = packages.dataset(tmp_path / "rows.parquet", packages.rows(400, start=start), name="rows", interval=DAY)
    task = operator(
        dataset=codec.encode(rows),
        output=str(tmp_path / "m"),
        exclude=["flight_id"],
        engine_params={"num_boost_round": 5},
    )
    first = task.execute(context(DAY))
    assert first["status"] == "ok"
    assert first["model"]["kind"] == "model"
    assert "facets" not in first
    assert task.execute(context(DAY)) == first
