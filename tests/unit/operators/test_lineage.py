"""The bridge to Airflow's OpenLineage provider."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import ClassVar

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow.sdk import Asset

from airflow_ml_provider.operators._lineage import operator_lineage, parent_environment
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages import Result

SHA = "sha256:" + "0" * 64
RESULT = Result(
    inputs=(DatasetRef("in", "/s/in/interval=2013-01-05/data.parquet", SHA),),
    outputs=(DatasetRef("out", "/s/out/interval=2013-01-05/data.parquet", SHA, rows=1),),
)


def test_nothing_to_tell() -> None:
    assert operator_lineage(None, None) is None


def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage.extractors", None)
    assert operator_lineage(RESULT, RunInfo()) is None


class TestTelling:
    @pytest.fixture(autouse=True)
    def provider(self) -> None:
        pytest.importorskip("airflow.providers.openlineage")

    def test_datasets_and_facets(self) -> None:
        found = operator_lineage(RESULT, RunInfo(reason="asset"))
        assert [d.name for d in found.inputs] == ["/s/in/interval=2013-01-05"]
        assert found.outputs[0].outputFacets["outputStatistics"]["rowCount"] == 1
        assert found.run_facets["ml_provenance"]["why"]["reason"] == "asset"

    def test_a_failed_run_leaves_the_datasets_to_inlets_and_outlets(self) -> None:
        found = operator_lineage(None, RunInfo(), outlets=[Asset("out", uri="file:///s/out")])
        assert [d.name for d in found.outputs] == ["/s/out"]
        assert "ml_provenance" in found.run_facets

    def test_outlets_that_hold_what_was_written_are_not_repeated(self) -> None:
        outlets = [
            Asset("table", uri="file:///s/out"),
            Asset("part", uri="file:///s/out/interval=2013-01-05"),
            Asset("neighbour", uri="file:///s/outside"),
            Asset("unknown", uri="x-own://a/b"),
        ]
        found = operator_lineage(RESULT, RunInfo(), outlets=outlets)
        assert [d.name for d in found.outputs] == ["/s/out/interval=2013-01-05", "/s/outside"]


class TestParent:
    """With the provider's own macros, and read back by those who shall read it: dbt's integration and the client."""

    HTTP: ClassVar = {"type": "http", "url": "https://lineage.example", "endpoint": "api/v1/lineage"}

    @pytest.fixture
    def enable(self, monkeypatch):
        """Return a function that switches OpenLineage on. Under pytest the provider keeps no configuration."""
        listener = pytest.importorskip("airflow.providers.openlineage.plugins.listener")

        def enable(transport=None, namespace="space", **further):
            listener.get_openlineage_listener.cache_clear()
            if transport:
                monkeypatch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", json.dumps(transport))
            monkeypatch.setenv("AIRFLOW__OPENLINEAGE__NAMESPACE", namespace)
            for name, value in further.items():
                monkeypatch.setenv(name, value)

        yield enable
        listener.get_openlineage_listener.cache_clear()
        for name in [name for name in os.environ if name.startswith("OPENLINEAGE__")]:
            del os.environ[name]  # the client itself has set them

    @pytest.fixture
    def context(self):
        run = SimpleNamespace(
            conf={}, clear_number=0, run_after=datetime(2013, 1, 6, tzinfo=timezone.utc),
            logical_date=datetime(2013, 1, 5, tzinfo=timezone.utc),
        )  # fmt: skip
        ti = SimpleNamespace(
            dag_id="d", task_id="t", run_id="r", map_index=-1, try_number=2, dag_run=run,
            get_template_context=lambda: {"dag_run": run},
        )  # fmt: skip
        return {"ti": ti, "dag_run": run}

    def test_dbt_hangs_under_the_task(self, enable, context, monkeypatch):
        pytest.importorskip("openlineage.common.provider.dbt.utils")
        from airflow.providers.openlineage.plugins import macros
        from openlineage.common.provider.dbt.utils import get_parent_run_metadata

        enable(self.HTTP)
        plain, _ = parent_environment(context)
        ti = context["ti"]
        assert plain["OPENLINEAGE_PARENT_ID"] == macros.lineage_parent_id(ti)
        assert plain["OPENLINEAGE_ROOT_PARENT_ID"] == macros.lineage_root_parent_id(ti)
        seen = []
        for left_out in ("", "OPENLINEAGE_CONTEXT"):  # older versions do not know it
            for name, value in plain.items():
                monkeypatch.setenv(name, value)
            monkeypatch.delenv(left_out, raising=False)
            seen.append(get_parent_run_metadata())
        for found in seen:
            assert (found.job_namespace, found.job_name, found.run_id) == ("space", "d.t", macros.lineage_run_id(ti))
            assert (found.root_parent_job_name, found.root_parent_run_id) == ("d", macros.lineage_root_run_id(ti))

    def test_a_namespace_with_slashes(self, enable, context, monkeypatch):
        pytest.importorskip("openlineage.common.provider.dbt.utils")
        from openlineage.common.provider.dbt.utils import get_parent_run_metadata

        enable(self.HTTP, namespace="https://airflow.example/a")
        for name, value in parent_environment(context)[0].items():
            monkeypatch.setenv(name, value)
        assert get_parent_run_metadata().job_namespace == "https://airflow.example/a"

    def test_the_events_go_where_those_of_the_task_go(self, enable, context, monkeypatch):
        enable(self.HTTP)
        plain, secret = parent_environment(context)
        assert not secret
        from openlineage.client import OpenLineageClient

        monkeypatch.setenv("OPENLINEAGE__TRANSPORT", plain["OPENLINEAGE__TRANSPORT"])
        transport = OpenLineageClient().transport
        assert (transport.kind, transport.url) == ("http", "https://lineage.example")

    @pytest.mark.parametrize(
        "further",
        [
            {"auth": {"type": "api_key", "api_key": "s3cret"}},
            {"custom_headers": {"X-Key": "s3cret"}},
            {"url": "https://user:s3cret@lineage.example"},
            {"url": "https://lineage.example?key=s3cret"},
        ],
    )
    @pytest.mark.parametrize("nested", [False, True])
    def test_credentials_are_kept_apart(self, enable, context, further, nested):
        transport = {**self.HTTP, **further}
        enable({"type": "composite", "transports": {"a": transport}} if nested else transport)
        plain, secret = parent_environment(context)
        assert "s3cret" not in json.dumps(plain)
        assert set(secret) == {"OPENLINEAGE__TRANSPORT"}
        assert "s3cret" in secret["OPENLINEAGE__TRANSPORT"]
        assert "OPENLINEAGE_PARENT_ID" in plain

    def test_variables_of_the_worker_count_too(self, enable, context):
        enable(OPENLINEAGE_URL="https://lineage.example", OPENLINEAGE_API_KEY="s3cret")
        plain, secret = parent_environment(context)
        assert "s3cret" not in json.dumps(plain)
        assert "s3cret" in secret["OPENLINEAGE__TRANSPORT"]

    def test_what_only_the_worker_has_does_not_travel(self, enable, context, tmp_path):
        file = {"type": "file", "log_file_path": str(tmp_path / "events"), "append": True}
        enable(file)
        plain, secret = parent_environment(context)
        assert set(plain) == {"OPENLINEAGE_PARENT_ID", "OPENLINEAGE_ROOT_PARENT_ID", "OPENLINEAGE_CONTEXT"}
        assert not secret
        for transports in ({"a": file, "b": self.HTTP}, [file, self.HTTP]):
            enable({"type": "composite", "transports": transports})
            body = json.loads(parent_environment(context)[0]["OPENLINEAGE__TRANSPORT"])
            assert body["transports"] in ({"b": self.HTTP}, [self.HTTP])

    def test_nobody_to_tell(self, enable, context, monkeypatch):
        enable()  # no transport
        assert parent_environment(context) == ({}, {})
        enable(self.HTTP, AIRFLOW__OPENLINEAGE__DISABLED="true")
        assert parent_environment(context) == ({}, {})
        monkeypatch.setitem(sys.modules, "airflow.providers.openlineage", None)
        assert parent_environment(context) == ({}, {})

    def test_lineage_fails_no_stage(self, enable, context, caplog):
        enable(self.HTTP)
        del context["ti"].try_number
        assert parent_environment(context) == ({}, {})
        assert "gets no OpenLineage parent" in caplog.text
