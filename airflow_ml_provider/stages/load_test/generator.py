"""Send requests when they are due, whatever became of those before, and watch whether that works out."""

from __future__ import annotations

import asyncio
import gc
import selectors
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional

from airflow_ml_provider.stages.load_test.logic import Sample

Outcome = tuple[str, Mapping[str, float]]
"""Why there was no good answer (empty when there was), and what the server says it spent on it (seconds)."""
Send = Callable[[int], Awaitable[Outcome]]

_LEAD_S = 0.02


async def drive(due: Sequence[float], send: Send, *, connections: int, timeout_s: float) -> list[Sample]:
    """Return what became of each request, once the last one is answered or has failed.

    Parameters:
        due: when each is to be sent, in seconds from the beginning, in order.
        send: sends the request of an index and waits for its answer.
        connections: requests under way at a time at most; the others wait, and the wait is part of their latency.
        timeout_s: a request that has no answer so long after it was due has failed.
    """
    free = asyncio.Semaphore(connections)
    began = time.perf_counter() + _LEAD_S
    tasks = []
    for at, moment in enumerate(due):
        # Also without time to sleep: answers must be read while this is behind.
        await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
        tasks.append(asyncio.create_task(_one(at, moment, began + moment, send, free, timeout_s)))
    return await asyncio.gather(*tasks)


async def _one(at: int, due: float, moment: float, send: Send, free: asyncio.Semaphore, timeout_s: float) -> Sample:
    begun = time.perf_counter()
    lag, sent = max(0.0, begun - moment), None
    overdue = _Deadline(moment + timeout_s - begun)
    try:
        async with free:
            sent = time.perf_counter()
            error, parts = await send(at)
            answered = time.perf_counter() - sent
    except asyncio.CancelledError:
        if not overdue.passed:
            raise
        return Sample(due, lag, (sent or time.perf_counter()) - begun, None, "timeout")
    finally:
        overdue.end()
    return Sample(due, lag, sent - begun, answered, error, parts)


class _Deadline:
    """Cancels the running task later; tells that apart from being cancelled by others. (`wait_for` makes a task.)"""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._task: Optional[asyncio.Task[Any]] = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self._pass)

    def _pass(self) -> None:
        self.passed = True
        if self._task is not None:
            self._task.cancel()

    def end(self) -> None:
        self._timer.cancel()


@contextmanager
def punctual() -> Iterator[asyncio.AbstractEventLoop]:
    """Give an event loop that keeps time better than the usual one.

    `select` waits for microseconds, where `epoll` rounds up to whole milliseconds; it can watch a thousand connections.
    What is in memory already is left out of garbage collections: in a process as large as an Airflow task they stop
    everything for tens of milliseconds.
    """
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    gc.collect()
    gc.freeze()
    try:
        asyncio.set_event_loop(loop)
        yield loop
    finally:
        gc.unfreeze()
        asyncio.set_event_loop(None)
        loop.close()
