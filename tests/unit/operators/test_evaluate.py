from __future__ import annotations

from datetime import datetime, timezone

import pytest

pytest.importorskip("airflow")

from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.evaluate import EvaluateOperator
from airflow_ml_provider.refs import DatasetRef, ModelRef
from airflow_ml_provider.stages.evaluate.spec import OperatingPoint
from airflow_ml_provider.testing.context import context

DAY = Interval.from_key("2013-01-05")
MODEL = ModelRef(
    name="late", uri="/models/late", digest="sha256:m", trained_until=datetime(2013, 1, 5, tzinfo=timezone.utc)
)
TEST = DatasetRef(name="test", uri="/training/test.parquet", digest="sha256:t", interval=DAY, rows=10)


def operator(**changes):
    return EvaluateOperator(task_id="evaluate", **{"model": MODEL, "test": TEST, "output": "/evaluations", **changes})


class TestSpec:
    def test_defaults(self):
        spec = operator().build_spec(DAY, {})
        assert (spec.model, spec.test, spec.output, spec.label) == (MODEL, TEST, "/evaluations", "label")
        assert spec.operating_point == OperatingPoint()

    def test_refs_and_settings_as_they_come_from_xcom_and_templates(self):
        task = operator(
            model={"status": "ok", "model": codec.encode(MODEL), "resumed_from": None},
            test=codec.encode(TEST),
            key=["flight_id"],
            slices=["carrier", "carrier*origin"],
            min_rows="60",
            operating_point={"by": "share", "value": 0.2},
            experiment="",
        )
        spec = task.build_spec(DAY, {})
        assert (spec.model, spec.test) == (MODEL, TEST)
        assert (spec.key, spec.slices, spec.min_rows) == (("flight_id",), ("carrier", "carrier*origin"), 60)
        assert spec.operating_point == OperatingPoint("share", 0.2)
        assert spec.experiment is None

    def test_bad_operating_point_fails_at_parse_time(self):
        with pytest.raises(SpecError, match=r"operating_point: operating point value must be in \[0, 1\], got 20"):
            operator(operating_point={"by": "share", "value": 20})

    def test_not_a_ref(self):
        with pytest.raises(SpecError, match="model must be a ModelRef or its XCom form"):
            operator(model="late").build_spec(DAY, {})


class TestOperator:
    def test_output_is_still_the_xcom(self):
        with DAG("d", schedule=None):
            task = operator()
        assert task.output.operator is task
        assert task.output_root == "/evaluations"

    def test_every_argument_is_a_template_field_and_documented(self):
        import inspect

        names = set(inspect.signature(EvaluateOperator.__init__).parameters) - {"self", "kwargs"}
        attributes = {"output": "output_root", "label": "label_column"}
        for name in names:
            assert attributes.get(name, name) in EvaluateOperator.template_fields
            assert f"\n        {name}: " in EvaluateOperator.__doc__

    def test_needs_no_connection_without_an_experiment(self):
        assert operator(mlflow_conn_id="missing").environment() == {}

    def test_missing_test_set_fails_for_good(self, tmp_path):
        pytest.importorskip("sklearn")
        from airflow_ml_provider.testing import packages

        model = packages.package(tmp_path / "late")
        task = operator(model=model, test=codec.encode(TEST), output=str(tmp_path))
        with pytest.raises(AirflowFailException, match="make the training set again"):
            task.execute(context(DAY))

    @pytest.mark.parametrize(("on_refusal", "error"), [("fail", AirflowFailException), ("skip", AirflowSkipException)])
    def test_refusal_leaves_its_result(self, tmp_path, on_refusal, error):
        pytest.importorskip("sklearn")
        from dataclasses import replace
        from pathlib import Path

        from airflow_ml_provider import models
        from airflow_ml_provider.testing import packages

        rows = packages.dataset(tmp_path / "rows.parquet", packages.rows())
        model = packages.package(tmp_path / "late")
        manifest = models.read_manifest(Path(model.uri))
        models.write_manifest(Path(model.uri), replace(manifest, training=rows))
        task = operator(model=model, test=rows, output=str(tmp_path), on_refusal=on_refusal)
        ctx = context(DAY)
        with pytest.raises(error, match="what it has seen cannot measure it"):
            task.execute(ctx)
        assert ctx["ti"].xcoms["return_value"]["status"] == "refused"
