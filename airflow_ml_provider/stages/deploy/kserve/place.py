"""What KServe in a cluster can do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from airflow_ml_provider.exceptions import invalid

GROUP, API_VERSION, PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"
MODE = f"{GROUP}/deploymentMode"  # annotation
_LEGACY = {"RawDeployment": "Standard", "Serverless": "Knative"}


@dataclass(frozen=True)
class Place:
    """What KServe in a cluster can do.

    Attributes:
        shape: `standard` makes Deployments and splits traffic by `spec.canary`; `serverless` makes Knative revisions.
        canaries: in `standard`, whether there is a `spec.canary`, as of KServe 0.20.
        routes: in `standard`, whether traffic goes by the Gateway API; by an Ingress the stable version gets all of it.
        modes: whether the modes have the names `Standard` and `Knative`, as of KServe 0.16.
    """

    shape: Literal["standard", "serverless"] = "standard"
    canaries: bool = True
    routes: bool = True
    modes: bool = True

    @property
    def mode(self) -> str:
        """The deployment mode as KServe calls it there."""
        new, old = ("Standard", "RawDeployment") if self.shape == "standard" else ("Knative", "Serverless")
        return new if self.modes else old


def place(config: Mapping[str, str], definition: Mapping[str, Any], mode: str = "") -> Place:
    """Return what KServe can do.

    Parameters:
        config: data of its ConfigMap `inferenceservice-config`.
        definition: the definition of InferenceServices (CRD).
        mode: deployment mode that is asked for; empty takes that of `config`, `deploy.defaultDeploymentMode`.

    Raises:
        SpecError: it is none of KServe's modes that serve one model.
    """
    deploy, ingress = (json.loads(config.get(key) or "{}") for key in ("deploy", "ingress"))
    asked = mode or str(deploy.get("defaultDeploymentMode") or "Standard")
    shapes: dict[str, Literal["standard", "serverless"]] = {"Standard": "standard", "Knative": "serverless"}
    name = _LEGACY.get(asked, asked)
    if name not in shapes:
        raise invalid("deployment mode", asked, "one of Standard, RawDeployment, Knative, Serverless")
    served = [one for one in definition["spec"]["versions"] if one["name"] == API_VERSION]
    schema = served[0].get("schema", {}).get("openAPIV3Schema", {}).get("properties", {}) if served else {}
    spec, status = (schema.get(key, {}).get("properties", {}) for key in ("spec", "status"))
    return Place(
        shape=shapes[name],
        canaries="canary" in spec,
        routes=bool(ingress.get("enableGatewayApi")),
        modes="deploymentMode" in status,
    )
