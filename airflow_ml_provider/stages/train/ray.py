"""Several ranks by Ray Train, where the stage runs in a Ray cluster, as on the head of a RayJob."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import MissingLibrary, StageCrashed
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.train import engines, launch, package, worker
from airflow_ml_provider.stages.train.run import Ranks
from airflow_ml_provider.stages.train.spec import TrainResult, TrainSpec


class Outcomes:
    """What the ranks have to say, kept by an actor: whatever Ray Train makes of their errors, it is told in full."""

    def __init__(self) -> None:
        self._told: dict[int, Any] = {}

    def put(self, rank: int, outcome: Mapping[str, Any]) -> None:
        """Keep what a rank says, in place of what it said before."""
        self._told[rank] = outcome

    def all(self) -> list[Any]:
        """Return what all ranks have said."""
        return list(self._told.values())


def fit(spec: TrainSpec, info: RunInfo) -> TrainResult:
    """Train with one Ray worker for each rank, and return what rank 0 gives.

    The cluster is the one that this process belongs to; where it belongs to none, one is started on this machine. All
    ranks start again, from the last snapshot, as often as `launch.max_restarts` says, when one fails or is lost.

    Raises:
        MissingLibrary: there is no Ray.
        MlError: what a rank raised.
        StageCrashed: a rank was lost more often than that.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise MissingLibrary(
            f"controller='rayjob' needs Ray Train in the image: pip install 'ray[train]' ({error})"
        ) from error

    path = os.pathsep.join(entry for entry in sys.path if entry)
    ray.init(ignore_reinit_error=True, runtime_env={"env_vars": {"PYTHONPATH": path}})
    outcomes = ray.remote(num_cpus=0)(Outcomes).remote()
    call = {"spec": codec.encode(spec), "info": codec.encode(info), "outcomes": outcomes}
    gpus = ray.cluster_resources().get("GPU", 0) >= spec.launch.ranks
    failure: Optional[Exception] = None
    # All nodes must see the folder in which Ray Train keeps its books, as they see that of the model.
    with tempfile.TemporaryDirectory(prefix=".ray-", dir=package.place(spec, info).parent) as books:
        trainer = TorchTrainer(
            _work,
            train_loop_config=call,
            scaling_config=ScalingConfig(num_workers=spec.launch.ranks, use_gpu=gpus),
            run_config=RunConfig(
                storage_path=books, failure_config=FailureConfig(max_failures=spec.launch.max_restarts)
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 - the ranks' own accounts say more
            failure = error
    return _result(spec, ray.get(outcomes.all.remote()), failure)


def _work(call: Mapping[str, Any]) -> None:
    """Train as one rank; Ray Train has set up the process group."""
    import ray
    import torch
    from ray import train

    here = train.get_context()
    ranks = Ranks(here.get_world_rank(), here.get_world_size())
    level = logging.WARNING if ranks.rank else logging.INFO
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s\t%(name)s\t%(message)s")
    torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    spec, info = codec.decode(TrainSpec, call["spec"], "spec"), codec.decode(RunInfo, call["info"], "info")

    def tell(outcome: Mapping[str, Any]) -> None:
        ray.get(call["outcomes"].put.remote(ranks.rank, outcome))

    tell({})  # nothing of the time before a restart counts
    try:
        result = engines.train(spec, info, ranks)
    except Exception as error:
        tell({"error": worker.account(error, ranks)})
        raise
    if result is not None:
        tell({"result": codec.encode(result)})


def _result(spec: TrainSpec, outcomes: list[Any], failure: Optional[Exception]) -> TrainResult:
    for outcome in outcomes:
        if failure is None and "result" in outcome:
            return codec.decode(TrainResult, outcome["result"], "result")
    errors = [outcome["error"] for outcome in outcomes if "error" in outcome]
    for told in sorted(errors, key=lambda error: error["time"]):
        if not told["lost"]:
            raise launch.as_error(told)
    raise StageCrashed(
        f"Ray Train with {spec.launch.ranks} workers ended without a result; a worker was lost, by hand or for lack of "
        f"memory; a retry goes on from the last snapshot: {failure}"
    )
