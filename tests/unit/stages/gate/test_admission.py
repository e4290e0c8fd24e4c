"""Only what the gate let pass may have users."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import IntegrityError, SpecError
from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages.gate import admission, evidence

MODEL = ModelRef("late", "/m", "sha256:7", version="7", trained_until=datetime(2013, 1, 8, tzinfo=timezone.utc))


def record(**changes: Any) -> dict[str, Any]:
    return {
        "kind": evidence.KIND,
        "decision": "passed",
        "reason": "all criteria are met",
        "model": {"digest": MODEL.digest, "trained_until": codec.encode(MODEL.trained_until)},
        "criteria": [{"name": "metric.auc", "passed": True}],
        "operating_point": {"threshold": 0.4},
        **changes,
    }


@pytest.fixture
def written(tmp_path):
    def write(**changes: Any) -> ReportRef:
        file = tables.write_text(tmp_path / "evidence.json", codec.canonical(record(**changes)))
        return ReportRef("evidence", str(file), tables.file_digest(file), passed=True)

    return write


class Registry:
    """A registry that holds one version."""

    def __init__(self, model: ModelRef, body: dict[str, Any] | None) -> None:
        self.model, self.body = model, body

    def get(self, name: str, version: str) -> ModelRef:
        assert (name, version) == (self.model.name, self.model.version)
        return self.model

    def evidence(self, ref: ModelRef) -> dict[str, Any] | None:
        return self.body

    def threshold(self, ref: ModelRef) -> float | None:
        return 0.4


@pytest.fixture
def registry(monkeypatch):
    def hold(model: ModelRef, body: dict[str, Any] | None) -> None:
        monkeypatch.setattr(
            "airflow_ml_provider.registry.Registry.from_env", classmethod(lambda cls, env: Registry(model, body))
        )

    return hold


def test_the_registry_s_passing_record_lets_it_pass(registry):
    registry(MODEL, record())
    assert admission.objection("required", MODEL) == ""


def test_without_a_record_it_does_not(registry):
    registry(MODEL, None)
    assert admission.objection("required", MODEL) == "late version 7 has no evidence; let the gate judge it first"
    assert admission.objection("waived", MODEL) == ""


def test_a_record_against_it(registry):
    criteria = [{"name": "metric.auc", "passed": False}]
    registry(MODEL, record(decision="refused", reason="auc is 0.5", criteria=criteria))
    assert admission.objection("required", MODEL) == "the evidence speaks against late version 7: auc is 0.5"


def test_a_record_about_another_model(registry):
    registry(MODEL, record(model={"digest": "sha256:8"}))
    with pytest.raises(IntegrityError, match="it is about model sha256:8, not sha256:7"):
        admission.objection("required", MODEL)


def test_another_model_under_the_same_number(registry):
    registry(replace(MODEL, digest="sha256:8"), record())
    with pytest.raises(IntegrityError, match="is sha256:8 in the registry, not sha256:7"):
        admission.objection("required", MODEL)


def test_an_unregistered_model_says_what_to_do():
    found = admission.objection("required", replace(MODEL, version=None))
    assert found == (
        "late sha256:7 is not registered, so no gate has judged it; register it and let the gate judge it, or say "
        "gate='waived'"
    )


def test_the_gate_s_own_record_needs_no_registry(written):
    ref = written()
    assert admission.objection(ref, MODEL) == ""
    result = {"status": "ok", "evidence": codec.encode(ref), "model": codec.encode(MODEL)}
    assert admission.objection(result, replace(MODEL, version=None)) == ""
    with pytest.raises(IntegrityError, match="it is about model sha256:7, not sha256:8"):
        admission.objection(ref, replace(MODEL, digest="sha256:8"))


def test_what_the_ref_says_of_the_decision_is_not_believed(written):
    ref = written(decision="refused", reason="auc is 0.5", criteria=[{"name": "metric.auc", "passed": False}])
    assert ref.passed
    assert "speaks against late version 7" in admission.objection(ref, MODEL)


def test_an_altered_or_lost_record(written):
    ref = written()
    written(reason="better")
    with pytest.raises(IntegrityError, match=r"evidence\.json has digest sha256:.*it was altered"):
        admission.objection(ref, MODEL)
    with pytest.raises(IntegrityError, match="the file is gone"):
        admission.objection(replace(ref, uri="/nowhere/evidence.json"), MODEL)


@pytest.mark.parametrize("gate", ["yes", "", None, True])
def test_other_values(gate):
    with pytest.raises(SpecError, match="gate must be 'required', 'waived', or the result of the gate"):
        admission.objection(gate, MODEL)
