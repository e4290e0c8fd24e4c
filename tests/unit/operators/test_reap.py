"""The reaper's operator without a cluster: what it returns, and how it ends."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow.sdk.exceptions import AirflowFailException

from airflow_ml_provider.exceptions import Unavailable
from airflow_ml_provider.leftovers.cluster import ClusterPlace
from airflow_ml_provider.operators.reap import ReapOperator
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.testing.context import context


@pytest.fixture
def exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exchange folder with the call of a task that has ended and of one that waits; no cluster has anything."""
    monkeypatch.setattr(ClusterPlace, "look", lambda self: [])
    for run in ("ended", "waits"):
        info = RunInfo("d", "t", run)
        folder = tmp_path / "calls" / info.identity
        folder.mkdir(parents=True)
        about = {"dag_id": "d", "task_id": "t", "run_id": run, "map_index": -1}
        (folder / "call.json").write_text(json.dumps({"info": about}))
        for path in (folder / "call.json", folder):
            os.utime(path, (0, 0))
    return tmp_path


def run(exchange: Path, **arguments: Any) -> tuple[list[dict[str, str]], dict[str, Any]]:
    ctx = context()
    ctx["ti"].get_task_states = lambda run_ids, **_: {
        run: {"t": {"ended": "failed", "waits": "up_for_retry"}[run]} for run in run_ids
    }
    operator = ReapOperator(task_id="reap", exchange=str(exchange), **arguments)
    try:
        return operator.execute(ctx), ctx["ti"].xcoms
    except Unavailable:
        return [], ctx["ti"].xcoms


def folders(exchange: Path) -> set[str]:
    return {path.name for path in (exchange / "calls").iterdir()}


ENDED, WAITS = RunInfo("d", "t", "ended").identity, RunInfo("d", "t", "waits").identity


@pytest.mark.parametrize("delete", [False, "False", "false"])
def test_it_lists_and_leaves_everything_alone(exchange: Path, delete: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = run(exchange, delete=delete)
    assert {row["name"]: (row["verdict"], row["outcome"]) for row in rows} == {
        ENDED: ("left over", ""),
        WAITS: ("in use", ""),
    }
    assert folders(exchange) == {ENDED, WAITS}
    json.dumps(rows)  # goes into XCom
    told = capsys.readouterr().out  # where the log of a task goes
    assert "2 things of stages in pods, 1 of them left over" in told
    assert "d.t ended" in told


@pytest.mark.parametrize("delete", [True, "True"])
def test_it_removes_what_is_left_over(exchange: Path, delete: Any) -> None:
    rows, _ = run(exchange, delete=delete)
    assert {row["name"]: row["outcome"] for row in rows} == {ENDED: "deleted", WAITS: ""}
    assert folders(exchange) == {WAITS}


def test_what_could_not_be_removed_is_told_before_it_fails(exchange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(f"{path.name} is read-only")

    monkeypatch.setattr("airflow_ml_provider.leftovers.exchange.shutil.rmtree", refuse)
    _, xcoms = run(exchange, delete=True)
    assert {row["name"]: row["outcome"] for row in xcoms["return_value"]} == {
        ENDED: f"not deleted: {ENDED} is read-only",
        WAITS: "",
    }


def test_without_an_exchange_folder_the_configured_one_counts(exchange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ML__EXCHANGE", str(exchange))
    assert len(run("", delete=False)[0]) == 2
    monkeypatch.delenv("AIRFLOW__ML__EXCHANGE")
    assert run("", delete=False)[0] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"older_than_min": "soon"}, "older_than_min"),
        ({"older_than_min": "nan"}, "older_than must be a number of minutes, 0 or more"),
        ({"delete": "perhaps"}, "delete"),
    ],
)
def test_arguments_that_make_no_sense(exchange: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AirflowFailException, match=message):
        run(exchange, **arguments)
    assert folders(exchange) == {ENDED, WAITS}


def test_without_the_kubernetes_provider_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.cncf.kubernetes.hooks.kubernetes", None)
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    with pytest.raises(AirflowFailException, match=r"pip install 'airflow-ml-provider\[kubernetes\]'"):
        ReapOperator(task_id="reap").execute(context())
