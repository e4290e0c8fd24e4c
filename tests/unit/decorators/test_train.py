from __future__ import annotations

import pytest

pytest.importorskip("airflow")

from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_ml_provider import codec
from airflow_ml_provider.decorators.train import TrainDecoratedOperator, train_task
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.train.spec import Launch
from airflow_ml_provider.testing.context import context

DAY = Interval.from_key("2013-01-05")
ROWS = DatasetRef(name="rows", uri="/training/rows.parquet", digest="sha256:r", interval=DAY)
SETTINGS = {"name": "late", "dataset": ROWS, "output": "/models"}
OUTSIDE = 3


@train_task(**SETTINGS, launch=Launch(processes=2))
def fit(run, depth: int = 3, names=None):
    """Learn."""
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(max_depth=depth).fit(*run.train.numpy())


def build(call, **rendered):
    """Return the spec of a task that `call` makes, as at run time."""
    with DAG("d", schedule=None):
        task = call().operator
    for name, value in rendered.items():
        setattr(task, name, value)
    return task.build_spec(DAY, {})


class TestSpec:
    def test_source_and_arguments_travel(self):
        spec = build(lambda: fit(depth=5, names=["a", {"b": 1}]))
        assert (spec.engine, spec.name, spec.dataset, spec.launch) == ("function", "late", ROWS, Launch(processes=2))
        assert spec.function.name == "fit"
        assert spec.function.source.startswith("def fit(run, depth: int = 3, names=None):\n")
        assert "@train_task" not in spec.function.source
        assert spec.function.kwargs == {"depth": 5, "names": ["a", {"b": 1}]}

    def test_positional_arguments_follow_run(self):
        assert build(lambda: fit(5)).function.kwargs == {"depth": 5}

    def test_template_and_xcom_values_are_those_of_the_run(self):
        spec = build(lambda: fit(depth="{{ params.depth }}"), op_kwargs={"depth": 4})
        assert spec.function.kwargs == {"depth": 4}

    @pytest.mark.parametrize("value", [(1, 2), {1: 2}, object()])
    def test_arguments_are_json(self, value):
        with pytest.raises(SpecError, match="argument 'depth' must be of JSON types"):
            build(lambda: fit(depth=value))

    def test_shared_parameters_set_the_operator_s(self):
        @train_task(name="late", output="/models")
        def per_segment(run, dataset, segment, engine_params=None):
            return run

        spec = build(
            lambda: per_segment(dataset=codec.encode(ROWS), segment={"origin": "EWR"}, engine_params={"rate": 0.1})
        )
        assert (spec.dataset, spec.segment, spec.params) == (ROWS, {"origin": "EWR"}, {"rate": 0.1})
        assert spec.function.kwargs["segment"] == {"origin": "EWR"}

    def test_keyword_arguments_of_any_name(self):
        @train_task(**SETTINGS)
        def anything(run, **settings):
            return settings

        assert build(lambda: anything(a=1, b=2)).function.kwargs == {"a": 1, "b": 2}

    def test_dataset_is_needed(self):
        @train_task(name="late", output="/models")
        def alone(run):
            return run

        with pytest.raises(SpecError, match=r"dataset is missing: give it to @task\.train"):
            build(alone)


class TestParsing:
    def test_missing_and_unknown_arguments(self):
        with DAG("d", schedule=None), pytest.raises(TypeError, match="unexpected keyword argument 'deep'"):
            fit(deep=3)

    def test_functions_that_cannot_travel(self):
        @train_task(**SETTINGS)
        def uses_outside(run):
            return OUTSIDE

        @train_task(**SETTINGS)
        def no_run(rows):
            return rows

        for bad, message in ((uses_outside, "uses OUTSIDE from outside of it"), (no_run, "must be `run`")):
            with DAG("d", schedule=None), pytest.raises(SpecError, match=message):
                bad(None) if bad is no_run else bad()

    def test_engine_is_the_function(self):
        @train_task(**SETTINGS, engine="lightgbm")
        def other(run):
            return run

        with DAG("d", schedule=None), pytest.raises(SpecError, match=r"engine must be left out of @task\.train"):
            other()

    def test_bad_settings_of_the_operator(self):
        @train_task(**SETTINGS, validation=15)
        def other(run):
            return run

        with DAG("d", schedule=None), pytest.raises(SpecError, match=r"validation must be in \(0, 1\), got 15"):
            other()

    def test_without_parentheses_and_names(self):
        with DAG("d", schedule=None) as dag:
            fit()
            fit.override(task_id="again", segment={"origin": "EWR"})()
        assert set(dag.task_ids) == {"fit", "again"}
        assert dag.get_task("again").title == "fit EWR"
        assert dag.get_task("fit").doc_md == "Learn."
        assert dag.get_task("fit").operator_name == "@task.train"


class TestMapped:
    def test_over_arguments_of_the_function(self):
        with DAG("d", schedule=None):
            mapped = fit.partial(names=["x"]).expand(depth=[2, 4]).operator
        spec = mapped.unmap({"op_kwargs": {"depth": 4, "names": ["x"]}}).build_spec(DAY, {})
        assert spec.function.kwargs == {"depth": 4, "names": ["x"]}

    def test_over_segments(self):
        @train_task(**SETTINGS)
        def per_segment(run, segment):
            return segment

        with DAG("d", schedule=None):
            mapped = per_segment.expand(segment=[{"origin": "EWR"}, {"origin": "JFK"}]).operator
        spec = mapped.unmap({"op_kwargs": {"segment": {"origin": "JFK"}}}).build_spec(DAY, {})
        assert spec.segment == {"origin": "JFK"}

    def test_upstream_data_is_a_dependency(self):
        with DAG("d", schedule=None) as dag:
            first = fit.override(task_id="first")()
            fit.override(task_id="second", dataset=first["model"])()
            fit.override(task_id="third")(depth=first["metrics"])
        assert dag.get_task("first").downstream_task_ids == {"second", "third"}


class TestExecution:
    @pytest.fixture
    def rows(self, tmp_path):
        from airflow_ml_provider.testing import packages

        return packages.dataset(tmp_path / "rows.parquet", packages.rows(400), name="rows")

    @pytest.mark.parametrize("runtime", [None, "this"])
    def test_in_process_and_in_another_python(self, rows, tmp_path, runtime):
        import sys

        pytest.importorskip("skl2onnx")

        @train_task(
            name="late", dataset=rows, output=str(tmp_path / "models"), exclude=["flight_id"],
            runtime=sys.executable if runtime else None,
        )  # fmt: skip
        def tree(run, depth):
            from sklearn.tree import DecisionTreeClassifier

            return DecisionTreeClassifier(max_depth=depth, random_state=run.seed).fit(*run.train.numpy())

        with DAG("d", schedule=None):
            task = tree(depth=3).operator
        value = task.execute(context(DAY))
        assert value["status"] == "ok"
        assert value["model"]["engine"] == "function"
        assert value["metrics"]["validation_auc"] > 0.6
        assert task.execute(context(DAY)) == value

    def test_bad_arguments_fail_without_retries(self, rows, tmp_path):
        with DAG("d", schedule=None):
            task = fit(depth=3).operator
        task.op_kwargs = {"depth": (1, 2)}
        with pytest.raises(AirflowFailException, match="argument 'depth' must be of JSON types"):
            task.execute(context(DAY))


def test_template_fields_are_those_of_both():
    assert {"op_args", "op_kwargs", "dataset", "segment", "engine_params"} <= set(
        TrainDecoratedOperator.template_fields
    )
