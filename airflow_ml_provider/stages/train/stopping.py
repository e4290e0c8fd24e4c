"""SIGTERM, the notice before a kill: all ranks agree on a step, take a snapshot there, and end."""

from __future__ import annotations

import logging
import os
import signal
import threading
from datetime import timedelta
from typing import Any, NoReturn, Optional

log = logging.getLogger(__name__)

EXIT = 128 + signal.SIGTERM
_KEY = "stop"


class Stopping:
    """The agreement of the ranks on the step of the last snapshot.

    The handler is set by the first `due`, so a training without snapshots ends by SIGTERM as it always did; so does one
    that gets a second SIGTERM before its next step.

    Parameters:
        world_size: how many processes train together.
        store: what all ranks of this attempt share; without one, several ranks are not asked to stop together.
    """

    def __init__(self, world_size: int = 1, store: Optional[Any] = None) -> None:
        self.told = False
        self.at: Optional[int] = None
        self._alone, self._store = world_size == 1, store
        self._before: Any = None
        self._set = False
        self._event: Any = None

    def due(self, step: int) -> bool:
        """Return whether the last snapshot belongs after this step; the same on all ranks.

        Gradients of step N + 1 are only added up when all ranks are done with N. So what a rank says after step N, the
        others see after N + 1 at the latest, and all of them can stop after N + 2.
        """
        self._listen()
        if self.at is None:
            self._wait_for_device()
            self.at = self._agreed(step)
        return self.at is not None and step >= self.at

    def end(self) -> NoReturn:
        """End this process; the snapshot is written.

        So do the ranks that were not told: the next collective call would only have them wait for one that is gone,
        with NCCL until they are killed.

        Raises:
            SystemExit: 143, as a process that SIGTERM ends.
        """
        whose = "this process" if self.told else "another rank"
        log.warning("ended after the snapshot of step %d: %s got SIGTERM", self.at or 0, whose)
        raise SystemExit(EXIT)

    def close(self) -> None:
        """Set the handler that was there before."""
        if self._set:
            signal.signal(signal.SIGTERM, self._before)
            self._set = False

    def _agreed(self, step: int) -> Optional[int]:
        if self._alone or self._store is None:
            return step if self._alone and self.told else None
        if self.told:
            self._store.compare_set(_KEY, "", str(step + 2))
        elif not self._store.check([_KEY]):
            return None
        self._store.wait([_KEY], timedelta(seconds=30))
        return int(self._store.get(_KEY))

    def _wait_for_device(self) -> None:
        """Keep a rank on GPUs from running ahead of the others: until the step before is computed, not only queued."""
        if self._alone or not _on_gpu():
            return
        import torch

        if self._event is not None:
            self._event.synchronize()
        self._event = torch.cuda.Event()
        self._event.record()

    def _listen(self) -> None:
        if self._set or threading.current_thread() is not threading.main_thread():
            return
        self._before = signal.signal(signal.SIGTERM, self._hear)
        self._set = True

    def _hear(self, number: int, frame: Any) -> None:
        if self.told:
            self.close()
            os.kill(os.getpid(), number)
        self.told = True


def _on_gpu() -> bool:
    from torch import distributed

    return bool(distributed.is_initialized() and distributed.get_backend() == "nccl")
