"""The evaluate stage: score the locked test set, measure it as a whole and by slice, write report and predictions."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, models, tables
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef, ReportRef
from airflow_ml_provider.stages.evaluate import logic, page, parquet, slices
from airflow_ml_provider.stages.evaluate.metrics import Rows, calibration, descending, estimate
from airflow_ml_provider.stages.evaluate.parquet import Scored
from airflow_ml_provider.stages.evaluate.spec import EvaluateResult, EvaluateSpec, OperatingPoint

log = logging.getLogger(__name__)

REPORT, PAGE, PREDICTIONS = "evaluation.json", "evaluation.html", "predictions.parquet"


def run(spec: EvaluateSpec, info: RunInfo) -> EvaluateResult:
    """Measure a model on the locked test set.

    Raises:
        IntegrityError: test set or model are not those of their refs.
        DataError: columns are missing, or there is nothing to measure.
    """
    package = models.verify(tables.local_path(spec.model.uri), spec.model)
    test = parquet.locked(spec.test)
    scored = parquet.score(spec, test, package)
    start, end = parquet.span(scored.table.column(spec.timestamp))
    trained = parquet.newest_training_row(package, spec.timestamp)
    if start <= trained:
        return EvaluateResult(
            status="refused",
            reason=f"the test rows begin at {start.isoformat()}, not after the newest training row of model "
            f"{spec.model.name!r} ({trained.isoformat()}): what it has seen cannot measure it",
            inputs=(spec.model, spec.test),
            model=spec.model,
        )
    folder = _folder(spec)
    parquet.write_predictions(
        scored, folder / PREDICTIONS, {"airflow_ml.model": spec.model.digest, "airflow_ml.test": spec.test.digest}
    )
    predictions = tables.describe(f"{spec.model.name}_test_predictions", folder / PREDICTIONS)
    body = _report(spec, package, scored, predictions, (start, end))
    return _publish(spec, folder, body, predictions, end)


def _folder(spec: EvaluateSpec) -> Path:
    """Return where report and predictions go: another model, test set or setting gets another folder."""
    what = {k: v for k, v in codec.encode(spec).items() if k not in ("model", "test", "output", "experiment")}
    identity = codec.digest({**what, "model": spec.model.digest, "test": spec.test.digest})
    return tables.local_path(spec.output) / spec.model.name / identity.partition(":")[2][:12]


def _report(
    spec: EvaluateSpec, package: Path, scored: Scored, predictions: DatasetRef, window: tuple[datetime, datetime]
) -> dict[str, Any]:
    labels, scores = scored.values("label"), scored.values("score")
    order = descending(labels, scores)
    rows = Rows.of(labels, scores)
    point = operating_point(spec.operating_point, package)
    judged = slices.judge_all(
        spec.slices, scored.table, rows, order, point["threshold"], min_rows=spec.min_rows, resamples=spec.resamples,
        confidence=spec.confidence, seed=spec.seed,
    )  # fmt: skip
    overall = estimate(
        rows, point["threshold"], resamples=spec.resamples, confidence=spec.confidence, seed=(spec.seed,)
    )
    return {
        "model": {"name": spec.model.name, "digest": spec.model.digest, "segment": dict(spec.model.segment)},
        "test": {
            "digest": spec.test.digest,
            "rows": len(rows),
            "base_rate": float(rows.labels.mean()),
            "start": window[0].isoformat(),
            "end": window[1].isoformat(),
            "left_out": {
                "other_segment": scored.read - len(rows) - scored.unlabelled,
                "unlabelled": scored.unlabelled,
            },
        },
        "operating_point": point,
        "metrics": overall,
        "calibration": calibration(rows),
        "slices": judged,
        "worst_slice": logic.worst_slices(judged),
        "predictions": {"uri": predictions.uri, "digest": predictions.digest},
        "settings": {
            "resamples": spec.resamples,
            "confidence": spec.confidence,
            "min_rows": spec.min_rows,
            "seed": spec.seed,
            "slices": list(spec.slices),
        },
    }


def operating_point(point: OperatingPoint, package: Path) -> dict[str, Any]:
    """Return how the operating point of a package was chosen, and the `threshold` that came of it."""
    body = {"by": point.by, "value": point.value}
    if point.by == "threshold":
        return {**body, "threshold": point.value, "chosen_on": "given"}
    validation = parquet.validation_rows(package)
    if validation is None:
        return {**body, "threshold": models.read_manifest(package).threshold, "chosen_on": "manifest"}
    return {**body, "threshold": logic.choose_threshold(point, validation), "chosen_on": "validation rows"}


def _publish(
    spec: EvaluateSpec, folder: Path, body: Mapping[str, Any], predictions: DatasetRef, end: datetime
) -> EvaluateResult:
    metrics = {name: m["value"] for name, m in body["metrics"].items() if m["value"] is not None}
    tables.write_text(folder / PAGE, page.render(body))
    path = tables.write_text(folder / REPORT, json.dumps(codec.encode(body), indent=1, ensure_ascii=False))
    report = ReportRef(
        name=f"{spec.model.name}_evaluation", uri=str(path), digest=tables.file_digest(path), html=str(folder / PAGE),
        summary=metrics,
    )  # fmt: skip
    links = {"report": str(folder / PAGE)}
    if address := _track(spec, metrics, [path, folder / PAGE], end):
        links["mlflow"] = address
    model = replace(spec.model, metrics=metrics)
    numbers = {"rows": float(body["test"]["rows"]), "base_rate": body["test"]["base_rate"]}
    worst = body["worst_slice"].get("auc", {}).get("slice", "")
    return EvaluateResult(
        inputs=(spec.model, spec.test),
        outputs=(report, predictions),
        metrics={**metrics, **numbers},
        links=links,
        facets={
            "inputs": {spec.test.uri: {"input_rows": body["test"]["rows"]}},
            "outputs": {predictions.uri: {"column_lineage": _column_lineage(spec, predictions)}},
            "run": {"model": codec.encode(model)},
        },
        report=report,
        predictions=predictions,
        model=model,
        worst_slice=worst,
    )


def _track(spec: EvaluateSpec, metrics: Mapping[str, float], files: list[Path], end: datetime) -> Optional[str]:
    if not spec.experiment:
        return None
    if not spec.model.run_id:
        log.warning("model %s was trained without tracking: its evaluation is not in MLflow", spec.model.name)
        return None
    from airflow_ml_provider.stages.evaluate import mlflow

    return mlflow.log(spec.model.run_id, metrics, files, end)


def _column_lineage(spec: EvaluateSpec, predictions: DatasetRef) -> dict[str, list[list[str]]]:
    kept = [name for name in predictions.columns if name not in ("label", "score")]
    inputs = models.read_manifest(tables.local_path(spec.model.uri)).inputs
    return {
        **{name: [[spec.test.uri, name]] for name in kept},
        "label": [[spec.test.uri, spec.label]],
        "score": [[spec.test.uri, name] for name in inputs],
    }
