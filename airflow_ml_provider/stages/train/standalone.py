"""The trainer kit without a task: in a script of one's own, alone or under plain torchrun."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union

from airflow_ml_provider import codec
from airflow_ml_provider.stages.train import randomness
from airflow_ml_provider.stages.train.run import Ranks, Run
from airflow_ml_provider.stages.train.snapshots import Snapshots
from airflow_ml_provider.stages.train.spec import Launch

log = logging.getLogger(__name__)


@contextmanager
def training(
    snapshots: str, *, recipe: Any = None, seed: int = 0, launch: Optional[Launch] = None,
    files: Sequence[Union[str, Path]] = (), traces: Union[str, Path] = "profile",
) -> Iterator[Run]:  # fmt: skip
    """Give a `run` without rows: joins the ranks that torchrun has started, and ends well with the last snapshot.

    Parameters:
        snapshots: folder or URI for snapshots.
        recipe: JSON that decides what the model will be; snapshots of another one are left alone.
        seed: seed of everything random.
        launch: how often snapshots are taken, and how many ranks there are when none is missing.
        files: Parquet files for `run.reader`.
        traces: folder for the traces of `launch.profile_steps`.
    """
    from torch import distributed

    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    ranks = Ranks(rank, world_size, _join() if world_size > 1 else None)
    randomness.seed(seed, rank)
    launch = launch or Launch(processes=world_size)
    kept = Snapshots(
        snapshots, codec.digest(recipe), keep=launch.keep, rank=rank, world_size=world_size, seed=seed
    )  # fmt: skip
    run = Run(
        train=None, validation=None, params={}, launch=launch, seed=seed, ranks=ranks, snapshots=kept,
        log=_log, before_snapshot=lambda: None, files=files, traces=traces,
    )  # fmt: skip
    try:
        yield run
    except BaseException:
        run.close(failed=True)
        raise
    run.close()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _log(metric: str, value: float, step: Optional[int] = None) -> None:
    log.info("%s = %s at step %s", metric, value, step)


def _join() -> Any:
    """Make this process one of the group that torchrun started; return the store of this attempt."""
    import torch
    from torch import distributed

    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_gpus else "gloo")
    # torchrun's store may outlive a restart, whose number its agents do not agree on; so rank 0 names this attempt.
    attempt = torch.tensor([time.time_ns()], device="cuda" if on_gpus else "cpu")
    distributed.broadcast(attempt, 0)
    return distributed.PrefixStore(f"kit-{attempt.item()}", distributed.distributed_c10d._get_default_store())
