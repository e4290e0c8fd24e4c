"""A service as Vertex AI is told it, and what it says of one, as JSON of its messages. Pure.

A version is a Model and, at the service's Endpoint, a DeployedModel whose id is that of what it is made of. The
Endpoint's `traffic_split`, in whole percents, is changed by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.deploy.elsewhere import VertexAI, check_service
from airflow_ml_provider.stages.deploy.recorded import Record
from airflow_ml_provider.stages.deploy.service import Readings, Service, Version, VersionState
from airflow_ml_provider.stages.deploy.stats import VersionStats

SERVICE = "airflow-ml-service"  # label
RESPONSES = "aiplatform.googleapis.com/prediction/online/response_count"
_TAKEN = ("format", "image", "storage", "replicas", "gpus", "env", "template", "timeout_s", "service_account")
_TEMPLATE = ("model", "deployed_model")

Json = Mapping[str, Any]


def check(place: VertexAI, service: Service) -> None:
    """Raise `SpecError` for what Vertex AI cannot do."""
    check_service("Vertex AI", service, _TAKEN)
    if service.mirror:
        raise SpecError(f"Vertex AI cannot mirror requests, got mirror={service.mirror:g}; set mirror=0")
    if service.percent != int(service.percent):
        raise invalid("percent", service.percent, "a whole number on Vertex AI")
    for version in service.versions.values():
        server = version.server
        if not (server.image or place.image):
            raise invalid("image", "", "the name of an image, of the place or of the server")
        if not (server.storage or version.model.uri).startswith("gs://"):
            raise invalid("storage", server.storage or version.model.uri, "in Cloud Storage (gs://)")
        if server.replicas[0] < 1:
            raise invalid("replicas", server.replicas, "at least (1, 1) on Vertex AI")
        if server.gpus and not place.accelerator:
            raise invalid("gpus", server.gpus, "0 unless the place has an accelerator")
        if unknown := set(server.template) - set(_TEMPLATE):
            raise invalid("template", sorted(unknown), f"laid over {' and '.join(_TEMPLATE)}")


def model(place: VertexAI, service: str, version: Version) -> dict[str, Any]:
    """Return the Model of a version."""
    server = version.server
    env = {"AIRFLOW_ML_VERSION": version.name, **server.env}
    container = {
        "image_uri": server.image or place.image,
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "predict_route": f"/v2/models/{service}/infer",
        "health_route": "/v2/health/ready",
    }  # fmt: skip
    return {
        "display_name": f"{service} {version.name}",
        "artifact_uri": server.storage or version.model.uri,
        "container_spec": container,
        "labels": {SERVICE: service},
        "description": version.model.digest,
        **server.template.get("model", {}),
    }


def model_id(place: VertexAI, service: str, version: Version) -> str:
    """Return the id of a version's Model."""
    made = _digest(model(place, service, version)).hexdigest()[:12]
    return f"{service[:24]}-{version.name[:24]}-{made}"


def deployed(place: VertexAI, service: str, version: Version) -> dict[str, Any]:
    """Return the DeployedModel of a version."""
    server = version.server
    machine: dict[str, Any] = {"machine_type": place.machine_type}
    if server.gpus:
        machine |= {"accelerator_type": place.accelerator, "accelerator_count": server.gpus}
    least, most = server.replicas
    resources = {"machine_spec": machine, "min_replica_count": least, "max_replica_count": most}
    made = {
        "model": f"{place.parent}/models/{model_id(place, service, version)}",
        "display_name": version.name,
        "dedicated_resources": resources,
        **({"service_account": server.service_account} if server.service_account else {}),
        **server.template.get("deployed_model", {}),
    }
    # Ids are up to ten digits.
    return {**made, "id": str(10**9 + int(_digest(made).hexdigest(), 16) % (9 * 10**9))}


def split(place: VertexAI, service: Service) -> dict[str, int]:
    """Return the traffic split of an Endpoint; who gets nothing is not in it."""
    shares = {service.stable.name: 100 - service.percent}
    if service.candidate is not None:
        shares[service.candidate.name] = service.percent
    ids = identities(place, service)
    return {ids[name]: int(percent) for name, percent in shares.items() if percent}


def identities(place: VertexAI, service: Service) -> dict[str, str]:
    """Return the ids of DeployedModels by the names of versions."""
    return {name: deployed(place, service.name, version)["id"] for name, version in service.versions.items()}


def states(
    place: VertexAI,
    service: Service,
    there: Iterable[str],
    shares: Optional[Mapping[str, int]],
    said: Mapping[str, VersionState],
) -> dict[str, VersionState]:
    """Return what has become of the versions.

    Parameters:
        place: for the ids.
        service: what it shall be.
        there: ids of the DeployedModels.
        shares: the traffic split; none without an Endpoint.
        said: name of a version that is not there to why.
    """  # fmt: skip
    found, ids = {}, identities(place, service)
    settled = shares is not None and {one: share for one, share in shares.items() if share} == split(place, service)
    for name, one in ids.items():
        percent = (shares or {}).get(one, 0)
        if one not in set(there):
            found[name] = said.get(name, VersionState("waits", "it is not deployed yet"))
        elif name == service.stable.name and not settled:
            found[name] = VersionState("waits", "the traffic is not split as it shall be", percent)
        else:
            found[name] = VersionState("ready", "", percent)
    return found


def readings(place: VertexAI, record: Record, series: Iterable[tuple[str, str, int]]) -> Readings:
    """Return what each version counted, from (id of the DeployedModel, response code, responses) of each series."""
    counted: dict[str, list[int]] = {}
    for one, code, count in series:
        sums = counted.setdefault(one, [0, 0])
        sums[0] += count
        sums[1] += count if code.startswith("5") else 0
    server = f"monitoring since {record.since}"
    return {
        name: {server: VersionStats(*counted.get(one, (0, 0)))}
        for name, one in identities(place, record.service).items()
    }


def _digest(made: Any) -> Any:
    return hashlib.sha256(codec.canonical(made).encode())
