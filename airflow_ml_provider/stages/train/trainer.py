"""One optimiser step of all ranks on one global batch: micro batches, precision, clipping, metering, snapshots."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Callable, Optional

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.stages.train import parallel
from airflow_ml_provider.stages.train.meter import Meter
from airflow_ml_provider.stages.train.parallel import Precision
from airflow_ml_provider.stages.train.state import load_into

if TYPE_CHECKING:
    from airflow_ml_provider.stages.train.run import Run


class Trainer:
    """Trains a module of `run.parallel`; users get one from `run.trainer`.

    With fewer ranks than the task asks for, each takes a bigger share of the batch, in micro batches of the old size:
    the memory that it needs and the gradients, the mean over the whole batch, stay what they were.

    Attributes:
        steps: optimiser steps so far.
        meter: how fast it is.
    """

    def __init__(
        self, run: Run, model: Any, optimizer: Any, scheduler: Optional[Any] = None, *, precision: Precision = "fp32",
        clip: Optional[float] = None, accumulate: int = 1, log_every: int = 50,
    ) -> None:  # fmt: skip
        import torch

        parallel.check_precision(precision)
        if accumulate < 1:
            raise invalid("accumulate", accumulate, "at least 1")
        self.run, self.model, self.optimizer, self.scheduler = run, model, optimizer, scheduler
        self.precision, self.clip = precision, clip
        self.micro_steps = accumulate * math.ceil(run.full_size / run.world_size)
        self.scaler = torch.amp.GradScaler(run.device.type) if precision == "fp16" else None
        self.steps = 0
        self.meter = Meter(run.world_size, run.launch.price_per_hour)
        self._log_every = log_every

    def step(self, batch: Any, loss_fn: Callable[[Any, Any], Any]) -> float:
        """Learn from this rank's share of a batch; return this rank's mean loss.

        Parameters:
            batch: a tensor or array with a row per example, or a tuple, list or dict of them.
            loss_fn: called with model and micro batch, returns the mean loss of its rows as a tensor.
        """
        began = time.perf_counter()
        self.model.train()
        rows = _rows(batch)
        parts, share, loss = self._count(rows), self._weight(rows), None
        for i in range(parts):
            first, last = rows * i // parts, rows * (i + 1) // parts
            weight = (last - first) / rows
            if first == last:  # fewer rows than micro steps: any row, of no weight
                last = first + 1
            piece = batch if parts == 1 else _slice(batch, first, last)
            with parallel.accumulating(self.model, i < parts - 1):
                with parallel.autocast(self.run.device, self.precision):
                    mean = loss_fn(self.model, piece)
                if i == parts - 1:
                    busy = time.perf_counter() - began  # what follows waits for the other ranks
                self._backward(mean if weight * share == 1 else mean * (weight * share))
            part = mean.detach() if weight == 1 else mean.detach() * weight
            loss = part if loss is None else loss + part
        self._update()
        self.steps += 1
        found = float(loss.item()) if loss is not None else 0.0
        self.meter.add(rows, busy, time.perf_counter())
        if self.run.launch.profile_steps:
            self.run.stepped(self.steps)
        if self.steps % self._log_every == 0:
            self.report()
        return found

    def keep(self, steps_per_epoch: int = 0, **state: Any) -> bool:
        """Take a snapshot if one is due, with model, optimiser, scheduler, scaler and `state`; return whether."""
        if not self.run.due(self.steps, steps_per_epoch):
            return False
        self.run.snapshot(self.steps, **self._parts(), **state)
        return True

    def resume(self) -> dict[str, Any]:
        """Go on from the newest snapshot, if there is one; return the `state` that was kept, and `step`."""
        found = self.run.resume()
        if found is None:
            return {"step": 0}
        for name, part in self._parts().items():
            load_into(part, found.pop(name))
        self.steps = found["step"]
        return found

    def report(self) -> dict[str, float]:
        """Record how fast all ranks are, and return it; a collective call."""
        found = self.meter.report()
        for name, value in found.items():
            self.run.log(f"performance/{name}", value, self.steps)
        self.run.performance.update(found)
        return found

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        return {name: part for name, part in parts.items() if part is not None}

    def _count(self, rows: int) -> int:
        """Return the number of micro batches: the same on all ranks, as FSDP2 gathers parameters in every one."""
        return self.micro_steps if self.run.world_size > 1 else min(self.micro_steps, rows)

    def _weight(self, rows: int) -> float:
        """Return what this rank's mean counts: ranks are averaged, also where some have more rows than others."""
        if self.run.full_size % self.run.world_size == 0:
            return 1.0
        return rows * self.run.world_size / self.run.sum(rows)

    def _backward(self, loss: Any) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _update(self) -> None:
        import torch

        if self.clip is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()


def _rows(batch: Any) -> int:
    first = batch
    while isinstance(first, (tuple, list, dict)):
        first = next(iter(first.values() if isinstance(first, dict) else first))
    if not len(first):
        raise invalid("batch", 0, "at least one row on every rank", "give a larger batch")
    return len(first)


def _slice(batch: Any, first: int, last: int) -> Any:
    if isinstance(batch, dict):
        return {name: _slice(value, first, last) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)([_slice(value, first, last) for value in batch])
    return batch[first:last]
