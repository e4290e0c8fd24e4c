"""The connection to lineage events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.hooks.lineage import LineageHook


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def make(host: object) -> LineageHook:
        body = {"conn_type": "lineage_events", "host": str(host) if host else None}
        monkeypatch.setenv("AIRFLOW_CONN_LINEAGE_DEFAULT", json.dumps(body))
        return LineageHook()

    return make


def test_it_reads_the_events(connection, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "events.jsonl"
    event = {
        "eventType": "COMPLETE", "eventTime": "2013-01-06T00:00:00Z", "run": {"runId": "1"},
        "job": {"namespace": "n", "name": "j"}, "inputs": [{"namespace": "file", "name": "/a"}],
        "outputs": [{"namespace": "file", "name": "/b"}],
    }  # fmt: skip
    path.write_text(json.dumps(event) + "\n{torn")
    hook = connection(path)
    assert [run.job for run in hook.get_conn().runs.values()] == ["n/j"]
    assert hook.test_connection() == (True, "1 runs, 2 datasets, 1 unreadable lines")


def test_what_is_wrong_is_said(connection, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    works, message = connection(tmp_path / "none").test_connection()
    assert not works
    assert "no lineage events at" in message
    with pytest.raises(SpecError, match="'lineage_default' has no path; put that of the events into its host"):
        connection("").path()
    with pytest.raises(SpecError, match="connection 'nowhere' is not defined; create it with type lineage_events"):
        LineageHook("nowhere").path()
