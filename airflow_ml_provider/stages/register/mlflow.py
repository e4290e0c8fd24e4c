"""Make a version of a trained package in MLflow."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from airflow_ml_provider import models, provenance, tables
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.models import Manifest
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.registry.packages import MLMODEL
from airflow_ml_provider.stages.gate import reports
from airflow_ml_provider.stages.register import logic, parity
from airflow_ml_provider.stages.register.spec import RegisterResult, RegisterSpec

log = logging.getLogger(__name__)


def run(spec: RegisterSpec, info: RunInfo) -> RegisterResult:
    """Prove that the export is the model, then upload and register it; a failed proof registers nothing."""
    registry = Registry.from_env()
    folder = _package(spec.model)
    manifest = models.read_manifest(folder)
    threshold = _threshold(spec, manifest)
    report = parity.check(
        folder, spec.model, threshold=threshold, max_difference=spec.max_difference, max_flips=spec.max_flips
    )
    numbers = {k: float(v) for k, v in report.summary.items() if isinstance(v, (int, float))}
    inputs = (spec.model, *((spec.evaluation,) if spec.evaluation else ()))
    if not report.passed:
        return RegisterResult(
            status="refused",
            reason=f"model {spec.model.name!r}: ONNX Runtime and {spec.model.engine} disagree: "
            f"{report.summary['reason']}",
            inputs=inputs,
            outputs=(report,),
            metrics=numbers,
            facets={"run": {"tests": _tests(report)}},
            parity=report,
        )
    versions = provenance.environment(["onnx", "mlflow"])
    tables.write_text(folder / MLMODEL, logic.mlmodel(manifest, spec.model.digest, versions))
    evaluation = spec.evaluation.digest if spec.evaluation else ""
    tags = {
        **spec.tags,
        **logic.version_tags(manifest, info, threshold=threshold, evaluation=evaluation, parity=report.digest),
    }
    name = spec.name or spec.model.name
    registered = registry.register(
        name,
        folder,
        replace(spec.model, name=name),
        tags,
        spec.alias,
        description=logic.description(manifest, threshold),
    )
    log.info("model %s is version %s of %s", registered.digest, registered.version, name)
    page = registry.version_url(registered) or registry.run_url(registered.run_id)
    return RegisterResult(
        inputs=inputs,
        outputs=(registered, report),
        metrics=numbers,
        links={"mlflow": page} if page else {},
        facets={"run": {"provenance": manifest.provenance, "model": registered, "tests": _tests(report)}},
        model=registered,
        parity=report,
    )


def _package(ref: ModelRef) -> Path:
    """Return the folder of the package, proven to be the model of `ref`."""
    try:
        return models.verify(tables.local_path(ref.uri), ref)
    except DataError as error:
        raise DataError(f"{error}; train the model again or mend the path") from error


def _threshold(spec: RegisterSpec, manifest: Manifest) -> float:
    """Return the operating point that the evaluation measured at, else the package's own."""
    if spec.evaluation is None:
        return manifest.threshold
    body = reports.read(spec.evaluation, spec.model, "evaluation report")
    return float(body["operating_point"]["threshold"])


def _tests(report: ReportRef) -> list[dict[str, object]]:
    names = ("max_difference", "flips")
    observed = ", ".join(f"{name} {report.summary[name]}" for name in names)
    return [{"name": "parity", "passed": report.passed, "observed": observed, "type": "model"}]
