"""A version of a model as a predictor of KServe."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.stages.deploy.kserve import scale
from airflow_ml_provider.stages.deploy.kserve.abilities import Abilities
from airflow_ml_provider.stages.deploy.kserve.render import component, gpus, over, placed, resources, variables
from airflow_ml_provider.stages.deploy.kserve.scale import SCALE
from airflow_ml_provider.stages.deploy.server import Component
from airflow_ml_provider.stages.deploy.service import Version

VERSION, MODEL, RENDERED = "airflow-ml/version", "airflow-ml/model", "airflow-ml/rendered"  # annotations
_RESERVED = (*SCALE, "name", "canaryTrafficPercent")
CONTAINER, TRANSFORMER = "kserve-container", "transformer-container"
TRANSFORMER_PORT = 8085  # KServe's runtimes have 8080, 8081 and 9000
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
    made: dict[str, Any] = {
        "timeout": math.ceil(server.timeout_s),
        **placed(server.placement, server.service_account),
        **({"logger": codec.encode(server.request_log)} if server.request_log else {}),
        **(_custom(version) if server.format == "custom" else _model(version)),
    }
    if server.transformer:
        made["containers"] = [*made.get("containers", ()), _transformer(server.transformer)]
    made = over(made, codec.encode(server.template))
    marks = {**scale.scaled_by(server, where), VERSION: version.name, MODEL: version.model.digest}
    made["annotations"] = {**made.get("annotations", {}), **marks}
    made["annotations"][RENDERED] = hashlib.sha256(codec.canonical(made).encode()).hexdigest()[:16]
    return {**made, **scale.fields(server, where)}


def explainer(version: Version) -> dict[str, Any]:
    """Return the explainer of a version, a component of its own in the InferenceService; empty when it has none."""
    made = version.server.explainer
    return {"containers": [component(CONTAINER, made)]} if made else {}


def _transformer(made: Component) -> dict[str, Any]:
    """Return the container in the server's own pod (KServe's collocation).

    As a component of its own it would be common to all versions, and in the mode Standard KServe sends the requests of
    a canary past it (`applyCanaryWeights`).
    """
    return {
        **component(
            TRANSFORMER,
            made,
            "--model_name=$(INFERENCE_SERVICE_NAME)",
            "--protocol=v2",
            f"--http_port={TRANSFORMER_PORT}",
            f"--grpc_port={TRANSFORMER_PORT + 1}",
            "--predictor_host=localhost:8080",
        ),
        "ports": [{"containerPort": TRANSFORMER_PORT, "protocol": "TCP"}],
    }


def _model(version: Version) -> dict[str, Any]:
    server = version.server
    model = {
        "modelFormat": {"name": server.format},
        "protocolVersion": "v2",
        "runtime": _RUNTIMES[server.format],
        "storageUri": server.storage or version.model.uri,
        "env": _env(version),
        "resources": resources(server.cpu, server.memory_gib, **gpus(server.gpus, server.gpu_resource)),
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
        "resources": resources(server.cpu, server.memory_gib, **gpus(server.gpus, server.gpu_resource)),
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
    return variables({**own, **server.env})


def rendered(predictor: Mapping[str, Any]) -> str:
    """Return what a predictor, or whatever KServe made of it, was made from; empty when not by us."""
    return str((predictor.get("annotations") or {}).get(RENDERED, ""))


def storage(predictor: Mapping[str, Any]) -> str:
    """Return where a predictor has its model from; KServe looks into a variable of a container of one's own."""
    if "model" in predictor:
        return str(predictor["model"].get("storageUri", ""))
    variables = {one["name"]: one.get("value", "") for one in predictor["containers"][0].get("env", ())}
    return str(variables.get("STORAGE_URI", ""))
