"""The trigger of a stage that waits for the run before its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
"""States of a task instance after which nothing of it runs."""


def has_ended(states: Mapping[str, Mapping[str, Any]], run_id: str) -> bool:
    """Return whether a task of a run has ended, in whatever state; also if run or task are gone.

    Parameters:
        states: run to task instance to state, for one task: `TASK`, or `TASK_0`, `TASK_1` … when it is mapped.
        run_id: the run.
    """
    return all(str(getattr(state, "value", state)) in ENDED for state in states.get(run_id, {}).values())


class PreviousRunTrigger(BaseTrigger):
    """Wait until a task of another run has ended, all of its mapped instances, in whatever state.

    (The standard provider's `WorkflowTrigger` counts states, so it never ends for mapped tasks and deleted runs.)

    Parameters:
        dag_id: the DAG.
        run_id: the run.
        task_id: the task.
        poll_s: time between two looks (seconds).
    """

    def __init__(self, dag_id: str, run_id: str, task_id: str, poll_s: float = 5.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dag_id = dag_id
        self.run_id = run_id
        self.task_id = task_id
        self.poll_s = poll_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer needs to make this trigger again."""
        names = ("dag_id", "run_id", "task_id", "poll_s")
        return f"{__name__}.PreviousRunTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Give one event, once the task has ended."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
        from asgiref.sync import sync_to_async

        look = sync_to_async(RuntimeTaskInstance.get_task_states)
        asked: dict[str, Any] = {"dag_id": self.dag_id, "task_ids": [self.task_id], "run_ids": [self.run_id]}
        while not has_ended(await look(**asked), self.run_id):
            await asyncio.sleep(self.poll_s)
        yield TriggerEvent({"status": "done"})  # type: ignore[no-untyped-call]
