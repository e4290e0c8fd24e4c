"""May a model have users? Only with the gate's passing evidence for exactly its digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Optional, Union

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import IntegrityError, invalid
from airflow_ml_provider.refs import ModelRef, ReportRef, as_ref
from airflow_ml_provider.stages.gate import evidence

REQUIRED, WAIVED = "required", "waived"

Gate = Union[str, ReportRef, Mapping[str, Any]]


def check(gate: Gate) -> None:
    """Raise unless `gate` says where the evidence is, or that none is asked for.

    Raises:
        SpecError: it is no such value.
    """
    if gate not in (REQUIRED, WAIVED) and not isinstance(gate, (ReportRef, Mapping)):
        raise invalid("gate", gate, f"{REQUIRED!r}, {WAIVED!r}, or the result of the gate")


def objection(gate: Gate, model: ModelRef, env: Optional[Mapping[str, str]] = None) -> str:
    """Return why a model must not be served; empty when the gate let it pass, or is waived.

    Parameters:
        gate: `required` looks for the evidence in the registry; that of a gate's result is read itself; `waived` asks
            for none.
        model: the model.
        env: settings of the registry.

    Raises:
        IntegrityError: the evidence was altered, or is about another model.
        Unavailable: the registry does not answer.
    """
    check(gate)
    if gate == WAIVED:
        return ""
    if isinstance(gate, str):
        return _registered(model, env)
    ref = as_ref(ReportRef, gate, "evidence")
    return evidence.objection(_read(ref), model, model.trained_until)


def _registered(model: ModelRef, env: Optional[Mapping[str, str]]) -> str:
    from airflow_ml_provider.registry import Registry

    if model.version is None:
        return f"{model.name} {model.digest} is not registered, so no gate has judged it; {_WHAT_TO_DO}"
    registry = Registry.from_env(env)
    found = registry.get(model.name, model.version)
    if found.digest != model.digest:
        raise IntegrityError(
            f"model {model.name!r} version {model.version} is {found.digest} in the registry, not {model.digest}"
        )
    record = registry.evidence(found)
    return evidence.objection(record, found, found.trained_until, registry.threshold(found))


def _read(ref: ReportRef) -> dict[str, Any]:
    file = tables.local_path(ref.uri)
    found = tables.file_digest(file) if file.is_file() else "none (the file is gone)"
    if found != ref.digest:
        raise IntegrityError(f"evidence {ref.uri} has digest {found}, not {ref.digest}: it was altered")
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


_WHAT_TO_DO = "register it and let the gate judge it, or say gate='waived'"
