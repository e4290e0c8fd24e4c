"""Requests that are scored together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Optional, TypeVar

T = TypeVar("T")


@dataclass
class _Waiting(Generic[T]):
    item: T
    rows: int
    answer: asyncio.Future[Any]
    arrived: float
    scored_s: float = 0.0


class Batcher(Generic[T]):
    """Gather what arrives while the last batch is being scored, and for a moment more if asked to.

    Batches are scored one after the other by one thread, so the event loop stays free. Without a delay a request that
    finds the model idle is scored at once, alone.

    Parameters:
        score: takes a list of items and returns their answers in order; runs in the thread.
        max_rows: rows of one batch at most; an item with more is a batch of its own.
        max_delay_ms: how long the first of a batch waits for others.
        seen: is told the rows of each batch.
    """

    def __init__(
        self,
        score: Callable[[list[T]], list[Any]],
        *,
        max_rows: int,
        max_delay_ms: float = 0.0,
        seen: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._score, self._max_rows, self._delay_s, self._seen = score, max_rows, max_delay_ms / 1000, seen
        self._queue: deque[_Waiting[T]] = deque()
        self._rows = 0
        self._full = asyncio.Event()
        self._worker: Optional[asyncio.Task[None]] = None
        self._thread = ThreadPoolExecutor(1, "score")

    async def submit(self, item: T, rows: int) -> Any:
        """Return the answer to one item.

        Parameters:
            rows: how many rows it has.

        Raises:
            Exception: what scoring the item by itself raises; others of its batch are answered all the same.
        """
        return (await self.timed(item, rows))[0]

    async def timed(self, item: T, rows: int) -> tuple[Any, float]:
        """Return the answer to one item, and how long it took to score its batch (seconds)."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(item, rows, loop.create_future(), loop.time())
        self._queue.append(waiting)
        self._rows += rows
        if self._rows >= self._max_rows:
            self._full.set()
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await waiting.answer, waiting.scored_s

    async def close(self) -> None:
        """Wait for what is queued and end the thread."""
        while self._worker is not None:
            await asyncio.wait([self._worker])
        self._thread.shutdown()

    async def _work(self) -> None:
        try:
            while self._queue:
                if self._delay_s:
                    await self._gather()
                batch = self._take()
                if batch:
                    await self._answer(batch)
        finally:
            self._worker = None

    async def _gather(self) -> None:
        """Wait until a batch is full or its first item has waited for long enough, also while the last was scored."""
        left = self._queue[0].arrived + self._delay_s - asyncio.get_running_loop().time()
        if left > 0 and self._rows < self._max_rows:
            self._full.clear()
            with contextlib.suppress(asyncio.TimeoutError):  # in Python 3.9 and 3.10 not the built-in one
                await asyncio.wait_for(self._full.wait(), left)

    def _take(self) -> list[_Waiting[T]]:
        batch: list[_Waiting[T]] = []
        rows = 0
        while self._queue and (not batch or rows + self._queue[0].rows <= self._max_rows):
            waiting = self._queue.popleft()
            self._rows -= waiting.rows
            if not waiting.answer.done():  # whoever asked may have gone
                batch.append(waiting)
                rows += waiting.rows
        return batch

    async def _answer(self, batch: list[_Waiting[T]]) -> None:
        self._seen(sum(waiting.rows for waiting in batch))
        begun = time.perf_counter()
        try:
            answers = await self._run([waiting.item for waiting in batch])
        except Exception as error:  # noqa: BLE001 - whatever the model raises goes to the one who caused it
            if len(batch) == 1:
                _settle(batch[0], error)
            else:
                for waiting in batch:
                    await self._answer([waiting])
            return
        scored_s = time.perf_counter() - begun
        for waiting, answer in zip(batch, answers):
            waiting.scored_s = scored_s
            _settle(waiting, answer)

    async def _run(self, items: list[T]) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, items)


def _settle(waiting: _Waiting[Any], answer: Any) -> None:
    if waiting.answer.done():
        return
    if isinstance(answer, Exception):
        waiting.answer.set_exception(answer)
    else:
        waiting.answer.set_result(answer)
