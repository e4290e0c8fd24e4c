"""What a training function works with: rows, randomness, measurements and snapshots. Users see it as `run`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.train import parallel
from airflow_ml_provider.stages.train.parallel import Policy, Precision
from airflow_ml_provider.stages.train.preprocess import Preprocessor
from airflow_ml_provider.stages.train.profile import SUFFIX, WARM_UP, Profile
from airflow_ml_provider.stages.train.snapshots import Snapshots
from airflow_ml_provider.stages.train.spec import Launch
from airflow_ml_provider.stages.train.stopping import Stopping

if TYPE_CHECKING:
    from airflow_ml_provider.stages.train.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranks:
    """Which of the processes that train together this is; alone it is rank 0 of 1.

    Attributes:
        store: what the ranks of this attempt share (a store of torch.distributed); by it they agree when to stop.
    """

    rank: int = 0
    world_size: int = 1
    store: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class Part:
    """Rows to learn from or to validate on, oldest first."""

    table: Any
    labels: Any
    preprocessor: Preprocessor

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def arrow(self) -> Any:
        """Return the raw rows as an Arrow table: inputs, label and timestamp."""
        return self.table

    def numpy(self) -> tuple[Any, Any]:
        """Return the preprocessed matrix, float32 [N, F], and the labels 0 or 1, float32 [N]."""
        return self.preprocessor.matrix(self.table), self.labels


class Run:
    """One training, as a function `fit(run, **kwargs)` sees it.

    Attributes:
        train: the older rows.
        validation: the newest rows, for early stopping.
        params: the settings that the task was given.
        launch: processes and snapshots.
        seed: seed of everything random; the same for all ranks.
        rank: which of the processes this is, from 0.
        world_size: how many processes train together.
        resumed_from: step of the snapshot that training went on from.
        performance: the last figures of a trainer's meter, and `communication_share` of a profile.
    """

    def __init__(
        self,
        *,
        train: Any,
        validation: Any,
        params: Mapping[str, Any],
        launch: Launch,
        seed: int,
        ranks: Ranks,
        snapshots: Snapshots,
        log: Callable[[str, float, Optional[int]], None],
        before_snapshot: Callable[[], None],
        files: Sequence[Union[str, Path]] = (),
        traces: Union[str, Path] = "profile",
    ) -> None:
        self.train: Part = train
        self.validation: Part = validation
        self._files = files
        self.params = params
        self.launch = launch
        self.seed = seed
        self.rank = ranks.rank
        self.world_size = ranks.world_size
        self.resumed_from: Optional[int] = None
        self.performance: dict[str, float] = {}
        self._stopping = Stopping(ranks.world_size, ranks.store)
        self._snapshots = snapshots
        self._log = log
        self._before_snapshot = before_snapshot
        self._traces = Path(traces)
        self._profile: Optional[Profile] = None

    @property
    def preprocessor(self) -> Preprocessor:
        """What makes the matrix from raw columns."""
        return self.train.preprocessor

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the matrix's columns."""
        return self.preprocessor.features

    @property
    def full_size(self) -> int:
        """How many ranks train when none is missing."""
        return max(self.launch.ranks, self.world_size)

    @cached_property
    def device(self) -> Any:
        """The torch device of this rank."""
        return parallel.device(self.world_size)

    @cached_property
    def mesh(self) -> Any:
        """The torch DeviceMesh over all ranks; its dimension is called `ranks`."""
        return parallel.mesh(self.world_size)

    def log(self, metric: str, value: float, step: Optional[int] = None) -> None:
        """Record a measurement; ranks other than 0 are ignored."""
        if self.rank == 0:
            self._log(metric, float(value), step)

    def sum(self, value: Any) -> float:
        """Return the sum over all ranks of a number or a tensor of one; a collective call."""
        import torch

        # Not `as_tensor` of a tensor: it is added up in place.
        total = value.detach().clone() if hasattr(value, "detach") else torch.tensor(float(value), device=self.device)
        if self.world_size > 1:
            torch.distributed.all_reduce(total)
        return float(total.item())

    def batches(self, epoch: int, size: int) -> list[Any]:
        """Return this rank's share of each batch of an epoch, as arrays of row numbers of `train`.

        The rows are shuffled by seed and epoch alone, so any step of any epoch can be gone back to. `size` counts the
        rows of all ranks together, a multiple of the ranks that the task asks for; when some of these are missing, the
        others share the same batches. The rows that make no full batch are left out of this epoch.
        """
        import numpy as np

        rows, full = len(self.train), self.full_size
        size = max(full, min(size, rows) // full * full)
        order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(rows)
        return [order[i + self.rank : i + size : self.world_size] for i in range(0, rows - size + 1, size)]

    def reader(
        self, files: Optional[Sequence[Union[str, Path]]], columns: Sequence[str], batch_size: int, **settings: Any
    ) -> Any:
        """Return a resumable `Reader` of Parquet files that do not fit into memory; give it to `run.snapshot`.

        Parameters:
            files: none takes those of the data set: all of its rows, those for validation and of other segments too.
            columns: which are read.
            batch_size: rows per batch, of all ranks together.
            settings: `shuffle` (yes), `window` (row groups in memory at once, 4).
        """
        from airflow_ml_provider.stages.train.reader import Reader

        return Reader(
            self._files if files is None else files, columns, batch_size, seed=self.seed, rank=self.rank,
            world_size=self.world_size, shards=self.full_size, **settings,
        )  # fmt: skip

    def parallel(
        self, module: Any, *, shard: Optional[Policy] = None, precision: Precision = "fp32",
        checkpoint: Optional[Policy] = None, deepspeed: Optional[Mapping[str, Any]] = None,
    ) -> Any:  # fmt: skip
        """Return a torch module as all ranks train it together; make its optimiser afterwards.

        Parameters:
            shard: which submodules are sharded over the ranks, and the module itself with them (FSDP2): a class, a
                tuple of classes or a function of a module. None replicates it (DDP). One rank alone does neither.
            precision: with `bf16` a sharded module computes in bfloat16 and adds up gradients in float32.
            checkpoint: which submodules compute their activations again instead of keeping them.
            deepspeed: DeepSpeed's own configuration; it then trains the module, with an optimiser, a schedule and a
                precision of its configuration.
        """
        parallel.check_precision(precision)
        if checkpoint is not None:
            parallel.recompute(module, checkpoint)
        if deepspeed is not None:
            if shard is not None or precision != "fp32":
                raise SpecError(
                    "deepspeed shards by its zero_optimization and computes by its bf16 or fp16: say it there"
                )
            from airflow_ml_provider.stages.train.deepspeed import initialize

            return initialize(module, deepspeed, on_gpu=self.device.type == "cuda")
        if self.world_size == 1:
            return module
        return parallel.replicate(module) if shard is None else parallel.shard(module, shard, self.mesh, precision)

    def trainer(
        self, model: Any, optimizer: Optional[Any] = None, scheduler: Optional[Any] = None, **settings: Any
    ) -> Trainer:
        """Return what does the steps: micro batches, precision, clipping, optimiser, scheduler, figures, snapshots.

        Parameters:
            model: of `parallel`.
            optimizer: of the model's parameters; none where DeepSpeed has one.
            scheduler: of the optimiser; it goes on with every step.
            settings: `precision` (`fp32`, `bf16`, `fp16` with a scaler), `clip` (most norm of the gradients),
                `accumulate` (micro batches per batch, 1), `log_every` (steps between figures, 50).
        """
        from airflow_ml_provider.stages.train.deepspeed import DeepSpeedTrainer, is_engine
        from airflow_ml_provider.stages.train.trainer import Trainer

        if is_engine(model):
            if optimizer is not None or scheduler is not None or settings.keys() - {"log_every"}:
                raise SpecError("optimizer, scheduler and all settings but log_every are in DeepSpeed's configuration")
            return DeepSpeedTrainer(self, model, **settings)
        if optimizer is None:
            raise SpecError("optimizer is missing: give one of the model's parameters")
        return Trainer(self, model, optimizer, scheduler, **settings)

    def snapshot(self, step: int, **state: Any) -> None:
        """Keep `state` so that a killed training can go on from here; every rank must call it at the same step.

        Kept are: whatever has a `state_dict` (modules, optimisers, schedulers), tensors, arrays, and JSON values in
        lists, tuples and dicts; with them the state of the random numbers of every rank. What rank 0 gives counts. The
        state is copied, and written while the training goes on.

        Raises:
            SystemExit: 143; this process or another rank got SIGTERM, and the snapshot is written.
        """
        last = self._stopping.at is not None and step >= self._stopping.at
        self._before_snapshot()
        self._snapshots.save(step, state, wait=last)
        if last:
            self._stopping.end()

    def resume(self) -> Optional[dict[str, Any]]:
        """Return the newest snapshot's state and its `step`, and set the random numbers to what they were; or none.

        Modules and optimisers come back as their `state_dict`.
        """
        found = self._snapshots.load()
        if found is None:
            return None
        self.resumed_from, state = found
        return {**state, "step": self.resumed_from}

    def due(self, step: int, steps_per_epoch: int = 0) -> bool:
        """Return whether a snapshot belongs after so many steps; every rank must ask, after the same steps.

        By the task's `launch.snapshot_every`, else at the end of every epoch; and two steps after a rank got SIGTERM.
        """
        every = self.launch.snapshot_every or steps_per_epoch
        stop = self._stopping.due(step)
        return stop or (every > 0 and step % every == 0)

    def stepped(self, step: int) -> None:
        """Count a step for the profile of `launch.profile_steps`; every rank must call it after every step.

        A trainer does it. With the last one that is recorded the share of communication is logged, the mean of all
        ranks.
        """
        steps = self.launch.profile_steps
        if self._profile is None and steps:
            path = self._traces / f"rank-{self.rank}{SUFFIX}"
            self._profile = Profile(path, steps, on_gpu=self.device.type == "cuda")
        share = self._profile.step() if self._profile else None
        if share is not None:
            self.performance["communication_share"] = self.sum(share) / self.world_size
            self.log("performance/communication_share", self.performance["communication_share"], step)

    def forget(self) -> None:
        """Remove all snapshots: the package is in place."""
        self._snapshots.clear()

    def close(self, *, failed: bool = False) -> None:
        """Wait for the last snapshot, and let SIGTERM do what it did before.

        Raises:
            OSError: it could not be written; when the training has `failed` anyway, that is only logged.
        """
        self._stopping.close()
        if self._profile:
            self._profile.close()
        if self.launch.profile_steps and not (failed or (self._profile and self._profile.done)):
            least = WARM_UP + self.launch.profile_steps
            log.warning("there is no profile: it takes %d steps, of `run.trainer` or told to `run.stepped`", least)
        try:
            self._snapshots.finish()
        except Exception as error:
            if not failed:
                raise
            log.warning("the last snapshot could not be written: %s", error)
