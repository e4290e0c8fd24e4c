"""Open a place that serves models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.stages.deploy.place import GitOps, KServe, Place, SageMaker, Seldon, VertexAI
from airflow_ml_provider.stages.deploy.service import Serving

if TYPE_CHECKING:
    from airflow_ml_provider.hooks._objects import KServeObjects


def serving(place: Place) -> Serving:
    """Return what deploys to a place, looks at it and asks it."""
    if isinstance(place, KServe):
        from airflow_ml_provider.hooks.kserve import KServeServing

        return KServeServing(place)
    if isinstance(place, GitOps):
        from airflow_ml_provider.hooks.gitops import gitops

        return gitops(place)
    if isinstance(place, SageMaker):
        from airflow_ml_provider.hooks.sagemaker import SageMakerServing

        return SageMakerServing(place)
    if isinstance(place, Seldon):
        from airflow_ml_provider.hooks.seldon import SeldonServing

        return SeldonServing(place)
    if isinstance(place, VertexAI):
        from airflow_ml_provider.hooks.vertex import VertexServing

        return VertexServing(place)
    from airflow_ml_provider.serving.place import LocalServing

    return LocalServing(place)


def objects(place: Place) -> KServeObjects:
    """Return what applies graphs and language models to a place on KServe.

    Raises:
        SpecError: it is another place.
    """
    if not isinstance(place, KServe):
        raise invalid("place", place, "one on KServe")
    from airflow_ml_provider.hooks._objects import KServeObjects

    return KServeObjects(place)
