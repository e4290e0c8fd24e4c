"""What the operators that change a service have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_ml_provider.exceptions import Refused, SpecError, Unavailable, invalid
from airflow_ml_provider.operators._base import StageOperator, verdicts
from airflow_ml_provider.operators._context import resolve_interval, run_info
from airflow_ml_provider.stages import Result
from airflow_ml_provider.stages.deploy import place as places

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.stages.deploy.place import Place
    from airflow_ml_provider.stages.deploy.service import Observed, Serving


class ServingOperator(StageOperator):
    """Base of the operators that change a service; the task defers while the service becomes what it shall be.

    Parameters:
        service: name of the service, a DNS label.
        place: where it is: `Local(…)` or `KServe(…)`, or one of them as a mapping; see
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

    def go_further(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on once the trigger has seen something to decide, publish the result, and return the XCom value."""

        def further() -> Result:
            if event["status"] == "timeout":
                raise AirflowTaskTimeout(f"service {self.service!r} was not ready in time")
            if event["status"] == "error":
                raise Unavailable(event["message"])
            if event["status"] == "refused":
                raise SpecError(event["message"])
            return self.proceed(context, event["state"])

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
        from airflow_ml_provider.operators._tries import has_further_try

        try:
            yield
        except (Exception, AirflowTaskTimeout) as error:
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

    def _wait_for(self, wait_s: float | None = None, **rollout: Any) -> NoReturn:
        """Defer until the service has something to decide."""
        from airflow_ml_provider.triggers.serving import ServingTrigger

        assert self.info is not None
        trigger = ServingTrigger(
            places.encode(places.resolve(self.place)), self.service, self.info.identity,
            seconds(self.poll_s, "poll_s"),
            deadline=time.time() + wait_s if wait_s else None, **rollout,
        )  # fmt: skip
        self.defer(trigger=trigger, method_name="go_further")
        raise AssertionError("a deferred task does not go on")

    def _check_free(self, context: Context, observed: Observed) -> None:
        """Refuse to change a service that another task is changing; what a task that has ended left is taken over."""
        from airflow_ml_provider.stages.deploy.logic import is_of, is_over
        from airflow_ml_provider.triggers.previous import has_ended

        rollout = observed.wanted.rollout
        assert self.info is not None
        if is_over(observed.wanted) or is_of(observed.wanted, self.info):
            return
        whose = f"{rollout['dag_id']}.{rollout['task_id']} of {rollout['run_id']}"
        states = context["ti"].get_task_states(
            dag_id=rollout["dag_id"], task_ids=[rollout["task_id"]], run_ids=[rollout["run_id"]]
        )
        if not has_ended(states, rollout["run_id"]):
            raise Refused(f"service {self.service!r} is being changed by {whose}; wait until that has ended")
        self.log.warning("service %s was left in the rollout of %s, which has ended", self.service, whose)


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
