"""Open a place that serves models."""

from __future__ import annotations

from airflow_ml_provider.stages.deploy.place import GitOps, KServe, Place
from airflow_ml_provider.stages.deploy.service import Serving


def serving(place: Place) -> Serving:
    """Return what deploys to a place, looks at it and asks it."""
    if isinstance(place, KServe):
        from airflow_ml_provider.hooks.kserve import KServeServing

        return KServeServing(place)
    if isinstance(place, GitOps):
        from airflow_ml_provider.hooks.gitops import gitops

        return gitops(place)
    from airflow_ml_provider.serving.place import LocalServing

    return LocalServing(place)
