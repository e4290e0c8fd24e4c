from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

pytest.importorskip("airflow")

from airflow.sdk import DAG, Asset, AssetAlias
from airflow.sdk.exceptions import AirflowSkipException

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.monitor import MonitorOperator
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.monitor.spec import DriftPolicy, MonitorResult
from airflow_ml_provider.testing.context import context

DAY = Interval.from_key("2013-01-05")
ROWS = DatasetRef(name="joined", uri="/joined/interval=2013-01-05/data.parquet", digest="sha256:r", interval=DAY)
RETRAIN = Asset(name="late.retrain", uri="x-airflow-ml://late/retrain")


class Fixed:
    """A runtime that gives one result."""

    def __init__(self, result):
        self.result = result

    def call(self, spec, info, env):
        self.spec = spec
        return self.result

    def cancel(self):
        """Nothing runs."""


def operator(result=None, **changes):
    body = {
        "name": "late", "dataset": ROWS, "models": ["late"], "predictions": "/predictions", "output": "/monitor",
        "mlflow_conn_id": None, **changes,
    }  # fmt: skip
    return MonitorOperator(task_id="monitor", runtime=Fixed(result), **body)


class TestSpec:
    def test_values_as_they_come_from_xcom_and_templates(self):
        task = operator(
            dataset={"status": "ok", "dataset": codec.encode(ROWS)},
            labels="/labels",
            key=["flight_id"],
            policy={"share": 0.25, "min_auc": 0.6, "psi": {"warn": 0.2, "significant": 0.4}},
        )
        spec = task.build_spec(DAY, {})
        assert (spec.dataset, spec.models, spec.key, spec.labels) == (ROWS, ("late",), ("flight_id",), "/labels")
        assert (spec.policy.share, spec.policy.min_auc, spec.policy.psi.warn) == (0.25, 0.6, 0.2)

    def test_defaults(self):
        spec = operator(labels="").build_spec(DAY, {})
        assert (spec.alias, spec.labels, spec.policy) == ("champion", None, DriftPolicy())

    def test_window_is_that_of_the_rows_unless_given(self):
        other = Interval.from_key("2013-01-06")
        assert operator().build_spec(other, {}).interval == DAY
        assert operator(interval="2013-01-06").build_spec(other, {}).interval == other
        assert operator(dataset=replace(ROWS, interval=None)).build_spec(other, {}).interval == other

    def test_bad_policy_fails_at_parse_time(self):
        with pytest.raises(SpecError, match="unknown key in policy 'treshold'"):
            operator(policy={"treshold": 1})
        assert operator(policy={"share": "{{ params.share }}"}).policy

    def test_every_argument_is_a_template_field_and_documented(self):
        names = set(inspect.signature(MonitorOperator.__init__).parameters) - {"self", "kwargs"}
        for name in names:
            assert {"output": "output_root"}.get(name, name) in (*MonitorOperator.template_fields, "retrain_asset")
            assert f"\n        {name}: " in MonitorOperator.__doc__


class TestRetrainAsset:
    def test_alias_is_an_outlet(self):
        with DAG("d", schedule=None):
            task = operator(retrain_asset=RETRAIN, outlets=[Asset("other")])
        assert task.outlets == [Asset("other"), AssetAlias("late-retrain")]
        assert operator().outlets == []

    def test_event_when_training_shall_start(self):
        result = MonitorResult(severity="significant", drift_share=0.5, retrain=True, reason="3 of 6 columns drifted")
        ctx = context(DAY)
        value = operator(result, retrain_asset=RETRAIN).execute(ctx)
        assert value["retrain"] is True
        (event,) = ctx["outlet_events"][AssetAlias("late-retrain")].asset_alias_events
        assert (event.dest_asset_key.name, event.source_alias_name) == ("late.retrain", "late-retrain")
        assert event.extra == {
            "interval_start": "2013-01-05T00:00:00+00:00", "interval_end": "2013-01-06T00:00:00+00:00",
            "severity": "significant", "drift_share": 0.5, "reason": "3 of 6 columns drifted",
        }  # fmt: skip

    @pytest.mark.parametrize("asset", [RETRAIN, None])
    def test_no_event_otherwise(self, asset):
        ctx = context(DAY)
        operator(MonitorResult(severity="significant", retrain=asset is None), retrain_asset=asset).execute(ctx)
        assert ctx["outlet_events"][AssetAlias("late-retrain")].asset_alias_events == []

    def test_skipped_without_a_champion(self):
        ctx = context(DAY)
        with pytest.raises(AirflowSkipException, match="no reference"):
            operator(MonitorResult(status="skipped", reason="no reference"), retrain_asset=RETRAIN).execute(ctx)
        assert ctx["outlet_events"][AssetAlias("late-retrain")].asset_alias_events == []

    def test_name_must_be_known_at_parse_time(self):
        with pytest.raises(
            SpecError, match="is a template: with retrain_asset it must be known when the DAG is parsed"
        ):
            operator(name="{{ params.name }}", retrain_asset=RETRAIN)

    def test_survives_serialisation(self):
        from airflow.serialization.serialized_objects import DagSerialization

        with DAG("d", schedule=None) as dag:
            operator(retrain_asset=RETRAIN, policy=DriftPolicy())
        dag.task_dict["monitor"].runtime = None
        back = DagSerialization.from_dict(DagSerialization.to_dict(dag)).task_dict["monitor"]
        assert [type(o).__name__ for o in back.outlets] == ["SerializedAssetAlias"]
