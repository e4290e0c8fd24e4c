"""Score one interval with the models that held the alias when it began."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

from airflow_ml_provider import __version__, models, provenance, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef, ModelRef
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.stages.score import logic
from airflow_ml_provider.stages.score.holders import who_scores
from airflow_ml_provider.stages.score.spec import ScoreResult, ScoreSpec
from airflow_ml_provider.stages.score.stream import Counts, score_file

log = logging.getLogger(__name__)


def run(spec: ScoreSpec, info: RunInfo) -> ScoreResult:
    """Score the rows of an interval into its partition; without any holder there is nothing to do."""
    interval = cast("Interval", spec.interval)  # the spec sees to it
    registry = Registry.from_env()
    target = tables.partition(spec.target, interval)
    chosen, ruled_by = _choose(registry, spec, interval, target)
    if not chosen:
        return ScoreResult(
            status="skipped", reason=logic.nobody(spec.models, spec.alias, interval), inputs=(spec.dataset,)
        )
    source = _source(spec.dataset, interval)
    opened = [(ref, models.Scorer(registry.fetch(ref), providers=spec.providers)) for ref in chosen]
    points = [point if (point := registry.threshold(ref)) is not None else s.manifest.threshold for ref, s in opened]
    counts = score_file(
        source, target, opened, keep=spec.keep, batch_rows=spec.batch_rows, thresholds=points,
        metadata={"provenance": _provenance(spec, chosen, points, interval), "ruled_by": {spec.alias: ruled_by}},
    )  # fmt: skip
    numbers = _numbers(counts, chosen)
    dataset = tables.describe("predictions", target, interval=interval, counts=numbers)
    absent = [name for name in spec.models if name not in {ref.name for ref in chosen}]
    reason = logic.remark(numbers, absent, spec.alias)
    log.info("scored %s of %s rows of %s. %s", counts.scored, counts.rows, interval.key, reason)
    return ScoreResult(
        reason=reason,
        inputs=(spec.dataset, *chosen),
        outputs=(dataset,),
        metrics={name: float(value) for name, value in numbers.items()},
        links=_links(registry, chosen),
        facets=_facets(spec, dataset, opened, counts),
        dataset=dataset,
        models=tuple(chosen),
        counts=numbers,
    )


def _choose(
    registry: Registry, spec: ScoreSpec, interval: Interval, target: Path
) -> tuple[list[ModelRef], dict[str, int]]:
    """Return the versions that score, and which entries of the journal say so."""
    if spec.version:
        return [registry.get(spec.models[0], spec.version)], {}
    return who_scores(registry, spec.models, spec.alias, interval, target, anew=spec.rescore)


def _source(dataset: DatasetRef, interval: Interval) -> Path:
    """Return the file with the rows, proven by its digest.

    Raises:
        DataError: it is missing.
        IntegrityError: it is not what the ref names.
    """
    path = tables.local_path(dataset.uri)
    if path.is_dir():  # a whole table, whose digest is not that of one file
        return tables.partition(dataset.uri, interval)
    try:
        found = tables.file_digest(path)
    except OSError as error:
        raise DataError(f"dataset {dataset.name!r} at {path} cannot be read: {error}") from error
    if found != dataset.digest:
        raise IntegrityError(f"dataset {dataset.name!r} at {path} has digest {found}, not {dataset.digest}")
    return path


def _provenance(spec: ScoreSpec, chosen: list[ModelRef], points: list[float], interval: Interval) -> dict[str, Any]:
    """Return what the predictions were made from; nothing of the run, so that equal work gives equal bytes."""
    return {
        "interval": interval,
        "data": {spec.dataset.name: spec.dataset.digest},
        "models": [
            {"name": ref.name, "version": ref.version, "digest": ref.digest, "threshold": point}
            for ref, point in zip(chosen, points)
        ],
        "code": {"package": __version__},
        "environment": provenance.environment(["numpy", "onnxruntime", "onnxruntime-gpu", "pyarrow"]),
    }


def _numbers(counts: Counts, chosen: list[ModelRef]) -> dict[str, int]:
    found = {"rows": counts.rows, "scored": counts.scored, "without_model": counts.without_model}
    if counts.not_a_number:
        found["not_a_number"] = counts.not_a_number
    return {**found, **{ref.name: rows for ref, rows in zip(chosen, counts.per_model)}}


def _links(registry: Registry, chosen: list[ModelRef]) -> dict[str, str]:
    page = registry.version_url(chosen[0])
    return {"mlflow": page} if page else {}


def _facets(spec: ScoreSpec, dataset: DatasetRef, opened: list[tuple[ModelRef, Any]], counts: Counts) -> dict[str, Any]:
    inputs = [name for _, scorer in opened for name in scorer.manifest.inputs]
    segments = [name for ref, _ in opened for name in ref.segment]
    keep = [name for name in dataset.columns if name not in logic.ADDED]
    score = {"min": counts.lowest, "max": counts.highest, "null_count": 0}
    return {
        "inputs": {spec.dataset.uri: {"input_rows": counts.rows}},
        "outputs": {
            dataset.uri: {
                "column_lineage": logic.column_lineage(
                    spec.dataset.uri, keep, list(dict.fromkeys(inputs)), list(dict.fromkeys(segments))
                ),
                "quality_metrics": {"row_count": counts.scored, "columns": {logic.SCORE: score}},
            }
        },
    }
