from __future__ import annotations

import pytest

pytest.importorskip("airflow")

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.gate import GateOperator
from airflow_ml_provider.operators.load_test import LoadTestOperator
from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages.load_test.spec import LoadProfile

DAY = Interval.from_key("2013-01-05")
MODEL = ModelRef("late", "/models/late", "sha256:m", version="3")
REPORT = ReportRef("late_load_test", "/reports/load_test.json", "sha256:r")


def operator(**changes):
    return LoadTestOperator(task_id="load", **{"model": MODEL, "output": "/out", "profile": {"rate": 50}, **changes})


def test_values_as_they_come_from_xcom_and_templates():
    spec = operator(
        model={"status": "ok", "model": codec.encode(MODEL)}, profile={"rate": 50, "ramp": [10, 20]}, rows="4",
        url="grpc://late:8081", protocol="grpc", scaled_to_zero="true", budget={"model": "20"},
        headers={"Host": "late.ml"},
    ).build_spec(DAY, {})  # fmt: skip
    assert (spec.model, spec.rows, spec.scaled_to_zero, spec.budget) == (MODEL, 4, True, {"model": 20.0})
    assert (spec.protocol, spec.url) == ("grpc", "grpc://late:8081")
    assert spec.profile == LoadProfile(rate=50, ramp=(10.0, 20.0))


def test_a_bad_profile_fails_at_parse_time():
    with pytest.raises(SpecError, match="unknown key in profile 'rat'"):
        operator(profile={"rat": 50})
    assert operator(profile={"rate": "{{ params.rate }}"}).profile


def test_the_gate_takes_the_whole_result():
    result = {"status": "ok", "report": codec.encode(REPORT), "model": codec.encode(MODEL)}
    task = GateOperator(
        task_id="gate", model=MODEL, evaluation=REPORT, policy="/gate.yaml", output="/out", load_test=result
    )
    assert task.build_spec(DAY, {}).load_test == REPORT
