from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("airflow")


def test_loading_the_plugin_loads_no_web_framework_of_its_own() -> None:
    code = (
        "import sys, airflow.plugins_manager; before = set(sys.modules)\n"
        "from airflow_ml_provider.plugins.ml import MlPlugin\n"
        "MlPlugin.validate()\n"
        "new = set(sys.modules) - before\n"
        "assert len(new) < 5, new\n"
        "assert 'airflow.api_fastapi.core_api.security' not in sys.modules\n"
        "assert 'mlflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_what_airflow_reads() -> None:
    from airflow.api_fastapi.core_api.datamodels.plugins import ExternalViewResponse

    from airflow_ml_provider.plugins.ml import MlPlugin

    (view,) = MlPlugin.external_views
    assert ExternalViewResponse(**view).href == "/ml/page"
    (app,) = MlPlugin.fastapi_apps
    assert app["url_prefix"] == "/ml"
    assert callable(app["app"])
