"""The package of a candidate: the model's own, with another graph and with what follows from that."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_ml_provider import codec, models, provenance, tables
from airflow_ml_provider.models import Manifest
from airflow_ml_provider.provenance import PARENT, RunInfo
from airflow_ml_provider.stages.optimise.rows import Divided, take_evenly
from airflow_ml_provider.stages.optimise.spec import OptimiseSpec, Recipe
from airflow_ml_provider.stages.train.package import beside, commit

_SAMPLE = 1000
_LIBRARIES = ("numpy", "onnx", "onnxruntime", "pyarrow", "torch")


def manifest(spec: OptimiseSpec, parent: Manifest, recipe: Recipe, info: RunInfo) -> Manifest:
    """Return the manifest of a candidate: name, inputs, label, segment and rows are the model's.

    It names no tracking run: that of the model measured another graph.
    """
    origin = parent.provenance
    made = replace(
        origin,
        code={**origin.code, **provenance.code(info), "recipe": codec.canonical(recipe)},
        data={**origin.data, PARENT: spec.model.digest, spec.dataset.name: spec.dataset.digest},
        environment=provenance.environment(_LIBRARIES),
        randomness={**origin.randomness, "optimise": recipe.seed},
        why=provenance.why(info),
    )
    asked = codec.digest({"recipe": codec.encode(recipe), PARENT: spec.model.digest, "dataset": spec.dataset.digest})
    return replace(parent, provenance=made, run_id=None, recipe=asked, metrics={})


def draft(folder: Path, graph: bytes, body: Manifest) -> Path:
    """Write what scores: graph and manifest."""
    folder.mkdir(parents=True)
    (folder / models.ONNX).write_bytes(graph)
    models.write_manifest(folder, body)
    return folder


def write(
    folder: Path, spec: OptimiseSpec, parent: Path, candidate: Path, rows: Divided, scores: Any,
    metrics: Mapping[str, float],
) -> None:  # fmt: skip
    """Put the whole package of the chosen candidate into `folder`, in one step.

    The sample for the parity check and the validation rows carry the candidate's own scores: whoever registers it
    proves that it scores there as it did here, where it was measured against its parent.

    Parameters:
        parent: the model's package.
        candidate: graph and manifest.
        rows: the rows that measured it.
        scores: its scores of the newer ones.
        metrics: for the manifest.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    aside = beside(folder, "new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    body = models.read_manifest(candidate)
    shutil.copyfile(candidate / models.ONNX, aside / models.ONNX)
    if (parent / models.PREPROCESS).is_file():
        shutil.copyfile(parent / models.PREPROCESS, aside / models.PREPROCESS)
    own = models.arrow_array(scores.astype("float64"))
    validation = {
        models.VALIDATION_TIME: rows.newer.column(spec.timestamp),
        models.VALIDATION_LABEL: rows.newer.column("label"),
        models.SAMPLE_SCORE: own,
    }
    pq.write_table(pa.table(validation), aside / models.VALIDATION, compression="zstd")
    sample = rows.newer.select(list(body.inputs)).append_column(models.SAMPLE_SCORE, own)
    pq.write_table(take_evenly(sample, _SAMPLE), aside / models.SAMPLE, compression="zstd")
    _reference(parent, aside)
    models.write_manifest(aside, replace(body, metrics=dict(metrics)))
    commit(folder)


def _reference(parent: Path, aside: Path) -> None:
    """Write the parent's profile of the training rows, with the candidate's scores in place of the parent's."""
    if not (parent / models.REFERENCE).is_file():
        return
    from airflow_ml_provider.stages.monitor.sketch import Sketch, sketch_parquet

    profile = Sketch.from_json((parent / models.REFERENCE).read_text(encoding="utf-8"))
    scores = sketch_parquet([aside / models.VALIDATION], {models.SAMPLE_SCORE: "float"})
    columns = {**profile.columns, models.SCORE: scores.columns[models.SAMPLE_SCORE]}
    tables.write_text(aside / models.REFERENCE, replace(profile, columns=columns).to_json())
