"""The monitor stage: sketch today's rows, compare them with the training rows, decide, write report and series."""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, models, tables
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef, ModelRef, Ref, ReportRef
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.stages.monitor import logic, measures, page, performance, series
from airflow_ml_provider.stages.monitor.logic import Batch, ColumnDrift, Entry
from airflow_ml_provider.stages.monitor.performance import Arrived
from airflow_ml_provider.stages.monitor.sketch import Column, Numbers, Sketch, Texts, sketch_parquet
from airflow_ml_provider.stages.monitor.spec import MonitorResult, MonitorSpec
from airflow_ml_provider.stages.score.holders import who_scores

log = logging.getLogger(__name__)

REPORT, PAGE = "drift.json", "drift.html"


@dataclass(frozen=True)
class Work:
    """What the parts of one run share.

    Attributes:
        spec: what was asked.
        interval: the window.
        holders: the models that scored it.
        reference: merged sketch of their training rows.
        current: sketch of the rows that they scored.
        arrived: performance on labels that arrived.
    """

    spec: MonitorSpec
    interval: Interval
    holders: Sequence[ModelRef]
    reference: Sketch
    current: Sketch
    arrived: Arrived


def run(spec: MonitorSpec, info: RunInfo) -> MonitorResult:
    """Compare one interval with what the models were trained on, and predictions with the labels that arrived.

    Raises:
        DataError: a column or a model's training profile is missing.
    """
    interval = spec.interval or spec.dataset.interval
    if interval is None:  # the spec makes sure of it
        raise DataError("monitor needs an interval")
    registry = Registry.from_env()
    scored = tables.partition(spec.predictions, interval)
    found, _ = who_scores(registry, spec.models, spec.alias, interval, scored)
    if not found:
        return MonitorResult(
            status="skipped",
            reason=f"no model of {', '.join(spec.models)} held {spec.alias!r} at {interval.start.isoformat()}: there "
            "is no reference to compare with",
            inputs=(spec.dataset,),
        )
    work = Work(
        spec, interval, found, _reference(registry, found),
        _current(_files(spec.dataset, interval), scored, registry, found),
        performance.measure_arrived(spec.labels, spec.predictions, spec.key, interval, spec.policy),
    )  # fmt: skip
    columns = _judged(work)
    batch = logic.judge_batch(columns, work.current.rows, work.arrived.performance, spec.policy)
    entry, why_not = _decide(work, batch, info)
    report = _write(work, columns, batch, entry)
    return _result(work, columns, batch, entry, why_not, report)


def _judged(work: Work) -> list[ColumnDrift]:
    policy = work.spec.policy
    names = [name for name in work.reference.columns if name in work.current.columns]
    if unknown := [pattern for pattern in policy.ignore if not fnmatch.filter(names, pattern)]:
        log.warning("policy.ignore names %s, which the models do not use", ", ".join(unknown))
    tests = sum(map(policy.judges, names))
    return [
        logic.judge_column(name, work.reference.columns[name], work.current.columns[name], policy, tests)
        for name in names
    ]


def _reference(registry: Registry, holders: Iterable[ModelRef]) -> Sketch:
    merged = Sketch()
    for holder in holders:
        path = registry.fetch(holder) / models.REFERENCE
        if not path.is_file():
            raise DataError(
                f"model {holder.name!r} version {holder.version} has no {models.REFERENCE} (the profile of its "
                "training rows); train it again"
            )
        merged = merged.merge(Sketch.from_json(path.read_text(encoding="utf-8")))
    return merged


def _files(dataset: DatasetRef, interval: Interval) -> list[Path]:
    """Return the files with the rows: of a table those of the interval, of another folder all.

    Raises:
        DataError: the table has no rows of the interval.
    """
    place = tables.local_path(dataset.uri)
    if not place.is_dir():
        return [place]
    if not (there := tables.partitions(dataset.uri)):
        return sorted(place.glob("**/*.parquet"))
    path = tables.partition(dataset.uri, interval)
    if not path.is_file():
        newest = there[-1].parent.name
        raise DataError(f"table {dataset.name!r} at {place} has no {path.parent.name}, its newest is {newest}")
    return [path]


def _current(paths: Sequence[Path], scored: Path, registry: Registry, holders: Iterable[ModelRef]) -> Sketch:
    """Return the sketch of the rows that the holders are for, and of their scores."""
    merged, segments = Sketch(), set()
    for holder in holders:
        segment = dict(holder.segment)
        if (identity := codec.canonical(segment)) in segments:
            continue
        segments.add(identity)
        inputs = models.read_manifest(registry.fetch(holder)).inputs
        merged = merged.merge(sketch_parquet(paths, inputs, segment or None))
    if not scored.is_file():
        log.warning("there are no predictions at %s: the scores are not compared", scored)
        return merged
    column = sketch_parquet([scored], {models.SCORE: "float"}).columns[models.SCORE]
    # Rows that no model is for have no score; that is no drift of the scores. A score that is not a number is missing.
    column = replace(column, nulls=column.nulls - _without_score(scored))
    return replace(merged, columns={**merged.columns, models.SCORE: column})


def _without_score(scored: Path) -> int:
    import pyarrow.parquet as pq

    with pq.ParquetFile(scored) as file:
        groups = (file.read_row_group(i, columns=[models.SCORE]) for i in range(file.num_row_groups))
        return sum(group.column(0).null_count for group in groups)


def _decide(work: Work, batch: Batch, info: RunInfo) -> tuple[Entry, str]:
    """Write the entry of the interval; return what this run decided and, if a call starts nothing, why."""
    spec, done = work.spec, work.arrived.performance
    entry = Entry(
        interval=work.interval.key,
        rows=work.current.rows,
        judged=batch.judged,
        severity=batch.severity,
        drift_share=batch.drift_share,
        auc=done.auc if done.judged else None,
        labels=done.rows,
        models={holder.name: str(holder.version) for holder in work.holders},
    )
    place = series.folder(spec.output, spec.name)
    with series.deciding(place):
        entry, starts, why_not = logic.decide(series.read(place), entry, info, spec.policy)
        series.write(place, entry)
    return replace(entry, retrain=starts), why_not


def _write(work: Work, columns: Sequence[ColumnDrift], batch: Batch, entry: Entry) -> ReportRef:
    """Write report and page. They say what the data says; whether an event went out stands in the series."""
    spec = work.spec
    folder = tables.local_path(spec.output) / spec.name / f"interval={work.interval.key}"
    body = {
        "name": spec.name,
        "interval": work.interval,
        "dataset": {"uri": spec.dataset.uri, "digest": spec.dataset.digest},
        "rows": work.current.rows,
        "reference": {
            "rows": work.reference.rows,
            "alias": spec.alias,
            "models": [{"name": h.name, "version": h.version, "digest": h.digest} for h in work.holders],
            "without_model": sorted({*spec.models} - {h.name for h in work.holders}),
        },
        "judged": batch.judged,
        "severity": batch.severity,
        "drift_share": batch.drift_share,
        "reason": batch.reason,
        "training_called": entry.called,
        "columns": [
            {**codec.encode(c), "picture": _picture(work.reference.columns[c.name], work.current.columns[c.name])}
            for c in columns
        ],
        "performance": work.arrived.performance,
        "policy": spec.policy,
    }
    body = codec.encode(body)
    tables.write_text(folder / PAGE, page.render(body))
    path = tables.write_text(folder / REPORT, json.dumps(body, indent=1, ensure_ascii=False))
    summary = {"severity": batch.severity, "drift_share": batch.drift_share, "training_called": entry.called}
    return ReportRef(
        name=f"{spec.name}_drift",
        uri=str(path),
        digest=tables.file_digest(path),
        passed=batch.severity != "significant" if batch.judged else None,
        html=str(folder / PAGE),
        summary=summary,
    )


def _picture(reference: Column, current: Column) -> dict[str, Any]:
    """Return what the page draws: bars (`at`) of numbers or of the most frequent values, as shares of both."""
    if isinstance(reference, Numbers) and isinstance(current, Numbers):
        bars = measures.histogram(reference, current)
        at: list[Any] = [bar[0] for bar in bars]
        shares = [(bar[1], bar[2]) for bar in bars]
    elif isinstance(reference, Texts) and isinstance(current, Texts):
        frequent = {value for sketch in (reference, current) for value, _ in sketch.top(12) if value}
        counts = {v: (reference.values.get(v, 0), current.values.get(v, 0)) for v in frequent}
        at = sorted(counts, key=lambda v: (-counts[v][0], -counts[v][1], v))
        n, m = max(1, reference.count), max(1, current.count)
        shares = [(counts[v][0] / n, counts[v][1] / m) for v in at]
    else:
        at, shares = [], []
    return {"at": at, "reference": [round(a, 6) for a, _ in shares], "current": [round(b, 6) for _, b in shares]}


def _result(
    work: Work, columns: Sequence[ColumnDrift], batch: Batch, entry: Entry, why_not: str, report: ReportRef
) -> MonitorResult:
    spec, done = work.spec, work.arrived.performance
    reason = batch.reason
    if entry.called:
        reason += f"; training is called for, but {why_not}" if why_not else "; training starts"
    metrics = {"rows": float(work.current.rows), "columns": float(len(columns))}
    metrics["drifted"] = float(sum(c.severity == "significant" for c in columns))
    metrics.update({k: v for k, v in (("drift_share", batch.drift_share), ("auc", done.auc)) if v is not None})
    metrics["labels"] = float(done.rows)
    return MonitorResult(
        reason=reason,
        inputs=(spec.dataset, *work.holders, *_read(work)),
        outputs=(report,),
        metrics=metrics,
        links={"report": report.html or ""},
        facets={
            "inputs": {spec.dataset.uri: _facets(work, columns)},
            "run": {"tests": [_performance_test(work)]} if done.judged and spec.policy.min_auc is not None else {},
        },
        report=report,
        severity=batch.severity,
        drift_share=batch.drift_share,
        retrain=entry.retrain,
    )


def _read(work: Work) -> list[Ref]:
    """Return the refs of the predictions and labels that were read."""
    scored = tables.partition(work.spec.predictions, work.interval)
    paths = dict.fromkeys([*([scored] if scored.is_file() else []), *work.arrived.read])
    labels = tables.local_path(work.spec.labels) if work.spec.labels else None
    refs: list[Ref] = []
    for path in paths:
        name = "labels" if labels and path.is_relative_to(labels) else "predictions"
        refs.append(_partition(name, path))
    return refs


def _partition(name: str, path: Path) -> DatasetRef:
    key = path.parent.name.partition("=")[2]
    ref = tables.describe(name, path)
    return replace(ref, name=f"{name} {key}")


def _facets(work: Work, columns: Iterable[ColumnDrift]) -> Mapping[str, Any]:
    inputs = {name: c for name, c in work.current.columns.items() if name != models.SCORE}
    quality: dict[str, Any] = {}
    for name, column in inputs.items():
        body: dict[str, Optional[float]] = {"null_count": column.nulls, "count": column.count}
        if isinstance(column, Numbers):
            body.update(min=column.low, max=column.high, sum=column.total)
        quality[name] = body
    assertions = [
        {"assertion": "no_drift", "success": c.severity != "significant", "column": c.name, "severity": "warn"}
        for c in columns
        if c.name in inputs and not c.ignored
    ]
    metrics = {"row_count": work.current.rows, "columns": quality}
    return {"input_rows": work.current.rows, "assertions": assertions, "quality_metrics": metrics}


def _performance_test(work: Work) -> dict[str, Any]:
    auc, least = work.arrived.performance.auc, work.spec.policy.min_auc
    passed = auc is None or least is None or auc >= least
    return {"name": "auc_on_arrived_labels", "passed": passed, "expected": f">= {least}", "actual": auc}
