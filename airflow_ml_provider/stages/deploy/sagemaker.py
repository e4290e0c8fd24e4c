"""A service as Amazon SageMaker is told it, and what it says of one. Pure.

A version is a Model and a variant of the endpoint. Variants and their models are an EndpointConfig, named by what it
is made of; another one brings up new instances, which takes minutes. Weights are changed without one. A shadow variant
gets copies of requests as its weight is to that of the one production variant beside it, and no weight of it can be
changed, so its percentage is part of the EndpointConfig.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Optional
from urllib.parse import urlsplit

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.deploy.elsewhere import SageMaker, check_service
from airflow_ml_provider.stages.deploy.recorded import Record
from airflow_ml_provider.stages.deploy.service import Readings, Service, Version, VersionState
from airflow_ml_provider.stages.deploy.stats import VersionStats

SERVICE = "airflow-ml:service"  # tag
PERIOD_S = 3600  # CloudWatch keeps sums of an hour for 15 months; the last hour is summed up to now
COUNTERS = {"requests": "Invocations", "errors": "Invocation5XXErrors"}
_TAKEN = ("format", "image", "storage", "replicas", "env", "template", "timeout_s")
_TEMPLATE = ("model", "variant")
_SERVES = ("InService", "SystemUpdating")

Json = Mapping[str, Any]


def check(place: SageMaker, service: Service) -> None:
    """Raise `SpecError` for what SageMaker cannot do."""
    check_service("SageMaker", service, _TAKEN)
    if service.mirror and service.percent:
        raise SpecError(
            f"SageMaker has a candidate either answer requests or mirror them, got percent={service.percent:g} and "
            f"mirror={service.mirror:g}"
        )
    for version in service.versions.values():
        server = version.server
        if not (server.image or place.image):
            raise invalid("image", "", "the name of an image in ECR, of the place or of the server")
        if not (server.storage or version.model.uri).startswith("s3://"):
            raise invalid("storage", server.storage or version.model.uri, "in S3, as SageMaker reads nothing else")
        if server.replicas[0] != server.replicas[1]:
            raise invalid("replicas", server.replicas, "(n, n)", "scale by Application Auto Scaling")
        if server.timeout_s > 60:
            raise invalid("timeout_s", server.timeout_s, "at most 60 on SageMaker")
        if unknown := set(server.template) - set(_TEMPLATE):
            raise invalid("template", sorted(unknown), f"laid over {' and '.join(_TEMPLATE)}")


def models(place: SageMaker, service: Service) -> dict[str, dict[str, Any]]:
    """Return the requests `CreateModel` by the name of the version."""
    return {name: _model(place, service.name, version) for name, version in service.versions.items()}


def config(place: SageMaker, service: Service) -> dict[str, Any]:
    """Return the request `CreateEndpointConfig`; its name is that of what cannot be changed otherwise."""
    made = models(place, service)
    variants = [_variant(place, version, made[name]["ModelName"]) for name, version in service.versions.items()]
    stable, candidate = variants[0], variants[1] if len(variants) > 1 else None
    if candidate is not None and service.mirror:
        shadow = {**candidate, "InitialVariantWeight": service.mirror / 100}
        body = {
            "ProductionVariants": [{**stable, "InitialVariantWeight": 1.0}],
            "ShadowProductionVariants": [shadow],
        }
        return {**body, "EndpointConfigName": _name(service.name, body), "Tags": tags(service.name)}
    name = _name(service.name, variants)
    weights = {one["VariantName"]: one["DesiredWeight"] for one in weights_of(service)}
    weighed = [{**one, "InitialVariantWeight": weights[one["VariantName"]]} for one in variants]
    return {"ProductionVariants": weighed, "EndpointConfigName": name, "Tags": tags(service.name)}


def weights_of(service: Service) -> list[dict[str, Any]]:
    """Return the weights of the production variants, as `UpdateEndpointWeightsAndCapacities` takes them."""
    if service.candidate is None or service.mirror:
        return [{"VariantName": service.stable.name, "DesiredWeight": 1.0}]
    return [
        {"VariantName": service.stable.name, "DesiredWeight": (100 - service.percent) / 100},
        {"VariantName": service.candidate.name, "DesiredWeight": service.percent / 100},
    ]


def tags(service: str) -> list[dict[str, str]]:
    """Return the tags of what is made for a service."""
    return [{"Key": SERVICE, "Value": service}]


def weighs(service: Service, endpoint: Json) -> bool:
    """Return whether the production variants of an endpoint have the weights that they shall have."""
    asked = {one["VariantName"]: one["DesiredWeight"] for one in weights_of(service)}
    if len(asked) == 1:
        return True
    return all(abs(asked[name] - weight) < 1e-4 for name, weight in _weights(endpoint, "DesiredWeight").items())


def has_failed(endpoint: Json, made: Optional[Json], name: str) -> bool:
    """Return whether an endpoint could not get an EndpointConfig, and is back at the one before.

    Parameters:
        endpoint: that is in service.
        made: the EndpointConfig, if it is there.
        name: of it.
    """
    if made is None or endpoint["EndpointStatus"] not in _SERVES or endpoint["EndpointConfigName"] == name:
        return False
    return bool(endpoint["LastModifiedTime"] >= made["CreationTime"])  # it was updated since that is there


def states(service: Service, name: str, endpoint: Optional[Json], failed: bool = False) -> dict[str, VersionState]:
    """Return what has become of the versions.

    Parameters:
        service: what it shall be.
        name: of the EndpointConfig that it shall have.
        endpoint: as SageMaker describes it, or none.
        failed: it could not get that EndpointConfig.
    """
    if endpoint is None:
        return _all(service, VersionState("waits", "SageMaker has no endpoint of this name yet"))
    status, why = endpoint["EndpointStatus"], endpoint.get("FailureReason") or ""
    if status in ("Failed", "UpdateRollbackFailed"):
        return _all(service, VersionState("failed", why or status))
    if endpoint["EndpointConfigName"] == name and status in _SERVES:
        return _shares(service, endpoint)
    if failed:
        new = (service.candidate or service.stable).name
        back = VersionState("failed", why or f"SageMaker went back to {endpoint['EndpointConfigName']!r}")
        return {one: back if one == new else VersionState("ready", percent=100) for one in service.versions}
    return _all(service, VersionState("waits", f"the endpoint is {status}"))


def queries(service: Service) -> list[dict[str, Any]]:
    """Return what CloudWatch is asked for; `label_of` reads what it answers."""
    found = []
    for at, version in enumerate(service.versions):
        dimensions = [{"Name": "EndpointName", "Value": service.name}, {"Name": "VariantName", "Value": version}]
        for counter, metric in COUNTERS.items():
            asked = {"Namespace": "AWS/SageMaker", "MetricName": metric, "Dimensions": dimensions}
            stat = {"Metric": asked, "Period": PERIOD_S, "Stat": "Sum"}
            found.append({"Id": f"{counter}{at}", "MetricStat": stat, "ReturnData": True})
    return found


def start(record: Record) -> datetime:
    """Return from when on requests are counted: the hour in which the versions came together."""
    return datetime.fromtimestamp(record.since // PERIOD_S * PERIOD_S, timezone.utc)


def readings(record: Record, results: Sequence[Json]) -> Readings:
    """Return what each version counted, from the sums of `queries` (several pages of them, if so).

    Sums only grow, since their hours begin where they began. A late error may be there before its request is.
    """
    sums: dict[str, float] = {}
    for one in results:
        sums[one["Id"]] = sums.get(one["Id"], 0.0) + sum(one["Values"])
    found = {}
    for at, version in enumerate(record.service.versions):
        requests, errors = (round(sums.get(f"{counter}{at}", 0.0)) for counter in COUNTERS)
        server = f"cloudwatch since {start(record):%Y-%m-%dT%H}"
        found[version] = {server: VersionStats(requests, min(errors, requests))}
    return found


def _model(place: SageMaker, service: str, version: Version) -> dict[str, Any]:
    server = version.server
    container = {
        "Image": server.image or place.image,
        "Environment": {"AIRFLOW_ML_VERSION": version.name, **server.env},
        **_data(server.storage or version.model.uri),
    }
    made = {"PrimaryContainer": container, "ExecutionRoleArn": place.role, **server.template.get("model", {})}
    name = f"{service[:22]}-{version.name[:22]}-{_digest([made, version.model.digest])}"
    marks = [*tags(service), {"Key": "airflow-ml:model", "Value": version.model.digest}]
    return {**made, "ModelName": name, "Tags": marks}


def _data(uri: str) -> dict[str, Any]:
    """Return where a container gets its model from: an archive, or all below a prefix."""
    if urlsplit(uri).path.endswith(".tar.gz"):
        return {"ModelDataUrl": uri}
    source = {"S3Uri": uri.rstrip("/") + "/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    return {"ModelDataSource": {"S3DataSource": source}}


def _variant(place: SageMaker, version: Version, model: str) -> dict[str, Any]:
    usual = {"InstanceType": place.instance_type, "InitialInstanceCount": version.server.replicas[1]}
    fixed = {"VariantName": version.name, "ModelName": model}
    return {**usual, **version.server.template.get("variant", {}), **fixed}


def _shares(service: Service, endpoint: Json) -> dict[str, VersionState]:
    found = {}
    weights = _weights(endpoint, "CurrentWeight")
    total = sum(weights.values())
    for name in service.versions:
        candidate = service.candidate is not None and name == service.candidate.name
        asked = service.percent if candidate else 100 - service.percent
        percent = 100 * weights[name] / total if total and name in weights else 0.0
        mirror = service.mirror if candidate else 0
        # SageMaker keeps weights in single precision.
        found[name] = VersionState("ready", "", asked if abs(percent - asked) < 0.01 else percent, mirror)
    return found


def _weights(endpoint: Json, key: str) -> dict[str, float]:
    return {one["VariantName"]: float(one.get(key) or 0) for one in endpoint.get("ProductionVariants", ())}


def _all(service: Service, state: VersionState) -> dict[str, VersionState]:
    return dict.fromkeys(service.versions, state)


def prefix(service: str) -> str:
    """Return how the names of a service's EndpointConfigs begin."""
    return f"{service}-x"


def obsolete(service: str, names: Iterable[str], used: Iterable[str]) -> list[str]:
    """Return which EndpointConfigs of a service are used no more."""
    return [one for one in names if one.startswith(prefix(service)) and len(one) == len(prefix(service)) + 12
            and one not in used]  # fmt: skip


def _name(service: str, body: Any) -> str:
    return f"{prefix(service)}{_digest(body)}"


def _digest(made: Any) -> str:
    return hashlib.sha256(codec.canonical(made).encode()).hexdigest()[:12]
