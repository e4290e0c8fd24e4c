"""Objects of KServe that are more than one service of one model: graphs of services, and large language models."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_ml_provider.exceptions import StageCrashed, invalid
from airflow_ml_provider.operators._serving import ServingOperator, seconds
from airflow_ml_provider.stages import Result
from airflow_ml_provider.stages.deploy import place as places

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.hooks._objects import KServeObjects
    from airflow_ml_provider.stages.deploy.kserve.objects import Wanted

STATES = ("present", "absent")
ON_FAILURE = ("keep", "delete")


class KServeOperator(ServingOperator):
    """Apply a graph of services or a large language model to KServe, and wait until its own pods answer.

    It is applied as a whole, and the same again changes nothing. What answered before goes on answering until the new
    pods are ready, also when they never are: then the task fails with what KServe and the pods say. For one
    model whose versions get shares of the traffic use `DeployOperator` and `RolloutOperator`.

    The result's link `service` is the address; a registered language model is its output.

    Parameters:
        wanted: what it shall be: a `Graph(…)` or an `LLM(…)`, or one of them as a mapping such as
            `{"llm": {"uri": "hf://…"}}`; see `airflow_ml_provider.stages.deploy.kserve`.
        state: `present`, or `absent` to remove it and wait until it is gone; one that is not there is no failure.
        wait_s: it must be ready, or gone, within so many seconds.
        on_failure: what becomes of it when the task fails or is killed: `keep` it as it was applied, for the next run
            to change; or `delete` it, also if it was there before: for what lives no longer than its DAG run.
    """

    template_fields: Sequence[str] = (*ServingOperator.template_fields, "wanted", "state", "wait_s", "on_failure")

    def __init__(
        self,
        *,
        wanted: Wanted | Mapping[str, Any],
        state: str = "present",
        wait_s: float | str = 3600.0,
        on_failure: str = "keep",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if "{{" not in str(self.place) and not isinstance(places.resolve(self.place), places.KServe):
            raise invalid("place", self.place, "one on KServe")
        if "{{" not in str(wait_s):
            seconds(wait_s, "wait_s")
        self.wanted, self.state, self.wait_s, self.on_failure = wanted, state, wait_s, on_failure
        self._check("state", STATES)
        self._check("on_failure", ON_FAILURE)

    def begin(self, context: Context) -> Result:
        self._check("state", STATES)
        self._check("on_failure", ON_FAILURE)
        objects, wanted = self._objects()
        if self.state == "present":
            objects.apply(self.service, wanted)
        elif not objects.is_there(self.service, wanted):
            return Result(status="skipped", reason=f"{wanted.object_kind} {self.service!r} does not exist")
        else:
            objects.delete(self.service, wanted)
        return self._settled() or self._defer()

    def proceed(self, context: Context, state: Mapping[str, Any] | None) -> Result:
        return self._settled() or self._defer()

    def _settled(self) -> Result | None:
        """Return the result once there is one; none while there may be."""
        objects, wanted = self._objects()
        model = getattr(wanted, "model", None)
        refs = () if model is None else (model,)
        if self.state == "absent":
            return None if objects.is_there(self.service, wanted) else Result(inputs=refs)
        state, address = objects.state(self.service, wanted)
        if state.phase == "failed":
            raise StageCrashed(f"{wanted.object_kind} {self.service!r} cannot serve: {state.why}")
        if state.phase == "waits":
            self.log.info("%s %s is not ready yet: %s", wanted.object_kind, self.service, state.why)
            return None
        return Result(inputs=refs, outputs=refs, links={"service": address})

    def _objects(self) -> tuple[KServeObjects, Wanted]:
        from airflow_ml_provider.hooks._serving import objects
        from airflow_ml_provider.stages.deploy.kserve.objects import resolve

        return objects(places.resolve(self.place)), resolve(self.wanted)

    def _defer(self) -> NoReturn:
        from airflow_ml_provider.stages.deploy.kserve.objects import encode, resolve
        from airflow_ml_provider.triggers.kserve import KServeTrigger

        trigger = KServeTrigger(
            places.encode(places.resolve(self.place)), self.service, encode(resolve(self.wanted)),
            absent=self.state == "absent", poll_s=seconds(self.poll_s, "poll_s"),
            deadline=time.time() + seconds(self.wait_s, "wait_s"), deletes=self._deletes,
        )  # fmt: skip
        self.defer(trigger=trigger, method_name="go_further")
        raise AssertionError("a deferred task does not go on")

    @property
    def _deletes(self) -> bool:
        return self.on_failure == "delete" and self.state == "present"

    def _hand_back(self) -> None:
        if not self._deletes:
            left = "stays as it was applied; what answered before goes on until its pods are ready"
            self.log.warning("%s %s", self.service, left)
            return
        try:
            objects, wanted = self._objects()
            objects.delete(self.service, wanted)
            self.log.info("%s is deleted", self.service)
        except Exception:  # why the task ended still says more
            self.log.exception("%s may still be there", self.service)

    def _check(self, name: str, allowed: tuple[str, ...]) -> None:
        """Refuse an argument that is none of what is allowed; a template is none yet."""
        value = getattr(self, name)
        if "{{" not in str(value) and value not in allowed:
            raise invalid(name, value, f"one of {', '.join(allowed)}")
