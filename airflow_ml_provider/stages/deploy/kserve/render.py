"""Parts of Kubernetes' and KServe's objects that are written alike in all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.stages.deploy.server import Component, Placement


def placed(where: Placement, service_account: str = "") -> dict[str, Any]:
    """Return the fields of a pod that say where and as whom it runs."""
    found = {
        "serviceAccountName": service_account,
        "nodeSelector": where.node_selector,
        "tolerations": where.tolerations,
        "affinity": where.affinity,
    }
    return {key: codec.encode(value) for key, value in found.items() if value}


def variables(env: Mapping[str, str]) -> list[dict[str, str]]:
    """Return environment variables in one order: that of a mapping is lost where it is written down."""
    return [{"name": name, "value": str(value)} for name, value in sorted(env.items())]


def component(name: str, made: Component, *args: str) -> dict[str, Any]:
    """Return the container of a component, with arguments before its own."""
    return {
        "name": name,
        "image": made.image,
        "args": [*args, *made.args],
        "env": variables(made.env),
        "resources": resources(made.cpu, made.memory_gib),
    }


def gpus(count: int, resource: str) -> dict[str, str]:
    """Return GPUs, or slices of them, as a resource."""
    return {resource: str(count)} if count else {}


def resources(cpu: Optional[float], memory_gib: Optional[float], **other: str) -> dict[str, Any]:
    """Return the resources of a container, requested and at most, written as Kubernetes writes them itself."""
    found = {}
    if cpu is not None:
        milli = math.ceil(cpu * 1000)
        found["cpu"] = f"{milli}m" if milli % 1000 else str(milli // 1000)
    if memory_gib is not None:
        mebi = math.ceil(memory_gib * 1024)
        found["memory"] = f"{mebi}Mi" if mebi % 1024 else f"{mebi // 1024}Gi"
    found.update(other)
    return {"requests": found, "limits": dict(found)} if found else {}


def over(base: Any, above: Any) -> Any:
    """Return `above` laid over `base`: mappings key by key, lists of named things name by name, all else replaced."""
    if isinstance(base, Mapping) and isinstance(above, Mapping):
        return {**base, **{key: over(base.get(key), value) for key, value in above.items()}}
    if isinstance(base, list) and isinstance(above, list) and all("name" in _map(one) for one in (*base, *above)):
        names = {one["name"]: one for one in base}
        return list({**names, **{one["name"]: over(names.get(one["name"]), one) for one in above}}.values())
    return above


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
