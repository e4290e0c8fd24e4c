"""The folder that training leaves behind: written aside, put in place whole, found again by a retry."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, models, tables
from airflow_ml_provider.exceptions import Conflict, DataError
from airflow_ml_provider.models import Manifest
from airflow_ml_provider.provenance import Provenance, RunInfo
from airflow_ml_provider.stages.train import data, export, logic
from airflow_ml_provider.stages.train.native import Native
from airflow_ml_provider.stages.train.profile import SUFFIX
from airflow_ml_provider.stages.train.run import Run
from airflow_ml_provider.stages.train.spec import TrainResult, TrainSpec
from airflow_ml_provider.stages.train.tracking import Tracked

SNAPSHOTS, TRACKING, PERFORMANCE, PROFILE = "snapshots", "tracking.json", "performance.json", "profile"
_SAMPLE = 1000


def place(spec: TrainSpec, info: RunInfo) -> Path:
    """Return the folder of a training's package: the same for all tries, another one for every task instance."""
    root = tables.local_path(spec.output).absolute()
    return root / logic.model_name(spec.name, spec.segment) / logic.identity(spec, info)


def snapshots(spec: TrainSpec, info: RunInfo) -> str:
    """Return where the snapshots of a training lie: the same for all tries."""
    mark = logic.clear_mark(spec, info)
    name = f"{SNAPSHOTS}-{mark}" if mark else SNAPSHOTS
    if spec.launch.snapshots is None:
        return str(place(spec, info) / name)
    model = logic.model_name(spec.name, spec.segment)
    return "/".join([spec.launch.snapshots.rstrip("/"), model, logic.identity(spec, info), name])


def beside(folder: Path, what: str) -> Path:
    """Return the hidden place beside a package's folder where something is put meanwhile."""
    return folder.parent / f".{folder.name}.{what}"


def traces(spec: TrainSpec, info: RunInfo) -> Path:
    """Return where all ranks of a training put their traces, until the package takes them."""
    return beside(place(spec, info), PROFILE)


@contextmanager
def owned(folder: Path, patience_s: float = 0) -> Iterator[None]:
    """Keep others from training into `folder` meanwhile, and mend what a killed one left.

    Parameters:
        patience_s: how long to wait for another process to end, such as one in a pod that this one replaces (seconds).

    Raises:
        Conflict: another process, such as an earlier try that is still alive, is at it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(beside(folder, "lock"), "w") as lock:  # the kernel lets go of it when its holder dies
        deadline = time.monotonic() + patience_s
        while not _locked(lock):
            if time.monotonic() >= deadline:
                raise Conflict(f"another process is training into {folder}; an earlier try may still be alive")
            time.sleep(0.5)
        old = beside(folder, "old")
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (beside(folder, "new"), old):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _locked(lock: Any) -> bool:
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def finished(folder: Path, spec: TrainSpec, info: RunInfo) -> bool:
    """Whether `folder` holds a whole package that was made from the same data by the same settings.

    One of before a clear does not count where `launch.after_clear` is `fresh`.
    """
    try:
        manifest = models.read_manifest(folder)
        mark = logic.clear_mark(spec, info)
        if mark and manifest.provenance.why.get("cleared") != mark:
            return False
        return manifest.recipe == logic.recipe(spec) and bool(models.package_digest(folder))
    except DataError:
        return False


def write(
    folder: Path,
    spec: TrainSpec,
    rows: data.Rows,
    run: Run,
    native: Native,
    origin: Provenance,
    tracked: Optional[Tracked],
    traces: Sequence[Path] = (),
) -> Manifest:
    """Put the package of a fitted model in the place of whatever is in `folder`; return its manifest.

    Parameters:
        traces: files of `launch.profile_steps`.

    Raises:
        DataError: the ONNX export does not score as the model does.
    """
    aside = beside(folder, "new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    scores = native.score(run.validation.numpy()[0])
    name = logic.model_name(spec.name, spec.segment)
    graph = export.serving_graph(run.preprocessor, native.graph(), name)
    worst = export.check(graph, run.preprocessor, run.validation.table, scores)
    native.save(aside)
    (aside / models.ONNX).write_bytes(graph)
    _write_json(aside / models.PREPROCESS, codec.encode(run.preprocessor))
    if tracked:
        _write_json(aside / TRACKING, codec.encode(tracked))
    if run.performance:  # not in the manifest: the same model is made at another speed
        _write_json(aside / PERFORMANCE, run.performance)
    for trace in traces:
        (aside / PROFILE).mkdir(exist_ok=True)
        shutil.copyfile(trace, aside / PROFILE / trace.name)
    _write_rows(aside, spec, run, scores)
    _write_reference(aside, spec, rows)
    quality = {f"validation_{key}": value for key, value in logic.quality(run.validation.labels, scores).items()}
    counts = {"rows": len(rows.labels), "rows_validation": len(run.validation), "onnx_max_difference": worst}
    manifest = Manifest(
        name=name,
        engine=spec.engine,
        inputs=run.preprocessor.inputs,
        label=spec.label,
        training=spec.dataset,
        trained_until=spec.dataset.interval.end if spec.dataset.interval else rows.latest,
        segment=dict(spec.segment),
        metrics={**quality, **counts},
        provenance=origin,
        run_id=tracked.run_id if tracked else None,
        recipe=logic.recipe(spec),
    )
    models.write_manifest(aside, manifest)
    return manifest


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def commit(folder: Path) -> None:
    """Put the written package in place, in a step that a kill cannot halve; snapshots are done with."""
    aside, old = beside(folder, "new"), beside(folder, "old")
    for path in aside.rglob("*"):
        if path.is_file():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def result(folder: Path, spec: TrainSpec) -> TrainResult:
    """Return the result of the training whose package is in `folder`."""
    manifest = models.read_manifest(folder)
    model = models.describe(folder)
    rows, validation = (int(manifest.metrics[key]) for key in ("rows", "rows_validation"))
    lineage = {"score": [[spec.dataset.uri, column] for column in manifest.inputs]}
    return TrainResult(
        reason=f"{model.name} ({model.engine}): {rows - validation} rows, validated on the {validation} newest",
        inputs=(spec.dataset,),
        outputs=(model,),
        metrics=manifest.metrics,
        links=_links(folder),
        facets={
            "inputs": {spec.dataset.uri: {"input_rows": rows}},
            "outputs": {model.uri: {"column_lineage": lineage}},
            "run": {"provenance": codec.encode(manifest.provenance), "model": codec.encode(model)},
        },
        model=model,
        performance=_json(folder / PERFORMANCE),
    )


def _links(folder: Path) -> Mapping[str, str]:
    link = _json(folder / TRACKING).get("link")
    trace = folder / PROFILE / f"rank-0{SUFFIX}"
    return {**({"mlflow": link} if link else {}), **({"profile": str(trace)} if trace.is_file() else {})}


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _write_rows(aside: Path, spec: TrainSpec, run: Run, scores: Any) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = run.validation
    native = models.arrow_array(np.asarray(scores, np.float64))
    validation = pa.table(
        {
            models.VALIDATION_TIME: part.table.column(spec.timestamp),
            models.VALIDATION_LABEL: models.arrow_array(part.labels.astype(np.int8)),
            models.SAMPLE_SCORE: native,
        }
    )
    pq.write_table(validation, aside / models.VALIDATION, compression="zstd")
    chosen = np.unique(np.linspace(0, len(part) - 1, min(_SAMPLE, len(part))).round().astype(np.int64))
    sample = part.table.select(list(run.preprocessor.inputs)).append_column(models.SAMPLE_SCORE, native)
    pq.write_table(sample.take(models.arrow_array(chosen)), aside / models.SAMPLE, compression="zstd")


def _write_reference(aside: Path, spec: TrainSpec, rows: data.Rows) -> None:
    """Write the profile of the training rows, and of the scores of rows that the model was not fitted to."""
    from airflow_ml_provider.stages.monitor.sketch import sketch_parquet

    profile = sketch_parquet(data.files(spec.dataset), rows.inputs, where=spec.segment or None)
    scores = sketch_parquet([aside / models.VALIDATION], {models.SAMPLE_SCORE: "float"})
    columns = {**profile.columns, models.SCORE: scores.columns[models.SAMPLE_SCORE]}
    (aside / models.REFERENCE).write_text(replace(profile, columns=columns).to_json(), encoding="utf-8")
