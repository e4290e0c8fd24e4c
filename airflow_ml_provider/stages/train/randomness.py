"""The random numbers of a process: seeding, and their state as one vector, for Python, numpy and torch."""

from __future__ import annotations

import random
import sys
from typing import Any, Optional

_PYTHON, _NUMPY = 628, 627  # words of each part of the vector; torch's follow


def seed(seed: int, rank: int = 0, step: Optional[int] = None) -> None:
    """Seed everything random, differently for every rank.

    Parameters:
        step: where a rank joins a training that has begun; none at the beginning.
    """
    import numpy as np

    words = np.random.SeedSequence([seed, rank] if step is None else [seed, step, rank]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(int(words[2]))


def capture() -> Any:
    """Return the state of the random numbers of this process, int64 of a length that all ranks share."""
    import numpy as np

    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    parts = [
        np.array([version, *words, gauss is not None], np.int64),
        np.array([gauss or 0.0]).view(np.int64),
        np.array([*keys, position, has_gauss], np.int64),
        np.array([cached]).view(np.int64),
    ]
    if "torch" in sys.modules:
        import torch

        parts.append(torch.get_rng_state().numpy().view(np.int64))
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            parts.append(torch.cuda.get_rng_state().numpy().view(np.int64))
    return np.concatenate(parts)


def restore(state: Any) -> None:
    """Set the random numbers of this process to a captured state."""
    import numpy as np

    state = np.asarray(state, np.int64)
    python, legacy, rest = np.split(state, [_PYTHON, _PYTHON + _NUMPY])
    gauss = float(python[-1:].view(np.float64)[0]) if python[-2] else None
    random.setstate((int(python[0]), tuple(python[1:-2].tolist()), gauss))
    cached = float(legacy[-1:].view(np.float64)[0])
    np.random.set_state(("MT19937", legacy[:-3].astype(np.uint32), int(legacy[-3]), int(legacy[-2]), cached))
    if len(rest) and "torch" in sys.modules:
        import torch

        size = len(torch.get_rng_state()) // 8
        torch.set_rng_state(torch.from_numpy(rest[:size].copy().view(np.uint8)))
        if len(rest) > size and torch.cuda.is_available():
            torch.cuda.set_rng_state(torch.from_numpy(rest[size:].copy().view(np.uint8)))


def gathered(world_size: int) -> Any:
    """Return the states of all ranks, int64 [world_size, words]; a collective call."""
    import numpy as np

    mine = capture()
    if world_size == 1:
        return mine.reshape(1, -1)
    import torch
    from torch import distributed

    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    everyone = [torch.empty(len(mine), dtype=torch.int64, device=device) for _ in range(world_size)]
    # A plain tensor: gathering objects would pickle them.
    distributed.all_gather(everyone, torch.from_numpy(mine).to(device))
    return np.stack([state.cpu().numpy() for state in everyone])
