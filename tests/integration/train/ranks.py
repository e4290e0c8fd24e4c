"""Ranks of a training script, as torchrun starts them, but forked from a process that has imported PyTorch already."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess as Completed
from unittest.mock import patch

IMPORTED = ["torch.distributed.fsdp", "deepspeed", "airflow_ml_provider.stages.train.standalone"]
ENV = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


def run(script: Path, args: Sequence[str], folder: Path, world: int, timeout_s: float = 240) -> Completed:
    """Run a script as so many ranks; return the worst exit code, and what all have said, which is in a folder, too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with patch.dict(os.environ, ENV):
        forkserver.ensure_running()
    logs = [folder / f"rank-{rank}.log" for rank in range(world)]
    ranks = [context.Process(target=_rank, args=(script, args, *of)) for of in zip(_envs(world), logs, strict=True)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout_s)
    for rank in ranks:  # one that hangs
        rank.kill()
        rank.join()
    said = "\n".join(log.read_text() for log in logs)
    return Completed([str(script), *args], max(abs(rank.exitcode or 0) for rank in ranks), stderr=said)


def _envs(world: int) -> list[dict[str, str]]:
    """Return what torchrun tells each rank; nothing tells one that is alone."""
    if world == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    return [
        {**where, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)} for rank in range(world)
    ]


def _rank(script: Path, args: Sequence[str], env: dict[str, str], log: Path) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update({**ENV, **env})
    sys.argv = [str(script), *args]
    runpy.run_path(str(script), run_name="__main__")
