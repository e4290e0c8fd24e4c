"""Gate and promotion in a real Airflow: each member of a mapped task group follows its own branch."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

pytest.importorskip("airflow.sdk")

from airflow_ml_provider import codec, stages
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.stages.register.spec import RegisterSpec
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.own_airflow import OwnAirflow
from airflow_ml_provider.testing.tracking import embedded, template

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
FILE = Path(__file__).parent / "dags" / "branch.py"


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnAirflow:
    """Register a good and a bad model, then run the DAG."""
    own = OwnAirflow(tmp_path, FILE.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", embedded(template(), tmp_path))
    test = packages.dataset(tmp_path / "test.parquet", packages.rows(400, seed=9), name="test")
    found = []
    for name, skill in (("good", 1.0), ("bad", -1.0)):
        ref = packages.package(tmp_path / name, name, skill=skill)
        report = packages.evaluation(tmp_path / f"{name}.json", ref, test)
        done = codec.encode(stages.run(RegisterSpec(ref, report), RunInfo(run_id=name)))
        found.append({"model": done["model"], "parity": done["parity"], "report": codec.encode(report)})
    (tmp_path / "candidates.json").write_text(json.dumps(found))
    (tmp_path / "gate.yaml").write_text("metrics: {auc: {at_least: 0.5}}")
    (tmp_path / "strict.yaml").write_text("metrics: {auc: {at_least: 0.99}}")
    own.migrate()
    own.run("airflow", "dags", "test", "branch", "-f", str(FILE))
    return own


def test_each_model_follows_its_own_branch(ran: OwnAirflow) -> None:
    with sqlite3.connect(ran.home / "airflow" / "airflow.db") as connection:
        rows = connection.execute("SELECT task_id, map_index, state FROM task_instance").fetchall()
    connection.close()
    states = {(task, index): state for task, index, state in rows}
    expected = {
        ("decide.gate", 0): "success",
        ("decide.promote", 0): "success",
        ("decide.tell", 0): "skipped",
        ("decide.gate", 1): "success",
        ("decide.promote", 1): "skipped",
        ("decide.tell", 1): "success",
        ("alone", -1): "success",
        ("go_on", -1): "skipped",
        ("stop", -1): "success",
    }
    assert {key: states.get(key) for key in expected} == expected, ran.output[-3000:]
    registry = Registry(ran.tracking_uri)
    assert registry.alias("good", "champion") == "1"
    assert registry.alias("bad", "champion") is None
    assert registry.evidence(registry.get("bad", "1"))["decision"] == "refused"
