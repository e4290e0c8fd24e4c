"""What torchrun is told, without torch."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

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

    def fake(command):
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
