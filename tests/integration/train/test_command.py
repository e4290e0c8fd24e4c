"""Training scripts of the user's own: alone, as two ranks, killed and tried again, wrong in every way."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from airflow_ml_provider import models, stages
from airflow_ml_provider.exceptions import DataError, SpecError, StageFailed
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.train import package
from airflow_ml_provider.stages.train.spec import Launch

INFO = RunInfo("flights", "train", "r1")
# A forest by scikit-learn, as any script of a data scientist.
FOREST = """\
import json, os, sys
import pyarrow.parquet as pq
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier

table = pq.read_table(os.environ["AIRFLOW_ML_TRAIN"])
rows = table.drop(["label"]).to_pandas().to_numpy("float32")
settings = json.loads(os.environ["AIRFLOW_ML_PARAMS"])
forest = RandomForestClassifier(settings["trees"], random_state=int(os.environ["AIRFLOW_ML_SEED"]), max_depth=4)
forest.fit(rows, table["label"].to_numpy())
options = {id(forest): {"zipmap": False}}
with open(os.environ["AIRFLOW_ML_MODEL"], "wb") as file:
    file.write(to_onnx(forest, rows[:1], options=options).SerializeToString())
with open(os.environ["AIRFLOW_ML_METRICS"], "w") as file:
    json.dump({"trees": len(forest.estimators_)}, file)
print("trained with", sys.argv[1:])
"""
# Two ranks with DDP, a snapshot after each step by torch itself; dies once where it is told to.
RANKS = """\
import os, sys
import pyarrow.parquet as pq
import torch
from torch import distributed, nn

distributed.init_process_group("gloo")
rank, world = distributed.get_rank(), distributed.get_world_size()
table = pq.read_table(os.environ["AIRFLOW_ML_TRAIN"])
rows = torch.from_numpy(table.drop(["label"]).to_pandas().to_numpy("float32"))[rank::world]
labels = torch.from_numpy(table["label"].to_numpy().copy())[rank::world]
torch.manual_seed(int(os.environ["AIRFLOW_ML_SEED"]))
net = nn.Linear(rows.shape[1], 1)
model = nn.parallel.DistributedDataParallel(net)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
kept, begin = os.path.join(os.environ["AIRFLOW_ML_SNAPSHOTS"], "last.pt"), 0
if os.path.exists(kept):
    state = torch.load(kept, weights_only=True)
    net.load_state_dict(state["net"])
    begin = state["step"]
    print("going on from step", begin)
for step in range(begin, 12):
    optimizer.zero_grad()
    chosen = slice(step * 64, step * 64 + 64)
    nn.functional.binary_cross_entropy_with_logits(model(rows[chosen]).squeeze(1), labels[chosen]).backward()
    optimizer.step()
    if rank == 0:
        torch.save({"net": net.state_dict(), "step": step + 1}, kept + ".new")
        os.replace(kept + ".new", kept)
    if step == 5 and rank == 1 and len(sys.argv) > 1 and not os.path.exists(sys.argv[1]):
        open(sys.argv[1], "w").close()
        raise RuntimeError("killed for the test")
if rank == 0:
    sigmoid = nn.Sequential(net, nn.Sigmoid()).eval()
    torch.onnx.export(sigmoid, (rows[:3],), os.environ["AIRFLOW_ML_MODEL"], dynamo=True, external_data=False,
                      input_names=["X"], dynamic_shapes={"input": {0: torch.export.Dim.DYNAMIC}}, verbose=False)
distributed.destroy_process_group()
"""


@pytest.fixture
def command_spec(spec, tmp_path):
    def make(code, *args, params=None, launch=None):
        script = tmp_path / "own.py"
        script.write_text(code)
        return spec(engine="command", command=(str(script), *args), params=params or {}, launch=launch or Launch())

    return make


def test_a_script_is_trained_with_and_packaged(command_spec, caplog):
    pytest.importorskip("skl2onnx")
    caplog.set_level("INFO")
    spec = command_spec(FOREST, "--deep", params={"trees": 7})
    result = stages.run(spec, INFO)
    assert result.metrics["validation_auc"] > 0.5
    assert "trained with ['--deep']" in caplog.text
    folder = package.place(spec, INFO)
    assert models.read_manifest(folder).engine == "command"
    assert not package.beside(folder, "command").exists()
    assert stages.run(spec, INFO) == result, "a retry finds the package"


def test_two_ranks_of_a_script_go_on_after_one_has_failed(command_spec, tmp_path, caplog):
    pytest.importorskip("torch")
    caplog.set_level("INFO")
    launch = Launch(processes=2, max_restarts=1)
    disturbed = stages.run(command_spec(RANKS, str(tmp_path / "failed"), launch=launch), INFO)
    assert (tmp_path / "failed").exists()
    assert "[rank 0] going on from step 6" in caplog.text
    whole = stages.run(command_spec(RANKS, launch=launch), replace(INFO, run_id="whole"))
    assert disturbed.model.digest == whole.model.digest


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (
            "raise ArithmeticError('no further')",
            StageFailed,
            r"(?s)exit code 1;.*ArithmeticError: no further",
        ),
        ("", SpecError, "ended well, but wrote no model"),
        ("import os; open(os.environ['AIRFLOW_ML_METRICS'], 'w').write('[1]')", DataError, "must hold a JSON object"),
    ],
)
def test_what_a_script_does_wrong_is_told(command_spec, code, kind, message):
    with pytest.raises(kind, match=message):
        stages.run(command_spec(code), INFO)


def test_a_script_that_is_not_there(spec):
    with pytest.raises(SpecError, match=r"there is no script /nowhere\.py"):
        stages.run(spec(engine="command", command=("/nowhere.py",)), INFO)


def test_the_launcher_s_variables_do_not_leak(command_spec):
    before = dict(os.environ)
    with pytest.raises(SpecError):
        stages.run(command_spec(""), INFO)
    assert dict(os.environ) == before
