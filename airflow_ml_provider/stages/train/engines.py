"""The train stage: rows, preprocessing, an engine's fit, the package; alone or as one rank of several."""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import replace
from typing import Any, Callable, Optional

from airflow_ml_provider import codec, provenance
from airflow_ml_provider.provenance import Provenance, RunInfo
from airflow_ml_provider.stages.train import data, logic, native, package, preprocess, randomness
from airflow_ml_provider.stages.train.run import Part, Ranks, Run
from airflow_ml_provider.stages.train.snapshots import Snapshots
from airflow_ml_provider.stages.train.spec import TrainResult, TrainSpec
from airflow_ml_provider.stages.train.tracking import Tracker, tracking

log = logging.getLogger(__name__)

_MODULES = {name: f"airflow_ml_provider.stages.train.{name}" for name in ("lightgbm", "sklearn", "torch")}
_ENCODINGS: dict[str, preprocess.Encoding] = {"lightgbm": "ordinal", "torch": "indexed", "function": "one_hot"}


def run(spec: TrainSpec, info: RunInfo) -> TrainResult:
    """Train one model and package it; what an earlier try has finished or begun is used.

    Raises:
        SpecError: a setting is wrong.
        DataError: the rows cannot be learnt from.
        IntegrityError: the rows are not those of the ref.
        Conflict: another process trains the same model for the same task instance.
        Unavailable: the tracking server does not answer.
        StageCrashed: a rank was killed.
    """
    from airflow_ml_provider.stages.train import launch

    in_ray = spec.launch.ranks > 1 and "AIRFLOW_ML_RAY" in os.environ
    folder, meeting = package.place(spec, info), None if in_ray else launch.meeting(spec)
    if meeting and meeting.node > 0:  # the first node looks after the package
        return launch.torchrun(spec, info, meeting)
    with package.owned(folder, meeting.patience_s if meeting else 0):
        if package.finished(folder, spec):
            log.info("%s is complete and made from the same data and settings: nothing to do", folder)
            return package.result(folder, spec)
        if in_ray:
            from airflow_ml_provider.stages.train import ray

            return ray.fit(spec, info)
        if spec.launch.ranks > 1:
            return launch.torchrun(spec, info, meeting)
        found = train(spec, info, Ranks())
        if found is None:
            raise RuntimeError("rank 0 gave no result")
        return found


def train(spec: TrainSpec, info: RunInfo, ranks: Ranks) -> Optional[TrainResult]:
    """Train as one of the ranks; rank 0 packages the model and returns the result, the others return none."""
    fit = _fit(spec)
    rows = data.load(spec)
    encoding = _encoding(spec)
    learnt = rows.table.slice(0, rows.split), rows.labels[: rows.split]
    pre = preprocess.fit(*learnt, rows.inputs, encoding, keep_missing=spec.engine == "lightgbm")
    folder = package.place(spec, info)
    origin = _origin(spec, info)
    if ranks.rank > 0:
        fit(_run_of(spec, rows, pre, ranks, folder, Tracker()))
        return None
    with tracking(spec, info, origin, _params(spec, pre, rows)) as tracker:
        training = _run_of(spec, rows, pre, ranks, folder, tracker)
        model = native.of(fit(training), len(pre.features))
        origin = replace(origin, environment=provenance.environment({*model.libraries, *_modules(spec)}))
        manifest = package.write(folder, spec, rows, training, model, origin, tracker.tracked)
        # The run ends before the package is in place: a kill in between has the retry do both again.
        tracker.finish(manifest.metrics, {"airflow_ml.trained_until": manifest.trained_until.isoformat()})
        package.commit(folder)
    return replace(package.result(folder, spec), resumed_from=training.resumed_from)


def _fit(spec: TrainSpec) -> Callable[[Run], Any]:
    if spec.function is not None:
        from airflow_ml_provider.stages.train import function

        if "torch" in spec.function.source:
            importlib.import_module("torch")  # what is not imported yet cannot be seeded
        return function.load(spec.function)
    engine: Callable[[Run], Any] = importlib.import_module(_MODULES[spec.engine]).fit
    return engine


def _encoding(spec: TrainSpec) -> preprocess.Encoding:
    if spec.encoding != "auto":
        return spec.encoding
    if spec.engine == "sklearn":
        from airflow_ml_provider.stages.train import sklearn

        return sklearn.encoding(spec.params)
    return _ENCODINGS[spec.engine]


def _run_of(
    spec: TrainSpec, rows: data.Rows, pre: preprocess.Preprocessor, ranks: Ranks, folder: Any, tracker: Tracker
) -> Run:
    randomness.seed(spec.seed, ranks.rank)
    return Run(
        train=Part(rows.table.slice(0, rows.split), rows.labels[: rows.split], pre),
        validation=Part(rows.table.slice(rows.split), rows.labels[rows.split :], pre),
        params=spec.params,
        launch=spec.launch,
        seed=spec.seed,
        ranks=ranks,
        snapshots=Snapshots(
            folder / package.SNAPSHOTS,
            logic.recipe(spec),
            keep=spec.launch.keep,
            rank=ranks.rank,
            world_size=ranks.world_size,
        ),
        log=tracker.log,
        before_snapshot=tracker.flush,
    )


def _origin(spec: TrainSpec, info: RunInfo) -> Provenance:
    extra = {"function": codec.digest(spec.function.source)} if spec.function else {}
    return Provenance(
        code=provenance.code(info, **extra),
        data={spec.dataset.name: spec.dataset.digest},
        environment=provenance.environment(_modules(spec)),
        randomness={"seed": spec.seed},
        why=provenance.why(info),
    )


def _modules(spec: TrainSpec) -> set[str]:
    """Return the distributions that this spec asks for; tracking has no part in the model."""
    return {name for name in spec.requires().values() if not name.startswith("mlflow")}


def _params(spec: TrainSpec, pre: preprocess.Preprocessor, rows: data.Rows) -> dict[str, Any]:
    own = {f"params.{name}": value for name, value in spec.params.items()}
    kwargs = {f"kwargs.{name}": value for name, value in (spec.function.kwargs if spec.function else {}).items()}
    return {
        "engine": spec.engine, "encoding": pre.encoding, "seed": spec.seed, "processes": spec.launch.processes,
        "validation": spec.validation, "rows": len(rows.labels), "features": len(pre.features),
        "inputs": ",".join(rows.inputs), **own, **kwargs,
    }  # fmt: skip
