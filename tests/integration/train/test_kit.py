"""The trainer kit under plain torchrun with gloo ranks: sharding, missing ranks, SIGTERM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

SCRIPT = Path(__file__).parent / "kit_script.py"


@pytest.fixture
def train(tmp_path):
    def inner(*more: object, world: int = 2, folder: str = "snapshots"):
        out = tmp_path / "out.json"
        out.unlink(missing_ok=True)
        command = [sys.executable]
        if world > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        command += [str(SCRIPT), str(tmp_path / folder), "--out", str(out), *map(str, more)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        return done, json.loads(out.read_text()) if out.exists() else None

    return inner


def steps_of(folder: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in folder.glob("step=*"))


@pytest.mark.parametrize("more", [(), ("--shard",), ("--shard", "--precision", "bf16"), ("--precision", "fp16")])
def test_resumes_to_the_same_weights(train, tmp_path, more):
    done, whole = train(*more, folder="whole")
    assert whole, done.stderr
    assert whole["kind"] == ("DTensor" if "--shard" in more else "Parameter")
    assert whole["losses"][-1] < whole["losses"][0]
    done, first = train(*more, "--steps", "6")
    assert first, done.stderr
    assert steps_of(tmp_path / "snapshots") == [4]
    done, rest = train(*more)
    assert rest, done.stderr
    assert (rest["start"], rest["digest"]) == (4, whole["digest"])
    assert rest["losses"] == whole["losses"][4:]
    assert rest["figures"]["samples_per_s"] > 0
    assert rest["figures"]["straggler_ratio"] >= 1


@pytest.mark.parametrize("shard", [(), ("--shard",)])
def test_fewer_ranks_keep_the_loss_curve(train, tmp_path, shard):
    done, whole = train(*shard, folder="whole")
    assert whole, done.stderr
    _, first = train(*shard, "--steps", "4")
    shutil.copytree(tmp_path / "snapshots", tmp_path / "copy")
    done, alone = train(*shard, world=1)
    assert alone, done.stderr
    assert alone["start"] == 4
    assert first["losses"] + alone["losses"] == pytest.approx(whole["losses"], rel=1e-4)


def test_a_rank_more_than_there_was(train):
    train("--ranks", "2", "--steps", "4", world=1)
    done, both = train()
    assert both, done.stderr
    assert both["start"] == 4


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_of_one_rank(train, tmp_path, rank):
    done, whole = train(
        folder="whole",
    )
    assert whole, done.stderr
    done, none = train("--every", "1000", "--term", rank, 5)
    assert none is None
    assert done.returncode != 0
    assert "exitcode  : 143" in done.stderr, done.stderr
    assert steps_of(tmp_path / "snapshots") == [7]
    done, rest = train()
    assert rest, done.stderr
    assert (rest["start"], rest["digest"]) == (7, whole["digest"])


def test_sigterm_of_one_process(train, tmp_path):
    done, none = train("--every", "1000", "--term", 0, 5, world=1)
    assert (done.returncode, none) == (143, None)
    assert steps_of(tmp_path / "snapshots") == [5]
