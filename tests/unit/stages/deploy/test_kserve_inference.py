"""Requests by the Open Inference Protocol."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_ml_provider.exceptions import DataError, SpecError, Unavailable
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.kserve import inference
from airflow_ml_provider.stages.deploy.service import Observed, Service, Version, VersionState

MODEL = ModelRef("late", "s3://a", "sha256:a")


class TestRequest:
    @pytest.mark.parametrize(
        ("values", "format", "datatype", "data"),
        [
            ([1, 2.5], "onnx", "FP32", [1.0, 2.5]),
            ([1, 2], "onnx", "FP32", [1.0, 2.0]),
            (["a", "b"], "onnx", "BYTES", ["a", "b"]),
            ([1, 2], "sklearn", "INT64", [1, 2]),
            ([1, 2.5], "sklearn", "FP64", [1.0, 2.5]),
            ([True, False], "mlflow", "BOOL", [True, False]),
        ],
    )
    def test_columns(self, values: list[Any], format: str, datatype: str, data: list[Any]) -> None:
        [made] = inference.request({"a": values}, format)["inputs"]
        assert made == {"name": "a", "shape": [2, 1], "datatype": datatype, "data": data}

    @pytest.mark.parametrize(
        ("values", "got"),
        [([1, None], "NoneType, int"), ([1, "a"], "int, str"), ([float("nan")], "float"), ([], "no values")],
    )
    def test_what_cannot_be_sent(self, values: list[Any], got: str) -> None:
        with pytest.raises(DataError, match=f"column 'a' must have finite numbers, .*, got {got}"):
            inference.request({"a": values})

    def test_of_different_length(self) -> None:
        with pytest.raises(DataError, match=r"columns have different numbers of rows: .*'a': 1, 'b': 2"):
            inference.request({"a": [1], "b": [1, 2]})


@pytest.mark.parametrize(
    ("status", "kind"), [(400, DataError), (422, DataError), (404, Unavailable), (500, Unavailable)]
)
def test_refusal(status: int, kind: type[Exception]) -> None:
    assert isinstance(inference.refusal("late", status, "no"), kind)


@pytest.mark.parametrize(
    ("answer", "percent", "asked", "version"),
    [
        ({"model_version": "v2"}, 80, "", "v2"),
        ({"model_version": "1"}, 80, "", ""),  # as Triton says it
        ({}, 100, "", "v1"),
        ({}, 80, "v2", "v2"),
    ],
)
def test_which_version_answered(answer: dict[str, str], percent: float, asked: str, version: str) -> None:
    states = {"v1": VersionState("ready", percent=percent), "v2": VersionState("ready", percent=100 - percent)}
    state = Observed(Service("late", Version("v1", MODEL), Version("v2", MODEL)), "1", states)
    assert inference.answered(answer, state, asked) == version


def test_addresses_of_one_version() -> None:
    made = [{"name": "v1", "annotations": {"airflow-ml/version": "v2"}}]  # it was replaced in its place
    assert inference.deployed("late", made, "v2") == "late-v1-predictor"
    with pytest.raises(SpecError, match="there is no version 'v1' of service 'late' in the cluster"):
        inference.deployed("late", made, "v1")
    revisions = [{"metadata": {"name": "r2", "annotations": {"airflow-ml/version": "v2"}}}]
    traffic = [{"revisionName": "r1", "url": "http://a"}, {"revisionName": "r2", "url": "http://b"}]
    found = {"status": {"components": {"predictor": {"traffic": traffic}}}}
    assert [inference.tagged(found, revisions, name) for name in ("v2", "v3")] == ["http://b", ""]


def test_no_address_yet() -> None:
    with pytest.raises(Unavailable, match="service 'late' has no address yet"):
        inference.post("", "", "late", {}, 1)
