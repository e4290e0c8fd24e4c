"""The record on which a decision stands: canonical JSON, named by its own digest. It holds no clock and no local path,
so judging the same facts again gives the same record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import IntegrityError
from airflow_ml_provider.models import Manifest
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.gate import page
from airflow_ml_provider.stages.gate.logic import Decision
from airflow_ml_provider.stages.gate.spec import GatePolicy

KIND = "airflow_ml.evidence/1"
PASSED, REFUSED = "passed", "refused"


def record(
    decision: Decision,
    policy: GatePolicy,
    model: ModelRef,
    manifest: Manifest,
    *,
    champion: Optional[ModelRef],
    digests: Mapping[str, str],
    operating_point: Mapping[str, Any],
    approved_by: tuple[str, ...],
    info: RunInfo,
) -> dict[str, Any]:
    """Return the record of a decision.

    Parameters:
        operating_point: how it was chosen, and the `threshold` that the version is used with.
        digests: of `evaluation`, `test`, `predictions`, `parity`, `load_test` as far as there are any.
    """
    origin = manifest.provenance
    body = {
        "kind": KIND,
        "decision": PASSED if decision.passed else REFUSED,
        "reason": decision.reason,
        "model": _model(model, manifest),
        "champion": None if champion is None else _model(champion),
        "operating_point": operating_point,
        "criteria": decision.criteria,
        "unchecked": decision.unchecked,
        "policy": {"digest": codec.digest(policy), "body": policy},
        "digests": {
            "model": model.digest,
            "training": manifest.training.digest,
            "data": origin.data,
            "features": codec.digest(sorted(manifest.inputs.items())),
            "code": codec.digest(origin.code),
            "environment": origin.environment.get("digest") or codec.digest(origin.environment),
            **digests,
        },
        "provenance": origin,
        "approved_by": sorted(set(approved_by)),
        "run": {
            "dag_id": info.dag_id,
            "run_id": info.run_id,
            "reason": info.reason,
            "trigger": info.trigger,
            "interval": info.interval,
        },
    }
    plain: dict[str, Any] = codec.encode(body)
    return plain


def write(output: str, body: Mapping[str, Any]) -> tuple[Path, Path, str]:
    """Write a record and its page below `OUTPUT/evidence`; return both files and the digest."""
    text = codec.canonical(body)
    digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    base = tables.local_path(output) / "evidence" / digest.partition(":")[2]
    file = tables.write_text(base.with_suffix(".json"), text)
    html = tables.write_text(base.with_suffix(".html"), page.render(body, digest))
    return file, html, digest


def verify(body: Mapping[str, Any], model: ModelRef, trained_until: Any, threshold: Optional[float]) -> None:
    """Raise unless a record is consistent in itself and about exactly this model, whatever its decision is.

    Parameters:
        trained_until: as the package says.
        threshold: operating point that the version is used with.

    Raises:
        IntegrityError: it is not.
    """
    judged = body.get("model") or {}
    criteria = body.get("criteria") or []
    failed = [str(c.get("name")) for c in criteria if c.get("passed") is not True]
    found = []
    if body.get("kind") != KIND:
        found.append(f"it is of kind {body.get('kind')!r}, not {KIND!r}")
    if judged.get("digest") != model.digest:
        found.append(f"it is about model {judged.get('digest')}, not {model.digest}")
    elif judged.get("trained_until") != codec.encode(trained_until):
        found.append(f"it says trained until {judged.get('trained_until')}, the model {codec.encode(trained_until)}")
    judged_at = (body.get("operating_point") or {}).get("threshold")
    if threshold is not None and judged_at != threshold:
        found.append(f"it judged at the operating point {judged_at}, the version says {threshold}")
    if body.get("decision") == PASSED and (failed or not criteria):
        found.append(f"it says passed, but not its criteria: {', '.join(failed) or 'there are none'}")
    if found:
        raise IntegrityError(f"evidence of {model.name!r} version {model.version}: {'; '.join(found)}")


def objection(
    body: Optional[Mapping[str, Any]], model: ModelRef, trained_until: Any, threshold: Optional[float] = None
) -> str:
    """Return why a record does not let exactly this model go on; empty when it does. None is no record.

    Parameters:
        body: the record.
        model: the model.
        trained_until: as the package says.
        threshold: operating point that the version is used with.

    Raises:
        IntegrityError: the record is about another model, or not consistent.
    """
    name = f"{model.name} version {model.version}" if model.version else f"{model.name} {model.digest}"
    if body is None:
        return f"{name} has no evidence; let the gate judge it first"
    verify(body, model, trained_until, threshold)
    return "" if body["decision"] == PASSED else f"the evidence speaks against {name}: {body['reason']}"


def _model(ref: ModelRef, manifest: Optional[Manifest] = None) -> dict[str, Any]:
    return {
        "name": ref.name,
        "version": ref.version,
        "digest": ref.digest,
        "engine": ref.engine,
        "segment": ref.segment,
        "trained_until": manifest.trained_until if manifest else ref.trained_until,
    }
