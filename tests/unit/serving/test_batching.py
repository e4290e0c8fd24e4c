"""What is scored together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from airflow_ml_provider.serving.batching import Batcher


class Model:
    """Squares numbers, remembers its batches, and can be held."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        assert self.go.wait(30)
        if 13 in items:
            raise ValueError("thirteen")
        return [item * item for item in items]


def batcher(model: Model, **settings) -> Batcher[int]:
    return Batcher(model, **{"max_rows": 4, **settings})


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_alone_when_idle() -> None:
    async def work() -> None:
        model = Model()
        batches = batcher(model)
        assert [await batches.submit(n, 1) for n in (1, 2, 3)] == [1, 4, 9]
        assert model.batches == [[1], [2], [3]]
        await batches.close()

    asyncio.run(work())


def test_what_arrives_meanwhile_goes_together() -> None:
    async def work() -> None:
        model = Model()
        model.go.clear()
        batches = batcher(model)
        first = asyncio.create_task(batches.submit(1, 1))
        await until(lambda: model.batches)
        rest = [asyncio.create_task(batches.submit(n, 1)) for n in range(2, 8)]
        await asyncio.sleep(0)
        model.go.set()
        assert await asyncio.gather(first, *rest) == [n * n for n in range(1, 8)]
        assert model.batches == [[1], [2, 3, 4, 5], [6, 7]]
        await batches.close()

    asyncio.run(work())


def test_rows_count_and_a_large_item_is_a_batch_of_its_own() -> None:
    async def work() -> None:
        model, seen = Model(), []
        batches = batcher(model, max_delay_ms=20, seen=seen.append)
        rows = [(1, 3), (2, 2), (3, 9), (4, 1), (5, 1)]
        assert await asyncio.gather(*(batches.submit(*one) for one in rows)) == [1, 4, 9, 16, 25]
        assert model.batches == [[1], [2], [3], [4, 5]]
        assert seen == [3, 2, 9, 2]
        await batches.close()

    asyncio.run(work())


def test_a_full_batch_does_not_wait() -> None:
    async def work() -> None:
        model = Model()
        batches = batcher(model, max_delay_ms=1e9)
        assert await asyncio.gather(*(batches.submit(n, 1) for n in range(4))) == [0, 1, 4, 9]
        assert model.batches == [[0, 1, 2, 3]]
        await batches.close()

    asyncio.run(work())


def test_one_bad_item_is_its_own_fault() -> None:
    async def work() -> None:
        model = Model()
        batches = batcher(model, max_delay_ms=20)
        found = await asyncio.gather(*(batches.submit(n, 1) for n in (2, 13, 3)), return_exceptions=True)
        assert (found[0], found[2]) == (4, 9)
        assert isinstance(found[1], ValueError)
        with pytest.raises(ValueError, match="thirteen"):
            await batches.submit(13, 1)
        assert await batches.submit(4, 1) == 16
        await batches.close()

    asyncio.run(work())


def test_who_has_gone_is_not_scored() -> None:
    async def work() -> None:
        model = Model()
        model.go.clear()
        batches = batcher(model)
        first, gone, last = (asyncio.create_task(batches.submit(n, 1)) for n in (1, 2, 3))
        await until(lambda: model.batches)
        gone.cancel()
        await asyncio.sleep(0)
        model.go.set()
        assert (await first, await last) == (1, 9)
        assert 2 not in [n for batch in model.batches[1:] for n in batch]
        await batches.close()

    asyncio.run(work())


def test_close_answers_what_is_queued() -> None:
    async def work() -> None:
        model = Model()
        model.go.clear()
        batches = batcher(model, max_rows=1)
        waiting = [asyncio.create_task(batches.submit(n, 1)) for n in (1, 2, 3)]
        await until(lambda: model.batches)
        asyncio.get_running_loop().call_later(0.02, model.go.set)
        await batches.close()
        assert [await one for one in waiting] == [1, 4, 9]

    asyncio.run(work())
