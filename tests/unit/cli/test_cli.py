"""`airflow ml …`, parsed as Airflow parses it."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow.cli.cli_parser import _add_command

from airflow_ml_provider.cli import doctor
from airflow_ml_provider.cli.definition import get_ml_cli_commands
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.leftovers import states
from airflow_ml_provider.leftovers.cluster import ClusterPlace
from airflow_ml_provider.leftovers.logic import Found, Task
from airflow_ml_provider.lineage.facets import lineage
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages import STAGES, Result
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]

SHA = "sha256:" + "0" * 64


@pytest.fixture
def ml(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `airflow ml …` and return what it printed."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")
    monkeypatch.setattr("airflow.cli.simple_table.is_tty", lambda: False)

    def run(*words: str) -> str:
        parser = argparse.ArgumentParser()
        subparsers = parser.add_subparsers()
        for group in get_ml_cli_commands():
            _add_command(subparsers, group)
        args = parser.parse_args(["ml", *words])
        capsys.readouterr()
        args.func(args)
        return capsys.readouterr().out

    return run


class TestDoctor:
    def test_every_stage_is_looked_at(self) -> None:
        looked_at = {name.partition(" ")[0] for name in doctor.requirements()}
        assert looked_at == set(STAGES)
        assert "torch" in doctor.requirements()["train (torch)"]
        assert "coremltools" in doctor.requirements()["edge_export (coreml)"]
        assert "great_expectations" in doctor.requirements()["validate (suite.yaml)"]

    def test_this_python_and_another(self, ml: Any) -> None:
        for pythons in ((), ("--python", sys.executable)):
            (row,) = json.loads(ml("doctor", "--stage", "ingest", *pythons, "--output", "json"))
            assert (row["what"], row["state"]) == ("stage ingest", "ok")
            assert row["where"].startswith(sys.executable)
            assert "duckdb" in row["detail"]

    def test_what_was_not_asked_for_plays_no_part(self, ml: Any, monkeypatch: Any, tmp_path: Path) -> None:
        events = {"conn_type": "lineage_events", "host": str(tmp_path / "events.jsonl")}
        (tmp_path / "events.jsonl").touch()
        monkeypatch.setenv("AIRFLOW_CONN_GOOD", json.dumps(events))
        monkeypatch.setenv("AIRFLOW_CONN_LINEAGE_DEFAULT", json.dumps({**events, "host": str(tmp_path / "none")}))
        (row,) = json.loads(ml("doctor", "--stage", "ingest", "--output", "json"))
        assert row["what"] == "stage ingest"
        monkeypatch.setattr(doctor, "_look", lambda python, modules: ("3.11", {}))  # lacks everything
        (row,) = json.loads(ml("doctor", "--conn-id", "good", "--output", "json"))
        assert row["state"] == "ok"

    def test_what_is_missing_and_how_to_get_it(self, ml: Any, tmp_path: Path, capsys: Any) -> None:
        bare = tmp_path / "python"
        bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')  # sees no installed library
        bare.chmod(0o755)
        with pytest.raises(SystemExit):
            ml("doctor", "--stage", "ingest", "--python", str(bare), "--output", "json")
        (row,) = json.loads(capsys.readouterr().out)
        assert row["state"] == "incomplete"
        assert row["detail"] == f"{bare} -m pip install duckdb pyarrow"

    def test_no_such_stage_and_no_such_python(self, ml: Any) -> None:
        with pytest.raises(SystemExit, match="unknown stage 'tarin'; did you mean 'train'"):
            ml("doctor", "--stage", "tarin")
        with pytest.raises(SystemExit, match="'/no/python' is not an executable file"):
            ml("doctor", "--python", "/no/python")

    def test_a_connection_that_answers_and_one_that_does_not(self, monkeypatch: Any, tmp_path: Path) -> None:
        (tmp_path / "events.jsonl").touch()
        for name, host in (("GOOD", tmp_path / "events.jsonl"), ("BAD", tmp_path / "none")):
            monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps({"conn_type": "lineage_events", "host": str(host)}))
        good, bad, absent = doctor.connections(["good", "bad", "absent"])
        assert good == {
            "what": "connection good", "where": "", "state": "ok", "detail": "0 runs, 0 datasets, 0 unreadable lines",
        }  # fmt: skip
        assert bad["state"] == "no answer"
        assert "no lineage events at" in bad["detail"]
        assert absent["state"] == "not defined"

    def test_connections_of_others_are_not_tested(self, monkeypatch: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", "postgres://host")
        (row,) = doctor.connections(["other"])
        assert "Known: feast, lineage_events, mlflow" in row["detail"]


class TestLineage:
    @pytest.fixture
    def events(self, tmp_path: Path) -> Path:
        found = lineage(
            Result(
                inputs=(DatasetRef("l", "/landing/a.csv", SHA),),
                outputs=(DatasetRef("t", "/s/t/interval=2013-01-05/data.parquet", SHA),),
            ),
            RunInfo(),
        )
        body = {
            "eventType": "COMPLETE", "eventTime": "2013-01-06T00:00:00Z",
            "job": {"namespace": "ns", "name": "d.ingest"},
            "run": {"runId": "1", "facets": found.run_facets}, "inputs": found.inputs, "outputs": found.outputs,
        }  # fmt: skip
        path = tmp_path / "events.jsonl"
        path.write_text(json.dumps(body) + "\n")
        return path

    def test_upstream(self, ml: Any, events: Path) -> None:
        path = "/s/t/interval=2013-01-05/data.parquet"
        rows = json.loads(ml("lineage", path, "--events", str(events), "--output", "json"))
        assert [(row["depth"], row["dataset"], row["made_by"]) for row in rows] == [
            ("0", "file:/s/t/interval=2013-01-05", "ns/d.ingest"),
            ("1", "file:/landing/a.csv", ""),
        ]

    def test_downstream_over_a_connection(self, ml: Any, events: Path, monkeypatch: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_LINEAGE_DEFAULT", json.dumps({"conn_type": "x", "host": str(events)}))
        rows = json.loads(ml("lineage", "/landing/a.csv", "--downstream", "--output", "json"))
        assert rows == [{"dataset": "file:/s/t/interval=2013-01-05"}]

    def test_unknown_things(self, ml: Any, events: Path) -> None:
        with pytest.raises(SystemExit, match="no event tells of file:/nowhere; 2 datasets are known"):
            ml("lineage", "/nowhere", "--events", str(events))
        with pytest.raises(SystemExit, match="no lineage events at /none"):
            ml("lineage", "/nowhere", "--events", "/none")
        with pytest.raises(SystemExit, match="connection 'lineage_default' is not defined"):
            ml("lineage", "/nowhere")


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
class TestRegistry:
    @pytest.fixture
    def registry(self, tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A registry whose champion has moved from version 1 to 2."""
        from airflow_ml_provider.registry import Registry
        from airflow_ml_provider.registry.mlflow import IDENTITY
        from airflow_ml_provider.testing import packages

        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": tracking_uri}))
        registry = Registry.from_env()
        for seed in (1, 2):
            ref = packages.package(tmp_path / f"package-{seed}", seed=seed)
            version = registry.register("late", Path(ref.uri), ref, {IDENTITY: str(seed)}, "candidate")
            registry.move(
                "late", "champion", version, action="promote", info=RunInfo(run_id=str(seed)),
                effective_from=datetime(2013, 1, seed, tzinfo=timezone.utc), reason="passed",
                expected=registry.alias("late", "champion"),
            )  # fmt: skip
        return registry

    def test_journal(self, ml: Any, registry: Any) -> None:
        rows = json.loads(ml("journal", "late", "--output", "json"))
        assert [(row["action"], row["version"], row["previous"]) for row in rows] == [
            ("promote", "1", None),
            ("promote", "2", "1"),
        ]

    def test_rollback(self, ml: Any, registry: Any) -> None:
        out = ml("rollback", "late", "--reason", "wrong on Mondays")
        assert registry.alias("late", "champion") == "1"
        assert out.split("=\n")[-1].split("|")[0].strip().startswith("late")
        entry = registry.journal("late")[-1]
        assert (entry.action, entry.reason, entry.dag_id) == ("rollback", "wrong on Mondays", "airflow-ml-cli")

    def test_rollback_with_nobody_to_go_back_to(self, ml: Any, registry: Any) -> None:
        ml("rollback", "late", "--reason", "bad")
        with pytest.raises(SystemExit):
            ml("rollback", "late", "--reason", "bad again")
        assert registry.alias("late", "champion") == "1"

    def test_a_reason_is_required(self, ml: Any) -> None:
        with pytest.raises(SystemExit):
            ml("rollback", "late")


class TestReap:
    """What it prints and how it ends; the cluster and the states are those of the integration tests."""

    @pytest.fixture
    def found(self, monkeypatch: pytest.MonkeyPatch) -> list[Found]:
        """Things in a cluster whose tasks all have failed; one called `held` cannot be removed."""
        things: list[Found] = []

        def remove(self: ClusterPlace, thing: Found) -> str:
            if thing.name == "held":
                raise SpecError("connection 'c' may not do this in the cluster")
            things.remove(thing)
            return "deleted"

        monkeypatch.setattr(ClusterPlace, "look", lambda self: list(things))
        monkeypatch.setattr(ClusterPlace, "remove", remove)
        monkeypatch.setattr(states, "database", lambda: lambda *_: {-1: "failed"})
        return things

    @staticmethod
    def thing(name: str, known: bool = True, minutes: float = 60) -> Found:
        created = datetime.now(timezone.utc) - timedelta(minutes=minutes)
        return Found("Pod", name, "u", created, Task("d", "t", "r") if known else None)

    def test_it_shows_and_leaves_everything_alone(self, ml: Any, found: list[Found]) -> None:
        found += [self.thing("a"), self.thing("b", known=False), self.thing("c", minutes=5)]
        rows = json.loads(ml("reap", "--output", "json"))
        verdicts = {row["name"]: row["verdict"] for row in rows}
        assert verdicts == {"a": "left over", "b": "unknown", "c": "too young"}
        assert rows[0]["task"] == "d.t r"
        assert len(found) == 3

    def test_it_removes_after_it_has_shown(self, ml: Any, found: list[Found]) -> None:
        found += [self.thing("a"), self.thing("b", known=False), self.thing("c", minutes=5)]
        ml("reap", "--older-than", "1", "--delete")
        assert [thing.name for thing in found] == ["b"]
        assert json.loads(ml("reap", "--name", "b", "--delete", "--output", "json"))[0]["verdict"] == "left over"
        assert not found

    def test_what_cannot_be_removed_does_not_hold_up_the_rest(self, ml: Any, found: list[Found], capsys: Any) -> None:
        found += [self.thing("held"), self.thing("z")]
        with pytest.raises(SystemExit, match="not everything that is left over could be deleted"):
            ml("reap", "--delete")
        assert [thing.name for thing in found] == ["held"]
        assert "Pod held (u): not deleted: connection 'c' may not do this" in capsys.readouterr().err

    def test_errors_are_one_sentence(self, ml: Any, found: list[Found]) -> None:
        with pytest.raises(SystemExit, match=r"^SpecError: older_than must be a number of minutes, 0 or more, got -1"):
            ml("reap", "--older-than", "-1")


def test_unknown_stage_is_an_error_of_the_spec() -> None:
    with pytest.raises(SpecError):
        doctor.requirements(["no"])
