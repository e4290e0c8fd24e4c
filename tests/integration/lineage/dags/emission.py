"""A pipeline in miniature: real operators of this package's base, with stages whose results are written here.

What is tested is the way from a result to the events; the stages themselves have their own tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from airflow.sdk import DAG, Asset

from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators._base import StageOperator
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef, ModelRef, ReportRef
from airflow_ml_provider.stages import Result, Spec
from airflow_ml_provider.stages.gate.spec import GateResult

COLUMNS = {"id": "int64", "delay": "double"}


def sha(letter: str) -> str:
    return "sha256:" + letter * 64


def part(table: str, key: str) -> DatasetRef:
    return DatasetRef(table, f"/s/{table}/interval={key}/data.parquet", sha("a"), rows=3, columns=COLUMNS)


def model(version: str | None = None) -> ModelRef:
    return ModelRef("delay", "/s/models/delay", sha("b"), version=version, metrics={"auc": 0.7}, engine="lightgbm")


def result(stage: str, key: str) -> Result:
    """Return what a stage of the miniature says."""
    landing = DatasetRef("landing", f"/landing/{key}.csv", sha("c"), format="csv", rows=4)
    table = DatasetRef("view", "/s/view", sha("d"), columns=COLUMNS)
    train = DatasetRef("train", "/s/training/train.parquet", sha("e"), rows=3, columns=COLUMNS)
    report = ReportRef("evidence", "/s/evidence.json", sha("f"), passed=False)
    raw, good, view, predictions = (part(name, key) for name in ("raw", "good", "view", "predictions"))
    quality = {
        "assertions": [{"assertion": "not_null", "success": True, "column": "id", "severity": "error"}],
        "quality_metrics": {"row_count": 3, "columns": {"id": {"null_count": 0, "min": 1, "max": 3}}},
    }
    lineage = {"column_lineage": {"delay": [[good.uri, "delay"]]}}
    tests = [{"name": "auc", "passed": False, "observed": 0.5, "threshold": 0.6, "severity": "error"}]
    return {
        "ingest": Result(inputs=(landing,), outputs=(raw,)),
        "validate": Result(inputs=(raw,), outputs=(good,), facets={"inputs": {raw.uri: quality}}),
        "features": Result(inputs=(good,), outputs=(view,), facets={"outputs": {view.uri: lineage}}),
        "training_set": Result(inputs=(table,), outputs=(train,)),
        "train": Result(inputs=(train,), outputs=(model(),)),
        "register": Result(inputs=(model(),), outputs=(model("1"),)),
        "score": Result(inputs=(view, model("1")), outputs=(predictions,)),
        "gate": GateResult(
            status="refused", reason="auc 0.5 is below 0.6", inputs=(model("1"),), outputs=(report,), evidence=report,
            model=model("1"), failed=("auc",), facets={"run": {"tests": tests}},
        ),
    }[stage]  # fmt: skip


@dataclass(frozen=True)
class CannedSpec(Spec):
    stage: ClassVar[str] = "canned"
    entry: ClassVar[str] = ""
    result: ClassVar[type[Result]] = Result
    name: str
    key: str


@dataclass(frozen=True)
class Canned:
    def call(self, spec: CannedSpec, info: RunInfo, env: Mapping[str, str]) -> Result:
        return result(spec.name, spec.key)

    def cancel(self) -> None:
        pass


class CannedOperator(StageOperator):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(runtime=Canned(), **kwargs)

    def build_spec(self, interval: Interval, context: Any) -> CannedSpec:
        return CannedSpec(self.task_id, interval.key)


with DAG("emission", schedule=None):
    chain = None
    for stage in ("ingest", "validate", "features", "training_set", "train", "register", "score", "gate"):
        outlets = {"features": [Asset("view", uri="file:///s/view")], "score": [Asset("other", uri="file:///other")]}
        task = CannedOperator(task_id=stage, outlets=outlets.get(stage, []))
        if chain is not None:
            chain >> task
        chain = task
