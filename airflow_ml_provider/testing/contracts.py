"""What every stage and every runtime must fulfil, as checks that users can run against their own."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import IntegrityError, MlError, StageCrashed, Unavailable
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.runtime import InProcess, Runtime
from airflow_ml_provider.stages import Result, Spec

DAY = Interval.from_key("2013-01-05")


def contents(paths: Iterable[Path]) -> dict[str, str]:
    """Return the digest of every file at or below `paths`."""
    found: dict[str, str] = {}
    for path in paths:
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        found.update({str(p): tables.file_digest(p) for p in files})
    return found


def assert_idempotent(
    spec: Spec, info: RunInfo | None = None, *, runtime: Runtime | None = None, roots: Iterable[str | Path] = ()
) -> tuple[Result, Result]:
    """Run a stage twice; fail unless the second run gives the same refs and leaves every file as it was.

    Parameters:
        spec: what to run.
        info: the run; both runs are the same one, as when a task is cleared.
        runtime: where; by default in this process.
        roots: further folders that must not change; the outputs are always looked at.

    Returns:
        Both results.
    """
    runtime, info = runtime or InProcess(), info or RunInfo(interval=DAY)
    first = runtime.call(spec, info, {})
    places = [tables.local_path(ref.uri) for ref in first.outputs if "://" not in ref.uri] + [Path(r) for r in roots]
    before = contents(places)
    second = runtime.call(spec, info, {})
    for one, two in zip(first.outputs, second.outputs, strict=True):
        assert codec.encode(one) == codec.encode(two), f"{one.name}: the second run gave another ref"
    after = contents(places)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not changed, f"the second run changed {', '.join(changed)}"
    return first, second


class RuntimeContract:
    """What every runtime must fulfil. A test class inherits it and overrides the fixture `runtime`.

    The stage that is run is `ingest`; the runtime's Python needs duckdb and pyarrow.
    """

    @pytest.fixture
    def runtime(self) -> Runtime:
        """The runtime under test."""
        raise NotImplementedError("override the fixture `runtime`")

    @pytest.fixture
    def spec(self, tmp_path: Path) -> Spec:
        """A stage that works."""
        spec: Spec = ingest_spec(tmp_path)
        return spec

    def test_is_a_runtime(self, runtime: Runtime) -> None:
        assert isinstance(runtime, Runtime)

    def test_gives_the_same_result_as_in_process(self, runtime: Runtime, tmp_path: Path) -> None:
        info = RunInfo(dag_id="d", task_id="t", run_id="r", interval=DAY, reason="backfill", cleared=True)
        spec = ingest_spec(tmp_path)
        here = InProcess().call(spec, info, {})
        shutil.rmtree(tmp_path / "table")
        there = runtime.call(spec, info, {})
        assert type(there) is type(here) is spec.result
        assert codec.canonical(there) == codec.canonical(here)

    def test_running_twice_changes_nothing(self, runtime: Runtime, spec: Spec, tmp_path: Path) -> None:
        assert_idempotent(spec, runtime=runtime, roots=[tmp_path])

    def test_a_retryable_error_keeps_its_type_and_message(self, runtime: Runtime, tmp_path: Path) -> None:
        spec = ingest_spec(tmp_path)
        (tmp_path / "landing.csv").unlink()
        _assert_same_error(runtime, spec, Unavailable, "retryable")

    def test_a_terminal_error_keeps_its_type_and_message(self, runtime: Runtime, tmp_path: Path) -> None:
        from airflow_ml_provider.stages.validate.spec import ValidateSpec

        (tmp_path / "rows.parquet").write_text("changed since its ref was made")
        rows = DatasetRef("rows", str(tmp_path / "rows.parquet"), "sha256:0", interval=DAY)
        spec = ValidateSpec(dataset=rows, target=str(tmp_path / "table"), reports=str(tmp_path / "reports"))
        _assert_same_error(runtime, spec, IntegrityError, "terminal")

    def test_secrets_in_the_environment_do_not_stay(self, runtime: Runtime, spec: Spec) -> None:
        runtime.call(spec, RunInfo(interval=DAY), {"AIRFLOW_ML_TEST_SECRET": "s3cret"})
        assert "AIRFLOW_ML_TEST_SECRET" not in os.environ

    def test_cancel_without_anything_running_is_harmless(self, runtime: Runtime, spec: Spec) -> None:
        runtime.cancel()
        assert runtime.call(spec, RunInfo(interval=DAY), {}).status == "ok"

    def test_cancel_ends_a_running_stage(self, runtime: Runtime, tmp_path: Path) -> None:
        if isinstance(runtime, InProcess):
            pytest.skip("in process there is nothing but the task itself to stop")
        started, caught = tmp_path / "started", []

        def work() -> None:
            try:
                runtime.call(endless_spec(tmp_path, started), RunInfo(interval=DAY), {})
            except MlError as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive() and not started.exists():
            thread.join(0.05)
        assert started.exists(), caught
        runtime.cancel()
        thread.join(60)
        assert not thread.is_alive()
        assert [type(error) for error in caught] == [StageCrashed]
        assert caught[0].verdict == "retryable"


def _assert_same_error(runtime: Runtime, spec: Spec, kind: type[MlError], verdict: str) -> None:
    with pytest.raises(kind) as here:
        InProcess().call(spec, RunInfo(interval=DAY), {})
    with pytest.raises(kind) as there:
        runtime.call(spec, RunInfo(interval=DAY), {})
    assert type(there.value) is type(here.value)
    assert str(there.value) == str(here.value)
    assert there.value.verdict == verdict


def ingest_spec(folder: Path) -> Any:
    """Return an ingest of three rows from `folder/landing.csv` into `folder/table`; the file is written anew."""
    from airflow_ml_provider.stages.ingest.spec import Column, IngestSpec

    (folder / "landing.csv").write_text("id,value\n1,a\n2,b\n3,c\n", encoding="utf-8")
    return IngestSpec(
        name="rows",
        source=str(folder / "landing.csv"),
        target=str(folder / "table"),
        interval=DAY,
        columns={"id": Column("int", required=True), "value": Column("string")},
        key=("id",),
    )


def endless_spec(folder: Path, started: Path) -> Any:
    """Return a training by a user's function that touches the file `started` and then never ends."""
    from airflow_ml_provider.stages.train.spec import Function, TrainSpec

    path = folder / "rows.parquet"
    with tables.connect() as connection:
        query = """SELECT i AS id, i % 2 AS label, i * 1.0 AS x, TIMESTAMPTZ '2013-01-01 00:00Z' + to_hours(i)
                   AS event_timestamp FROM range(400) t(i)"""
        tables.write(connection, query, path)
    source = (
        "def endless(*args, **kwargs):\n"
        "    import pathlib, time\n"
        f"    pathlib.Path({str(started)!r}).touch()\n"
        "    while True:\n"
        "        time.sleep(0.1)\n"
    )
    return TrainSpec(
        name="endless",
        dataset=tables.describe("rows", path),
        output=str(folder / "models"),
        engine="function",
        function=Function("endless", source),
        exclude=("id",),
    )
