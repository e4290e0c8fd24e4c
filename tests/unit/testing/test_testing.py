"""The kit for users' tests: it finds what it should find, and passes what is sound."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("duckdb")

from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import InProcess, Interpreter, Runtime
from airflow_ml_provider.stages import Result, Spec
from airflow_ml_provider.testing.contracts import DAY, RuntimeContract, assert_idempotent, ingest_spec
from airflow_ml_provider.testing.fixtures import airflow_context, ml_store, run_stage

__all__ = ["airflow_context", "ml_store", "run_stage"]


class TestInProcess(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return InProcess()


class TestInterpreter(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return Interpreter(sys.executable)


@dataclass(frozen=True)
class Careless:
    """A runtime whose stage leaves another file at every call, and whose digests are not those of the files."""

    leaves: Path
    changes: bool = False

    def call(self, spec: Spec, info: RunInfo, env: Mapping[str, str]) -> Result:
        result = InProcess().call(spec, info, env)
        (self.leaves / f"log-{len(list(self.leaves.iterdir()))}").touch()
        if self.changes:
            digest = f"sha256:{len(list(self.leaves.iterdir()))}"
            return replace(result, outputs=tuple(replace(ref, digest=digest) for ref in result.outputs))
        return result

    def cancel(self) -> None:
        pass


def test_a_stage_that_leaves_more_each_time_is_found(tmp_path: Path) -> None:
    leaves = tmp_path / "leaves"
    leaves.mkdir()
    spec = ingest_spec(tmp_path)
    assert_idempotent(spec, runtime=Careless(leaves))
    with pytest.raises(AssertionError, match=r"the second run changed .*log-"):
        assert_idempotent(spec, runtime=Careless(leaves), roots=[leaves])
    with pytest.raises(AssertionError, match="rows: the second run gave another ref"):
        assert_idempotent(spec, runtime=Careless(leaves, changes=True))


def test_run_stage(run_stage: Any, ml_store: Path) -> None:
    result = run_stage(ingest_spec(ml_store), interval=DAY, reason="backfill")
    assert result.dataset.rows == 3
    assert run_stage(ingest_spec(ml_store), runtime=sys.executable).dataset.digest == result.dataset.digest


def test_airflow_context(airflow_context: Any, ml_store: Path) -> None:
    pytest.importorskip("airflow.sdk", reason="needs Airflow")
    from airflow_ml_provider.operators.ingest import IngestOperator

    spec = ingest_spec(ml_store)
    operator = IngestOperator(
        task_id="ingest", name="rows", source=spec.source, target=spec.target, columns=dict(spec.columns), key="id"
    )
    context = airflow_context(DAY, run_type="backfill", dag_id="d", task_id="ingest")
    value = operator.execute(context)
    assert value["dataset"]["rows"] == 3
    assert operator.info
    assert (operator.info.reason, operator.info.interval) == ("backfill", DAY)
    assert context["ti"].xcoms["dataset"] == value["dataset"]
