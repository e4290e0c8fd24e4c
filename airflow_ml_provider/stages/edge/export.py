"""The export stage: convert a model for devices, score the same rows with both, judge, write package and report."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, models, provenance, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, MlError
from airflow_ml_provider.provenance import PARENT, RunInfo
from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages.edge import export_inputs as inputs
from airflow_ml_provider.stages.edge import export_measure as measure
from airflow_ml_provider.stages.edge.spec import FILES, RUNTIMES, EdgeExportResult, EdgeExportSpec
from airflow_ml_provider.stages.evaluate.report import operating_point
from airflow_ml_provider.stages.optimise.onnx import quiet
from airflow_ml_provider.stages.train.package import beside, commit, owned

REPORT, PACKAGE = "export.json", "package"
_KEPT = (models.ONNX, models.PREPROCESS, models.SAMPLE, models.VALIDATION, models.REFERENCE)


def run(spec: EdgeExportSpec, info: RunInfo) -> EdgeExportResult:
    """Convert, measure and judge; the same again finds what is finished, also in a later run of the DAG.

    Raises:
        IntegrityError: the model or the dataset is not that of its ref.
        DataError: the model cannot be converted to this format, or the rows cannot be used.
    """
    parent = models.verify(tables.local_path(spec.model.uri), spec.model)
    converter = importlib.import_module(f"airflow_ml_provider.stages.edge.export_{spec.format}")
    folder = _folder(spec, converter.LIBRARIES)
    with owned(folder / PACKAGE):
        body = _finished(folder)
        if body is None:
            body = _work(spec, info, parent, folder, converter)
    return _result(spec, folder, body)


def _folder(spec: EdgeExportSpec, libraries: tuple[str, ...]) -> Path:
    """Return where package and report go: the same for the same question to the same converter.

    Not all converters give the same bytes twice, and other bytes would be another release for all devices.
    """
    asked = codec.digest({"spec": codec.encode(spec), "converter": provenance.environment(libraries)})
    return tables.local_path(spec.output).absolute() / spec.model.name / asked.partition(":")[2][:12]


def _finished(folder: Path) -> Optional[dict[str, Any]]:
    """Return the report of an earlier one; it is written last."""
    try:
        body: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        if body["kept"] and models.package_digest(folder / PACKAGE) != body["model"]["digest"]:
            return None
    except (OSError, ValueError, DataError, IntegrityError):
        return None
    return body


def _work(spec: EdgeExportSpec, info: RunInfo, parent: Path, folder: Path, converter: Any) -> dict[str, Any]:
    point = operating_point(spec.operating_point, parent)
    told = inputs.signature(parent, None if spec.format == "ort" else spec.batch_size, point["threshold"])
    package = folder / PACKAGE
    aside = beside(package, "new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    file, began = aside / FILES[spec.format], time.perf_counter()
    with quiet():
        made = _converted(converter, spec, parent, file, told)
        seconds = round(time.perf_counter() - began, 3)
        _complete(aside, spec, info, parent, converter.LIBRARIES)
        found = measure.measured(spec, parent, aside, converter.load, point["threshold"])
    verdict = measure.judge(spec.policy, found)
    body: dict[str, Any] = {
        "model": {"name": spec.model.name, "digest": models.package_digest(aside), "segment": dict(spec.model.segment)},
        "parent": {"digest": spec.model.digest, "version": spec.model.version},
        "format": spec.format,
        "file": {"name": file.name, "bytes": file.stat().st_size, "digest": tables.file_digest(file)},
        "converter": {**provenance.environment(converter.LIBRARIES), "seconds": seconds, **made},
        "signature": told,
        "operating_point": point,
        "policy": codec.encode(spec.policy),
        **found,
        **verdict,
    }
    if body["kept"]:
        commit(package)
    else:
        shutil.rmtree(aside)
    text = json.dumps(codec.encode(body), indent=1, ensure_ascii=False, allow_nan=False)
    tables.write_text(folder / REPORT, text)
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _converted(
    converter: Any, spec: EdgeExportSpec, parent: Path, file: Path, told: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        made: dict[str, Any] = converter.convert(spec, parent, file, told)
    except (MlError, MemoryError):
        raise
    except Exception as error:  # converters raise whatever they like for what they do not know
        raise DataError(
            f"model {spec.model.name!r} cannot be converted to {spec.format}: {type(error).__name__}: {error}"
        ) from error
    return made


def _complete(aside: Path, spec: EdgeExportSpec, info: RunInfo, parent: Path, libraries: tuple[str, ...]) -> None:
    """Make a package of the folder with the file: the model's own graph and rows, a manifest that names the file."""
    for name in _KEPT:
        if (parent / name).is_file():
            shutil.copyfile(parent / name, aside / name)
    body = models.read_manifest(parent)
    origin = body.provenance
    asked = {"format": spec.format, "batch_size": str(spec.batch_size), "precision": spec.precision}
    rows = {spec.dataset.name: spec.dataset.digest} if spec.dataset else {}
    made = replace(
        origin,
        code={**origin.code, **provenance.code(info), "export": codec.canonical({**asked, "network": spec.network})},
        data={**origin.data, PARENT: spec.model.digest, **rows},
        environment=provenance.environment(libraries),
        why=provenance.why(info),
    )
    file = FILES[spec.format]
    body = replace(
        body, provenance=made, run_id=None, recipe=codec.digest({"export": codec.encode(spec)}),
        files={file: tables.file_digest(aside / file)},
    )  # fmt: skip
    models.write_manifest(aside, body)


def _result(spec: EdgeExportSpec, folder: Path, body: Mapping[str, Any]) -> EdgeExportResult:
    model: Optional[ModelRef] = models.describe(folder / PACKAGE) if body["kept"] else None
    path, numbers = folder / REPORT, _numbers(body)
    report = ReportRef(
        name=f"{spec.model.name}_{spec.format}", uri=str(path), digest=tables.file_digest(path), passed=body["passed"],
        summary={"parity": body["parity"], **numbers},
    )  # fmt: skip
    facets: dict[str, Any] = {
        "tests": [{"name": "parity", "passed": body["passed"], "observed": body["parity"], "type": "model"}]
    }
    if model:
        origin = models.read_manifest(folder / PACKAGE).provenance
        facets.update(model=codec.encode(model), provenance=codec.encode(origin))
    return EdgeExportResult(
        status="ok" if model else "refused",
        reason=body["reason"],
        inputs=(spec.model, *((spec.dataset,) if spec.dataset else ())),
        outputs=(model, report) if model else (report,),
        metrics=numbers,
        facets={"run": facets},
        model=model,
        report=report,
        file=body["file"]["name"],
        edge_runtime=RUNTIMES[spec.format],
        parent=spec.model,
    )


def _numbers(body: Mapping[str, Any]) -> dict[str, float]:
    """Return bytes, and where the file was run how far its scores are, and how long calls take."""
    found = {"bytes": body["file"]["bytes"], "parent_bytes": body["parent_bytes"]}
    found.update({name: body[name] for name in ("max_difference", "flips", "rows") if body.get(name) is not None})
    for name, times in body.get("latency", {}).items():
        found[f"{name}_p50_ms"] = times["p50_ms"]
    return {name: float(value) for name, value in found.items()}
