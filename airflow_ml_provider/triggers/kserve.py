"""The trigger of tasks that wait for an object of KServe: a graph of services or a large language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_ml_provider.triggers.serving import ServingTrigger


class KServeTrigger(ServingTrigger):
    """Look at an object of KServe until it is ready, will never be, or is gone.

    The event is that of `ServingTrigger`. When its task is killed the object stays as it is, unless told otherwise:
    what answered before goes on answering, and whoever applies it again goes on from there.

    Parameters:
        place: the place, as `stages.deploy.place.encode` gives it.
        service: name of the object.
        wanted: what it shall be, as `stages.deploy.kserve.objects.encode` gives it.
        absent: wait until it is gone.
        poll_s: time between two looks (seconds).
        deadline: time at which the task's time is over (seconds since 1970); none without one.
        deletes: delete the object when the task is killed.
    """

    def __init__(
        self,
        place: Mapping[str, Any],
        service: str,
        wanted: Mapping[str, Any],
        absent: bool = False,
        poll_s: float = 5.0,
        deadline: float | None = None,
        deletes: bool = False,
    ) -> None:
        super().__init__(place, service, identity="", poll_s=poll_s, deadline=deadline)
        self.wanted, self.absent, self.deletes = dict(wanted), absent, deletes

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer needs to make this trigger again."""
        names = ("place", "service", "wanted", "absent", "poll_s", "deadline", "deletes")
        return f"{__name__}.KServeTrigger", {name: getattr(self, name) for name in names}

    def _look(self) -> str:
        from airflow_ml_provider.hooks._serving import objects
        from airflow_ml_provider.stages.deploy.kserve.objects import resolve
        from airflow_ml_provider.stages.deploy.place import resolve as resolve_place

        place, wanted = objects(resolve_place(self.place)), resolve(self.wanted)
        if self.absent:
            return "" if place.is_there(self.service, wanted) else "changed"
        state, _ = place.state(self.service, wanted)
        if state.why and state.why != self._told:
            self._told = state.why
            self.log.info("%s", state.why)
        return "" if state.phase == "waits" else "changed"

    _told = ""

    def _hand_back(self) -> None:
        """Delete the object if that was asked for, else leave it as it is."""
        from airflow_ml_provider.hooks._serving import objects
        from airflow_ml_provider.stages.deploy.kserve.objects import resolve
        from airflow_ml_provider.stages.deploy.place import resolve as resolve_place

        if self.deletes:
            objects(resolve_place(self.place)).delete(self.service, resolve(self.wanted))
            self.log.info("%s is deleted", self.service)
