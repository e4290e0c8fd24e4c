"""The trigger behind every task that waits for a service of predictions, or moves its traffic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import MlError
from airflow_ml_provider.triggers._kill import KillableTrigger

if TYPE_CHECKING:
    from airflow_ml_provider.stages.deploy.service import Serving

_PATIENCE_S = 600.0  # for a place that is away
_SAY_EVERY_S = 60.0  # how a step is going


class ServingTrigger(KillableTrigger):
    """Look at a service until there is something to decide: its stable version has become ready, or a rollout goes on.

    The event's `status` is `changed`, `timeout` (the task's time is over), or, with a `message`, `error` (the place
    does not answer for long) or `refused` (trying again does not help); `state` and `deadline` are those of the trigger
    by then.

    Parameters:
        place: the place, as `stages.deploy.place.encode` gives it.
        service: name of the service.
        identity: of the task; the service is left alone once its rollout is another's.
        poll_s: time between two looks (seconds).
        deadline: time at which the task's time is over (seconds since 1970); none without one.
        state: of the rollout, as JSON; none waits for the stable version.
    """

    def __init__(
        self,
        place: Mapping[str, Any],
        service: str,
        identity: str,
        poll_s: float = 5.0,
        deadline: float | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.place, self.service, self.identity = dict(place), service, identity
        self.poll_s, self.deadline = poll_s, deadline
        self.state = state
        self._said: tuple[str, int] | None = None
        self._say_at = 0.0
        self._place: Serving | None = None  # kept from look to look: opening it asks for connections

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer needs to make this trigger again."""
        names = ("place", "service", "identity", "poll_s", "deadline", "state")
        return f"{__name__}.ServingTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Give one event, once there is something to decide."""
        status, message = await self._watch()
        self.has_told = True
        event = {"status": status, "message": message, "state": self.state, "deadline": self.deadline}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _watch(self) -> tuple[str, str]:
        from asgiref.sync import sync_to_async

        # In a thread of asgiref, since it reads connections, which Airflow before 3.3 answers only there.
        look, answered = sync_to_async(self._look, thread_sensitive=False), time.monotonic()
        while True:
            opened = self._place is None
            try:
                if status := await look():
                    return status, ""
                answered = time.monotonic()
            except MlError as error:
                self._place = None
                if not opened:
                    continue  # its connections or tokens may be from before a change: the place as it is now decides
                if error.verdict == "terminal":
                    return "refused", str(error)
                if time.monotonic() - answered > _PATIENCE_S:
                    return "error", str(error)
                self.log.warning("%s", error)
            if self.deadline is not None and time.time() >= self.deadline:
                return "timeout", ""
            await asyncio.sleep(self.poll_s)

    def _look(self) -> str:
        """Look once; return the status that there is to tell, mostly none."""
        from airflow_ml_provider.hooks._serving import serving
        from airflow_ml_provider.stages.deploy.moves import look
        from airflow_ml_provider.stages.deploy.place import resolve

        place = self._place = self._place or serving(resolve(self.place))
        if self.state is None:
            observed = place.look(self.service)
            waits = observed is not None and observed.states[observed.wanted.stable.name].phase == "waits"
            return "" if waits else "changed"
        found = look(place, self.service, self.identity, self.state, time.time())
        if found is None or found[1].action != "wait":
            return "changed"
        decision = found[1]
        self.state = codec.encode(decision.state)
        step = (decision.state.phase, decision.state.step)
        if step != self._said or time.monotonic() >= self._say_at:
            self._said, self._say_at = step, time.monotonic() + _SAY_EVERY_S
            self.log.info("%s", decision.reason)
        return ""

    async def on_kill(self) -> None:
        """Give all traffic back to the stable version, and end the rollout."""
        from asgiref.sync import sync_to_async

        if not self.has_told:
            await sync_to_async(self._hand_back, thread_sensitive=False)()

    def _hand_back(self) -> None:
        from airflow_ml_provider.hooks._serving import serving
        from airflow_ml_provider.stages.deploy.moves import hand_back
        from airflow_ml_provider.stages.deploy.place import resolve

        said = hand_back(serving(resolve(self.place)), self.service, self.identity)
        self.log.info("%s", said)
