"""PromoteOperator and RollbackOperator."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest

pytest.importorskip("airflow.sdk")
pytest.importorskip("mlflow")

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airflow_ml_provider import stages, tables
from airflow_ml_provider.exceptions import Conflict, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.promote import PromoteOperator, RollbackOperator
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.registry.ledger import Ledger
from airflow_ml_provider.stages.gate.spec import GateSpec
from airflow_ml_provider.stages.register.spec import RegisterSpec
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
DAYS = [Interval.from_key(f"2013-01-{day:02d}") for day in range(1, 9)]


@pytest.fixture
def judged(tracking_uri, tmp_path, monkeypatch):
    """Return a function that registers and judges the model of a day."""
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": tracking_uri}))
    test = packages.dataset(tmp_path / "test.parquet", packages.rows(400, seed=9), name="test")
    policy = tables.write_text(tmp_path / "gate.yaml", "metrics: {auc: {at_least: 0.5}}")

    def make(day: int, gate: bool = True):  # type: ignore[no-untyped-def]
        ref = packages.package(tmp_path / str(day), seed=day, trained_until=DAYS[day].end)
        report = packages.evaluation(tmp_path / f"{day}.json", ref, test)
        info = RunInfo("d", "t", str(day), interval=DAYS[day])
        done = stages.run(RegisterSpec(ref, report), info)
        if gate:
            stages.run(GateSpec(done.model, report, str(policy), str(tmp_path / "out"), parity=done.parity), info)
        return done.model

    return make


def test_it_promotes_and_skips_what_is_not_newer(judged):
    new, old = judged(5), judged(2)
    value = PromoteOperator(task_id="promote", model=new).execute(context(DAYS[5], run_id="5"))
    assert (value["moved"], value["model"]["version"]) == (True, "1")
    ctx = context(DAYS[2], run_id="2")
    with pytest.raises(AirflowSkipException, match="is not newer than the champion"):
        PromoteOperator(task_id="promote", model=old).execute(ctx)
    assert ctx["ti"].xcoms["return_value"]["moved"] is False


@pytest.mark.parametrize("how", [{"run_type": "backfill"}, {"cleared": True}])
def test_backfilled_and_cleared_runs(judged, how):
    ref = judged(5)
    with pytest.raises(AirflowSkipException, match="never promote by this policy"):
        PromoteOperator(task_id="promote", model=ref).execute(context(DAYS[5], **how))
    operator = PromoteOperator(task_id="promote", model=ref, backfill="newer")
    assert operator.execute(context(DAYS[5], **how))["moved"]


def test_a_refusal_can_fail(judged):
    with pytest.raises(AirflowFailException, match="promote refused: late version 1 has no evidence"):
        PromoteOperator(task_id="promote", model=judged(5, gate=False), on_refusal="fail").execute(context(DAYS[5]))


def test_tampered_evidence_fails_whatever_on_refusal_says(judged, tmp_path):
    ref = judged(5)
    path = next((tmp_path / "mlartifacts").rglob("evidence/*.json"))
    path.write_text(path.read_text() + " ")
    with pytest.raises(AirflowFailException, match="it was altered"):
        PromoteOperator(task_id="promote", model=ref, on_refusal="skip").execute(context(DAYS[5]))


def test_a_conflict_is_left_to_the_retries(judged):
    ref = judged(5)
    registry = Registry.from_env()
    with (
        registry._client() as client,
        Ledger(client, "late", "champion").claim("other"),
        pytest.raises(Conflict),
    ):
        PromoteOperator(task_id="promote", model=ref).execute(context(DAYS[5]))


def test_rollback_in_one_task(judged, tmp_path):
    for day in (2, 5):
        PromoteOperator(task_id="promote", model=judged(day)).execute(context(DAYS[day], run_id=str(day)))
    operator = RollbackOperator(task_id="rollback", name="late", reason="alarms", to="", effective_from="")
    value = operator.execute(context(run_type="manual", run_id="manual"))
    assert (value["moved"], value["model"]["version"], value["previous"]) == (True, "1", "2")
    assert operator.execute(context(run_type="manual", run_id="manual"))["moved"] is False
    assert Registry.from_env().journal("late")[-1].reason == "alarms"
    assert Path(tmp_path).exists()


def test_rollback_without_anybody_to_go_back_to_fails(judged):
    PromoteOperator(task_id="promote", model=judged(2)).execute(context(DAYS[2]))
    with pytest.raises(AirflowFailException, match="no earlier healthy holder"):
        RollbackOperator(task_id="rollback", name="late").execute(context(run_type="manual", run_id="m"))


def test_rollback_for_data_from_a_moment_on():
    operator = RollbackOperator(task_id="rollback", name="late", to=3, effective_from="2013-02-05T00:00:00Z")
    spec = operator.build_spec(DAYS[0], {})
    assert spec.to == "3"
    assert spec.effective_from == datetime(2013, 2, 5, tzinfo=timezone.utc)
    operator.effective_from = "soon"
    with pytest.raises(SpecError, match="effective_from must be an ISO 8601 time"):
        operator.build_spec(DAYS[0], {})


def test_a_bad_policy_for_backfills_fails_when_the_dag_is_parsed():
    with pytest.raises(SpecError, match="backfill must be one of 'never', 'newer', got 'always'"):
        PromoteOperator(task_id="promote", model={}, backfill="always")
    PromoteOperator(task_id="promote", model={}, backfill="{{ 'newer' if params.x else 'never' }}")
