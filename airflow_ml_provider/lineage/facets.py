"""What a stage tells about its data, as OpenLineage datasets and facets in plain dictionaries.

`lineage(result, info)` is all that callers need. A stage's `Result.facets` holds neutral material, so that stages need
not know the specification:

    {"inputs":  {uri: {"input_rows": int, "assertions": […], "quality_metrics": {…}, "partitions": [key, …]}},
     "outputs": {uri: {"quality_metrics": {…}, "column_lineage": {column: [[input_uri, input_column], …]}}},
     "run":     {"provenance": Provenance, "model": {…}, "gate": {…}, "tests": […]}}

`bytes` and `files` of a dataset may be told, too; otherwise they are those of the file, where it is at hand.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Protocol

from airflow_ml_provider import codec, provenance
from airflow_ml_provider.intervals import Interval, moment_key
from airflow_ml_provider.lineage import naming
from airflow_ml_provider.lineage.naming import Dataset
from airflow_ml_provider.lineage.shapes import facet
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef, ModelRef, Ref, ReportRef

log = logging.getLogger(__name__)

_FORMATS = {"parquet": "parquet", "csv": "csv", "jsonl": "json", "json": "json", "orc": "orc", "avro": "avro"}
_COLUMN_METRICS = {
    "null_count": ("nullCount", int), "distinct_count": ("distinctCount", int), "count": ("count", float),
    "sum": ("sum", float), "min": ("min", float), "max": ("max", float),
}  # fmt: skip
_TEST_KEYS = ("severity", "type", "description", "content", "contentType", "params")


class Told(Protocol):
    """What is read of a stage's `Result`; stages stand above this package."""

    @property
    def reason(self) -> str: ...
    @property
    def inputs(self) -> tuple[Ref, ...]: ...
    @property
    def outputs(self) -> tuple[Ref, ...]: ...
    @property
    def facets(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Lineage:
    """Datasets and facets of one run, in the JSON shape of the specification."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    run_facets: dict[str, dict[str, Any]] = field(default_factory=dict)


def lineage(result: Optional[Told], info: Optional[RunInfo]) -> Lineage:
    """Return what a run read, wrote and decided.

    Parameters:
        result: the stage's result; none when it failed before there was one.
        info: the run; none leaves out why it was started.
    """
    if result is None:
        return Lineage(run_facets=_run_facets(None, info, {}))
    material: Mapping[str, Any] = codec.encode(result.facets)
    known = material.get("inputs") or {}, material.get("outputs") or {}
    interval = info.interval if info else None
    inputs = _datasets(result.inputs, known[0], lambda ref, body: _input(ref, body, interval))
    outputs = _datasets(result.outputs, known[1], _output)
    return Lineage(inputs, outputs, _run_facets(result, info, material))


def _datasets(refs: Iterable[Ref], material: Mapping[str, Any], build: Any) -> list[dict[str, Any]]:
    """Return one dataset per identity: several refs of the same thing (alias, re-delivery) are one."""
    bodies = {naming.of_uri(uri): body for uri, body in material.items()}
    found: dict[Dataset, dict[str, Any]] = {}
    for ref in refs:
        identity = naming.of_ref(ref)
        body = bodies.pop(identity, None) or bodies.pop(naming.of_uri(ref.uri), {})
        found.setdefault(identity, {"namespace": identity.namespace, "name": identity.name, **build(ref, body)})
    for identity in bodies:
        if identity not in found:
            log.warning("facets for %s are left out: no ref of the result names it", identity)
    return list(found.values())


def _input(ref: Ref, body: Mapping[str, Any], interval: Optional[Interval]) -> dict[str, Any]:
    facets: dict[str, Any] = {}
    rows = body.get("input_rows", ref.rows if isinstance(ref, DatasetRef) else None)
    size, files = _size(ref, body)
    if rows is not None or size is not None:
        facets["inputStatistics"] = facet("inputStatistics", rowCount=rows, size=size, fileCount=files)
    if body.get("assertions"):
        facets["dataQualityAssertions"] = facet("dataQualityAssertions", assertions=body["assertions"])
    if body.get("quality_metrics"):
        facets["dataQualityMetrics"] = _quality("input:dataQualityMetrics", body["quality_metrics"])
    if condition := _condition(ref, body, interval):
        facets["subset"] = facet("subset", inputCondition=condition)
    return {"facets": _dataset_facets(ref, body), "inputFacets": facets}


def _output(ref: Ref, body: Mapping[str, Any]) -> dict[str, Any]:
    facets = _dataset_facets(ref, body)
    if body.get("quality_metrics"):
        facets["dataQualityMetrics"] = _quality("dataQualityMetrics", body["quality_metrics"])
    if naming.of_ref(ref).partition:
        facets["lifecycleStateChange"] = facet("lifecycleStateChange", lifecycleStateChange="OVERWRITE")
    rows = ref.rows if isinstance(ref, DatasetRef) else None
    size, files = _size(ref, body)
    statistics = facet("outputStatistics", rowCount=rows, size=size, fileCount=files)
    return {"facets": facets, "outputFacets": {"outputStatistics": statistics}}


def _dataset_facets(ref: Ref, body: Mapping[str, Any]) -> dict[str, Any]:
    facets = {"version": facet("version", datasetVersion=ref.digest), "datasetType": _type(ref)}
    if isinstance(ref, DatasetRef):
        if ref.columns:
            fields = [
                {"name": name, "type": kind, "ordinal_position": i + 1}
                for i, (name, kind) in enumerate(ref.columns.items())
            ]
            facets["schema"] = facet("schema", fields=fields)
        if ref.format in ("delta", "iceberg"):
            facets["storage"] = facet("storage", storageLayer=ref.format, fileFormat="parquet")
    if isinstance(ref, ModelRef):
        facets["ml_model"] = facet("ml_model", **_model(codec.encode(ref)))
    if partition := naming.of_ref(ref).partition:
        levels = [{"type": "TABLE", "name": partition[0]}, {"type": "PARTITION", "name": f"interval={partition[1]}"}]
        facets["hierarchy"] = facet("hierarchy", hierarchy=levels)
    if body.get("column_lineage"):
        facets["columnLineage"] = _column_lineage(body["column_lineage"])
    return facets


def _type(ref: Ref) -> dict[str, Any]:
    if isinstance(ref, ModelRef):
        return facet("datasetType", datasetType="MODEL", subType="VERSION" if ref.version else "PACKAGE")
    if isinstance(ref, ReportRef):
        return facet("datasetType", datasetType="FILE", subType="REPORT")
    table = ref.format in ("parquet", "delta", "iceberg")
    return facet("datasetType", datasetType="TABLE" if table else "FILE", subType=_FORMATS.get(ref.format, ref.format))


def _column_lineage(columns: Mapping[str, Any]) -> dict[str, Any]:
    fields = {}
    for column, sources in columns.items():
        inputs = []
        for uri, name, *kind in sources:
            source = naming.of_uri(uri)
            entry: dict[str, Any] = {"namespace": source.namespace, "name": source.name, "field": name}
            if kind:
                entry["transformations"] = [{"type": "DIRECT", "subtype": kind[0]}]
            inputs.append(entry)
        fields[column] = {"inputFields": inputs}
    return facet("columnLineage", fields=fields)


def _quality(key: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return a quality facet; the specification knows numbers only, so a minimum that is a text is left out."""
    columns = {
        column: {
            name: cast(values[ours])
            for ours, (name, cast) in _COLUMN_METRICS.items()
            if isinstance(values.get(ours), (int, float)) and not isinstance(values[ours], bool)
        }
        for column, values in (metrics.get("columns") or {}).items()
    }
    found = facet(key, rowCount=metrics.get("row_count"), bytes=metrics.get("bytes"))
    return {**found, "columnMetrics": columns}


def _condition(ref: Ref, body: Mapping[str, Any], interval: Optional[Interval]) -> Optional[dict[str, Any]]:
    """Return which partitions of a table were read: those the stage names, else those that begin before the end."""
    if body.get("partitions"):
        partitions = [{"identifier": f"interval={key}", "dimensions": {"interval": key}} for key in body["partitions"]]
        return {"type": "partition", "partitions": partitions}
    window = ref.interval if isinstance(ref, DatasetRef) and ref.interval else interval
    if not isinstance(ref, DatasetRef) or window is None or Path(ref.uri).suffix or naming.of_ref(ref).partition:
        return None
    return {
        "type": "compare", "left": {"type": "field", "field": "interval"},
        "right": {"type": "literal", "value": moment_key(window.end)}, "comparison": "LESS_THAN",
    }  # fmt: skip


def _size(ref: Ref, body: Mapping[str, Any]) -> tuple[Optional[int], Optional[int]]:
    """Return bytes and number of files: as the stage says, else of the file or model package if it is at hand."""
    if body.get("bytes") is not None:
        return int(body["bytes"]), body.get("files")
    where = naming.of_uri(ref.uri)
    path = Path(where.name)
    try:
        if where.namespace != naming.FILE:
            return None, None
        if path.is_file():
            return path.stat().st_size, 1
        if isinstance(ref, ModelRef) or where.partition:
            with os.scandir(path) as entries:
                sizes = [e.stat().st_size for e in entries if e.is_file() and not e.name.startswith(".")]
            return sum(sizes), len(sizes)
    except OSError:
        log.debug("size of %s is unknown here", where)
    return None, None


def _run_facets(
    result: Optional[Told], info: Optional[RunInfo], material: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    told: Mapping[str, Any] = material.get("run") or {}
    facets: dict[str, dict[str, Any]] = {}
    origin = _provenance(result, info, told.get("provenance") or {})
    if origin.get("why"):
        facets["ml_provenance"] = facet("ml_provenance", **origin)
    if told.get("model"):
        facets["ml_model"] = facet("run:ml_model", **_model(told["model"]))
    gate = {**_derived_gate(result), **(told.get("gate") or {})}
    if "passed" in gate:
        facets["ml_gate"] = facet("ml_gate", **gate)
    tests = [_test(test) for test in told.get("tests") or ()]
    for uri, body in (material.get("outputs") or {}).items():
        # The specification has assertions on inputs only; those on an output are tests of the run.
        tests += [_test({"params": {"dataset": uri}, **test}) for test in body.get("assertions") or ()]
    if tests:
        facets["test"] = facet("test", tests=tests)
    return facets


def _provenance(result: Optional[Told], info: Optional[RunInfo], told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance that the stage tells, completed by what is known of every run."""
    body = dict(told)
    if info:
        # A gate tells the provenance of the model it judges; why this run was started is its own.
        body["why"] = provenance.why(info)
        body["code"] = body.get("code") or provenance.code(info)
        body["interval"] = codec.encode(info.interval)
    body["data"] = body.get("data") or {ref.name: ref.digest for ref in (result.inputs if result else ())}
    return body


def _derived_gate(result: Any) -> dict[str, Any]:
    """Return the gate's decision as its result type tells it; nothing for other stages."""
    evidence, model = getattr(result, "evidence", None), getattr(result, "model", None)
    if evidence is None or not hasattr(result, "passed"):
        return {}
    return {
        "passed": result.passed, "reason": result.reason, "failed": list(getattr(result, "failed", ())),
        "evidence": evidence.digest, "evidenceUri": evidence.uri,
        "model": {"name": model.name, "version": model.version, "digest": model.digest} if model else None,
    }  # fmt: skip


def _model(told: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {"run_id": "trackingRunId", "trained_until": "trainedUntil"}
    body = {renamed.get(name, name): value for name, value in told.items() if name not in ("kind", "uri", "metrics")}
    metrics = told.get("metrics") or {}
    return {**body, "metrics": {name: value for name, value in metrics.items() if value is not None}}


def _test(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return one test in the specification's form, from a criterion (`passed`) or an assertion (`success`)."""
    passed = told.get("passed", told.get("success"))
    status = told.get("status") or ("skip" if passed is None else "pass" if passed else "fail")
    body = {"name": str(told.get("name") or told.get("assertion") or told.get("criterion")), "status": status}
    for ours, theirs in (
        ("expected", "expected"),
        ("threshold", "expected"),
        ("actual", "actual"),
        ("observed", "actual"),
    ):
        if told.get(ours) is not None:
            body[theirs] = str(told[ours])
    return {**body, **{key: told[key] for key in _TEST_KEYS if told.get(key)}}
