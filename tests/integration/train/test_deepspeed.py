"""DeepSpeed with gloo ranks on processors: its ZeRO stages, snapshots of them, and what is not read from one."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from airflow_ml_provider import codec, stages
from airflow_ml_provider.exceptions import SpecError, StageFailed
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.train.snapshots import Snapshots
from airflow_ml_provider.stages.train.spec import Function, Launch
from tests.integration.train import ranks

torch = pytest.importorskip("torch")
if find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed: pip install deepspeed --no-build-isolation", allow_module_level=True)

SCRIPT = Path(__file__).parent / "deepspeed_script.py"


@pytest.fixture
def train(tmp_path):
    def inner(*more: object, world: int = 2, folder: str = "snapshots"):
        out = tmp_path / "out.json"
        out.unlink(missing_ok=True)
        done = ranks.run(SCRIPT, [str(tmp_path / folder), "--out", str(out), *map(str, more)], tmp_path, world)
        return done, json.loads(out.read_text()) if out.exists() else None

    return inner


@pytest.mark.parametrize("more", [("1",), ("2",), ("3",), ("1", "--bf16"), ("3", "--bf16")])
def test_resumes_to_the_same_weights(train, more):
    done, whole = train("--stage", *more, folder="whole")
    assert whole, done.stderr
    done, first = train("--stage", *more, "--steps", 5)
    assert first, done.stderr
    done, rest = train("--stage", *more)
    assert rest, done.stderr
    assert (first["start"], rest["start"]) == (0, 3)
    assert first["losses"] == whole["losses"][:5]
    assert rest["losses"] == whole["losses"][3:]
    assert rest["digest"] == whole["digest"]


def test_learns_as_ddp_does(train):
    """Three micro batches on each of two ranks, clipped and scheduled by DeepSpeed or by the trainer."""
    done, plain = train("--stage", 2, "--plain", folder="plain")
    assert plain, done.stderr
    done, sharded = train("--stage", 2)
    assert sharded, done.stderr
    assert sharded["losses"] == pytest.approx(plain["losses"], rel=1e-4)


def test_another_number_of_ranks_is_told(train):
    done, first = train("--stage", 2, "--steps", 4)
    assert first, done.stderr
    done, none = train("--stage", 2, world=1)
    assert none is None
    assert "of ZeRO stage 2 and 2 ranks, now there are stage 2 and 1;" in done.stderr


def test_another_stage_is_told(train):
    done, first = train("--stage", 2, "--steps", 4, world=1)
    assert first, done.stderr
    done, none = train("--stage", 3, world=1)
    assert none is None
    assert "of ZeRO stage 2 and 1 ranks, now there are stage 3 and 1;" in done.stderr, done.stderr


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_snapshot_is_not_run(train, tmp_path):
    """Whoever can write a snapshot can seal it: what it holds must not run."""
    done, first = train("--stage", 2, "--steps", 4, world=1)
    assert first, done.stderr
    kept = Snapshots(tmp_path / "snapshots", codec.digest("deepspeed"))
    step, state = kept.load()
    archive = io.BytesIO(state["deepspeed"]["ranks"][0].numpy().tobytes())
    changed = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickle.dumps(Evil(str(tmp_path / "run"))) if "optim" in name else source.read(name))
    state["deepspeed"]["ranks"][0] = torch.frombuffer(changed.getbuffer(), dtype=torch.uint8)
    kept.save(step + 1, state, wait=True)
    done, none = train("--stage", 2, world=1)
    assert none is None
    assert not (tmp_path / "run").exists()
    assert "posix.mkdir" in done.stderr or "weights_only" in done.stderr, done.stderr


FUNCTION = """
def fit(run, stage, epochs):
    import deepspeed
    import torch

    def network():
        return torch.nn.Sequential(
            torch.nn.Linear(len(run.features), 16), torch.nn.GELU(), torch.nn.Linear(16, 1)
        ).to(run.device)

    def loss(model, batch):
        return torch.nn.functional.binary_cross_entropy_with_logits(model(batch[0]).squeeze(1), batch[1])

    x, y = (torch.from_numpy(part).to(run.device) for part in run.train.numpy())
    torch.manual_seed(run.seed)
    config = {
        "train_batch_size": 1024,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
        "gradient_clipping": 1.0,
    }
    model = run.parallel(network(), deepspeed=config)
    trainer = run.trainer(model)
    trainer.resume()
    steps = len(run.batches(0, 1024))
    while trainer.steps < epochs * steps:
        epoch, position = divmod(trainer.steps, steps)
        for rows in run.batches(epoch, 1024)[position:]:
            trainer.step((x[rows], y[rows]), loss)
            trainer.keep(steps)
    trainer.report()
    whole = network().cpu()
    with deepspeed.zero.GatheredParameters(list(model.module.parameters()), enabled=stage == 3):  # by all ranks
        whole.load_state_dict({name: value.cpu() for name, value in model.module.state_dict().items()})
    return whole
"""


@pytest.mark.parametrize("stage", [2, 3])
def test_user_function(spec, stage):
    """The example of the documentation."""
    function = Function("fit", FUNCTION, {"stage": stage, "epochs": 6})
    found = stages.run(spec(engine="function", function=function, launch=Launch(processes=2)), RunInfo("d", "t", "r"))
    assert found.metrics["onnx_max_difference"] < 1e-5
    assert found.metrics["validation_auc"] > 0.55
    assert found.performance["samples_per_s"] > 0


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("{'optimizer': {}}", "zero_optimization.stage must be 1, 2 or 3, got 0; without ZeRO leave deepspeed out"),
        ("{'zero_optimization': {'stage': 2}}", "deepspeed needs an optimizer in its configuration"),
    ],
)
def test_bad_configurations(spec, config, told):
    source = f"def fit(run):\n    import torch\n    run.parallel(torch.nn.Linear(1, 1), deepspeed={config})\n"
    with pytest.raises(SpecError, match=told):
        stages.run(spec(engine="function", function=Function("fit", source)), RunInfo("d", "t", "r"))


def test_its_failures_are_the_stage_s(spec):
    source = (
        "def fit(run):\n"
        "    import torch\n"
        "    config = {'zero_optimization': {'stage': 2}, 'optimizer': {'type': 'Adam'}}\n"
        "    run.parallel(torch.nn.Linear(1, 1), deepspeed=config)\n"
    )
    with pytest.raises(StageFailed, match=r"rank [01]: .*train_batch_size"):
        stages.run(
            spec(engine="function", function=Function("fit", source), launch=Launch(processes=2)),
            RunInfo("d", "t", "r"),
        )
