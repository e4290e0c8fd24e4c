"""What torchrun is told, without torch."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.train import launch, logic
from airflow_ml_provider.stages.train.spec import Launch, TrainResult, TrainSpec


def test_ranks_are_asked_for_the_same_model_in_the_same_order(monkeypatch):
    spec = TrainSpec(
        name="late", dataset=DatasetRef("rows", "/rows", "sha256:0"), output="/models", engine="torch",
        segment={"origin": "EWR", "carrier": "UA"}, params={"hidden": [4], "epochs": 1}, launch=Launch(processes=2),
    )  # fmt: skip
    told = []

    def fake(command, env):
        folder = Path(command[-1])
        told.append(json.loads((folder / launch.CALL).read_text(encoding="utf-8")))
        (folder / "outcome-0.json").write_text(json.dumps({"result": codec.encode(TrainResult(reason="done"))}))
        return 0, deque()

    monkeypatch.setattr(launch, "_run", fake)
    assert launch.torchrun(spec, RunInfo(dag_id="d")).reason == "done"
    asked = codec.decode(TrainSpec, told[0]["spec"], "spec")
    assert asked == spec
    assert list(asked.segment) == ["origin", "carrier"]
    assert list(asked.params) == ["hidden", "epochs"]
    assert logic.model_name(asked.name, asked.segment) == logic.model_name(spec.name, spec.segment) == "late_ewr_ua"
    assert codec.decode(RunInfo, told[0]["info"], "info") == RunInfo(dag_id="d")


PET = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "j-node-0-0.j", "PET_MASTER_PORT": "29500"}


@pytest.mark.parametrize(("rank", "address"), [("0", "j-node-0-0.j"), ("1", "j-node-0-1.j")])
def test_the_pods_of_a_train_job_meet_by_the_variables_of_kubeflow(monkeypatch, rank, address):
    for name, value in {**PET, "PET_NODE_RANK": rank, "AIRFLOW_ML_PATIENCE_S": "60"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("socket.gethostname", lambda: f"j-node-0-{rank}")
    found = launch.meeting(_several())
    assert (found.node, found.address, found.rendezvous) == (int(rank), address, "j-node-0-0.j:29500")
    assert found.patience_s == 60


def test_what_the_operator_says_of_the_nodes_comes_first(monkeypatch):
    own = {"AIRFLOW_ML_NODE": "1", "AIRFLOW_ML_ADDRESS": "node-001.s", "AIRFLOW_ML_RENDEZVOUS": "node-000.s:29400"}
    for name, value in {**PET, "PET_NODE_RANK": "0", **own}.items():
        monkeypatch.setenv(name, value)
    found = launch.meeting(_several())
    assert (found.node, found.address, found.rendezvous) == (1, "node-001.s", "node-000.s:29400")


def _several() -> TrainSpec:
    return TrainSpec(
        name="late", dataset=DatasetRef("rows", "/rows", "sha256:0"), output="/models", engine="torch",
        launch=Launch(nodes=2),
    )  # fmt: skip
