"""Gather the facts of a registered version, decide, and attach the evidence to the version and its run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, models, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, SpecError, invalid
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.models import Manifest, Scorer
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef, ModelRef, Ref, ReportRef
from airflow_ml_provider.registry import Registry, journal
from airflow_ml_provider.stages.gate import evidence, reports
from airflow_ml_provider.stages.gate.logic import Comparison, Decision, Facts, decide, is_newer
from airflow_ml_provider.stages.gate.spec import Challenge, GatePolicy, GateResult, GateSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Case:
    """All that the decision needs, read and verified."""

    registry: Registry
    model: ModelRef
    folder: Path
    manifest: Manifest
    threshold: float
    evaluation: Mapping[str, Any]
    policy: GatePolicy


def run(spec: GateSpec, info: RunInfo) -> GateResult:
    """Judge a version. Every report is proven to be about exactly this model before it counts."""
    case = _open(spec)
    champion = _champion(case, spec, info) if case.policy.challenge else None
    facts = _facts(case, spec, champion)
    decision = decide(case.policy, facts)
    body = evidence.record(
        decision, case.policy, case.model, case.manifest,
        champion=champion, digests=_digests(case, spec), approved_by=spec.approved_by, info=info,
        operating_point=case.evaluation["operating_point"],
    )  # fmt: skip
    file, html, digest = evidence.write(spec.output, body)
    case.registry.attach_evidence(case.model, [file, html], digest, body["decision"], str(file))
    log.info("model %s version %s: %s, evidence %s", case.model.name, case.model.version, body["decision"], digest)
    report = ReportRef(
        name="evidence", uri=str(file), digest=digest, passed=decision.passed, html=str(html),
        summary={"decision": body["decision"], "failed": list(decision.failed)},
    )  # fmt: skip
    return _result(case, spec, decision, report, champion)


def load_policy(path: str) -> GatePolicy:
    """Return the policy in a YAML or JSON file.

    Raises:
        SpecError: the file is missing, is no YAML, or says something that a policy does not know.
    """
    import yaml

    try:
        data = yaml.safe_load(tables.local_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SpecError(f"gate policy {path} cannot be read: {error}") from error
    return codec.decode(GatePolicy, {} if data is None else data, f"gate policy {Path(path).name}")


def _open(spec: GateSpec) -> _Case:
    policy = load_policy(spec.policy)
    if spec.model.version is None:
        raise invalid("model", spec.model.name, "a registered version", "register it first")
    registry = Registry.from_env()
    registered = registry.get(spec.model.name, spec.model.version)
    if registered.digest != spec.model.digest:
        raise IntegrityError(
            f"model {spec.model.name!r} version {spec.model.version} is {registered.digest} in the registry, not "
            f"{spec.model.digest}"
        )
    folder = registry.fetch(spec.model)
    manifest = models.read_manifest(folder)
    evaluation = reports.read(spec.evaluation, spec.model, "evaluation report")
    measured, used = evaluation["operating_point"]["threshold"], _threshold(registry, registered, manifest)
    if measured != used:
        raise IntegrityError(
            f"evaluation of model {spec.model.name!r} version {spec.model.version} measured at the operating point "
            f"{measured}, the version is used at {used}: register it with this evaluation, or give the one that it was "
            "registered with"
        )
    return _Case(registry, registered, folder, manifest, used, evaluation, policy)


def _champion(case: _Case, spec: GateSpec, info: RunInfo) -> Optional[ModelRef]:
    """Return whom a promotion would replace: who holds the alias, or held it when this very run promoted the model.

    A challenger that is not newer replaces nobody. It meets the champion of its own time: who held the alias for data
    of the end of the run's interval. Either way judging again meets the same one, whoever was promoted since.
    """
    registry, model = case.registry, case.model
    entries = registry.journal(model.name, spec.alias)
    own = journal.promoted_by(entries, info.dag_id, info.run_id, model.version)
    if own is not None:
        return registry.find(model.name, own.previous)
    holders = registry.holders(model.name, spec.alias, entries)
    champion = next(iter((*holders.besides(model), *holders.models)), None)
    if champion is None or info.interval is None or not entries or is_newer(model, champion):
        return champion
    before = entries[0].previous  # set by hand
    return registry.last_holder(model.name, entries, info.interval.end) or registry.find(model.name, before)


def _facts(case: _Case, spec: GateSpec, champion: Optional[ModelRef]) -> Facts:
    report, policy = case.evaluation, case.policy
    quality = None if policy.min_quality is None else _quality(case.manifest, spec.quality)
    heard = {batch["root"] for batch in quality or ()}
    return Facts(
        rows=int(report["test"]["rows"]),
        metrics=report["metrics"],
        worst_slice=report.get("worst_slice") or {},
        comparison=_compare(case, spec, policy.challenge, champion) if policy.challenge else None,
        quality=quality,
        silent=tuple(Path(root).name for root in spec.quality if root not in heard),
        parity=reports.read(spec.parity, case.model, "parity report") if spec.parity else None,
        missing_lineage=_missing(case),
        approved_by=spec.approved_by,
        load=reports.read(spec.load_test, case.model, "load test report") if spec.load_test else None,
    )


def _missing(case: _Case) -> tuple[str, ...]:
    """Return what the chain of custody lacks, in the package or on the version."""
    missing = list(case.manifest.provenance.missing())
    tags = case.registry.tags(case.model.name, case.model.version or "")
    if tags.get("airflow_ml.provenance") != codec.canonical(case.manifest.provenance):
        missing.append("provenance on the version (it differs from the package's)")
    return tuple(missing)


def _quality(manifest: Manifest, roots: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the quality of the batches in the window of the training set."""
    from airflow_ml_provider.stages.validate.series import read_series

    window = manifest.training.interval
    found = []
    for root in roots:
        for point in read_series(root):
            if _overlaps(point["interval"], window.start if window else None, manifest.trained_until):
                found.append(
                    {
                        "root": root, "series": Path(root).name, "interval": point["interval"],
                        "rows": point.get("rows"), "overall": (point["quality"] or {}).get("overall"),
                        "passed": bool(point["passed"]),
                    }
                )  # fmt: skip
    return found


def _overlaps(key: str, since: Optional[datetime], until: datetime) -> bool:
    """Whether the batch of a partition key holds data from `since` on and before `until`."""
    try:
        batch = Interval.from_key(key)
    except SpecError:  # a key of the user's own; keys of one grain sort in time order
        return (since is None or key >= f"{since:%Y-%m-%d}") and key < f"{until:%Y-%m-%dT%H%M%S}"
    return (since is None or batch.end > since) and batch.start < until


def _compare(case: _Case, spec: GateSpec, challenge: Challenge, champion: Optional[ModelRef]) -> Comparison:
    if champion is None:
        return Comparison()
    if champion.digest == case.model.digest:
        return Comparison(champion=champion.version, same=True)
    if spec.test is None:
        raise invalid("test", None, "given when the policy has a challenge", "pass the locked test set")
    table = _test_rows(case, spec, spec.test)
    from airflow_ml_provider.stages.gate.challenge import paired

    scores = Scorer(case.folder).score(table)
    try:
        holder = Scorer(case.registry.fetch(champion))
        held = holder.score(table)
    except DataError as error:
        return Comparison(champion=champion.version, rows=table.num_rows, problem=f"the champion cannot score: {error}")
    gain = paired(
        table.column(spec.label).to_numpy(), scores, held,
        metric=challenge.metric, thresholds=(case.threshold, _threshold(case.registry, champion, holder.manifest)),
        confidence=challenge.confidence, resamples=challenge.resamples, seed=_seed(case.model, champion, spec.test),
    )  # fmt: skip
    return Comparison(
        champion.version, gain.challenger, gain.champion, gain.gain, gain.low, gain.high, table.num_rows,
        note=_advantage(case.evaluation, champion),
    )  # fmt: skip


def _threshold(registry: Registry, ref: ModelRef, manifest: Manifest) -> float:
    """Return the operating point that a version is used at: its own, else that of its package."""
    found = registry.threshold(ref)
    return manifest.threshold if found is None else found


def _test_rows(case: _Case, spec: GateSpec, test: DatasetRef) -> Any:
    """Return the labelled test rows of the model's segment, proven to be those of the evaluation."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    judged = case.evaluation["test"]["digest"]
    if test.digest != judged:
        raise IntegrityError(f"test set {test.name!r} has digest {test.digest}, the evaluation used {judged}")
    path = tables.local_path(test.uri)
    try:
        found = tables.file_digest(path)
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"test set {test.name!r} at {path} cannot be read: {error}") from error
    if found != test.digest:
        raise IntegrityError(f"test set {test.name!r} at {path} has digest {found}, not {test.digest}: it was changed")
    if spec.label not in table.schema.names:
        raise DataError(f"test set {test.name!r} lacks the label {spec.label!r}")
    mask = pc.and_(models.segment_mask(table, case.model.segment), pc.is_valid(table.column(spec.label)))
    return table.filter(mask)


def _advantage(evaluation: Mapping[str, Any], champion: ModelRef) -> str:
    start = evaluation["test"].get("start")
    if start and champion.trained_until and champion.trained_until.isoformat() > start:
        return f"the champion has seen data until {champion.trained_until.isoformat()}, so some of the test rows"
    return ""


def _seed(*refs: Ref) -> int:
    """Return a seed that belongs to what is compared, so that judging again draws the same resamples."""
    return int(codec.digest([ref.digest for ref in refs]).partition(":")[2][:12], 16)


def _digests(case: _Case, spec: GateSpec) -> dict[str, str]:
    predictions = (case.evaluation.get("predictions") or {}).get("digest")
    found = {
        "evaluation": spec.evaluation.digest,
        "test": case.evaluation["test"]["digest"],
        "predictions": predictions,
        "parity": spec.parity.digest if spec.parity else None,
        "load_test": spec.load_test.digest if spec.load_test else None,
    }
    return {name: digest for name, digest in found.items() if digest}


def _result(
    case: _Case, spec: GateSpec, decision: Decision, report: ReportRef, champion: Optional[ModelRef]
) -> GateResult:
    links = {"evidence": report.html or report.uri}
    if page := case.registry.version_url(case.model):
        links["mlflow"] = page
    tests = [
        {
            "name": c.name, "passed": c.passed, "observed": c.observed, "expected": c.expected or None,
            "description": c.note, "type": "gate",
        }
        for c in decision.criteria
    ]  # fmt: skip
    given = (case.model, spec.evaluation, spec.test, spec.parity, spec.load_test, champion)
    return GateResult(
        status="ok" if decision.passed else "refused",
        reason=decision.reason and f"{case.model.name} version {case.model.version}: {decision.reason}",
        inputs=tuple(ref for ref in given if ref is not None),
        outputs=(report,),
        metrics={c.name: float(c.observed) for c in decision.criteria if c.observed is not None},
        links=links,
        facets={"run": {"tests": tests, "provenance": case.manifest.provenance}},
        passed=decision.passed,
        evidence=report,
        model=case.model,
        failed=decision.failed,
    )
