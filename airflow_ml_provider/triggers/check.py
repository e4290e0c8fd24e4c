"""The trigger behind every deferred sensor of this package."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_ml_provider.exceptions import MlError, invalid
from airflow_ml_provider.stages import checks
from airflow_ml_provider.triggers._services import SERVICE_CHECKS


class CheckTrigger(BaseTrigger):
    """Ask one of `stages.checks.CHECKS`, or of those about services, again and again, in a thread, until it is done.

    The event is `{"status": "done", "value": …}` or `{"status": "error", "message": …}`. How long to wait is the
    business of the task that defers.

    Parameters:
        check: name of the check.
        question: its parameters, plain JSON; no secrets.
        poll_s: time between two looks (seconds).
        mlflow_conn_id: connection whose settings the check gets; resolved anew at each look, in the triggerer.
    """

    def __init__(
        self, check: str, question: Mapping[str, Any], poll_s: float = 60.0, mlflow_conn_id: str | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if poll_s <= 0:
            raise invalid("poll_s", poll_s, "greater than 0 (seconds)")
        self.check = check
        self.question = dict(question)
        self.poll_s = poll_s
        self.mlflow_conn_id = mlflow_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer needs to make this trigger again."""
        names = ("check", "question", "poll_s", "mlflow_conn_id")
        return f"{__name__}.CheckTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Give one event, once there is something to tell."""
        try:
            told: dict[str, Any]
            check, said = checks.load(self.check, self.question, {**checks.CHECKS, **SERVICE_CHECKS}), ""
            while not (answer := await self._look(check)).done:
                if answer.message != said:
                    said = answer.message
                    self.log.info("%s", said)
                await asyncio.sleep(self.poll_s)
        except MlError as error:
            told = {"status": "error", "message": str(error)}
        else:
            told = {"status": "done", "message": answer.message, "value": dict(answer.value)}
        yield TriggerEvent(told)  # type: ignore[no-untyped-call]

    async def _look(self, check: checks.Check) -> checks.Answer:
        from asgiref.sync import sync_to_async

        env = await settings(self.mlflow_conn_id)
        # A check of a service reads the connection of its place: Airflow before 3.3 answers only threads of asgiref.
        return await sync_to_async(checks.poll, thread_sensitive=False)(check, lambda: env)


async def settings(mlflow_conn_id: str | None) -> dict[str, str]:
    """Return the settings of a connection without blocking the event loop."""
    if not mlflow_conn_id:
        return {}
    from asgiref.sync import sync_to_async

    from airflow_ml_provider.hooks.mlflow import MlflowHook

    found: dict[str, str] = await sync_to_async(MlflowHook(mlflow_conn_id).environment, thread_sensitive=False)()
    return found
