"""The page "ML" in the Airflow UI, and the addresses under which it shows reports."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin


class _LazyApp:
    """The web application, imported by the first request.

    Every Airflow process loads plugins; only the web server should pay for FastAPI.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from airflow_ml_provider.plugins.app import app

        await app(scope, receive, send)


class MlPlugin(AirflowPlugin):
    """The registered models with their champions, gate decisions and journals, as a page of Airflow's UI."""

    name = "airflow_ml"
    # Mutable, as in the base class: Airflow reads them as they are.
    fastapi_apps: list[Any] = [{"app": _LazyApp(), "url_prefix": "/ml", "name": "ML"}]  # noqa: RUF012
    external_views: list[Any] = [  # noqa: RUF012
        {"name": "ML", "href": "/ml/page", "url_route": "ml", "destination": "nav", "nav_top_level": True}
    ]
