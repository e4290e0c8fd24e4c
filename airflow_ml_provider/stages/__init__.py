"""The stages of a model's life, without Airflow.

Each stage is a frozen `Spec` (what to do), a function `run(spec, info)` (doing it) and a frozen `Result`. `STAGES`
maps the name of a stage to its spec; a spec names its `run` as text, so that nothing heavy is imported before the
stage works.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, ClassVar, Literal

from airflow_ml_provider.exceptions import MissingLibrary, unknown_name
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import Ref

STAGES: dict[str, str] = {
    "ingest": "airflow_ml_provider.stages.ingest.spec:IngestSpec",
    "validate": "airflow_ml_provider.stages.validate.spec:ValidateSpec",
    "features": "airflow_ml_provider.stages.features.spec:FeaturesSpec",
    "training_set": "airflow_ml_provider.stages.features.spec:TrainingSetSpec",
    "train": "airflow_ml_provider.stages.train.spec:TrainSpec",
    "evaluate": "airflow_ml_provider.stages.evaluate.spec:EvaluateSpec",
    "optimise": "airflow_ml_provider.stages.optimise.spec:OptimiseSpec",
    "register": "airflow_ml_provider.stages.register.spec:RegisterSpec",
    "gate": "airflow_ml_provider.stages.gate.spec:GateSpec",
    "promote": "airflow_ml_provider.stages.promote.spec:PromoteSpec",
    "rollback": "airflow_ml_provider.stages.promote.spec:RollbackSpec",
    "score": "airflow_ml_provider.stages.score.spec:ScoreSpec",
    "edge_export": "airflow_ml_provider.stages.edge.spec:EdgeExportSpec",
    "ota": "airflow_ml_provider.stages.edge.spec:OtaSpec",
    "monitor": "airflow_ml_provider.stages.monitor.spec:MonitorSpec",
    "load_test": "airflow_ml_provider.stages.load_test.spec:LoadTestSpec",
}


@dataclass(frozen=True)
class Result:
    """What a stage gives back, small enough for XCom.

    Attributes:
        status: `ok`; `refused` when a decision said no; `skipped` when there was nothing to do.
        reason: why it was refused or skipped, or what the reader should know, in one sentence.
        inputs: what was read.
        outputs: what was written.
        metrics: numbers by name.
        links: pages for humans by name: `mlflow`, `data_docs`, `evidence` …
        facets: OpenLineage facets by dataset URI, or under `run`/`job`; see `airflow_ml_provider.lineage`. Not in XCom.
    """

    status: Literal["ok", "refused", "skipped"] = "ok"
    reason: str = ""
    inputs: tuple[Ref, ...] = ()
    outputs: tuple[Ref, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    facets: Mapping[str, Any] = field(default_factory=dict)


class Spec:
    """Base of the frozen dataclasses that say what a stage shall do.

    A subclass names its stage, the function that does the work and the libraries that this takes: import name to what
    `pip install` calls it. Values are checked in `__post_init__`, so that a bad one fails before any work.
    """

    stage: ClassVar[str]
    entry: ClassVar[str]
    result: ClassVar[type[Result]]

    @property
    def nodes(self) -> tuple[int, int]:
        """How many pods the stage takes, at least and at most, where it runs in pods."""
        return 1, 1

    @property
    def processes(self) -> int:
        """How many processes work in each of them."""
        return 1

    def requires(self) -> dict[str, str]:
        """Return the libraries that this very spec needs: import name to the name for `pip install`."""
        return {}


def load(path: str) -> Any:
    """Return the object that `package.module:name` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def spec_class(stage: str) -> type[Spec]:
    """Return the spec of a stage by its name.

    Raises:
        SpecError: no stage has that name; the message names the nearest.
    """
    if stage not in STAGES:
        raise unknown_name("stage", stage, STAGES)
    spec: type[Spec] = load(STAGES[stage])
    return spec


def run(spec: Spec, info: RunInfo) -> Result:
    """Do the work of `spec` in this very process and return its result.

    Raises:
        MissingLibrary: this Python lacks a library of the stage; the message has the `pip install` line.
    """
    check_libraries(spec)
    work: Callable[[Spec, RunInfo], Result] = load(spec.entry)
    return work(spec, info)


def check_libraries(spec: Spec) -> None:
    """Raise `MissingLibrary` when this Python lacks what `spec` needs; a broken library is left to show itself."""
    import sys

    missing = [package for module, package in spec.requires().items() if not _is_there(module)]
    if missing:
        names = ", ".join(missing)
        raise MissingLibrary(
            f"stage {spec.stage!r} needs {names}, which {sys.executable} (Python {sys.version.split()[0]}) lacks; "
            f"run: {sys.executable} -m pip install {' '.join(map(repr, missing))}"
        )


def _is_there(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is in
        return False
