"""Calls and packages in the exchange folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow_ml_provider.leftovers import reaper
from airflow_ml_provider.leftovers.exchange import ExchangePlace
from airflow_ml_provider.leftovers.logic import Task
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import bundle, protocol
from airflow_ml_provider.stages.promote.spec import RollbackSpec

SPEC = RollbackSpec(name="late")


def age(path: Path, hours: float = 1) -> Path:
    """Let everything of a path look as if it was written some time ago."""
    then = path.stat().st_mtime - 3600 * hours
    for one in [*path.rglob("*"), path]:
        os.utime(one, (then, then))
    return path


def call(folder: Path, run_id: str) -> Path:
    info = RunInfo("d", "t", run_id)
    path = folder / "calls" / info.identity
    path.mkdir(parents=True)
    protocol.write_call(path / "call.json", SPEC, info)
    return age(path)


def package(folder: Path, digest: str) -> Path:
    path = folder / "packages" / f"{digest}.zip"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.touch()
    return age(path)


def reap(folder: Path, states: dict[str, str]) -> dict[str, str]:
    where = [ExchangePlace(folder)]
    judged = reaper.survey(where, lambda dag, task, run: {-1: states[run]} if run in states else {}, 10)
    return {removal.found.name: removal.outcome for removal in reaper.remove(judged, where)}


def test_there_is_nothing_yet(tmp_path: Path) -> None:
    assert ExchangePlace(tmp_path / "none").look() == []


def test_calls_of_ended_tasks_go_and_others_stay(tmp_path: Path) -> None:
    ended, alive, deleted = (call(tmp_path, run) for run in ("ended", "alive", "deleted"))
    fresh = call(tmp_path, "fresh")
    (fresh / "outcome.json").touch()  # written to just now
    assert reap(tmp_path, {"ended": "failed", "alive": "deferred", "fresh": "failed"}) == {
        ended.name: "deleted",
        deleted.name: "deleted",
    }
    assert {path for path in (ended, alive, deleted, fresh) if path.exists()} == {alive, fresh}


def test_a_call_says_whose_it_is_and_one_that_cannot_be_read_does_not(tmp_path: Path) -> None:
    good, broken, listed = (call(tmp_path, run) for run in ("r", "broken", "list"))
    (broken / "call.json").write_text("{")
    (listed / "call.json").write_text(json.dumps([1]))
    tasks = {thing.name: thing.task for thing in ExchangePlace(tmp_path).look()}
    assert tasks == {good.name: Task("d", "t", "r"), broken.name: None, listed.name: None}
    age(broken), age(listed)
    assert list(reap(tmp_path, {})) == [good.name]


def test_what_is_written_to_after_it_was_found_stays(tmp_path: Path) -> None:
    path = call(tmp_path, "r")
    where = ExchangePlace(tmp_path)
    (thing,) = where.look()
    (path / "call.json").write_text("another try has begun")
    assert where.remove(thing) == "kept: it was written to since"
    assert path.exists()
    (thing,) = where.look()
    assert where.remove(thing) == "deleted"
    assert where.remove(thing) == "was gone already"


def test_old_packages_go_once_no_call_can_use_them(tmp_path: Path) -> None:
    old, present = package(tmp_path, "0" * 64), package(tmp_path, bundle.digest())
    busy = call(tmp_path, "busy")
    assert reap(tmp_path, {"busy": "running"}) == {}
    assert reap(tmp_path, {"busy": "success"}) == {busy.name: "deleted", old.name: "deleted"}
    assert present.exists()


def test_what_is_not_ours_is_not_seen(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "calls").mkdir()
    (tmp_path / "calls" / "notes").mkdir()
    (tmp_path / "calls" / ("0" * 16)).symlink_to(elsewhere)
    package(tmp_path, "readme")
    assert ExchangePlace(tmp_path).look() == []


def test_what_cannot_be_removed_does_not_hold_up_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [call(tmp_path, run) for run in ("a", "b")]
    first = min(path.name for path in paths)
    real = ExchangePlace.remove

    def remove(self: ExchangePlace, thing: object) -> str:
        if thing.name == first:
            raise PermissionError("read-only")
        return real(self, thing)

    monkeypatch.setattr(ExchangePlace, "remove", remove)
    outcomes = reap(tmp_path, {})
    assert outcomes.pop(first) == "not deleted: read-only"
    assert list(outcomes.values()) == ["deleted"]
