"""Which Deployments and revisions KServe has made of which version, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from airflow_ml_provider.stages.deploy.kserve.manifest import deployment, predictors
from airflow_ml_provider.stages.deploy.kserve.predictor import VERSION
from airflow_ml_provider.stages.deploy.prometheus import Part


def parts(found: Mapping[str, Any], revisions: Optional[Sequence[Mapping[str, Any]]] = None) -> list[Part]:
    """Return the parts of each version of a service; what was not made by us is left out.

    Parameters:
        found: the InferenceService.
        revisions: in `serverless`, those that Knative has made of it; a version may have several.

    >>> made = {"name": "v8", "annotations": {"airflow-ml/version": "v8"}}
    >>> parts({"metadata": {"name": "late"}, "spec": {"predictor": made}})
    [Part(version='v8', workload='late-v8-predictor', revision='late-v8-predictor')]
    """
    if revisions is not None:  # Knative names a Deployment after its revision
        named = [(one["metadata"].get("annotations"), one["metadata"]["name"]) for one in revisions]
        made = [(_version(notes), f"{name}-deployment", name) for notes, name in named]
    else:
        service = found["metadata"]["name"]
        of = [(one.get("annotations"), deployment(service, one)) for one in predictors(found)]
        made = [(_version(notes), name, name) for notes, name in of]
    return [Part(*one) for one in made if one[0]]


def _version(annotations: Any) -> str:
    return str((annotations or {}).get(VERSION, ""))
