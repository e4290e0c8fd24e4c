"""A module that DeepSpeed trains, with its ZeRO stages 1 to 3, by the user's own configuration of it."""

from __future__ import annotations

import copy
import io
import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.exceptions import MissingLibrary, SpecError, invalid
from airflow_ml_provider.stages.train.trainer import Trainer

if TYPE_CHECKING:
    from airflow_ml_provider.stages.train.run import Run

_TAG = "snapshot"
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def initialize(module: Any, config: Mapping[str, Any], on_gpu: bool) -> Any:
    """Return the DeepSpeedEngine of a module, in the process group that there is.

    Parameters:
        config: what DeepSpeed's documentation calls the JSON configuration; it is passed on as it is.

    Raises:
        MissingLibrary: DeepSpeed is not installed.
        SpecError: the configuration has no ZeRO stage of 1 to 3, or no optimiser.
    """
    if find_spec("deepspeed") is None:
        raise MissingLibrary(f"{sys.executable} lacks deepspeed; run: {sys.executable} -m pip install deepspeed")
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in (1, 2, 3):
        raise invalid("deepspeed zero_optimization.stage", stage, "1, 2 or 3", "without ZeRO leave deepspeed out: DDP")
    if "optimizer" not in config:
        raise SpecError("deepspeed needs an optimizer in its configuration, such as {'type': 'AdamW', 'params': {…}}")
    import deepspeed
    from torch import distributed

    os.environ.setdefault("LOCAL_RANK", "0")  # torchrun sets it; DeepSpeed also asks for it where a rank is alone
    if not distributed.is_initialized():
        backend = "nccl" if on_gpu else "gloo"
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    return deepspeed.initialize(
        model=module, model_parameters=module.parameters(), config=copy.deepcopy(dict(config)), dist_init_required=False
    )[0]


def is_engine(model: Any) -> bool:
    """Whether a model is one of DeepSpeed."""
    return hasattr(model, "zero_optimization_stage")


class DeepSpeedTrainer(Trainer):
    """Trains a DeepSpeedEngine; precision, clipping, micro batches and schedule are those of its configuration."""

    def __init__(self, run: Run, engine: Any, *, log_every: int = 50) -> None:
        super().__init__(run, engine, engine.optimizer, engine.lr_scheduler, log_every=log_every)
        self.micro_steps = engine.gradient_accumulation_steps()

    def _count(self, rows: int) -> int:
        return self.micro_steps  # DeepSpeed counts them, too, and updates after the last one

    def _backward(self, loss: Any) -> None:
        self.model.backward(loss, scale_wrt_gas=False)  # the weights of the micro batches are in it
        self.model.step()

    def _update(self) -> None:
        pass

    def _parts(self) -> dict[str, Any]:
        return {"deepspeed": Checkpoint(self.model, self.run.rank, self.run.world_size)}


class Checkpoint:
    """DeepSpeed's own checkpoint as the state of a snapshot: the files that each rank writes, as one tensor of bytes.

    The files are pickles of `torch.save`. They are read by torch's restricted unpickler, which makes tensors, plain
    values and four classes of DeepSpeed, and runs no other code.
    """

    def __init__(self, engine: Any, rank: int, world_size: int) -> None:
        self._engine, self._rank, self._world_size = engine, rank, world_size

    def state_dict(self) -> dict[str, Any]:
        """Return the files of all ranks, on rank 0; a collective call."""
        with tempfile.TemporaryDirectory(prefix="deepspeed-") as folder:
            (Path(folder) / _TAG).mkdir()
            self._engine.save_checkpoint(folder, tag=_TAG, save_latest=False)
            mine = _packed(Path(folder) / _TAG)
        parts = [mine] if self._world_size == 1 else _gathered(mine, self._rank, self._world_size)
        return {"stage": int(self._engine.zero_optimization_stage()), "ranks": parts}

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; a collective call.

        Raises:
            SpecError: it is of more or fewer ranks, or of another stage.
        """
        now = int(self._engine.zero_optimization_stage())
        if (found["stage"], len(found["ranks"])) != (now, self._world_size):
            raise SpecError(
                f"the snapshot is of ZeRO stage {found['stage']} and {len(found['ranks'])} ranks, now there are stage "
                f"{now} and {self._world_size}; DeepSpeed goes on with the same: give these, or begin anew elsewhere"
            )
        before = os.environ.get(_ONLY_WEIGHTS)
        with tempfile.TemporaryDirectory(prefix="deepspeed-") as folder, _known_classes():
            for part in found["ranks"]:
                zipfile.ZipFile(io.BytesIO(part.numpy().tobytes())).extractall(Path(folder) / _TAG)
            os.environ[_ONLY_WEIGHTS] = "1"
            try:
                self._engine.load_checkpoint(folder, tag=_TAG)
            finally:
                os.environ.pop(_ONLY_WEIGHTS)
                if before is not None:
                    os.environ[_ONLY_WEIGHTS] = before


def _known_classes() -> Any:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address
    from torch.serialization import safe_globals

    return safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address])


def _packed(folder: Path) -> Any:
    """Return the files of a folder as one archive, uint8."""
    import torch

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(folder.iterdir()):
            target.write(path, path.name)
    return torch.frombuffer(archive.getbuffer(), dtype=torch.uint8).clone()


def _gathered(mine: Any, rank: int, world_size: int) -> list[Any]:
    """Return the bytes of all ranks on rank 0, nothing on the others."""
    import torch
    from torch import distributed

    where = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    sizes = [torch.zeros(1, dtype=torch.int64, device=where) for _ in range(world_size)]
    distributed.all_gather(sizes, torch.tensor([len(mine)], device=where))
    most = max(int(size) for size in sizes)
    padded = torch.nn.functional.pad(mine, (0, most - len(mine))).to(where)
    parts = [torch.empty_like(padded) for _ in range(world_size)] if rank == 0 else None
    distributed.gather(padded, parts, dst=0)  # plain tensors: gathering objects would pickle them
    return [part[: int(size)].cpu() for part, size in zip(parts or (), sizes)]
