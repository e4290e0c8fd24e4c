from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow")
pytest.importorskip("duckdb")

from airflow.sdk import DAG, Asset
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.validate import ValidateOperator
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.validate.spec import ProfileSpec
from airflow_ml_provider.testing.context import context

DAY = Interval.from_key("2013-01-05")
BATCH = DatasetRef("flights", "/data/raw/interval=2013-01-05/data.parquet", "sha256:0", interval=DAY)
PROFILE = {"required": ["id"], "minimum": {"completeness": 0.9}}


def operator(**changes: Any) -> ValidateOperator:
    defaults = {"dataset": BATCH, "target": "/valid", "reports": "/reports", "profile": PROFILE}
    return ValidateOperator(task_id="validate", **{**defaults, **changes})


@pytest.fixture
def batch(tmp_path: Path) -> DatasetRef:
    path = tables.partition(str(tmp_path / "raw"), DAY)
    connection = tables.connect()
    tables.write(connection, "SELECT i AS id FROM range(10) r(i)", path)
    connection.close()
    return tables.describe("flights", path, interval=DAY)


def test_every_argument_is_a_template_field_and_documented() -> None:
    for name in set(inspect.signature(ValidateOperator.__init__).parameters) - {"self", "kwargs"}:
        assert name in ValidateOperator.template_fields
        assert f"\n        {name}: " in str(ValidateOperator.__doc__)


@pytest.mark.parametrize(
    "dataset",
    [BATCH, codec.encode(BATCH), {"status": "ok", "dataset": codec.encode(BATCH), "counts": {}}],
    ids=["ref", "XCom of the ref", "XCom of the ingest stage"],
)
def test_forms_of_the_batch(dataset: Any) -> None:
    spec = operator(dataset=dataset).build_spec(DAY, {})  # type: ignore[arg-type]
    assert spec.dataset == BATCH
    assert spec.profile == ProfileSpec(required=("id",), minimum={"completeness": 0.9})
    assert (spec.suite, spec.quarantine_root, spec.allow_empty) == (None, "/valid_quarantine", False)


def test_rendered_templates() -> None:
    spec = operator(suite="", quarantine="", profile=None).build_spec(DAY, {})  # type: ignore[arg-type]
    assert (spec.suite, spec.quarantine, spec.profile) == (None, None, ProfileSpec())


def test_the_batch_knows_its_interval_unless_the_task_says_another() -> None:
    run = Interval.from_key("2013-02-01")
    assert operator().build_spec(run, {}).interval == DAY  # type: ignore[arg-type]
    assert operator(interval="2013-02-01").build_spec(run, {}).interval == run  # type: ignore[arg-type]
    unnamed = DatasetRef("flights", "/data/raw", "sha256:0")
    assert operator(dataset=unnamed).build_spec(run, {}).interval == run  # type: ignore[arg-type]


def test_bad_values_fail_at_parse_time() -> None:
    with pytest.raises(SpecError, match="unknown key in profile 'requird'; did you mean 'required'"):
        operator(profile={"requird": ["id"]})
    with pytest.raises(SpecError, match=r"minimum\.accuracy can never be met"):
        operator(profile={"minimum": {"accuracy": 0.5}})


def test_what_is_not_known_at_parse_time_is_not_judged(tmp_path: Path) -> None:
    with DAG("d", schedule=None):
        upstream = operator(suite=str(tmp_path / "not read yet.yaml"))
        ValidateOperator(
            task_id="second", dataset=upstream.output["dataset"], target="/t", reports="/r",
            suite="{{ var.value.suites }}/s.yaml", profile={"valid": {"x": "x > {{ params.least }}"}},
        )  # fmt: skip


def test_a_missing_suite_is_a_terminal_error(batch: DatasetRef, tmp_path: Path) -> None:
    pytest.importorskip("great_expectations")
    task = operator(dataset=batch, suite=str(tmp_path / "none.yaml"))
    with pytest.raises(AirflowFailException, match=r"suite file .*none\.yaml cannot be read"):
        task.execute(context(DAY))  # type: ignore[arg-type]


def test_admitted_batch(batch: DatasetRef, tmp_path: Path) -> None:
    valid = Asset("valid")
    task = operator(
        dataset=batch, target=str(tmp_path / "valid"), reports=str(tmp_path / "reports"), outlets=[valid]
    )  # fmt: skip
    ctx = context(DAY)
    value = task.execute(ctx)  # type: ignore[arg-type]
    assert value["status"] == "ok"
    assert value["dataset"]["rows"] == 10
    assert value["quality"] == {"completeness": 1.0, "overall": 1.0}
    assert ctx["ti"].xcoms["dataset"] == value["dataset"]
    assert ctx["outlet_events"][valid].extra["partition"] == "2013-01-05"
    assert Path(value["links"]["data_docs"]).is_file()


@pytest.mark.parametrize(("on_refusal", "error"), [("fail", AirflowFailException), ("skip", AirflowSkipException)])
def test_a_refusal_is_published_first(
    batch: DatasetRef, tmp_path: Path, on_refusal: str, error: type[Exception]
) -> None:
    profile = {"valid": {"id": "id < 5"}, "minimum": {"accuracy": 0.9}}
    task = operator(
        dataset=batch, target=str(tmp_path / "valid"), reports=str(tmp_path / "reports"), profile=profile,
        on_refusal=on_refusal,
    )  # fmt: skip
    ctx = context(DAY)
    with pytest.raises(error, match=r"accuracy 0\.5000 is below its minimum 0\.9"):
        task.execute(ctx)  # type: ignore[arg-type]
    assert ctx["ti"].xcoms["return_value"]["status"] == "refused"
    assert ctx["ti"].xcoms["report"]["passed"] is False
    assert not (tmp_path / "valid").exists()
