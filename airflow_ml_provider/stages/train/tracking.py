"""The MLflow run of a training: one per task instance, continued by its retries."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import Conflict, MlError, Unavailable
from airflow_ml_provider.provenance import Provenance, RunInfo
from airflow_ml_provider.registry import _server
from airflow_ml_provider.stages.train import logic
from airflow_ml_provider.stages.train.spec import TrainSpec

log = logging.getLogger(__name__)

TAG = "airflow_ml."
IDENTITY = TAG + "identity"
_AT_ONCE = 500  # metrics in one request; MLflow takes 1,000
_EVERY_S = 2.0
_LONGEST = 5000  # characters of a parameter or tag


@dataclass(frozen=True)
class Tracked:
    """Where a training is recorded.

    Attributes:
        run_id: the run.
        experiment_id: its experiment.
        link: its page; empty when the tracking store has no pages.
    """

    run_id: str
    experiment_id: str
    link: str


class Tracker:
    """Records nothing; what is used when there is no experiment or no server, and by all ranks but the first."""

    tracked: Optional[Tracked] = None

    def log(self, metric: str, value: float, step: Optional[int] = None) -> None:
        """Record one measurement; it may be sent later."""

    def flush(self, *, must: bool = False) -> None:
        """Send what was recorded; a server that is away is an error only if it `must` be sent."""

    def attach(self, files: Iterable[Path], folder: str) -> None:
        """Keep files as artefacts of the run, in a folder of it."""

    def finish(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Send everything and end the run well."""


class MlflowTracker(Tracker):
    """Records into one MLflow run, found again by its identity."""

    def __init__(self, client: Any, uri: str, tracked: Tracked, *, continued: bool) -> None:
        self.tracked: Tracked = tracked
        self._client, self._uri, self._continued = client, uri, continued
        self._waiting: list[Any] = []
        self._sent: dict[str, set[int]] = {}
        self._flushed = time.monotonic()

    def log(self, metric: str, value: float, step: Optional[int] = None) -> None:
        from mlflow.entities import Metric

        self._waiting.append(Metric(metric, value, int(time.time() * 1000), step or 0))
        if len(self._waiting) >= _AT_ONCE or time.monotonic() - self._flushed > _EVERY_S:
            self.flush()

    def flush(self, *, must: bool = False) -> None:
        self._flushed = time.monotonic()
        try:
            with _server.errors(self._uri):
                new = [m for m in self._waiting if m.step not in self._known_steps(m.key)]
                for start in range(0, len(new), _AT_ONCE):
                    self._client.log_batch(self.tracked.run_id, metrics=new[start : start + _AT_ONCE])
                for metric in new:
                    self._known_steps(metric.key).add(metric.step)
                self._waiting.clear()
        except Unavailable as error:
            if must:
                raise
            log.warning("measurements are kept back until the tracking server answers: %s", error)

    def attach(self, files: Iterable[Path], folder: str) -> None:
        with _server.errors(self._uri):
            for file in files:
                self._client.log_artifact(self.tracked.run_id, str(file), folder)

    def finish(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        for name, value in metrics.items():
            self.log(name, value)
        self.flush(must=True)
        with _server.errors(self._uri):
            self._client.log_batch(self.tracked.run_id, tags=_tags(tags))
            self._client.set_terminated(self.tracked.run_id, status="FINISHED")

    def fail(self, status: str = "FAILED") -> None:
        """End the run badly, if the server can be told; a retry continues it."""
        try:
            self.flush()
            with _server.errors(self._uri):
                self._client.set_terminated(self.tracked.run_id, status=status)
        except MlError as error:
            log.warning("the tracking server could not be told of the failure: %s", error)

    def _known_steps(self, key: str) -> set[int]:
        """Return the steps of a metric that the server has, so that a continued run says nothing twice."""
        if key not in self._sent:
            history = self._client.get_metric_history(self.tracked.run_id, key) if self._continued else ()
            self._sent[key] = {metric.step for metric in history}
        return self._sent[key]


@contextmanager
def tracking(spec: TrainSpec, info: RunInfo, origin: Provenance, params: Mapping[str, Any]) -> Iterator[Tracker]:
    """Give the tracker of a training: the run of an earlier try if there was one; on an error it ends as failed.

    Without `spec.experiment` or the environment variable MLFLOW_TRACKING_URI nothing is recorded.

    Raises:
        Unavailable: the server does not answer.
        SpecError: it refuses the credentials.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not spec.experiment or not uri:
        if spec.experiment:
            log.info("experiment %r is not tracked: MLFLOW_TRACKING_URI is not set", spec.experiment)
        yield Tracker()
        return
    with _server.environment({}), _server.errors(uri):
        tracker = _open(spec, info, uri, _origin_tags(spec, info, origin), params)
    try:
        yield tracker
    except BaseException as error:
        tracker.fail("FAILED" if isinstance(error, Exception) else "KILLED")
        raise


def _open(
    spec: TrainSpec, info: RunInfo, uri: str, tags: Mapping[str, str], params: Mapping[str, Any]
) -> MlflowTracker:
    from airflow_ml_provider.registry import _server

    _server.import_client()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = _experiment(client, str(spec.experiment))
    identity = logic.identity(spec, info)
    found = client.search_runs([experiment], f"tags.`{IDENTITY}` = '{identity}'", max_results=1)
    if found:
        run = found[0]
        client.update_run(run.info.run_id, status="RUNNING")
        client.log_batch(run.info.run_id, tags=_tags(tags))
    else:
        name = f"{logic.model_name(spec.name, spec.segment)}-{spec.engine}"
        run = client.create_run(experiment, run_name=name, tags={**dict(_pairs(tags)), IDENTITY: identity})
    _log_params(client, run, params)
    link = _link(uri, experiment, run.info.run_id)
    return MlflowTracker(client, uri, Tracked(run.info.run_id, experiment, link), continued=bool(found))


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        from mlflow.exceptions import MlflowException

        try:
            return str(client.create_experiment(name))
        except MlflowException as error:  # another task has just made it
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error from None
    if found.lifecycle_stage != "active":
        raise Conflict(f"MLflow experiment {name!r} is deleted; restore it or give another name")
    return str(found.experiment_id)


def _log_params(client: Any, run: Any, params: Mapping[str, Any]) -> None:
    """Record parameters; MLflow never changes one, so what a retry does differently is told by a tag."""
    from mlflow.entities import Param

    known = run.data.params
    flat = dict(_pairs(params))
    new = [Param(name, text) for name, text in flat.items() if name not in known]
    changed = {name: text for name, text in flat.items() if known.get(name, text) != text}
    client.log_batch(run.info.run_id, params=new)
    if changed:
        log.warning("settings differ from those of an earlier try of this task: %s", changed)
        client.log_batch(run.info.run_id, tags=_tags({f"{TAG}changed_params": json.dumps(changed)}))


def _origin_tags(spec: TrainSpec, info: RunInfo, origin: Provenance) -> dict[str, str]:
    tags = {
        "dag_id": info.dag_id, "run_id": info.run_id, "task_id": info.task_id, "map_index": str(info.map_index),
        "reason": info.reason, "trigger": info.trigger, "model": logic.model_name(spec.name, spec.segment),
        "engine": spec.engine, "dataset": spec.dataset.name, "dataset_digest": spec.dataset.digest,
        "interval": info.interval.key if info.interval else "",
        "environment_digest": origin.environment.get("digest", ""),
        **{f"segment.{name}": value for name, value in spec.segment.items()},
        **{f"code.{name}": value for name, value in origin.code.items()},
    }  # fmt: skip
    return {TAG + name: value for name, value in tags.items() if value}


def _pairs(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        yield name, (value if isinstance(value, str) else codec.canonical(value))[:_LONGEST]


def _tags(values: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(name, text) for name, text in _pairs(values)]


def _link(uri: str, experiment: str, run_id: str) -> str:
    base = os.environ.get("MLFLOW_UI_URL") or uri
    if not base.startswith(("http://", "https://")):
        return ""
    return f"{_server.shown(base).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
