"""Two ranks by torchrun, killed for real, and what is left of them."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_ml_provider import codec, models, stages
from airflow_ml_provider.exceptions import DataError, SpecError, StageCrashed, StageFailed
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import Interpreter, protocol
from airflow_ml_provider.stages.train import launch as launch_module
from airflow_ml_provider.stages.train import package
from airflow_ml_provider.stages.train.spec import Function, Launch

pytest.importorskip("torch")

INFO = RunInfo("flights", "train", "r1")
# 26 steps per epoch, 104 in all; dropout draws random numbers on both ranks.
PARAMS = {"epochs": 4, "batch_size": 256, "hidden": [16], "dropout": 0.3, "patience": 99}
STEPS = 100


@pytest.fixture
def torch_spec(spec):
    def make(launch=None, **changes):
        base = {"engine": "torch", "params": PARAMS, "launch": launch or Launch(processes=2, snapshot_every=7)}
        return spec(**{**base, **changes})

    return make


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def whole(torch_spec, kept):
    """The result of the same training, not interrupted; made once."""
    if "result" not in kept:
        kept["result"] = stages.run(torch_spec(), replace(INFO, run_id="whole"))
    assert kept["result"].resumed_from is None
    return kept["result"]


def processes(place: Path) -> dict[int, str]:
    """Return the processes that name `place` in their command."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it has just ended
                continue
            if str(place) in command and state != "Z":
                found[int(entry.name)] = command
    return found


def wait_until(condition, what: str, timeout_s: float = 120.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"waited too long for: {what}"
        time.sleep(0.005)


def steps_of(folder: Path) -> list[int]:
    return [int(p.name[5:]) for p in folder.glob("snapshots/step=*")]


@contextmanager
def stage_process(spec, tmp_path):
    """Run the stage as a process of its own, as the runtimes do."""
    call, result = tmp_path / "call.json", tmp_path / "result.json"
    protocol.write_call(call, spec, INFO)
    command = [
        sys.executable,
        "-m",
        "airflow_ml_provider.runtime",
        "train",
        "--spec",
        str(call),
        "--result",
        str(result),
    ]
    # The folder is what its processes are known by.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "TMPDIR": str(tmp_path)}
    with open(tmp_path / "stage.log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_trains_as_one_process_would_be_asked_to(torch_spec):
    result = stages.run(torch_spec(), INFO)
    assert result.metrics["validation_auc"] > 0.55
    assert result.resumed_from is None
    folder = Path(result.model.uri)
    assert models.describe(folder) == result.model
    assert sorted(p.name for p in folder.parent.iterdir()) == [f".{folder.name}.lock", folder.name]
    assert stages.run(torch_spec(), INFO) == result


def test_model_of_a_segment_has_the_name_that_one_process_gives_it(torch_spec, tmp_path):
    segment = {"origin": "EWR", "carrier": "UA"}
    result = stages.run(torch_spec(segment=segment, params={**PARAMS, "epochs": 1}), INFO)
    assert result.model.name == "flight_delay_ewr_ua"
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["flight_delay_ewr_ua"]
    assert Path(result.model.uri) == package.place(torch_spec(segment=segment), INFO)


def test_another_python_gives_the_same(torch_spec, whole):
    found = Interpreter(sys.executable).call(torch_spec(), INFO, {})
    assert found.model.digest == whole.model.digest


def test_killed_with_all_its_ranks_and_tried_again(torch_spec, whole, tmp_path):
    """`kill -9` of the stage's process at a random step: nothing stays alive, and a retry ends in the same model."""
    spec = torch_spec()
    folder = package.place(spec, INFO)
    victim = random.SystemRandom().randrange(7, STEPS - 20)
    with stage_process(spec, tmp_path) as process:
        wait_until(lambda: any(step >= victim for step in steps_of(folder)), f"a snapshot from step {victim} on")
        assert len(processes(tmp_path)) >= 4  # the stage, torchrun, two ranks
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not processes(tmp_path), "the end of torchrun and its ranks", timeout_s=30)
    assert not (folder / models.MANIFEST).exists()
    found = stages.run(spec, INFO)
    assert found.resumed_from >= victim
    assert found.resumed_from % 7 == 0
    assert found.model.digest == whole.model.digest
    assert found.metrics == whole.metrics


def test_sigterm_of_the_stage_takes_a_snapshot_on_all_ranks(torch_spec, whole, tmp_path):
    spec = torch_spec(launch=Launch(processes=2, snapshot_every=2))
    folder = package.place(spec, INFO)
    with stage_process(spec, tmp_path) as process:
        wait_until(lambda: any(step >= 7 for step in steps_of(folder)), "a snapshot from step 7 on")
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert process.wait(60) == 143
        took = time.monotonic() - begun
    wait_until(lambda: not processes(tmp_path), "the end of torchrun and its ranks", timeout_s=30)
    assert took < 20, "the ranks did not end by themselves"  # they are given 25 s before they are killed
    log = (tmp_path / "stage.log").read_text()
    (step,) = re.findall(r"ended after the snapshot of step (\d+): this process got SIGTERM", log)
    assert max(steps_of(folder)) == int(step), log
    found = stages.run(torch_spec(), INFO)
    assert found.resumed_from == int(step)
    assert found.model.digest == whole.model.digest
    assert found.metrics == whole.metrics


def rank_of(pid: int) -> str:
    pairs = dict(pair.partition("=")[::2] for pair in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return pairs["RANK"]


@pytest.mark.parametrize(("max_restarts", "rank"), [(0, "1"), (1, "0"), (1, "1")])
def test_one_rank_killed(torch_spec, whole, tmp_path, max_restarts, rank):
    """Without restarts the stage fails and its retry resumes; with one, torchrun starts the ranks again by itself."""
    launch = Launch(processes=2, snapshot_every=7, max_restarts=max_restarts)
    spec = torch_spec(launch=launch)
    folder = package.place(spec, INFO)
    victim = random.SystemRandom().randrange(7, STEPS - 20)
    with stage_process(spec, tmp_path) as process:
        wait_until(lambda: any(step >= victim for step in steps_of(folder)), f"a snapshot from step {victim} on")
        ranks = [pid for pid, command in processes(tmp_path).items() if f" -u -m {launch_module.WORKER}" in command]
        (pid,) = (pid for pid in ranks if rank_of(pid) == rank)
        os.kill(pid, signal.SIGKILL)
        process.wait(90)
    wait_until(lambda: not processes(tmp_path), "the end of torchrun and its ranks", timeout_s=30)
    outcome = json.loads((tmp_path / "result.json").read_text())
    if max_restarts:
        assert process.returncode == protocol.EXIT_OK
        found = protocol.open_outcome(outcome, spec)
    else:
        assert process.returncode == protocol.EXIT_RETRYABLE
        with pytest.raises((StageCrashed, StageFailed)):
            protocol.open_outcome(outcome, spec)
        found = stages.run(spec, INFO)
    assert found.resumed_from >= victim
    assert found.model.digest == whole.model.digest
    assert found.metrics == whole.metrics


def test_three_ranks_add_up_in_one_order(torch_spec, tmp_path):
    """With two, a sum has but one order; with three, DDP must not rearrange the gradients."""
    launch = Launch(processes=3, snapshot_every=5)
    spec = torch_spec(launch=launch, params={**PARAMS, "epochs": 3, "batch_size": 255, "hidden": [32, 16]})
    folder = package.place(spec, INFO)
    with stage_process(spec, tmp_path) as process:
        wait_until(lambda: any(step >= 30 for step in steps_of(folder)), "a snapshot from step 30 on")
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not processes(tmp_path), "the end of torchrun and its ranks", timeout_s=30)
    found = stages.run(spec, INFO)
    assert found.resumed_from >= 30
    assert found.model.digest == stages.run(spec, replace(INFO, run_id="three")).model.digest


def test_damaged_snapshot_costs_a_few_steps_only(torch_spec, whole, tmp_path):
    spec = torch_spec()
    folder = package.place(spec, INFO)
    with stage_process(spec, tmp_path) as process:
        wait_until(lambda: len(steps_of(folder)) == 2 and max(steps_of(folder)) > 20, "two snapshots")
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not processes(tmp_path), "the end of torchrun and its ranks", timeout_s=30)
    older, newest = sorted(steps_of(folder))[-2:]
    (folder / "snapshots" / f"step={newest}" / "tensors.safetensors").write_bytes(b"damaged")
    found = stages.run(spec, INFO)
    assert found.resumed_from == older
    assert found.model.digest == whole.model.digest


def test_errors_of_a_rank_are_the_stage_s(torch_spec):
    with pytest.raises(DataError, match="training diverged"):
        stages.run(torch_spec(params={**PARAMS, "learning_rate": 1e30}), INFO)
    with pytest.raises(SpecError, match="unknown key in params 'epoch'"):
        stages.run(torch_spec(params={"epoch": 3}), INFO)


FUNCTION = """
def fit(run, epochs):
    import torch
    x, y = (torch.from_numpy(part) for part in run.train.numpy())
    torch.manual_seed(run.seed)
    net = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    model = run.parallel(net)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(epochs):
        for rows in run.batches(epoch, 256):
            assert len(rows) == 256 // run.world_size
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x[rows]).squeeze(1), y[rows])
            loss.backward()
            optimizer.step()
        run.log("loss", loss.item(), epoch)
        run.snapshot(epoch + 1, model=model, optimizer=optimizer)
    return model
"""


def test_user_function_with_two_ranks(spec):
    function = Function("fit", FUNCTION, {"epochs": 2})
    make = lambda: spec(engine="function", function=function, launch=Launch(processes=2))  # noqa: E731
    first = stages.run(make(), INFO)
    assert first.metrics["onnx_max_difference"] < 1e-5
    assert first.metrics["validation_auc"] > 0.5
    assert stages.run(make(), replace(INFO, map_index=4)).model.digest == first.model.digest
    assert codec.encode(first)["status"] == "ok"


SHARDED = """
def fit(run, epochs):
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU())

        def forward(self, x):
            return x + self.inner(x)

    def network():
        parts = [torch.nn.Linear(len(run.features), 16), *(Block() for _ in range(2)), torch.nn.Linear(16, 1)]
        return torch.nn.Sequential(*parts).to(run.device)

    def loss(model, batch):
        return torch.nn.functional.binary_cross_entropy_with_logits(model(batch[0]).squeeze(1), batch[1])

    x, y = (torch.from_numpy(part).to(run.device) for part in run.train.numpy())
    torch.manual_seed(run.seed)
    model = run.parallel(network(), shard=Block, precision="bf16", checkpoint=Block)
    trainer = run.trainer(model, torch.optim.AdamW(model.parameters(), lr=0.01), precision="bf16", clip=1.0)
    trainer.resume()
    steps = len(run.batches(0, 1024))
    while trainer.steps < epochs * steps:
        epoch, position = divmod(trainer.steps, steps)
        for rows in run.batches(epoch, 1024)[position:]:
            trainer.step((x[rows], y[rows]), loss)
            trainer.keep(steps)
    trainer.report()
    whole = network().cpu()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if run.rank == 0:
        whole.load_state_dict(state)
    return whole
"""


def test_user_function_that_shards_with_the_trainer(spec):
    """The example of the documentation."""
    function = Function("fit", SHARDED, {"epochs": 8})
    found = stages.run(spec(engine="function", function=function, launch=Launch(processes=2)), INFO)
    assert found.metrics["onnx_max_difference"] < 1e-5
    assert found.metrics["validation_auc"] > 0.55
    assert found.performance["samples_per_s"] > 0


def test_user_function_that_fails_on_one_rank(spec):
    source = "def fit(run):\n    if run.rank == 1:\n        raise ValueError('no rows for me')\n    run.snapshot(1)\n"
    function = Function("fit", source)
    with pytest.raises(StageFailed, match="ValueError: no rows for me"):
        stages.run(spec(engine="function", function=function, launch=Launch(processes=2)), INFO)
