"""One rank of a training that torchrun started: `python -m airflow_ml_provider.stages.train.worker FOLDER`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import MlError, StageFailed
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.train import engines, launch, stopping
from airflow_ml_provider.stages.train.run import Ranks
from airflow_ml_provider.stages.train.spec import TrainSpec

# What the transports say when the other side is gone.
_AWAY = ("connection", "peer", "timed out", "timeout", "remote process", "socket", "broken pipe", "aborted")


def main(folder: Path) -> int:
    """Train as the rank that torchrun says; leave the result, or the error, in `folder`."""
    launch.end_with(int(os.environ[launch.LAUNCHER]))
    from torch import distributed

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s\t%(name)s\t%(message)s")
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    path = folder / f"outcome-{ranks.rank}.json"
    failures = _failures(path)
    path.unlink(missing_ok=True)  # of the time before a restart
    call = json.loads((folder / launch.CALL).read_text(encoding="utf-8"))
    spec, info = codec.decode(TrainSpec, call["spec"], "spec"), codec.decode(RunInfo, call["info"], "info")
    try:
        ranks = replace(ranks, store=_join(ranks))
        result = engines.train(spec, info, ranks)
    except SystemExit as error:
        if error.code == stopping.EXIT:  # by SIGTERM, of this rank or of another one, after a snapshot
            ended = {"rank": ranks.rank, "lost": True, "failures": failures}
            tables.write_text(path, json.dumps({"error": ended}))
            sys.stderr.flush()
            os._exit(stopping.EXIT)  # time is short: taking torch down can take seconds, and may wait for other ranks
        raise
    except Exception as error:  # noqa: BLE001 - the stage raises it, with its traceback
        # Before the others lose their connection to this rank, and fail of that.
        told = account(error, ranks)
        failures += not told["lost"]
        tables.write_text(path, json.dumps({"error": {**told, "failures": failures}}))
        if failures > spec.launch.max_restarts:  # torchrun would also restart it in place of a node's loss
            os.kill(int(os.environ[launch.LAUNCHER]), signal.SIGTERM)
        return 1
    if result is not None:
        tables.write_text(path, json.dumps({"result": codec.encode(result)}, allow_nan=False))
    distributed.destroy_process_group()
    return 0


def _join(ranks: Ranks) -> Any:
    """Make this process one of the group; return the store of this attempt."""
    import torch
    from torch import distributed

    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.set_num_threads(1)
    # The agents agree on it anew for every start (see `launch`), so no rank of the time before can be met there.
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, ranks.world_size, is_master=ranks.rank == 0)
    distributed.init_process_group(
        "nccl" if on_gpus else "gloo", store=store, rank=ranks.rank, world_size=ranks.world_size
    )
    return store


def _failures(outcome: Path) -> int:
    """Return how often this rank has failed by its own fault before."""
    try:
        return int(json.loads(outcome.read_text(encoding="utf-8"))["error"]["failures"])
    except (OSError, ValueError, KeyError):
        return 0


def _lost(error: Exception) -> bool:
    """Return whether it is another rank that failed, so that this one could no longer reach it."""
    from torch import distributed

    words = str(error).lower()
    far = isinstance(error, distributed.DistError) or "gloo" in words or "nccl" in words
    return far and any(word in words for word in _AWAY)


def account(error: Exception, ranks: Ranks) -> dict[str, Any]:
    """Return what a rank says of its error, as JSON."""
    kind = type(error).__name__ if isinstance(error, MlError) else StageFailed.__name__
    message = str(error) if isinstance(error, MlError) else f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    told = {"type": kind, "message": message, "traceback": trace, "time": time.time()}
    return {**told, "rank": ranks.rank, "lost": _lost(error)}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
