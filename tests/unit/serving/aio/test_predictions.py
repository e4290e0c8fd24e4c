"""Which keys are new to the log, in bounded memory."""

from __future__ import annotations

import asyncio
import random

import pytest

pytest.importorskip("aiohttp")

from airflow_ml_provider.serving.aio.predictions import Met, PredictionLog


def test_a_key_is_met_with_its_version():
    met = Met()
    assert ("ann", "v1") not in met
    met.add(("ann", "v1"))
    assert ("ann", "v1") in met
    assert ("ann", "v2") not in met
    assert ("joe", "v1") not in met
    met.clear()
    assert ("ann", "v1") not in met


def test_nobody_is_met_who_never_came_and_few_are_forgotten():
    met, draw = Met(places=2**10), random.Random(0)
    keys = [(f"user {number}", "v1") for number in range(2**10)]
    for key in keys:
        met.add(key)
    assert not any((f"stranger {number}", "v1") in met for number in range(20_000))
    found = 0
    for key in draw.choices(keys, k=20_000):
        found += key in met
        met.add(key)
    assert found / 20_000 == pytest.approx(0.632, abs=0.06)  # 1 - 1/e at one key for each place
    assert len(met._marks) == 2**10


def test_a_key_is_logged_again_after_a_new_split(tmp_path):
    async def work() -> None:
        log = PredictionLog(tmp_path)
        assert not log.is_new(None)
        assert log.is_new(("ann", "v1"))
        log.add("v1", "live", {}, {}, 1.0, ("ann", "v1"))
        assert not log.is_new(("ann", "v1"))
        log.begin_anew()
        assert log.is_new(("ann", "v1"))
        await log.close()

    asyncio.run(work())
    (file,) = tmp_path.glob("*.jsonl")
    assert '"key": "ann", "assigned": "v1"' in file.read_text()
