"""A service as Seldon Core 2 is told it, and what it says of one. Pure; written from its public documentation.

A version is a Model, and an Experiment is the address `NAME.experiment` that splits requests among Models by weight. A
Model's status does not say which generation it is about, so a Model is named by what it is made of and never changed.

The Experiment has no `default`: that would split the requests to the stable Model, too, so that nobody could ask that
one alone, and the address would change with each promotion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.deploy.elsewhere import check_service
from airflow_ml_provider.stages.deploy.kserve.manifest import SERVICE
from airflow_ml_provider.stages.deploy.kserve.predictor import MODEL, VERSION
from airflow_ml_provider.stages.deploy.prometheus import Part
from airflow_ml_provider.stages.deploy.service import Service, Version, VersionState

GROUP, API_VERSION = "mlops.seldon.io", "v1alpha1"
MODELS, EXPERIMENTS = "models", "experiments"
_TAKEN = ("format", "storage", "replicas", "memory_gib", "template", "timeout_s")
# What Seldon's own servers are capable of (MLServer, Triton).
_REQUIREMENTS = {
    "onnx": "onnx", "triton": "triton", "pytorch": "pytorch", "mlflow": "mlflow", "sklearn": "sklearn",
    "xgboost": "xgboost", "lightgbm": "lightgbm", "huggingface": "huggingface",
}  # fmt: skip
_AGAIN = "the Experiment is not what it shall be; put the service again"
_WEIGHT = 100  # for one percent, so that there are hundredths of it

Json = Mapping[str, Any]


def check(service: Service) -> None:
    """Raise `SpecError` for what Seldon Core 2 cannot do."""
    check_service("Seldon", service, _TAKEN)
    if service.mirror != int(service.mirror):
        raise invalid("mirror", service.mirror, "a whole number on Seldon")
    if abs(service.percent * _WEIGHT - round(service.percent * _WEIGHT)) > 1e-6:
        raise invalid("percent", service.percent, "a multiple of 0.01 on Seldon")
    if service.mirror and service.percent:
        raise SpecError(
            f"Seldon has a candidate either answer requests or mirror them, got percent={service.percent:g} and "
            f"mirror={service.mirror:g}"
        )
    for version in service.versions.values():
        server = version.server
        if server.replicas[0] < 1:
            raise invalid("replicas", server.replicas, "at least (1, 1) on Seldon")
        if server.format not in _REQUIREMENTS and not server.template.get("requirements"):
            raise invalid("format", server.format, f"one of {', '.join(_REQUIREMENTS)}, or template with requirements")


def model(service: str, version: Version) -> dict[str, Any]:
    """Return the Model of a version."""
    server = version.server
    least, most = server.replicas
    spec = {
        "storageUri": server.storage or version.model.uri,
        "requirements": [_REQUIREMENTS[server.format]] if server.format in _REQUIREMENTS else [],
        "replicas": least,
        **({"minReplicas": least, "maxReplicas": most} if least != most else {}),
        **({"memory": f"{round(server.memory_gib * 1024)}Mi"} if server.memory_gib else {}),
        **codec.encode(server.template),
    }
    made = hashlib.sha256(codec.canonical([version, spec]).encode()).hexdigest()[:12]
    name = f"{service[:24]}-{version.name[:24]}-{made}"
    return {**_object("Model", name, service, {VERSION: version.name, MODEL: version.model.digest}), "spec": spec}


def experiment(service: Service) -> dict[str, Any]:
    """Return the Experiment of a service; who gets no requests is not in it."""
    names = {name: model(service.name, version)["metadata"]["name"] for name, version in service.versions.items()}
    candidate = service.candidate.name if service.candidate else ""
    weights = {service.stable.name: 100 - service.percent, candidate: service.percent}
    chosen = [(names[name], round(percent * _WEIGHT)) for name, percent in weights.items() if percent]
    spec: dict[str, Any] = {"candidates": [{"name": name, "weight": weight} for name, weight in chosen]}
    if service.mirror:
        spec["mirror"] = {"name": names[candidate], "percent": int(service.mirror)}
    return {**_object("Experiment", service.name, service.name, {}), "spec": spec}


def states(service: Service, models: Sequence[Json], found: Optional[Json]) -> dict[str, VersionState]:
    """Return what has become of the versions.

    Parameters:
        service: what it shall be.
        models: the Models that there are.
        found: the Experiment, or none.
    """
    by_name = {one["metadata"]["name"]: one for one in models}
    split, shares = _split(service, found), _shares(service)
    states = {}
    for name, version in service.versions.items():
        state = _loaded(by_name.get(model(service.name, version)["metadata"]["name"]))
        if state.phase == "ready" and name == service.stable.name and split.phase != "ready":
            state = split
        percent, mirror = shares[name] if split.phase == state.phase == "ready" else (0, 0)
        states[name] = VersionState(state.phase, state.why, percent, mirror)
    return states


def parts(service: Service) -> list[Part]:
    """Return the Models by which requests are counted."""
    named = {name: model(service.name, version)["metadata"]["name"] for name, version in service.versions.items()}
    return [Part(version, name, name) for version, name in named.items()]


def answered(service: Service, answer: Json) -> str:
    """Return which version answered: Seldon calls it by its Model and a number; empty when nobody knows."""
    said = str(answer.get("model_name", "")).rpartition("_")[0]
    return next((part.version for part in parts(service) if part.workload == said), "")


def _split(service: Service, found: Optional[Json]) -> VersionState:
    """Return whether the Experiment splits requests as it shall.

    It says so of no generation, unless it has an `observedGeneration` one day: `Ready` may be from the weights before,
    for as long as Seldon's scheduler takes.
    """
    if found is None or not as_made(experiment(service), found):
        return VersionState("waits", _AGAIN)
    status = found.get("status") or {}
    if status.get("observedGeneration", found["metadata"].get("generation")) != found["metadata"].get("generation"):
        return VersionState("waits", "Seldon has not looked at the Experiment yet")
    return _condition(status, "the Experiment")


def as_made(made: Json, found: Json) -> bool:
    """Return whether an object has what was made here, whatever else Seldon fills in."""
    same = all(found["spec"].get(key) == value for key, value in made["spec"].items())
    return same and bool(made["spec"].get("mirror")) == bool(found["spec"].get("mirror"))


def _shares(service: Service) -> dict[str, tuple[float, float]]:
    shares: dict[str, tuple[float, float]] = {service.stable.name: (100 - service.percent, 0)}
    if service.candidate is not None:
        shares[service.candidate.name] = (service.percent, service.mirror)
    return shares


def _loaded(found: Optional[Json]) -> VersionState:
    if found is None:
        return VersionState("waits", "the Model is not there; put the service again")
    return _condition(found.get("status") or {}, "the Model")


def _condition(status: Json, whose: str) -> VersionState:
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    if conditions.get("Ready", {}).get("status") == "True":
        return VersionState("ready")
    told = [
        ": ".join(filter(None, [kind, one.get("reason"), one.get("message")]))
        for kind, one in conditions.items()
        if one.get("status") != "True"
    ]
    failed = any("ModelFailed" in (one.get("reason"), one.get("message")) for one in conditions.values())
    return VersionState("failed" if failed else "waits", "; ".join(told) or f"Seldon says nothing of {whose} yet")


def _object(kind: str, name: str, service: str, annotations: Mapping[str, str]) -> dict[str, Any]:
    meta = {"name": name, "labels": {SERVICE: service}, "annotations": dict(annotations)}
    return {"apiVersion": f"{GROUP}/{API_VERSION}", "kind": kind, "metadata": meta}
