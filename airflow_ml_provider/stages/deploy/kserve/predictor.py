"""A version of a model as a predictor of KServe."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.stages.deploy.kserve.abilities import Abilities
from airflow_ml_provider.stages.deploy.service import Version

VERSION, MODEL, RENDERED = "airflow-ml/version", "airflow-ml/model", "airflow-ml/rendered"  # annotations
# How many there are is not part of a version: it is changed without a restart.
SCALE = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")
_RESERVED = (*SCALE, "name", "canaryTrafficPercent")
CONTAINER = "kserve-container"
# Names of the runtimes that KServe installs; they all speak the Open Inference Protocol (`v2`).
_RUNTIMES = {
    "onnx": "kserve-tritonserver",
    "triton": "kserve-tritonserver",
    "mlflow": "kserve-mlserver",
    "sklearn": "kserve-mlserver",
    "xgboost": "kserve-mlserver",
    "lightgbm": "kserve-mlserver",
    "pytorch": "kserve-torchserve",
    "huggingface": "kserve-huggingfaceserver",
}


def predictor(version: Version, where: Abilities) -> dict[str, Any]:
    """Return the predictor of a version; its annotations, which KServe gives the pods, say what it was made from."""
    server = version.server
    if taken := sorted(set(_RESERVED) & set(server.template)):
        raise invalid("template", taken, "without what the service decides itself")
    if where.shape == "standard" and server.scale_metric in ("concurrency", "rps"):
        raise invalid("scale_metric", server.scale_metric, "cpu or memory in KServe's mode Standard")
    made: dict[str, Any] = {
        "timeout": math.ceil(server.timeout_s),
        **({"serviceAccountName": server.service_account} if server.service_account else {}),
        **(_custom(version) if server.format == "custom" else _model(version)),
    }
    made = _over(made, codec.encode(server.template))
    made["annotations"] = {**made.get("annotations", {}), VERSION: version.name, MODEL: version.model.digest}
    made["annotations"][RENDERED] = hashlib.sha256(codec.canonical(made).encode()).hexdigest()[:16]
    least = server.replicas[0] if where.shape == "serverless" else max(server.replicas[0], 1)
    return {
        **made,
        "minReplicas": least,
        "maxReplicas": server.replicas[1],
        **({"scaleMetric": server.scale_metric} if server.scale_metric else {}),
        **({"scaleTarget": server.scale_target} if server.scale_target is not None else {}),
    }


def _model(version: Version) -> dict[str, Any]:
    server = version.server
    model = {
        "modelFormat": {"name": server.format},
        "protocolVersion": "v2",
        "runtime": _RUNTIMES[server.format],
        "storageUri": server.storage or version.model.uri,
        "env": _env(version),
        "resources": _resources(version),
        **({"image": server.image} if server.image else {}),
    }
    return {"model": model}


def _custom(version: Version) -> dict[str, Any]:
    """Return a predictor of an image that brings its server; KServe puts the model to `/mnt/models` in it."""
    server = version.server
    storage = {"name": "STORAGE_URI", "value": server.storage or version.model.uri}
    container = {
        "name": CONTAINER,
        "image": server.image,
        "env": [storage, {"name": "PROTOCOL", "value": "v2"}, *_env(version)],
        "resources": _resources(version),
    }
    return {"containers": [container]}


def _env(version: Version) -> list[dict[str, str]]:
    """Return the variables; never none, since an empty list would be inherited from the stable version."""
    server = version.server
    own = {"AIRFLOW_ML_VERSION": version.name}
    if _RUNTIMES.get(server.format) == "kserve-mlserver":
        own["MLSERVER_MODEL_VERSION"] = version.name  # so that its answers say which version gave them
    if server.max_batch > 1:
        if "MLSERVER_MODEL_VERSION" not in own:
            raise invalid(
                "max_batch", server.max_batch, f"1 with format {server.format!r} on KServe",
                "its batcher knows the V1 protocol only; set batching in the model's own configuration",
            )  # fmt: skip
        own["MLSERVER_MODEL_MAX_BATCH_SIZE"] = str(server.max_batch)
        own["MLSERVER_MODEL_MAX_BATCH_TIME"] = str(server.max_delay_ms / 1000)
    # In one order, since that of a mapping is lost where it is written down, and another would be another version.
    return [{"name": name, "value": str(value)} for name, value in sorted({**own, **server.env}.items())]


def _resources(version: Version) -> dict[str, Any]:
    """Return the resources, written as Kubernetes writes them itself."""
    server, found = version.server, {}
    if server.cpu is not None:
        milli = math.ceil(server.cpu * 1000)
        found["cpu"] = f"{milli}m" if milli % 1000 else str(milli // 1000)
    if server.memory_gib is not None:
        mebi = math.ceil(server.memory_gib * 1024)
        found["memory"] = f"{mebi}Mi" if mebi % 1024 else f"{mebi // 1024}Gi"
    if server.gpus:
        found[server.gpu_resource] = str(server.gpus)
    return {"requests": found, "limits": dict(found)} if found else {}


def _over(base: Any, above: Any) -> Any:
    """Return `above` laid over `base`: mappings key by key, lists of named things name by name, all else replaced."""
    if isinstance(base, Mapping) and isinstance(above, Mapping):
        return {**base, **{key: _over(base.get(key), value) for key, value in above.items()}}
    if isinstance(base, list) and isinstance(above, list) and all("name" in _map(one) for one in (*base, *above)):
        names = {one["name"]: one for one in base}
        return list({**names, **{one["name"]: _over(names.get(one["name"]), one) for one in above}}.values())
    return above


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def rendered(predictor: Mapping[str, Any]) -> str:
    """Return what a predictor, or whatever KServe made of it, was made from; empty when not by us."""
    return str((predictor.get("annotations") or {}).get(RENDERED, ""))


def storage(predictor: Mapping[str, Any]) -> str:
    """Return where a predictor has its model from; KServe looks into a variable of a container of one's own."""
    if "model" in predictor:
        return str(predictor["model"].get("storageUri", ""))
    variables = {one["name"]: one.get("value", "") for one in predictor["containers"][0].get("env", ())}
    return str(variables.get("STORAGE_URI", ""))
