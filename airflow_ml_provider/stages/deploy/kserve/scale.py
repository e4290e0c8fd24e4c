"""How many replicas KServe has of a version, and what changes that.

What is relied on was read in KServe 0.20 (`inference_service_validation.go`, `hpa_reconciler.go`,
`keda_reconciler.go`): in the mode Standard an HPA takes `scaleMetric`, in percent, and has one replica at least, KEDA
takes `autoScaling` alone; in the mode Knative only Knative's own autoscaler is taken, by concurrency or requests.
"""

from __future__ import annotations

from typing import Any

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.deploy.kserve.abilities import GROUP, Abilities
from airflow_ml_provider.stages.deploy.server import Scaling
from airflow_ml_provider.stages.deploy.service import Server

# How many there are is not part of a version: it is changed without a restart.
SCALE = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "autoScaling")
_CLASS = f"{GROUP}/autoscalerClass"  # annotation
_METRICS = {"standard": ("", "cpu", "memory", "query"), "serverless": ("", "concurrency", "rps")}


def scaled_by(server: Server, where: Abilities) -> dict[str, str]:
    """Return what says on a predictor who scales it.

    Raises:
        SpecError: KServe cannot scale like this in this mode.
    """
    scaling = server.scaling
    if scaling.by and where.shape == "serverless":
        raise invalid("scaling.by", scaling.by, "empty in KServe's mode Knative, which scales itself")
    if scaling.by in ("none", "external") and scaling.metric:
        raise invalid("scaling.metric", scaling.metric, f"empty with by={scaling.by!r}, which KServe scales by nothing")
    if scaling.metric not in _METRICS[where.shape]:
        raise invalid(
            "scaling.metric",
            scaling.metric,
            f"one of {', '.join(_METRICS[where.shape][1:])} in KServe's mode {where.mode}",
        )
    if scaling.metric == "query" and scaling.by != "keda":
        raise invalid("scaling.metric", scaling.metric, "cpu or memory unless by='keda'")
    if scaling.metric in ("cpu", "memory") and (scaling.target or 0) > 100:
        raise invalid("scaling.target", scaling.target, f"at most 100 (percent) with metric {scaling.metric!r}")
    if where.shape == "standard" and server.replicas[0] == 0 and scaling.metric != "query":
        raise SpecError(
            f"KServe's mode {where.mode} has one replica at least, got replicas={server.replicas}; use the mode "
            "Knative, or scaling by='keda' with a metric 'query' that tells of requests when there is no replica"
        )
    return {_CLASS: scaling.by} if scaling.by else {}


def fields(server: Server, where: Abilities) -> dict[str, Any]:
    """Return the fields of a predictor that say how many replicas it has."""
    scaling, (least, most) = server.scaling, server.replicas
    found: dict[str, Any] = {"minReplicas": least, "maxReplicas": most}
    if scaling.by == "keda":
        return {**found, "autoScaling": {"metrics": [_keda(scaling)]}}
    if scaling.metric:
        found["scaleMetric"] = scaling.metric
    if scaling.target is not None:
        found["scaleTarget"] = scaling.target
    return found


def _keda(scaling: Scaling) -> dict[str, Any]:
    if scaling.metric == "query":
        metric = {"backend": "prometheus", "serverAddress": scaling.address, "query": scaling.query}
        return {
            "type": "External",
            "external": {"metric": metric, "target": {"type": "Value", "value": str(scaling.target)}},
        }
    target = {"type": "Utilization", "averageUtilization": scaling.target}
    return {"type": "Resource", "resource": {"name": scaling.metric, "target": target}}
