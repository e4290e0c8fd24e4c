"""What KServe in a cluster can do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from airflow_ml_provider.exceptions import invalid

GROUP, API_VERSION, PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"
MODE = f"{GROUP}/deploymentMode"  # annotation
_LEGACY = {"RawDeployment": "Standard", "Serverless": "Knative"}


@dataclass(frozen=True)
class Abilities:
    """What KServe in a cluster can do.

    Attributes:
        shape: `standard` makes Deployments and splits traffic by `spec.canary`; `serverless` makes Knative revisions.
        canaries: whether an InferenceService has a `spec.canary`, as of KServe 0.20.
        routes: in `standard`, whether traffic goes by the Gateway API; by an Ingress the stable version gets all of it.
    """

    shape: Literal["standard", "serverless"] = "standard"
    canaries: bool = True
    routes: bool = True

    @property
    def mode(self) -> str:
        """The deployment mode as KServe calls it there; newer ones take the old names, too."""
        new, old = ("Standard", "RawDeployment") if self.shape == "standard" else ("Knative", "Serverless")
        return new if self.canaries else old


def abilities(config: Mapping[str, str], canaries: bool, mode: str = "") -> Abilities:
    """Return what KServe can do.

    Parameters:
        config: data of its ConfigMap `inferenceservice-config`.
        canaries: whether its InferenceService has a `spec.canary`.
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
    return Abilities(shapes[name], canaries, routes=bool(ingress.get("enableGatewayApi")))
