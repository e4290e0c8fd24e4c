"""What a training function works with: rows, randomness, measurements and snapshots. Users see it as `run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional

from airflow_ml_provider.stages.train.preprocess import Preprocessor
from airflow_ml_provider.stages.train.snapshots import Snapshots
from airflow_ml_provider.stages.train.spec import Launch


@dataclass(frozen=True)
class Ranks:
    """Which of the processes that train together this is; alone it is rank 0 of 1."""

    rank: int = 0
    world_size: int = 1


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
        preprocessor: what makes the matrix from raw columns.
        params: the settings that the task was given.
        launch: processes and snapshots.
        seed: seed of everything random; the same for all ranks.
        rank: which of the processes this is, from 0.
        world_size: how many processes train together.
        resumed_from: step of the snapshot that training went on from.
    """

    def __init__(
        self,
        *,
        train: Part,
        validation: Part,
        params: Mapping[str, Any],
        launch: Launch,
        seed: int,
        ranks: Ranks,
        snapshots: Snapshots,
        log: Callable[[str, float, Optional[int]], None],
        before_snapshot: Callable[[], None],
    ) -> None:
        self.train = train
        self.validation = validation
        self.preprocessor = train.preprocessor
        self.params = params
        self.launch = launch
        self.seed = seed
        self.rank = ranks.rank
        self.world_size = ranks.world_size
        self.resumed_from: Optional[int] = None
        self._snapshots = snapshots
        self._log = log
        self._before_snapshot = before_snapshot

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the matrix's columns."""
        return self.preprocessor.features

    def log(self, metric: str, value: float, step: Optional[int] = None) -> None:
        """Record a measurement; ranks other than 0 are ignored."""
        if self.rank == 0:
            self._log(metric, float(value), step)

    def batches(self, epoch: int, size: int) -> list[Any]:
        """Return this rank's share of each batch of an epoch, as arrays of row numbers of `train`.

        The rows are shuffled by seed and epoch alone, so any step of any epoch can be gone back to. `size` counts the
        rows of all ranks together; every rank gets equally many, and the rows that make no full batch are left out of
        this epoch.
        """
        import numpy as np

        rows = len(self.train)
        size = max(self.world_size, min(size, rows) // self.world_size * self.world_size)
        order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(rows)
        return [order[i + self.rank : i + size : self.world_size] for i in range(0, rows - size + 1, size)]

    def parallel(self, module: Any) -> Any:
        """Return a torch module as all ranks train it together (DDP); the module itself when there is one rank.

        DDP arranges gradients anew after its first step, unless some might be unused. Three or more ranks then add them
        up in another order, and a resumed training would end in other last bits than one that was not interrupted.
        """
        if self.world_size == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(module, find_unused_parameters=True)

    def snapshot(self, step: int, **state: Any) -> None:
        """Keep `state` so that a killed training can go on from here; every rank must call it at the same step.

        Kept are: whatever has a `state_dict` (modules, optimisers, schedulers), tensors, arrays, and JSON values in
        lists, tuples and dicts; with them the state of the random numbers of every rank. What rank 0 gives counts.
        """
        self._before_snapshot()
        self._snapshots.save(step, state)

    def resume(self) -> Optional[dict[str, Any]]:
        """Return the newest snapshot's state and its `step`, and set the random numbers to what they were; or none.

        Modules and optimisers come back as their `state_dict`.
        """
        found = self._snapshots.load()
        if found is None:
            return None
        self.resumed_from, state = found
        return {**state, "step": self.resumed_from}

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Return whether a snapshot belongs after so many steps, by the task's `launch.snapshot_every`."""
        return step % (self.launch.snapshot_every or steps_per_epoch) == 0
