"""What the operators that change a service have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_ml_provider.exceptions import Refused, SpecError, Unavailable, invalid
from airflow_ml_provider.operators._base import StageOperator, verdicts
from airflow_ml_provider.operators._context import resolve_interval, run_info
from airflow_ml_provider.stages import Result
from airflow_ml_provider.stages.deploy import place as places

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.refs import ModelRef, ReportRef
    from airflow_ml_provider.stages.deploy.place import Place
    from airflow_ml_provider.stages.deploy.service import Observed, Service, Serving


class ServingOperator(StageOperator):
    """Base of the operators that change a service; the task defers while the service becomes what it shall be.

    Parameters:
        service: name of the service, a DNS label.
        place: where it is: `Local(…)`, `KServe(…)`, `GitOps(…)` or another one, or one as a mapping; see
            `airflow_ml_provider.stages.deploy.place`.
        poll_s: the triggerer looks at the service every so many seconds.
    """

    template_fields: Sequence[str] = (*StageOperator.template_fields, "service", "place", "poll_s")
    ui_color = "#e8dff5"

    def __init__(
        self, *, service: str, place: Place | Mapping[str, Any], poll_s: float | str = 5.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if kwargs.get("runtime") is not None:
            raise invalid("runtime", kwargs["runtime"], "left out", "place says where the model is served")
        if "{{" not in str(poll_s):
            seconds(poll_s, "poll_s")
        if "{{" not in str(place):
            places.resolve(place)
        self.service, self.place, self.poll_s = service, place, poll_s
        self._deadline: float | None = None

    @cached_property
    def serving(self) -> Serving:
        """What deploys to the place, looks at it and asks it."""
        from airflow_ml_provider.hooks._serving import serving

        return serving(places.resolve(self.place))

    def begin(self, context: Context) -> Result:
        """Begin, or go on where an earlier try has left off; return the result, or defer."""
        raise TypeError(f"{type(self).__name__} must define begin")

    def proceed(self, context: Context, state: Mapping[str, Any] | None) -> Result:
        """Go on once the trigger has seen something to decide; return the result, or defer again."""
        raise TypeError(f"{type(self).__name__} must define proceed")

    def work(self, context: Context) -> Any:
        """Begin, publish the result, and return the XCom value."""
        return self._end(context, lambda: self.begin(context))

    def go_further(self, context: Context, event: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> Any:
        """Go on once the trigger has seen something to decide, publish the result, and return the XCom value.

        Parameters:
            event: what the trigger has told.
            kept: what the task kept for itself while it was deferred.
        """
        self._deadline = event["deadline"]

        def further() -> Result:
            if event["status"] == "timeout":
                raise AirflowTaskTimeout(f"service {self.service!r} did not become what it shall be in time")
            if event["status"] == "error":
                raise Unavailable(event["message"])
            if event["status"] == "refused":
                raise SpecError(event["message"])
            return self.proceed(context, event["state"] if kept is None else kept)

        with verdicts():
            return self._end(context, further)

    def on_kill(self) -> None:
        if self.info is not None:
            self._hand_back()

    def _end(self, context: Context, step: Callable[[], Result]) -> Any:
        interval = resolve_interval(context, self.grain, self.interval)
        self.info = run_info(context, interval)
        with self._handed_back_unless_tried_again(context):
            result = step()
        return self._done(context, result, interval)

    @contextmanager
    def _handed_back_unless_tried_again(self, context: Context) -> Iterator[None]:
        """Let a failure leave traffic where it is only if a further try can go on, since the place was away."""
        try:
            yield
        except (Exception, AirflowTaskTimeout) as error:
            from airflow_ml_provider.operators._tries import has_further_try

            if not (isinstance(error, Unavailable) and has_further_try(context)):
                self._hand_back()
            raise

    def _hand_back(self) -> None:
        """Give all traffic to the version that was there before; if that fails, why the task ended still says more."""
        from airflow_ml_provider.stages.deploy.moves import hand_back

        assert self.info is not None
        try:
            self.log.info("%s", hand_back(self.serving, self.service, self.info.identity))
        except Exception:
            self.log.exception("service %s may still be in the rollout of this task", self.service)

    def _wait_for(self, wait_s: float | None = None, kept: Mapping[str, Any] | None = None, **rollout: Any) -> NoReturn:
        """Defer until the service has something to decide, or the task's time is over.

        Airflow counts `execution_timeout` only while a worker works, and ends a deferral that takes too long without
        calling the task again, so that its traffic would stay; the trigger's deadline lets the task give it back.
        """
        from airflow_ml_provider.triggers.serving import ServingTrigger

        assert self.info is not None
        trigger = ServingTrigger(
            places.encode(places.resolve(self.place)), self.service, self.info.identity,
            seconds(self.poll_s, "poll_s"),
            deadline=self._until(wait_s), **rollout,
        )  # fmt: skip
        self.defer(trigger=trigger, method_name="go_further", kwargs=None if kept is None else {"kept": dict(kept)})
        raise AssertionError("a deferred task does not go on")

    def _until(self, wait_s: float | None) -> float | None:
        """Return when the task's time is over: it begins with the first deferral of a try."""
        limits = [wait_s, self.execution_timeout and self.execution_timeout.total_seconds()]
        if self._deadline is None and any(limits):
            self._deadline = time.time() + min(limit for limit in limits if limit)
        return self._deadline

    def _look(self, context: Context) -> Observed | None:
        """Return the service as it is, or none; the rollout of another task that has ended is settled before."""
        from airflow_ml_provider.stages.deploy.logic import is_of

        assert self.info is not None
        observed = self.serving.look(self.service)
        if observed is None or is_of(observed.wanted, self.info):
            return observed
        if done := settle(self.serving, observed, context):
            self.log.warning("%s", done)
            return self.serving.look(self.service)
        return observed

    def _check_free(self, observed: Observed, interrupt: bool = False) -> None:
        """Refuse to change a service that another task is changing, unless that is to be interrupted."""
        from airflow_ml_provider.stages.deploy.logic import is_of, is_over

        assert self.info is not None
        if is_over(observed.wanted) or is_of(observed.wanted, self.info):
            return
        whose = _owner(observed.wanted)
        if not interrupt:
            raise Refused(f"service {self.service!r} is being changed by {whose}; wait until that has ended")
        self.log.warning("service %s is taken from the rollout of %s, which ends", self.service, whose)


class GatedServingOperator(ServingOperator):
    """Base of the operators that bring a model before users: it must have passed the gate.

    Parameters:
        gate: `required`: the registry must hold the gate's passing evidence for exactly this model; the result of
            `gate`, or its `evidence`: that record must be it, without a registry; `waived`: none is asked for.
    """

    template_fields: Sequence[str] = (*ServingOperator.template_fields, "gate")
    uses_mlflow: ClassVar[bool] = True

    def __init__(self, *, gate: str | ReportRef | Mapping[str, Any] = "required", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(gate, str) and "{{" not in gate and gate not in ("required", "waived"):
            from airflow_ml_provider.stages.gate import admission

            admission.check(gate)
        self.gate = gate

    def _refusal(self, model: ModelRef) -> Result | None:
        """Return the refusal of a model that the gate has not let pass; none if it has.

        Raises:
            IntegrityError: the evidence was altered, or is about another model.
        """
        from airflow_ml_provider.stages.gate import admission

        env = self.environment() if self.gate == admission.REQUIRED else {}
        if not (objection := admission.objection(self.gate, model, env)):
            return None
        return Result(status="refused", reason=f"not deployed to {self.service!r}: {objection}", inputs=(model,))


def settle(serving: Serving, observed: Observed, context: Context) -> str:
    """Give the traffic back that a task has left on its way, since it was killed and has no further try.

    A first version has nothing to give it back to, and stays.

    Returns:
        What was done, for people; empty when the service is in no rollout, or its task has not ended.
    """
    from airflow_ml_provider.stages.deploy.logic import is_over, stable_of
    from airflow_ml_provider.stages.deploy.moves import hand_back
    from airflow_ml_provider.stages.deploy.service import Service
    from airflow_ml_provider.triggers.previous import has_ended

    wanted, owner = observed.wanted, observed.wanted.rollout
    if is_over(wanted):
        return ""
    states = context["ti"].get_task_states(
        dag_id=owner["dag_id"], task_ids=[owner["task_id"]], run_ids=[owner["run_id"]]
    )
    if not has_ended(states, owner["run_id"]):
        return ""
    left = f"service {wanted.name!r} was left in the rollout of {_owner(wanted)}, which has ended"
    if stable_of(wanted) is not None:
        return f"{left}: {hand_back(serving, wanted.name, owner['identity'])}"
    serving.put(Service(wanted.name, wanted.stable), observed.revision)
    return f"{left}: its first version stays"


def _owner(service: Service) -> str:
    return "{dag_id}.{task_id} of {run_id}".format(**service.rollout)


def seconds(value: Any, what: str) -> float:
    """Return a time that a template may have made text of.

    Raises:
        SpecError: it is no number greater than 0.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = 0.0
    if not found > 0:
        raise invalid(what, value, "greater than 0 (seconds)")
    return found
