"""A service as an InferenceService of KServe; what comes back is read in `states`.

What is relied on was read in KServe 0.20 (`predictor.go`, `inference_service_validation.go`, `ksvc_reconciler.go`):

- Annotations and labels of the InferenceService enter the pods' template. One that changed with the traffic would start
  every pod again, so what the service shall be is kept in a ConfigMap beside it (`record`), and only what a version is
  made of is written on its own predictor.
- A canary in `spec.canary` is the stable predictor with its own fields laid over (mergo, with override): maps are
  merged, lists replaced, and what is empty is inherited. So a candidate that lacks a field of the stable version is
  refused here: it would get that field, and lose it with a restart when it is promoted.
- A canary has a fixed number of replicas, by default that of the stable predictor times the traffic: none at 0 %.
- A Deployment is named after `predictor.name`. KServe deletes the one of the former name before the new one has pods,
  so the name stays when a stable version is replaced by one that was no canary. Where it changes, so must the storage.
- Knative sends what it sends to the latest revision to the last one that is *ready*, and KServe what a canary does not
  get to the last one that had 100 %.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, Unavailable, invalid
from airflow_ml_provider.stages.deploy.kserve.abilities import API_VERSION, GROUP, MODE, Abilities
from airflow_ml_provider.stages.deploy.kserve.predictor import CONTAINER, explainer, predictor, rendered, storage
from airflow_ml_provider.stages.deploy.kserve.scale import SCALE
from airflow_ml_provider.stages.deploy.service import Service, Version

SERVICE = "airflow-ml/service"  # label
WANTED = "service.json"  # key in the record
TRAFFIC = "canaryTrafficPercent"
_TAGS = f"{GROUP}/enable-tag-routing"  # gives the latest revision an address of its own
_LABEL = 63  # characters that Kubernetes allows for a label

Json = Mapping[str, Any]


def manifest(
    service: Service, where: Abilities, found: Optional[Json] = None, revisions: Sequence[Json] = ()
) -> dict[str, Any]:
    """Return the InferenceService of a service.

    Parameters:
        service: what it shall be.
        where: what KServe can do there.
        found: the InferenceService that there is.
        revisions: in `serverless`, those that Knative has made of it.

    Raises:
        SpecError: KServe cannot do this, or not there.
        Unavailable: in `serverless`, the stable version does not answer yet.
    """
    _check(service, where)
    if where.shape == "standard":
        spec = _standard(service, where, predictors(found) if found else [])
    else:
        spec = _serverless(service, where, found, revisions)
    if made := explainer(service.stable):
        spec["explainer"] = made
    annotations = {MODE: where.mode, **({_TAGS: "true"} if where.shape == "serverless" else {})}
    return {
        "apiVersion": f"{GROUP}/{API_VERSION}",
        "kind": "InferenceService",
        "metadata": {"name": service.name, "labels": {SERVICE: service.name}, "annotations": annotations},
        "spec": spec,
    }


def record(service: Service) -> dict[str, Any]:
    """Return the ConfigMap that says what a service shall be; it has no secrets, as a service has none."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": record_name(service.name), "labels": {SERVICE: service.name}},
        "data": {WANTED: codec.canonical(service)},
    }


def record_name(name: str) -> str:
    """Return the name of the ConfigMap of a service."""
    return f"{name}-airflow-ml"


def recorded(data: Mapping[str, str]) -> Service:
    """Return what a service shall be, from the data of its record."""
    return codec.decode(Service, json.loads(data[WANTED]), "service")


def predictors(found: Json) -> list[Json]:
    """Return the predictors of an InferenceService, the main one first."""
    return [found["spec"]["predictor"], *(one["predictor"] for one in found["spec"].get("canary", ()))]


def deployment(service: str, made: Json) -> str:
    """Return the name of the Deployment and the Service of a predictor (KServe's `PredictorServiceName`)."""
    return "-".join(filter(None, [service, made.get("name"), "predictor"]))


def component(found: Json) -> Json:
    """Return where Knative is with an InferenceService, by names of revisions."""
    status: Json = (found.get("status") or {}).get("components", {}).get("predictor", {})
    return status


def marks(revisions: Sequence[Json]) -> dict[str, str]:
    """Return what each revision was made from, by name."""
    return {one["metadata"]["name"]: rendered(one["metadata"]) for one in revisions}


def _check(service: Service, where: Abilities) -> None:
    if service.mirror:
        raise SpecError(
            f"KServe cannot mirror traffic, got mirror={service.mirror:g}; set mirror=0 and score recorded requests "
            "with both versions, or mirror at your gateway (HTTPRoute filter RequestMirror)"
        )
    if service.percent != int(service.percent):
        raise invalid("percent", service.percent, "a whole number on KServe")
    if service.candidate is None or where.shape == "serverless":
        return
    if not where.canaries:
        raise SpecError(
            f"this KServe cannot serve candidate {service.candidate.name!r} beside {service.stable.name!r}: its "
            "InferenceService has no spec.canary; upgrade to KServe 0.20, use the mode Knative, or replace the stable "
            "version"
        )
    if service.percent and not where.routes:
        raise SpecError(
            f"this KServe sends no traffic to a candidate, got percent={service.percent:g}: it routes by Ingress; set "
            "ingress.enableGatewayApi in inferenceservice-config, or use the mode Knative"
        )
    _check_beside(service, service.candidate)


def _check_beside(service: Service, candidate: Version) -> None:
    """Raise `SpecError` for what KServe does not do with a canary in the mode Standard."""
    stable = service.stable.server
    if stable.explainer or candidate.server.explainer:
        raise SpecError(
            f"candidate {candidate.name!r} cannot have an explainer beside it: KServe's mode Standard would send its "
            "share of the requests for explanations to its server; use the mode Knative, or replace the stable version"
        )
    if candidate.server.scaling.by == "keda":
        raise invalid(
            "scaling.by of the candidate", "keda", "none or empty in KServe's mode Standard",
            "KServe gives KEDA no metric of a canary; or use the mode Knative",
        )  # fmt: skip
    if stable.replicas[0] == 0:
        raise invalid(
            "replicas of the stable version", stable.replicas, "at least (1, 1) beside a candidate in mode Standard",
            "KServe gives a canary no more",
        )  # fmt: skip


def _standard(service: Service, where: Abilities, found: Sequence[Json]) -> dict[str, Any]:
    stable = predictor(service.stable, where)
    names = {rendered(one): one["name"] for one in reversed(found) if "name" in one}
    if where.canaries:
        kept = next((one["name"] for one in found if "name" in one), service.stable.name)
        stable["name"] = names.get(rendered(stable), kept)
        _check_name(service.name, stable)
    if service.candidate is None:
        return {"predictor": stable}
    canary = {key: value for key, value in predictor(service.candidate, where).items() if key not in SCALE}
    canary["name"] = names.get(rendered(canary), service.candidate.name)
    if canary["name"] == stable["name"]:  # a version that was replaced in its place comes again
        canary["name"] += "-again"
    _check_name(service.name, canary)
    _check_canary(service, stable, canary)
    canary["minReplicas"] = min(max(service.candidate.server.replicas[0], 1), stable["minReplicas"])
    if (
        "model" in canary
    ):  # its definition asks for a name here, that of the container; a stable predictor must have none
        canary["model"] = {**canary["model"], "name": CONTAINER}
    return {"predictor": stable, "canary": [{"predictor": canary, "trafficPercent": int(service.percent)}]}


def _check_name(service: str, made: Json) -> None:
    label = f"isvc.{deployment(service, made)}"
    if (spare := _LABEL - len(label)) < 0:
        raise SpecError(
            f"the names {service!r} and {made['name']!r} are {-spare} characters too long together, since KServe makes "
            f"the label {label!r} of them; shorten one"
        )


def _check_canary(service: Service, stable: Json, canary: Json) -> None:
    """Raise `SpecError` unless KServe makes of the canary what it says, and can promote it without a restart."""
    assert service.candidate is not None
    name, beside = service.candidate.name, service.stable.name
    base = {key: value for key, value in stable.items() if key not in SCALE}
    if where := next(_inherited(base, canary), ""):
        raise SpecError(
            f"candidate {name!r} would get {where} from {beside!r}, since KServe lays a canary over the stable "
            "predictor; set it for both versions, or replace the stable version without a candidate"
        )
    if storage(stable) == storage(canary):
        raise SpecError(
            f"candidate {name!r} has the same storage as {beside!r}, got {storage(stable)!r}: KServe could never "
            "promote it; give every version a storage of its own"
        )
    for version in service.versions.values():
        server = version.server
        if server.format == "custom" and (server.cpu is None or server.memory_gib is None):
            raise SpecError(
                f"version {version.name!r} must have cpu and memory_gib, got {server.cpu} and {server.memory_gib}: "
                "KServe has defaults for a custom stable version but not for a canary, so that it would restart when "
                "promoted"
            )


def _inherited(stable: Json, canary: Json, path: str = "") -> Iterator[str]:
    """Give the paths of what a canary inherits although its version has nothing, or something empty, there."""
    for key, value in stable.items():
        here, own = f"{path}.{key}" if path else str(key), canary.get(key)
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            yield from _inherited(value, own, here)
        elif not own and value:
            yield here


def _serverless(service: Service, where: Abilities, found: Optional[Json], revisions: Sequence[Json]) -> dict[str, Any]:
    stable, of = predictor(service.stable, where), marks(revisions)
    status = component(found or {})
    rolled_out, ready = (of.get(status.get(f"latest{key}Revision", ""), "") for key in ("Rolledout", "Ready"))
    if service.candidate is None:
        if rolled_out == rendered(stable) != ready:
            # Rolled back: the old revision of the stable version goes on answering until the new one is ready.
            return {"predictor": {**stable, TRAFFIC: 0}}
        return {"predictor": stable}
    candidate = predictor(service.candidate, where)
    if found is None:
        raise SpecError(
            f"candidate {service.candidate.name!r} of the new service {service.name!r} would get all requests; make "
            f"the service with {service.stable.name!r} alone first"
        )
    if rolled_out not in (rendered(stable), rendered(candidate)):
        raise Unavailable(
            f"version {service.stable.name!r} of service {service.name!r} does not answer all requests yet, so that "
            f"candidate {service.candidate.name!r} cannot come beside it"
        )
    return {"predictor": {**candidate, TRAFFIC: int(service.percent)}}
