"""GateOperator: fail, skip or branch; who approved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow.sdk")
pytest.importorskip("mlflow")

from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped

from airflow_ml_provider import codec, stages, tables
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.gate import GateOperator, people
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.register.spec import RegisterSpec
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
DAY = Interval.from_key("2013-01-07")


@pytest.fixture
def arguments(tracking_uri, tmp_path, monkeypatch):
    """Everything but the decision: a weak policy passes, a strong one does not."""
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": tracking_uri}))
    test = packages.dataset(tmp_path / "test.parquet", packages.rows(400, seed=9), name="test")
    ref = packages.package(tmp_path / "p")
    report = packages.evaluation(tmp_path / "e.json", ref, test)
    result = stages.run(RegisterSpec(ref, report), RunInfo())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for name, least in (("weak", 0.5), ("strong", 0.99)):
        tables.write_text(tmp_path / f"{name}.yaml", f"metrics: {{auc: {{at_least: {least}}}}}")
    body = codec.encode(result)
    return {
        "task_id": "gate", "model": body["model"], "evaluation": codec.encode(report), "parity": body["parity"],
        "output": str(tmp_path / "out"), "test": codec.encode(test),
    }  # fmt: skip


def gate(arguments: dict[str, Any], tmp_path: Path, policy: str, **changes: Any) -> GateOperator:
    return GateOperator(policy=str(tmp_path / f"{policy}.yaml"), **{**arguments, **changes})


def test_a_pass_returns_the_result_and_keys_for_its_refs(arguments, tmp_path):
    ctx = context(DAY)
    value = gate(arguments, tmp_path, "weak").execute(ctx)
    assert value["passed"] is True
    assert ctx["ti"].xcoms["model"]["version"] == "1"
    assert ctx["ti"].xcoms["evidence"]["passed"] is True
    assert "facets" not in value


def test_a_refusal_fails_after_its_evidence_is_published(arguments, tmp_path):
    ctx = context(DAY)
    with pytest.raises(AirflowFailException, match="gate refused: late version 1: 1 of 3 criteria were not met"):
        gate(arguments, tmp_path, "strong").execute(ctx)
    published = ctx["ti"].xcoms["return_value"]
    assert published["failed"] == ["metric.auc"]
    assert Path(published["evidence"]["uri"]).exists()


def test_a_refusal_can_skip(arguments, tmp_path):
    ctx = context(DAY)
    with pytest.raises(AirflowSkipException, match="must be at least 0"):
        gate(arguments, tmp_path, "strong", on_refusal="skip").execute(ctx)
    assert ctx["ti"].xcoms["return_value"]["passed"] is False


def branching(arguments, tmp_path, policy, map_index=-1):
    with DAG("d", schedule=None) as dag:
        operator = gate(arguments, tmp_path, policy, on_refusal="branch", on_pass="promote", on_refuse="tell")
        operator >> [BaseOperator(task_id="promote"), BaseOperator(task_id="tell")]
    ctx = context(DAY, task_id="gate", map_index=map_index)
    ctx["ti"].task, ctx["dag"] = operator, dag
    return operator, ctx


@pytest.mark.parametrize(("policy", "skipped", "passed"), [("weak", "tell", True), ("strong", "promote", False)])
def test_a_branch_skips_the_other_side(arguments, tmp_path, policy, skipped, passed):
    operator, ctx = branching(arguments, tmp_path, policy)
    with pytest.raises(DownstreamTasksSkipped) as caught:
        operator.execute(ctx)
    assert [task for task, _ in caught.value.tasks] == [skipped]
    assert ctx["ti"].xcoms["return_value"]["passed"] is passed
    assert ctx["ti"].xcoms["evidence"]["passed"] is passed


def test_a_branch_within_a_mapped_group_skips_its_own_member_only(arguments, tmp_path):
    operator, ctx = branching(arguments, tmp_path, "strong", map_index=3)
    with pytest.raises(DownstreamTasksSkipped) as caught:
        operator.execute(ctx)
    assert caught.value.tasks == [("promote", 3)]
    assert ctx["ti"].xcoms["skipmixin_key"] == {"followed": ["tell"]}
    assert ctx["ti"].xcoms["return_value"]["passed"] is False


@pytest.mark.parametrize(("policy", "skipped"), [("weak", []), ("strong", [("join", 0), ("promote", 0)])])
def test_what_both_branches_lead_to_is_not_skipped_by_one_of_them(arguments, tmp_path, policy, skipped):
    with DAG("d", schedule=None):
        operator = gate(arguments, tmp_path, policy, on_refusal="branch", on_pass="promote")
        promote, join = BaseOperator(task_id="promote"), BaseOperator(task_id="join")
        operator >> [promote, join]
        promote >> join
    ctx = context(DAY, map_index=0)
    ctx["ti"].task = operator
    if not skipped:
        assert operator.execute(ctx)["passed"]
        return
    with pytest.raises(DownstreamTasksSkipped) as caught:
        operator.execute(ctx)
    assert caught.value.tasks == skipped


def test_a_refusal_without_a_branch_of_its_own_skips_all(arguments, tmp_path):
    with DAG("d", schedule=None):
        operator = gate(arguments, tmp_path, "strong", on_refusal="branch", on_pass="promote")
        operator >> BaseOperator(task_id="promote")
    ctx = context(DAY)
    ctx["ti"].task = operator
    with pytest.raises(DownstreamTasksSkipped) as caught:
        operator.execute(ctx)
    assert [task for task, _ in caught.value.tasks] == ["promote"]


def test_a_task_beside_it_in_a_group_needs_no_prefix(arguments, tmp_path):
    from airflow.sdk import TaskGroup

    with DAG("d", schedule=None), TaskGroup("decide"):
        operator = gate(arguments, tmp_path, "weak", on_refusal="branch", on_pass="promote")
        operator >> BaseOperator(task_id="promote")
    assert operator._follow("promote") == "decide.promote"
    assert operator._follow("decide.promote") == "decide.promote"
    assert operator._follow(None) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_refusal": "branch"}, "on_refusal='branch' needs on_pass"),
        ({"on_pass": "promote"}, "on_refusal must be 'branch' when on_pass or on_refuse is given, got 'fail'"),
        ({"on_refusal": "ignore"}, "on_refusal must be one of fail, skip, branch, got 'ignore'"),
    ],
)
def test_bad_arguments_fail_when_the_dag_is_parsed(changes, message):
    with pytest.raises(SpecError, match=message):
        GateOperator(task_id="gate", model={}, evaluation={}, policy="p", output="o", **changes)


def test_the_whole_result_of_the_evaluate_stage_is_a_report(arguments, tmp_path):
    evaluation = {"status": "ok", "report": arguments["evaluation"], "model": None}
    spec = gate(arguments, tmp_path, "weak", evaluation=evaluation).build_spec(DAY, {})
    assert spec.evaluation.name == "evaluation"


HITL = {"chosen_options": ["Approve"], "responded_by_user": {"id": "7", "name": "Ann"}, "params_input": {}}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, []),
        ((), []),
        ("", []),
        ("[]", []),
        ("None", []),
        ("Ann", ["Ann"]),
        ("Ann, Bob", ["Ann", "Bob"]),
        ("['Ann', 'Bob']", ["Ann", "Bob"]),
        (["Ann", HITL], ["Ann", "Ann"]),
        (HITL, ["Ann"]),
        ({**HITL, "chosen_options": ["Reject"]}, []),
        ({**HITL, "responded_by_user": None}, []),
        ({"id": "7", "name": "Ann"}, ["Ann"]),
        (str([HITL]), ["Ann"]),
        (str(HITL), ["Ann"]),
        (str({**HITL, "chosen_options": ["Reject"]}), []),
        ([str(HITL), "Bob"], ["Ann", "Bob"]),
        ({**HITL, "responded_by_user": {"id": "7", "name": "Doe, Jane"}}, ["Doe, Jane"]),
        ([{"id": "7", "name": "Doe, Jane"}], ["Doe, Jane"]),
        ({**HITL, "responded_by_user": {"id": "doe,jane", "name": None}}, ["doe,jane"]),
        (["Doe, Jane"], ["Doe, Jane"]),
        ("['Doe, Jane', ' Bob ']", ["Doe, Jane", "Bob"]),
        ([" ", "None", None], []),
    ],
)
def test_who_approved(value, names):
    assert list(people(value)) == names


@pytest.mark.parametrize("value", [{"yes": 1}, 5, "[Ann", "{'yes': 1}", "{Ann, Bob"])
def test_what_is_no_approval(value):
    with pytest.raises(SpecError, match="approved_by must be"):
        list(people(value))


def test_one_person_with_a_comma_in_the_name_is_not_two(arguments, tmp_path):
    tables.write_text(tmp_path / "two.yaml", "approvals: 2")
    jane = {**HITL, "responded_by_user": {"id": "8", "name": "Doe, Jane"}}
    with pytest.raises(AirflowFailException, match=r"approvals is 1 and must be at least 2 \(approved by Doe, Jane\)"):
        gate(arguments, tmp_path, "two", approved_by=[jane]).execute(context(DAY))
    assert gate(arguments, tmp_path, "two", approved_by=[jane, HITL]).execute(context(DAY))["passed"]


def test_one_person_counts_once(arguments, tmp_path):
    spec = gate(arguments, tmp_path, "weak", approved_by=["Ann", HITL]).build_spec(DAY, {})
    assert spec.approved_by == ("Ann",)
