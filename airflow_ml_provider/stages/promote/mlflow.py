"""Move an alias on the strength of evidence, or give it back."""

from __future__ import annotations

import logging
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, models
from airflow_ml_provider.exceptions import IntegrityError, invalid
from airflow_ml_provider.models import Manifest
from airflow_ml_provider.provenance import PARENT, RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.registry import JournalEntry, Registry, journal
from airflow_ml_provider.registry.journal import Holders
from airflow_ml_provider.stages.gate import evidence
from airflow_ml_provider.stages.promote.logic import effective_from, judged_against_another, may_promote
from airflow_ml_provider.stages.promote.spec import PromoteResult, PromoteSpec, RollbackSpec

log = logging.getLogger(__name__)


def run(spec: PromoteSpec, info: RunInfo) -> PromoteResult:
    """Move the alias to a version with passing evidence for exactly its files, if it is newer than the holder.

    No evidence, or a decision against it, is a refusal. Evidence or files that were altered, and a journal that was,
    are an `IntegrityError`.
    """
    registry = Registry.from_env()
    model = _registered(registry, spec.model)
    entries = registry.journal(model.name, spec.alias)
    expected = registry.alias(model.name, spec.alias)
    own = journal.of_run(entries, info.identity, "promote", model.version)
    if own and (own.seq < len(entries) or expected == model.version):
        return _unmoved(registry, spec, model, f"{_name(model)} was promoted by this run before", "ok")
    # What this task has journalled is decided, and only to be completed.
    holders = Holders() if own else registry.holders(model.name, spec.alias, entries)
    if not own:
        bad, parent = registry.rolled_back(model.name, entries), _made_from(registry, model, holders)
        verdict = may_promote(model, holders, backfill=spec.backfill, info=info, rolled_back=bad, made_from=parent)
        if verdict.outcome != "move":
            status = "ok" if verdict.outcome == "already" else "refused"
            return _unmoved(registry, spec, model, verdict.reason, status)
    record = registry.evidence(model)
    if objection := _objection(registry, model, record, holders):
        return _unmoved(registry, spec, model, objection, "refused")
    entry = registry.move(
        model.name, spec.alias, model, action="promote", info=info, expected=expected, after=len(entries),
        effective_from=effective_from(model, info, datetime.now(timezone.utc)), reason=_reason(info),
        evidence=codec.digest(record),
    )  # fmt: skip
    log.info("%s@%s is version %s for data from %s on", model.name, spec.alias, model.version, entry.effective_from)
    return _moved(registry, spec.alias, model, entry, expected != model.version)


def _objection(registry: Registry, model: ModelRef, record: Optional[dict[str, Any]], holders: Holders) -> str:
    """Return why the evidence does not let a model replace the holders; empty when it does.

    Raises:
        IntegrityError: the evidence, or the files that the registry stores, are about another model.
    """
    trained_until = None if record is None else _stored(registry, model).trained_until
    found = evidence.objection(record, model, trained_until, registry.threshold(model))
    return found or ("" if record is None else judged_against_another(model, record, holders))


def _made_from(registry: Registry, model: ModelRef, holders: Holders) -> str:
    """Return the digest of the model that this one was made from, where that matters; the record is verified later."""
    if all(holder.trained_until != model.trained_until for holder in holders.besides(model)):
        return ""
    record = registry.evidence(model) or {}
    return str(record.get("provenance", {}).get("data", {}).get(PARENT, ""))


def run_rollback(spec: RollbackSpec, info: RunInfo) -> PromoteResult:
    """Give the alias back to the last healthy holder, or to an earlier holder of choice."""
    return roll_back(Registry.from_env(), spec, info)


def roll_back(registry: Registry, spec: RollbackSpec, info: RunInfo) -> PromoteResult:
    """Give the alias back; a task does it once, so running it again changes nothing.

    The files of the version that the alias goes back to are proven before it moves.
    """
    entries = registry.journal(spec.name, spec.alias)
    current = registry.alias(spec.name, spec.alias)
    own = journal.of_run(entries, info.identity, "rollback")
    target = own or _target(entries, current, spec.to, registry.present(spec.name))
    if target is None or target.version == current or (own and own.seq < len(entries)):
        return PromoteResult(
            status="ok" if target else "refused",
            reason=_why_not(spec, entries, current, target),
            model=registry.get(spec.name, current) if current else None,
        )
    model = registry.held_by(spec.name, target)
    _stored(registry, model)
    moment = spec.effective_from or datetime.now(timezone.utc)
    entry = registry.move(
        spec.name, spec.alias, model, action="rollback", info=info, expected=current, after=len(entries),
        effective_from=moment, reason=spec.reason or _reason(info), evidence=target.evidence,
    )  # fmt: skip
    log.info("%s@%s went back from version %s to %s", spec.name, spec.alias, entry.previous, entry.version)
    return _moved(registry, spec.alias, model, entry, current != registry.alias(spec.name, spec.alias))


def _registered(registry: Registry, ref: ModelRef) -> ModelRef:
    if ref.version is None:
        raise invalid("model", ref.name, "a registered version", "register it first")
    found = registry.get(ref.name, ref.version)
    if found.digest != ref.digest:
        raise IntegrityError(
            f"model {ref.name!r} version {ref.version} is {found.digest} in the registry, not {ref.digest}"
        )
    return found


def _stored(registry: Registry, model: ModelRef) -> Manifest:
    """Return the manifest of what the registry itself stores, after proving that it is the model."""
    with tempfile.TemporaryDirectory() as aside:
        manifest = models.read_manifest(registry.download(model, Path(aside)))
    if manifest.trained_until != model.trained_until:
        raise IntegrityError(
            f"model {model.name!r} version {model.version} was trained until {manifest.trained_until}, its tag says "
            f"{model.trained_until}"
        )
    return manifest


def _target(
    entries: tuple[JournalEntry, ...], current: Optional[str], to: Optional[str], there: set[str]
) -> Optional[JournalEntry]:
    if not to:
        return journal.last_healthy(entries, current, there)
    return next((entry for entry in reversed(entries) if entry.version == to), None)


def _why_not(
    spec: RollbackSpec, entries: tuple[JournalEntry, ...], current: Optional[str], target: Optional[JournalEntry]
) -> str:
    where = f"{spec.name}@{spec.alias}"
    if target is not None:
        done = "" if target.version == current else f" went back to version {target.version} in this run before and"
        return f"{where}{done} is at version {current} now"
    if not entries:
        return f"nobody has ever held {where}: there is nothing to go back to"
    held = ", ".join(dict.fromkeys(entry.version for entry in entries))
    if spec.to:
        return f"version {spec.to} never held {where}; versions that did: {held}"
    return f"{where} has no earlier healthy holder to go back to; versions that held it: {held}"


def _reason(info: RunInfo) -> str:
    return f"{info.reason}: {info.trigger}" if info.trigger else info.reason


def _name(ref: ModelRef) -> str:
    return f"{ref.name} version {ref.version}"


def _unmoved(registry: Registry, spec: PromoteSpec, model: ModelRef, reason: str, status: Any) -> PromoteResult:
    page = registry.version_url(model)
    return PromoteResult(
        status=status, reason=reason, inputs=(model,), links={"mlflow": page} if page else {},
        facets={"run": {"model": {**codec.encode(model), "alias": spec.alias, "moved": False}}},
        model=registry.holder(model.name, spec.alias),
    )  # fmt: skip


def _moved(registry: Registry, alias: str, model: ModelRef, entry: JournalEntry, moved: bool) -> PromoteResult:
    page = registry.version_url(model)
    told = {
        **codec.encode(model), "alias": alias, "moved": moved, "action": entry.action, "journal": entry.digest,
        "evidence": entry.evidence, "effectiveFrom": entry.effective_from, "previous": entry.previous,
    }  # fmt: skip
    return PromoteResult(
        reason=f"{model.name}@{alias} is version {model.version} for data from {entry.effective_from.isoformat()} on",
        inputs=(model,), links={"mlflow": page} if page else {}, facets={"run": {"model": told}},
        moved=moved, model=model, previous=entry.previous,
    )  # fmt: skip
