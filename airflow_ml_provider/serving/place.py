"""This machine as a place that serves: a gateway per service, made, changed and removed through one contract."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import Conflict, SpecError, invalid
from airflow_ml_provider.serving import folder as folders
from airflow_ml_provider.serving import launch
from airflow_ml_provider.serving.client import Client
from airflow_ml_provider.serving.spec import ServiceStatus, Status, Version, Wanted
from airflow_ml_provider.serving.state import WANTED
from airflow_ml_provider.stages.deploy import service as deploy
from airflow_ml_provider.stages.deploy.elsewhere import beside
from airflow_ml_provider.stages.deploy.place import Local
from airflow_ml_provider.stages.deploy.service import Observed, Readings, Service, VersionState
from airflow_ml_provider.stages.deploy.stats import Histogram, VersionStats

_PHASES = {"ready": "ready", "failed": "failed", "crash_loop": "failed"}
_SERVER = ("format", "storage", "max_batch", "max_delay_ms", "timeout_s")


class LocalServing:
    """The services of a folder; fulfils `stages.deploy.service.Serving`.

    A gateway that was killed is started again by whoever looks, and goes on with what it was told to be.

    Parameters:
        place: folder, Python and ports.
    """

    def __init__(self, place: Local) -> None:
        self._root = tables.local_path(place.root)
        self._how: dict[str, Any] = {"python": place.python, "port": place.port, "grpc_port": place.grpc_port}

    def look(self, name: str) -> Optional[Observed]:
        """Return a service as it is, or none."""
        client = self._client(name)
        if client is None:
            return None
        wanted, status = client.wanted(), client.status()
        while status.generation != wanted.generation:  # somebody changed it in between
            wanted, status = client.wanted(), client.status()
        if not wanted.stable:
            return None
        states = {version: _state(status, wanted, version) for version in wanted.versions}
        found = launch.find(self._root, name)
        addresses = (found.url, found.grpc) if found else ("", "")
        return Observed(_service(wanted), str(wanted.generation), states, *addresses)

    def put(self, wanted: Service, revision: Optional[str] = None) -> str:
        """Make a service what it shall be, without waiting; return the new revision."""
        changed = _wanted(wanted, self._how["python"])
        client = launch.start(self._root, wanted.name, **self._how)
        present = client.wanted()
        if (str(present.generation) if present.stable else None) != revision:
            raise Conflict(f"service {wanted.name!r} has generation {present.generation}, not {revision}")
        if present.stable and _service(present) == wanted:
            return str(present.generation)
        return str(client.apply(replace(changed, generation=present.generation)).generation)

    def readings(self, name: str) -> Readings:
        """Return what each version has counted, of users and of mirrored requests."""
        client = self._client(name)
        versions = {} if client is None else client.stats()["versions"]
        return {version: {"gateway": counted(counters)} for version, counters in versions.items()}

    def remove(self, name: str) -> None:
        """End the gateway of a service and its servers, and remove the service's folder."""
        launch.stop(self._root, name)
        shutil.rmtree(folders.place(self._root, name), ignore_errors=True)

    def predict(self, name: str, rows: Mapping[str, Sequence[Any]], version: str = "") -> tuple[Mapping[str, Any], str]:
        """Return the scores of some rows, and the version that gave them."""
        client = self._client(name)
        if client is None:
            raise SpecError(f"there is no service {name!r} in {self._root}")
        found = client.predict(rows, version=version)
        return {"score": list(found.scores)}, found.version

    def _client(self, name: str) -> Optional[Client]:
        """Return a client of a service's gateway, started if it was killed; none if there is no such service."""
        if not (folders.place(self._root, name) / WANTED).exists():
            return None
        return launch.start(self._root, name, **self._how)


def _wanted(service: Service, python: str) -> Wanted:
    """Return a service as its gateway is told it; the service itself is kept beside it."""
    versions = {}
    for name, version in service.versions.items():
        _check(version.server)
        candidate = service.candidate is not None and name == service.candidate.name
        versions[name] = Version(
            package=version.server.storage or version.model.uri,
            digest=version.model.digest,
            percent=service.percent if candidate else 100 - service.percent,
            mirror=service.mirror if candidate else 0,
            python=python,
            max_batch=version.server.max_batch,
            max_delay_ms=version.server.max_delay_ms,
        )
    kept = {"service": codec.encode(service)}
    timeout_s = service.stable.server.timeout_s
    return Wanted(
        versions, service.stable.name, kept, timeout_s=timeout_s, tolerance=service.tolerance, sticky=service.sticky
    )


def _check(server: deploy.Server) -> None:
    """Refuse what a process on this machine cannot be told."""
    if server.format != "onnx":
        raise invalid("format", server.format, "onnx on this machine", "serve other formats by KServe")
    if other := beside(server, _SERVER):
        raise SpecError(
            f"{', '.join(other)} of the server cannot be had on this machine: leave out, or serve by KServe"
        )


def _service(wanted: Wanted) -> Service:
    service: Service = codec.decode(Service, wanted.rollout["service"], "service")
    return service


def _state(status: ServiceStatus, wanted: Wanted, name: str) -> VersionState:
    version = status.versions.get(name, Status("waiting", reason="the gateway has not begun with it"))
    phase: Any = _PHASES.get(version.state, "waits")
    # The share of a version that is not ready goes to the stable one.
    shares = (wanted.versions[name].percent, wanted.versions[name].mirror) if version.ready else (0, 0)
    return VersionState(phase, "" if version.ready else version.reason or version.state, *shares)


def counted(counters: Mapping[str, Any]) -> VersionStats:
    """Return the counters of `serving.stats.VersionStats`, as JSON, as a rollout reads them: of users and of copies."""
    total = VersionStats(compared=counters["compared"], agreed=counters["agreed"])
    for traffic in ("live", "mirror"):
        total += _answers(counters[traffic])
    return total


def _answers(answers: Mapping[str, Any]) -> VersionStats:
    from airflow_ml_provider.serving.stats import LATENCY_BOUNDS_MS

    latency, scores = answers["latency"], answers["scores"]
    return VersionStats(
        requests=answers["requests"],
        errors=sum(answers["errors"].values()),
        latency_s=Histogram(tuple(bound / 1000 for bound in LATENCY_BOUNDS_MS), tuple(latency["counts"])),
        scores=Histogram(tuple(scores["edges"]), tuple(scores["counts"])),
    )
