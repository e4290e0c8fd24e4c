"""How fast a training is, per rank and in all, and what a million samples cost."""

from __future__ import annotations

import time
from typing import Any, Optional

_GIB = 2.0**30


class Meter:
    """Counts the steps of one rank; `report` puts those of all ranks together.

    Ranks that add up gradients wait for each other, so their steps take equally long. What tells a slow one is its busy
    time: what it computes within the step before that. Reading between the steps is in `step_s` alone, and where FSDP2
    gathers parameters the ranks wait for each other while they are busy, which makes them look more alike.

    Parameters:
        price_per_hour: of one rank.
    """

    def __init__(self, world_size: int, price_per_hour: Optional[float] = None) -> None:
        self._world_size, self._price = world_size, price_per_hour
        self._steps, self._samples, self._busy_s = 0, 0, 0.0
        self._since = self._last = time.perf_counter()

    def add(self, samples: int, busy_s: float, now: float) -> None:
        """Count a step that has ended now.

        Parameters:
            samples: rows of this rank.
            busy_s: what it computed before it waited for others.
            now: by `time.perf_counter`.
        """
        self._steps += 1
        self._samples += samples
        self._busy_s += busy_s
        self._last = now

    def report(self) -> dict[str, float]:
        """Return the figures since the last report; a collective call.

        `samples_per_s`, `samples_per_s_per_rank`, `step_s`, `straggler_ratio` (busy time of the slowest rank over the
        median), on GPUs `gpu_memory_gib` (most so far, of the fullest) and `gpu_utilisation` (mean, where the driver
        tells it), with a price `cost_per_million_samples`.
        """
        import numpy as np

        elapsed, steps = max(self._last - self._since, 1e-9), max(self._steps, 1)
        mine = [self._samples, elapsed, elapsed / steps, self._busy_s / steps, *_gpu()]
        ranks = np.array(_gathered(mine, self._world_size))
        self._steps, self._samples, self._busy_s = 0, 0, 0.0
        self._since = self._last = time.perf_counter()
        rate = float(ranks[:, 0].sum() / ranks[:, 1].max())
        found = {
            "samples_per_s": rate,
            "samples_per_s_per_rank": rate / self._world_size,
            "step_s": float(ranks[:, 2].max()),
            "straggler_ratio": float(ranks[:, 3].max() / max(float(np.median(ranks[:, 3])), 1e-9)),
        }
        for name, column, of in (("gpu_memory_gib", 4, np.max), ("gpu_utilisation", 5, np.mean)):
            if (ranks[:, column] >= 0).all():
                found[name] = float(of(ranks[:, column]))
        if self._price is not None and rate:
            found["cost_per_million_samples"] = self._price * self._world_size / 3600 / rate * 1e6
        return found


def _gathered(values: list[float], world_size: int) -> list[list[float]]:
    if world_size == 1:
        return [values]
    import torch
    from torch import distributed

    where = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    mine = torch.tensor(values, dtype=torch.float64, device=where)
    everyone = [torch.empty_like(mine) for _ in range(world_size)]
    distributed.all_gather(everyone, mine)
    return [[float(v) for v in row.cpu()] for row in everyone]


def _gpu() -> tuple[float, float]:
    """Return most memory in GiB and utilisation of this rank's GPU; -1 for what is not known."""
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return -1.0, -1.0
    try:
        use: Any = torch.cuda.utilization()
    except (ImportError, RuntimeError):  # it asks NVML, by a package that may be missing
        use = -1.0
    return torch.cuda.max_memory_allocated() / _GIB, float(use)
