"""The train stage: rows, preprocessing, an engine's fit, the package; alone or as one rank of several."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
_ENCODINGS: dict[str, preprocess.Encoding] = {"lightgbm": "ordinal", "torch": "indexed"}  # the others get one_hot


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

    ranked = spec.launch.ranks > 1 and spec.engine != "command"  # which starts the ranks of its script itself
    in_ray = ranked and "AIRFLOW_ML_RAY" in os.environ
    folder, meeting = package.place(spec, info), None if in_ray else launch.meeting(spec)
    if meeting and meeting.node > 0:  # the first node looks after the package
        if ranked:
            return launch.torchrun(spec, info, meeting)
        train(spec, info, Ranks(meeting.node, spec.launch.span[1]))
        raise SystemExit(0)
    with package.owned(folder, meeting.patience_s if meeting else 0):
        if package.finished(folder, spec, info):
            log.info("%s is complete and made from the same data and settings: nothing to do", folder)
            return package.result(folder, spec)
        if in_ray:
            from airflow_ml_provider.stages.train import ray

            return ray.fit(spec, info)
        if ranked:
            return launch.torchrun(spec, info, meeting)
        found = train(spec, info, Ranks())
        if found is None:
            raise RuntimeError("rank 0 gave no result")
        return found


def train(spec: TrainSpec, info: RunInfo, ranks: Ranks) -> Optional[TrainResult]:
    """Train as one of the ranks; rank 0 packages the model and returns the result, the others return none."""
    fit = _fit(spec, info)
    rows = data.load(spec)
    encoding = _encoding(spec)
    learnt = rows.table.slice(0, rows.split), rows.labels[: rows.split]
    pre = preprocess.fit(*learnt, rows.inputs, encoding, keep_missing=spec.engine == "lightgbm")
    folder = package.place(spec, info)
    origin = _origin(spec, info)
    if ranks.rank > 0:
        with _going(_run_of(spec, info, rows, pre, ranks, Tracker())) as training:
            fit(training)
        return None
    with tracking(spec, info, origin, _params(spec, pre, rows)) as tracker:
        with _going(_run_of(spec, info, rows, pre, ranks, tracker)) as training:
            fitted = fit(training)
        model = native.of(fitted, len(pre.features))
        origin = replace(origin, environment=provenance.environment({*model.libraries, *_modules(spec)}))
        traces = sorted(package.traces(spec, info).glob("rank-*")) if spec.launch.profile_steps else []
        manifest = package.write(folder, spec, rows, training, model, origin, tracker.tracked, traces)
        # The run ends before the package is in place: a kill in between has the retry do both again.
        tracker.attach(traces, package.PROFILE)
        tracker.finish(manifest.metrics, {"airflow_ml.trained_until": manifest.trained_until.isoformat()})
        package.commit(folder)
        training.forget()
        for done_with in (package.beside(folder, "command"), package.traces(spec, info)):
            shutil.rmtree(done_with, ignore_errors=True)
    return replace(package.result(folder, spec), resumed_from=training.resumed_from)


@contextmanager
def _going(training: Run) -> Iterator[Run]:
    """Give a training; afterwards its last snapshot is written, whether it failed or not."""
    try:
        yield training
    except BaseException:
        training.close(failed=True)
        raise
    training.close()


def _fit(spec: TrainSpec, info: RunInfo) -> Callable[[Run], Any]:
    if spec.engine == "command":
        from airflow_ml_provider.stages.train import command

        # Settings of another time, or before a clear that begins anew, have snapshots of their own.
        part = codec.digest([logic.recipe(spec), logic.clear_mark(spec, info)]).partition(":")[2][:16]
        place = package.beside(package.place(spec, info), "command") / part
        return lambda run: command.fit(run, spec, place)
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
    return _ENCODINGS.get(spec.engine, "one_hot")


def _run_of(
    spec: TrainSpec, info: RunInfo, rows: data.Rows, pre: preprocess.Preprocessor, ranks: Ranks, tracker: Tracker
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
            package.snapshots(spec, info),
            logic.snapshot_recipe(spec),
            keep=spec.launch.keep,
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=spec.seed,
        ),
        log=tracker.log,
        before_snapshot=tracker.flush,
        files=data.paths(spec.dataset),
        traces=package.traces(spec, info),
    )


def _origin(spec: TrainSpec, info: RunInfo) -> Provenance:
    mark = logic.clear_mark(spec, info)
    extra = {"function": codec.digest(spec.function.source)} if spec.function else {}
    return Provenance(
        code=provenance.code(info, **extra),
        data={spec.dataset.name: spec.dataset.digest},
        environment=provenance.environment(_modules(spec)),
        randomness={"seed": spec.seed},
        why={**provenance.why(info), **({"cleared": mark} if mark else {})},
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
