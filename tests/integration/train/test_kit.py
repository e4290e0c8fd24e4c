"""The trainer kit with gloo ranks: sharding, missing ranks, and under plain torchrun SIGTERM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_ml_provider.stages.train.profile import communication_share
from tests.integration.train import ranks

pytest.importorskip("torch")

SCRIPT = Path(__file__).parent / "kit_script.py"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a training of two ranks gives that nothing happens to; made once for each kind."""
    made = {}

    def inner(train, *more: str):
        if more not in made:
            done, made[more] = train(*more, folder=tmp_path_factory.mktemp("whole"))
            assert made[more], done.stderr
        return made[more]

    return inner


@pytest.fixture
def train(tmp_path):
    def inner(*more: object, world: int = 2, folder: str | Path = "snapshots"):
        out = tmp_path / "out.json"
        out.unlink(missing_ok=True)
        args = [str(tmp_path / folder), "--out", str(out), *map(str, more)]
        if "--term" in more:
            under = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
            command, env = [sys.executable, *under, str(SCRIPT), *args], {**os.environ, **ranks.ENV}
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
        else:
            done = ranks.run(SCRIPT, args, tmp_path, world)
        return done, json.loads(out.read_text()) if out.exists() else None

    return inner


def steps_of(folder: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in folder.glob("step=*"))


@pytest.mark.parametrize("more", [(), ("--shard", "--precision", "bf16"), ("--precision", "fp16")])
def test_resumes_to_the_same_weights(train, undisturbed, tmp_path, more):
    whole = undisturbed(train, *more)
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
def test_fewer_ranks_keep_the_loss_curve(train, undisturbed, shard):
    whole = undisturbed(train, *shard)
    _, first = train(*shard, "--steps", "4")
    done, alone = train(*shard, world=1)
    assert alone, done.stderr
    assert alone["start"] == 4
    assert first["losses"] + alone["losses"] == pytest.approx(whole["losses"], rel=1e-4)


def test_a_rank_more_than_there_was(train):
    train("--ranks", "2", "--steps", "4", world=1)
    done, both = train()
    assert both, done.stderr
    assert both["start"] == 4


@pytest.mark.parametrize("shard", [(), ("--shard",)])
def test_uneven_shares_do_not_hang(train, shard):
    """Three of four ranks and four rows: shares of two, one and one, and two micro steps for each."""
    odd = ("--ranks", "4", "--rows", "4", "--steps", "3", *shard)
    done, three = train(*odd, world=3)
    assert three, done.stderr
    done, alone = train(*odd, world=1, folder="alone")
    assert three["losses"] == pytest.approx(alone["losses"], rel=1e-4)


@pytest.mark.parametrize("more", [(), ("--shard",)])
def test_profile_of_every_rank(train, undisturbed, tmp_path, more):
    whole = undisturbed(train, *more)
    done, profiled = train(*more, "--profile", "4")
    assert profiled, done.stderr
    assert profiled["digest"] == whole["digest"]
    shares = []
    for rank in (0, 1):
        events = json.loads((tmp_path / "traces" / f"rank-{rank}.pt.trace.json").read_text())["traceEvents"]
        assert sum(event["name"].startswith("ProfilerStep#") for event in events) == 4
        assert any(event["name"] == "gloo:all_reduce" for event in events)
        shares.append(communication_share(events))
    assert 0 < min(shares) <= max(shares) < 1
    assert profiled["figures"]["communication_share"] == pytest.approx(sum(shares) / 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_of_one_rank(train, undisturbed, tmp_path, rank):
    whole = undisturbed(train)
    done, none = train("--every", "1000", "--term", rank, 5)
    assert none is None
    assert done.returncode != 0
    for whose in ("this process", "another rank"):
        assert f"ended after the snapshot of step 7: {whose} got SIGTERM" in done.stderr, done.stderr
    assert steps_of(tmp_path / "snapshots") == [7]
    done, rest = train()
    assert rest, done.stderr
    assert (rest["start"], rest["digest"]) == (7, whole["digest"])


def test_sigterm_of_one_process(train, tmp_path):
    done, none = train("--every", "1000", "--term", 0, 5, world=1)
    assert (done.returncode, none) == (143, None)
    assert steps_of(tmp_path / "snapshots") == [5]
    _, rest = train(world=1)
    _, whole = train(world=1, folder="whole")
    assert (rest["start"], rest["digest"]) == (5, whole["digest"])
