"""Results become datasets and facets that the public schemas accept."""

from __future__ import annotations

import json
import logging
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.lineage.facets import Lineage, lineage
from airflow_ml_provider.lineage.naming import PRODUCER
from airflow_ml_provider.lineage.shapes import SCHEMA_URLS
from airflow_ml_provider.provenance import Provenance, RunInfo
from airflow_ml_provider.refs import DatasetRef, ModelRef, ReportRef
from airflow_ml_provider.stages import Result
from airflow_ml_provider.stages.gate.spec import GateResult

DAY = Interval.from_key("2013-01-05")
INFO = RunInfo("flights", "validate", "run-1", interval=DAY, reason="backfill", code_version="abc")
SHA = "sha256:" + "0" * 64
COLUMNS = {"id": "int64", "carrier": "string"}
IN = DatasetRef("raw", "/s/raw/interval=2013-01-05/data.parquet", SHA, interval=DAY, rows=3, columns=COLUMNS)
OUT = DatasetRef("flights", "/s/ok/interval=2013-01-05/data.parquet", SHA, interval=DAY, rows=2, columns=COLUMNS)
MODEL = ModelRef(
    "delay", "/s/models/delay", SHA, version="3", run_id="r1", engine="lightgbm", segment={"origin": "EWR"},
    trained_until=DAY.start, metrics={"auc": 0.7},
)  # fmt: skip
EVIDENCE = ReportRef("evidence", "/s/evidence/1.json", SHA, passed=True)
VALIDATED = Result(
    inputs=(IN,),
    outputs=(OUT,),
    facets={
        "inputs": {
            IN.uri: {
                "input_rows": 3,
                "assertions": [
                    {"assertion": "expect_column_values_to_not_be_null", "success": False, "column": "id",
                     "severity": "error"},
                    {"assertion": "expect_table_row_count", "success": True, "column": None, "severity": "warn"},
                ],
                "quality_metrics": {
                    "row_count": 3,
                    "columns": {"id": {"null_count": 1, "distinct_count": 2, "min": 1, "max": 2},
                                "carrier": {"null_count": 0, "min": "AA", "max": "UA"}},
                },
            }
        },
        "outputs": {
            OUT.uri: {"column_lineage": {"id": [[IN.uri, "id"]], "carrier": [[IN.uri, "carrier", "IDENTITY"]]}}
        },
        "run": {"provenance": Provenance(data={"raw": SHA}, environment={"python": "3.11"}, randomness={"seed": 7})},
    },
)  # fmt: skip


def event(found: Lineage) -> dict[str, Any]:
    """Return a whole event around what a run told."""
    return {
        "eventTime": "2013-01-06T00:00:00Z", "eventType": "COMPLETE", "producer": PRODUCER,
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, "run")), "facets": found.run_facets},
        "job": {"namespace": "n", "name": "j"}, "inputs": found.inputs, "outputs": found.outputs,
    }  # fmt: skip


def through_json(result: Result) -> Result:
    """Return a result as a runtime hands it over."""
    return codec.decode(type(result), json.loads(json.dumps(codec.encode(result))))


def test_validation_in_full() -> None:
    found = lineage(through_json(VALIDATED), INFO)
    (source,), (target,) = found.inputs, found.outputs
    assert (source["namespace"], source["name"]) == ("file", "/s/raw/interval=2013-01-05")
    assert source["facets"]["version"]["datasetVersion"] == SHA
    assert source["facets"]["schema"]["fields"] == [
        {"name": "id", "type": "int64", "ordinal_position": 1},
        {"name": "carrier", "type": "string", "ordinal_position": 2},
    ]
    assert source["inputFacets"]["inputStatistics"]["rowCount"] == 3
    first, second = source["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert first == {
        "assertion": "expect_column_values_to_not_be_null", "success": False, "column": "id", "severity": "error",
    }  # fmt: skip
    assert "column" not in second
    metrics = source["inputFacets"]["dataQualityMetrics"]
    assert metrics["rowCount"] == 3
    assert metrics["columnMetrics"] == {
        "id": {"nullCount": 1, "distinctCount": 2, "min": 1.0, "max": 2.0},
        "carrier": {"nullCount": 0},
    }
    assert target["outputFacets"]["outputStatistics"]["rowCount"] == 2
    assert target["facets"]["lifecycleStateChange"]["lifecycleStateChange"] == "OVERWRITE"
    assert target["facets"]["columnLineage"]["fields"] == {
        "id": {"inputFields": [{"namespace": "file", "name": "/s/raw/interval=2013-01-05", "field": "id"}]},
        "carrier": {
            "inputFields": [
                {"namespace": "file", "name": "/s/raw/interval=2013-01-05", "field": "carrier",
                 "transformations": [{"type": "DIRECT", "subtype": "IDENTITY"}]}
            ]
        },
    }  # fmt: skip
    origin = found.run_facets["ml_provenance"]
    assert origin["why"] == {"reason": "backfill", "dag_id": "flights", "run_id": "run-1"}
    assert origin["code"]["bundle"] == "abc"
    assert origin["randomness"] == {"seed": 7}
    assert origin["interval"]["key"] == "2013-01-05"


def test_a_table_as_input_says_which_partitions_were_visible() -> None:
    table = DatasetRef("views", "/s/features/tables/daily", SHA)
    week = Interval.of_grain(DAY.start, "week")
    found = lineage(Result(inputs=(table,)), replace(INFO, interval=week))
    assert found.inputs[0]["inputFacets"]["subset"]["inputCondition"] == {
        "type": "compare", "left": {"type": "field", "field": "interval"},
        "right": {"type": "literal", "value": "2013-01-07"}, "comparison": "LESS_THAN",
    }  # fmt: skip
    told = Result(inputs=(table,), facets={"inputs": {table.uri: {"partitions": ["2013-01-03"]}}})
    condition = lineage(told, INFO).inputs[0]["inputFacets"]["subset"]["inputCondition"]
    assert condition["partitions"] == [{"identifier": "interval=2013-01-03", "dimensions": {"interval": "2013-01-03"}}]


def test_files_have_no_subset_and_partitions_need_none() -> None:
    file = DatasetRef("landing", "/landing/flights_2013-01-05.csv.gz", SHA, format="csv")
    for item in lineage(Result(inputs=(file, IN)), INFO).inputs:
        assert "subset" not in item["inputFacets"]


def test_model_version() -> None:
    (found,) = lineage(Result(outputs=(MODEL,)), INFO).outputs
    assert (found["namespace"], found["name"]) == ("mlflow", "delay/3")
    assert found["facets"]["datasetType"]["datasetType"] == "MODEL"
    body = {k: v for k, v in found["facets"]["ml_model"].items() if not k.startswith("_")}
    assert body == {
        "name": "delay", "version": "3", "digest": SHA, "engine": "lightgbm", "segment": {"origin": "EWR"},
        "trainedUntil": "2013-01-05T00:00:00+00:00", "trackingRunId": "r1", "metrics": {"auc": 0.7},
    }  # fmt: skip


def test_gate_decision_and_its_criteria_as_tests() -> None:
    evidence = ReportRef("evidence", "/s/evidence/1.json", SHA, passed=False)
    result = GateResult(
        status="refused", reason="auc 0.58 is below 0.6", outputs=(evidence,), evidence=evidence, model=MODEL,
        failed=("auc",),
        facets={"run": {"tests": [
            {"name": "auc", "passed": False, "observed": 0.58, "threshold": 0.6, "severity": "error"},
            {"name": "parity", "status": "skip"},
            {"assertion": "rows", "success": True, "expected": 100, "actual": 500, "description": "enough rows"},
        ]}},
    )  # fmt: skip
    facets = lineage(through_json(result), INFO).run_facets
    assert {k: v for k, v in facets["ml_gate"].items() if not k.startswith("_")} == {
        "passed": False, "reason": "auc 0.58 is below 0.6", "failed": ["auc"], "evidence": SHA,
        "evidenceUri": "/s/evidence/1.json", "model": {"name": "delay", "version": "3", "digest": SHA},
    }  # fmt: skip
    assert facets["test"]["tests"] == [
        {"name": "auc", "status": "fail", "severity": "error", "expected": "0.6", "actual": "0.58"},
        {"name": "parity", "status": "skip"},
        {"name": "rows", "status": "pass", "expected": "100", "actual": "500", "description": "enough rows"},
    ]


def test_assertions_on_an_output_are_tests_of_the_run() -> None:
    material = {"outputs": {OUT.uri: {"assertions": [{"assertion": "parity", "success": True}]}}}
    facets = lineage(Result(outputs=(OUT,), facets=material), INFO).run_facets
    assert facets["test"]["tests"] == [{"name": "parity", "status": "pass", "params": {"dataset": OUT.uri}}]


def test_the_same_dataset_appears_once() -> None:
    assert len(lineage(Result(inputs=(IN, IN)), INFO).inputs) == 1


def test_facets_of_a_uri_that_no_ref_names_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        lineage(Result(facets={"inputs": {"/elsewhere": {"input_rows": 1}}}), INFO)
    assert "file:/elsewhere" in caplog.text


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    part = tmp_path / "t" / "interval=2013-01-05"
    part.mkdir(parents=True)
    (part / "data.parquet").write_bytes(b"12345")
    (part / ".data.parquet.x.tmp").write_bytes(b"left by a killed writer")
    ref = replace(OUT, uri=str(part / "data.parquet"))
    statistics = lineage(Result(outputs=(ref,)), INFO).outputs[0]["outputFacets"]["outputStatistics"]
    assert (statistics["size"], statistics["fileCount"]) == (5, 1)


def test_a_failed_run_still_says_why_it_ran() -> None:
    found = lineage(None, INFO)
    assert not found.inputs
    assert not found.outputs
    assert found.run_facets["ml_provenance"]["why"]["reason"] == "backfill"


def test_nothing_is_null() -> None:
    def check(value: Any) -> None:
        assert value is not None
        for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(child)

    check(event(lineage(through_json(VALIDATED), INFO)))


@pytest.mark.parametrize(
    "result",
    [
        VALIDATED,
        Result(),
        Result(
            inputs=(DatasetRef("t", "/s/t", SHA), MODEL),
            outputs=(replace(OUT, format="delta"), replace(MODEL, version=None)),
        ),
        GateResult(passed=True, evidence=EVIDENCE, model=MODEL, outputs=(EVIDENCE,)),
        Result(
            outputs=(OUT,),
            facets={
                "outputs": {OUT.uri: {"quality_metrics": {"row_count": 1}, "bytes": 3, "files": 1}},
                "run": {"model": codec.encode(MODEL), "tests": [{"name": "x"}], "gate": {"passed": True}},
            },
        ),
    ],
    ids=["validate", "empty", "mixed", "gate", "told"],
)
def test_every_event_is_valid(result: Result, event_validator: Any) -> None:
    assert event_validator.errors(event(lineage(through_json(result), INFO))) == []


def test_the_validator_notices(event_validator: Any) -> None:
    broken = event(lineage(VALIDATED, INFO))
    broken["run"]["facets"]["ml_provenance"]["why"] = {"reason": "whim"}
    broken["inputs"][0]["facets"]["version"].pop("datasetVersion")
    broken["outputs"][0]["facets"]["columnLineage"]["_schemaURL"] = f"{PRODUCER}/Nothing.json"
    errors = "\n".join(event_validator.errors(broken))
    assert "run.facets.ml_provenance.why.reason: 'whim' is not one of" in errors
    assert "'datasetVersion' is a required property" in errors
    assert "names no schema of this package" in errors


def test_schema_urls_are_those_of_the_specification(event_validator: Any) -> None:
    specs = Path(os.environ.get("ML_PROVIDER_SPECS", "../shared/specs"), "openlineage", "facets")
    known = {json.loads(p.read_text())["$id"]: json.loads(p.read_text()) for p in specs.glob("*.json")}
    for key, url in SCHEMA_URLS.items():
        base, _, fragment = url.partition("#/$defs/")
        if base.startswith("https://openlineage.io"):
            assert fragment in known[base]["$defs"], key
