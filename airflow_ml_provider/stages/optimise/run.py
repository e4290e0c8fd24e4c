"""The optimise stage: make candidates, measure all on the same rows, choose, write package and report."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, models, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages.evaluate.report import operating_point
from airflow_ml_provider.stages.optimise import logic, measure, onnx, package, page, triton
from airflow_ml_provider.stages.optimise import rows as divided
from airflow_ml_provider.stages.optimise.logic import Choice, NotApplicable
from airflow_ml_provider.stages.optimise.measure import Candidate, Speeds
from airflow_ml_provider.stages.optimise.spec import ORIGINAL, TRAINED, OptimiseResult, OptimiseSpec, Recipe
from airflow_ml_provider.stages.train.package import owned

log = logging.getLogger(__name__)

REPORT, PAGE, PACKAGE, TRITON = "optimisation.json", "optimisation.html", "package", "triton"


def run(spec: OptimiseSpec, info: RunInfo) -> OptimiseResult:
    """Make, measure and choose; a retry finds what an earlier try has finished.

    Raises:
        IntegrityError: model or dataset are not those of their refs.
        DataError: the rows cannot be divided, or another model has other inputs.
    """
    parent = models.verify(tables.local_path(spec.model.uri), spec.model)
    folder = _folder(spec, info)
    with owned(folder):
        body = _finished(folder)
        if body is None:
            body = _work(spec, info, parent, folder)
    return _result(spec, folder, body)


def _folder(spec: OptimiseSpec, info: RunInfo) -> Path:
    """Return where package and report go: the same for all tries, another one for another question or clear."""
    asked = codec.digest({"spec": codec.encode(spec), "run": info.identity, "clear": info.clear_number})
    return tables.local_path(spec.output).absolute() / spec.model.name / asked.partition(":")[2][:12]


def _finished(folder: Path) -> Optional[dict[str, Any]]:
    """Return the report of an earlier try; it is written last."""
    try:
        body: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        if body["choice"]["package"]:
            models.verify(Path(body["choice"]["package"]["uri"]), codec.decode(ModelRef, body["choice"]["package"], ""))
    except (OSError, ValueError, DataError, IntegrityError):
        return None
    return body


def _work(spec: OptimiseSpec, info: RunInfo, parent: Path, folder: Path) -> dict[str, Any]:
    rows = divided.divide(spec, spec.dataset, parent)
    point = operating_point(spec.operating_point, parent)
    with tempfile.TemporaryDirectory() as aside:
        found, not_applicable = _candidates(spec, info, parent, rows, Path(aside))
        table, choice, speeds = _measure(spec, rows, found, point["threshold"])
        body: dict[str, Any] = {
            "model": {"name": spec.model.name, "digest": spec.model.digest, "segment": dict(spec.model.segment)},
            "dataset": _told(spec, rows),
            "operating_point": point,
            "policy": {**codec.encode(spec.policy), "batch_size": spec.at_batch},
            "settings": {"repeats": spec.repeats, "threads": spec.threads, "confidence": spec.confidence},
            "providers": {
                "decides": speeds.providers[0],
                "measured": speeds.providers,
                "unusable": speeds.unusable,
            },
            "recipes": {r.name: codec.encode(r) for r in spec.recipes},
            "candidates": [*table, *({"name": n, "verdict": "not applicable", "why": w} for n, w in not_applicable)],
            "choice": {"name": choice.name, "reason": choice.reason, "package": None},
        }
        ref = _keep(spec, parent, folder / PACKAGE, found, rows, table, choice)
    body["choice"]["package"] = codec.encode(ref) if ref else None
    if spec.triton:
        triton.write_model(folder / TRITON, Path(ref.uri) if ref else parent, None, spec.triton)
    tables.write_text(folder / PAGE, page.render(body))
    text = json.dumps(codec.encode(body), indent=1, ensure_ascii=False, allow_nan=False)
    tables.write_text(folder / REPORT, text)
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _candidates(
    spec: OptimiseSpec, info: RunInfo, parent: Path, rows: divided.Divided, aside: Path
) -> tuple[dict[str, Candidate], list[tuple[str, str]]]:
    """Return what can be measured, the model first, and what a recipe cannot be done to, with the reason."""
    manifest = models.read_manifest(parent)
    found, not_applicable = {ORIGINAL: Candidate.of(parent, rows.newer)}, []
    calibration = divided.feeds(rows.sample(spec.calibration_rows), manifest.inputs, manifest.name)
    for recipe in spec.recipes:
        try:
            graph = _graph(recipe, parent, rows, calibration)
        except NotApplicable as error:
            not_applicable.append((recipe.name, str(error)))
            log.info("%s is not applicable: %s", recipe.name, error)
            continue
        draft = package.draft(aside / recipe.name, graph, package.manifest(spec, manifest, recipe, info))
        found[recipe.name] = Candidate.of(draft, rows.newer)
    for i, ref in enumerate(spec.others):
        other = models.verify(tables.local_path(ref.uri), ref)
        if set(models.read_manifest(other).inputs) - set(rows.newer.column_names):
            raise DataError(f"model {ref.digest} of `others` has other inputs than {spec.model.name!r}; leave it out")
        found[f"other {i + 1}"] = Candidate.of(other, rows.newer)
    return found, not_applicable


def _graph(recipe: Recipe, parent: Path, rows: divided.Divided, calibration: Mapping[str, Any]) -> bytes:
    graph = (parent / models.ONNX).read_bytes()
    for step in recipe.steps:
        if step in TRAINED:
            from airflow_ml_provider.stages.optimise import retrain

            graph = retrain.apply(step, recipe, parent, rows)
        else:
            graph = onnx.apply(step, graph, recipe, calibration)
    return graph


def _measure(
    spec: OptimiseSpec, rows: divided.Divided, found: Mapping[str, Candidate], threshold: float
) -> tuple[list[dict[str, Any]], Choice, Speeds]:
    original = found[ORIGINAL]
    before = measure.accuracy(spec, rows, original, threshold)
    table = {name: measure.compared(spec, rows, original, c, threshold, before) for name, c in found.items()}
    speeds = measure.speeds(found, rows.newer, spec)
    seen = {name: measure.measured(spec, name, entry, speeds) for name, entry in table.items()}
    choice = logic.choose(spec.policy, seen[ORIGINAL], {n: m for n, m in seen.items() if n != ORIGINAL})
    entries = []
    for name, entry in table.items():
        verdict, why = choice.verdicts[name]
        told = {"latency": speeds.times[name], "does_not_run_on": speeds.failed[name]}
        entries.append({"name": name, "verdict": verdict, "why": why, **told, **entry})
    return entries, choice, speeds


def _keep(
    spec: OptimiseSpec, parent: Path, folder: Path, found: Mapping[str, Candidate], rows: divided.Divided,
    table: list[dict[str, Any]], choice: Choice,
) -> Optional[ModelRef]:  # fmt: skip
    """Write the package of the chosen candidate and return its ref; none when the model itself or another one is it."""
    if choice.name == ORIGINAL:
        return None
    if choice.name.startswith("other "):
        return spec.others[int(choice.name[6:]) - 1]
    entry = next(e for e in table if e["name"] == choice.name)
    metrics = {f"validation_{k}": m["value"] for k, m in entry["metrics"].items() if m["value"] is not None}
    numbers = {"bytes": entry["bytes"], "parent_flip_share": entry["parity"]["flip_share"]}
    candidate = found[choice.name]
    package.write(folder, spec, parent, candidate.folder, rows, candidate.scores, {**metrics, **numbers})
    return models.describe(folder)


def _result(spec: OptimiseSpec, folder: Path, body: Mapping[str, Any]) -> OptimiseResult:
    told = body["choice"]
    model = codec.decode(ModelRef, told["package"], "package") if told["package"] else spec.model
    path, html = folder / REPORT, folder / PAGE
    numbers = _numbers(body)
    report = ReportRef(
        name=f"{spec.model.name}_optimisation", uri=str(path), digest=tables.file_digest(path), html=str(html),
        summary={"chosen": told["name"], **numbers},
    )  # fmt: skip
    origin = models.read_manifest(tables.local_path(model.uri)).provenance
    return OptimiseResult(
        reason=told["reason"],
        inputs=(spec.model, spec.dataset),
        outputs=(report,) if told["package"] is None else (model, report),
        metrics=numbers,
        links={"report": str(html)},
        facets={
            "inputs": {spec.dataset.uri: {"input_rows": body["dataset"]["rows"]}},
            "run": {"model": codec.encode(model), "provenance": codec.encode(origin), "tests": _tests(body)},
        },
        model=model,
        report=report,
        chosen=told["name"],
        parent=spec.model,
        repository=str(folder / TRITON) if spec.triton else "",
    )


def _numbers(body: Mapping[str, Any]) -> dict[str, float]:
    """Return bytes and latency of the model and of what was chosen."""
    found = {}
    for what, name in (("original", ORIGINAL), ("chosen", body["choice"]["name"])):
        entry = next(e for e in body["candidates"] if e["name"] == name)
        times = entry["latency"][body["providers"]["decides"]][str(body["policy"]["batch_size"])]
        found[f"{what}_bytes"], found[f"{what}_p50_ms"] = float(entry["bytes"]), float(times["p50_ms"])
    return found


def _tests(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    passed = {"chosen": True, "allowed": True, "refused": False}
    return [
        {"name": f"candidate {e['name']}", "passed": passed.get(e["verdict"]), "observed": e["why"], "type": "model"}
        for e in body["candidates"]
    ]


def _told(spec: OptimiseSpec, rows: divided.Divided) -> dict[str, Any]:
    return {
        "name": spec.dataset.name,
        "digest": spec.dataset.digest,
        "rows": rows.newer.num_rows,
        "older_rows": rows.older.num_rows,
        "divided_by": rows.by,
        "start": rows.start.isoformat(),
        "end": rows.end.isoformat(),
    }
