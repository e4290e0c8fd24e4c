"""What becomes of a task's work when the task is killed while it is deferred."""

from __future__ import annotations

from typing import Any

from airflow.triggers.base import BaseTrigger


class KillableTrigger(BaseTrigger):
    """A trigger that ends what its task has begun when the task is marked as something else, or cleared.

    A subclass says how, in `on_kill`, and sets `has_told` once its event is given: then the task goes on by itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.has_told = False

    async def on_kill(self) -> None:
        """End what the task has begun."""
        raise TypeError(f"{type(self).__name__} must define on_kill")

    async def cleanup(self) -> None:
        """Do what `on_kill` does where Airflow has none (before 3.3), unless the triggerer only stops for a while."""
        if self.has_told or hasattr(BaseTrigger, "on_kill"):
            return
        if await self._state() not in ("deferred", None):
            await self.on_kill()

    async def _state(self) -> str | None:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
        from asgiref.sync import sync_to_async

        ti: Any = self.task_instance
        index = -1 if ti.map_index is None else ti.map_index
        states = await sync_to_async(RuntimeTaskInstance.get_task_states)(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=index
        )
        key = ti.task_id if index < 0 else f"{ti.task_id}_{index}"
        found = states.get(ti.run_id, {}).get(key)
        return None if found is None else str(getattr(found, "value", found))
