"""The bridge to Airflow's OpenLineage provider."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow.sdk import Asset

from airflow_ml_provider.operators._lineage import operator_lineage
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
