"""The trigger behind deferred sensors."""

from __future__ import annotations

import asyncio
import importlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, Unavailable
from airflow_ml_provider.stages import checks
from airflow_ml_provider.stages.checks import Answer, PartitionCheck
from airflow_ml_provider.triggers.check import CheckTrigger


async def first(trigger: CheckTrigger) -> Any:
    return (await anext(aiter(trigger.run()))).payload


def partition_trigger(root: Path, **kwargs: Any) -> CheckTrigger:
    check = PartitionCheck(str(root), ("2013-01-05",))
    return CheckTrigger(check.check, codec.encode(check), **kwargs)


def complete(root: Path) -> None:
    (root / "interval=2013-01-05").mkdir()
    (root / "interval=2013-01-05" / "data.parquet").touch()


def test_it_survives_the_way_to_the_triggerer(tmp_path: Path) -> None:
    trigger = partition_trigger(tmp_path, poll_s=7.0, mlflow_conn_id="mlflow_default")
    path, kwargs = trigger.serialize()
    module, _, name = path.rpartition(".")
    again = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(kwargs)))
    assert again.serialize() == trigger.serialize()


def test_it_fires_when_the_partition_comes(tmp_path: Path) -> None:
    async def scene() -> Any:
        waiting = asyncio.ensure_future(first(partition_trigger(tmp_path, poll_s=0.01)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        complete(tmp_path)
        return await asyncio.wait_for(waiting, 30)

    event = asyncio.run(scene())
    assert event["status"] == "done"
    assert event["value"] == {"table": str(tmp_path), "partitions": ["2013-01-05"]}
    json.dumps(event)


def test_what_waiting_cannot_mend_is_an_event_at_once() -> None:
    event = asyncio.run(first(CheckTrigger("partition", {"table": "/t", "keys": []})))
    assert event["status"] == "error"
    assert "keys must be at least one key" in event["message"]
    assert asyncio.run(first(CheckTrigger("os.system", {})))["message"].startswith("unknown check 'os.system'")


def test_polling_faster_than_time_is_refused() -> None:
    with pytest.raises(SpecError, match="poll_s must be greater than 0"):
        CheckTrigger("partition", {}, poll_s=0)


@dataclass(frozen=True)
class SlowCheck(checks.Check):
    """Blocks its thread, then is away twice, then done."""

    check: ClassVar[str] = "slow"
    asked: ClassVar[list[str]] = []

    def ask(self, env: Mapping[str, str]) -> Answer:
        self.asked.append(threading.current_thread().name)
        time.sleep(0.2)
        if len(self.asked) < 3:
            raise Unavailable("the server is away")
        return Answer(True, "there", dict(env))


def test_a_slow_system_neither_blocks_the_loop_nor_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checks.CHECKS, "slow", SlowCheck)
    SlowCheck.asked.clear()

    async def scene() -> tuple[Any, int]:
        waiting = asyncio.ensure_future(first(CheckTrigger("slow", {}, poll_s=0.01)))
        ticks = 0
        while not waiting.done():
            await asyncio.sleep(0.005)
            ticks += 1
        return await waiting, ticks

    event, ticks = asyncio.run(scene())
    assert event["status"] == "done"
    assert len(SlowCheck.asked) == 3
    assert threading.main_thread().name not in SlowCheck.asked
    assert ticks > 20  # of about 120 that fit into 0.6 s


def test_settings_are_read_in_the_triggerer_and_never_serialised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checks.CHECKS, "slow", SlowCheck)
    SlowCheck.asked[:] = ["", ""]
    monkeypatch.setenv("AIRFLOW_CONN_ML", "mlflow://user:s3cret@tracking.example:5000")
    trigger = CheckTrigger("slow", {}, poll_s=0.01, mlflow_conn_id="ml")
    assert "s3cret" not in json.dumps(trigger.serialize())
    event = asyncio.run(first(trigger))
    assert "tracking.example:5000" in event["value"]["MLFLOW_TRACKING_URI"]
