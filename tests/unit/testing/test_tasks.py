"""The kit's way through a task that defers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import TaskDeferred
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.tasks import event_of, go_on, run


class Counting(BaseTrigger):
    """Gives its number at once, unless it is negative."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.Counting", {"number": self.number}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        if self.number < 0:
            await asyncio.sleep(60)
        yield TriggerEvent(("number", self.number))


class Waiting(BaseOperator):
    """Defers so many times."""

    def __init__(self, times: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.times = times

    def execute(self, context: Any) -> Any:
        return self.further(context, ["number", 0], seen=())

    def further(self, context: Any, event: Any, seen: Any) -> Any:
        seen = (*seen, event)
        if len(seen) <= self.times:
            self.defer(trigger=Counting(len(seen)), method_name="further", kwargs={"seen": seen})
        return context["run_id"], seen


@pytest.mark.parametrize("times", [0, 1, 3])
def test_to_the_end(times: int) -> None:
    waits: list[int] = []
    told = run(Waiting(times=times, task_id="t"), context(run_id="r"), lambda: waits.append(1))
    assert told[0] == "r"
    assert [event[1] for event in told[1]] == list(range(times + 1))
    assert len(waits) == times


def test_what_was_kept_goes_through_json_as_in_the_database() -> None:
    with pytest.raises(TaskDeferred) as deferred:
        Waiting(times=1, task_id="t").execute(context())
    assert event_of(deferred.value) == ["number", 1]
    assert go_on(Waiting(times=1, task_id="t"), deferred.value, context())[1] == (["number", 0], ["number", 1])


def test_an_event_that_does_not_come() -> None:
    waiting = TaskDeferred(trigger=Counting(-1), method_name="further")
    with pytest.raises(asyncio.TimeoutError):
        event_of(waiting, timeout_s=0.05)
