"""The one way in which every stage operator works: spec, runtime, result, publish."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from airflow.sdk import Asset, BaseOperator

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import MlError, invalid
from airflow_ml_provider.intervals import Grain, Interval
from airflow_ml_provider.links import DataDocsLink, EvidenceLink, MlflowLink
from airflow_ml_provider.operators._context import resolve_interval, run_info, unfinished_predecessor
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import Pod, Runtime, resolve

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators._calls import StageCall
    from airflow_ml_provider.stages import Result, Spec
    from airflow_ml_provider.stages.checks import Check

OnRefusal = Literal["fail", "skip"]
_POLL_S = 5.0
_LOOK_S, _GRACE_S = 0.5, 15.0
_LONGEST = timedelta(days=1)  # then a retry looks again whether that run is still there


class StageOperator(BaseOperator):
    """Base of the operators of all stages; a subclass only says how its arguments become a spec.

    Parameters:
        runtime: where the stage runs: none is in the task's process; a text is the path of another Python; `Pod(…)` is
            a pod, for which the task defers; see `airflow_ml_provider.runtime`.
        interval: the window of data, as `START/END`, a partition key or an `Interval`; by default that of the run.
        grain: length of the window in runs that have no data interval and no partition key.
        mlflow_conn_id: connection to MLflow for the stages that use it; none takes the stage's own environment
            variables (`MLFLOW_TRACKING_URI`).
        after_previous: wait until this task of the run before has ended, in whatever state: for stages that look at
            earlier windows, so that runs at the same time give what one after the other would give. In runs without a
            logical date there is no run before.
        on_refusal: what a refusal does to the task once its report is published: `fail` it (no retries) or `skip` it.
    """

    template_fields: Sequence[str] = ("interval", "mlflow_conn_id", "after_previous")
    operator_extra_links = (MlflowLink(), DataDocsLink(), EvidenceLink())
    ui_color = "#dbe9f6"
    refusals: ClassVar[tuple[str, ...]] = ("fail", "skip")
    uses_mlflow: ClassVar[bool] = False

    def __init__(
        self,
        *,
        runtime: Runtime | Pod | Mapping[str, Any] | str | None = None,
        interval: Interval | Mapping[str, Any] | str | None = None,
        grain: Grain = "day",
        mlflow_conn_id: str | None = "mlflow_default",
        after_previous: bool | str = False,
        on_refusal: str = "fail",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if on_refusal not in self.refusals:
            raise invalid("on_refusal", on_refusal, f"one of {', '.join(self.refusals)}")
        self.runtime = runtime
        self.interval = interval
        self.grain = grain
        self.mlflow_conn_id = mlflow_conn_id
        self.after_previous = after_previous
        self.on_refusal = on_refusal
        self.info: RunInfo | None = None
        self.result: Result | None = None
        self._active = resolve(runtime)
        self._pod_call: StageCall | None = None

    def build_spec(self, interval: Interval, context: Context) -> Spec:
        """Return the spec of this task for an interval; the operator's fields are rendered by now."""
        raise TypeError(f"{type(self).__name__} must define build_spec")

    def awaits(self, interval: Interval) -> tuple[Check, float] | None:
        """Return what must be there before the work can begin, and how long to wait for it (seconds); none by default.

        The task defers: waiting takes no worker slot.
        """
        return None

    def execute(self, context: Context) -> Any:
        with verdicts():
            if boolean(self.after_previous, "after_previous"):
                self._wait_for_previous(context)
            return self.go_on(context)

    def go_on(self, context: Context, event: Mapping[str, Any] | None = None) -> Any:
        """Wait for what the work needs, then do it."""
        with verdicts():
            self._wait(resolve_interval(context, self.grain, self.interval))
            return self.work(context)

    def resume(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on once the trigger has seen what the task waited for.

        Raises:
            AirflowFailException: the trigger could not look.
        """
        if event["status"] == "error":
            raise AirflowFailException(event["message"])
        with verdicts():
            return self.work(context)

    def work(self, context: Context) -> Any:
        """Run the stage, publish its result, and return the XCom value."""
        interval = resolve_interval(context, self.grain, self.interval)
        self.info = run_info(context, interval)
        spec, env = self.build_spec(interval, context), self.environment()
        if isinstance(self._active, Pod):
            return self._done(context, self._in_pod(self._active).begin(spec, env, context), interval)
        return self._done(context, self._active.call(spec, self.info, env), interval)

    def collect(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on once the trigger has seen a pod of this task end, or something else that asks for a decision."""
        with verdicts():
            if not isinstance(self._active, Pod):
                raise invalid("runtime", self.runtime, "a pod as long as the task's pod runs", "clear the task")
            interval = resolve_interval(context, self.grain, self.interval)
            self.info = run_info(context, interval)
            env = self.environment()
            return self._done(context, self._in_pod(self._active).finish(context, event, env), interval)

    def _in_pod(self, pod: Pod) -> StageCall:
        from airflow_ml_provider.operators._pods import PodCall

        assert self.info is not None
        carrier: type[StageCall] = PodCall
        if pod.controller:
            from airflow_ml_provider.operators._jobs import JobCall as carrier  # noqa: N813
        self._pod_call = carrier(self, pod, self.info)
        return self._pod_call

    def _done(self, context: Context, result: Result, interval: Interval) -> Any:
        self.result = result
        self.publish(context, result, interval)
        return self.conclude(context, result)

    def _wait_for_previous(self, context: Context) -> None:
        """Wait for the same task of the run before: here for as long as two deferrals take, then in the triggerer."""
        deadline = time.monotonic() + _GRACE_S
        while (before := unfinished_predecessor(context)) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        if before is None:
            return
        run_id, runs = before
        if not runs:  # a backfill that goes backwards; that run would wait for this one
            self.log.warning("%s comes before this run and has not begun: %s goes on without it", run_id, self.task_id)
            return
        from airflow_ml_provider.triggers.previous import PreviousRunTrigger

        self.log.info("waiting for %s of %s", self.task_id, run_id)
        trigger = PreviousRunTrigger(self.dag_id, run_id, self.task_id, _POLL_S)
        self.defer(trigger=trigger, method_name="go_on", timeout=_LONGEST)

    def _wait(self, interval: Interval) -> None:
        awaited = self.awaits(interval)
        if awaited is None or awaited[0].ask({}).done:
            return
        from airflow_ml_provider.triggers.check import CheckTrigger

        check, patience_s = awaited
        trigger = CheckTrigger(check.check, codec.encode(check), poll_s=_POLL_S)
        self.defer(trigger=trigger, method_name="resume", timeout=timedelta(seconds=patience_s))

    def environment(self) -> dict[str, str]:
        """Return the connection settings for the stage's process; they go nowhere else."""
        if not self.uses_mlflow or not self.mlflow_conn_id:
            return {}
        from airflow_ml_provider.hooks.mlflow import MlflowHook

        return MlflowHook(self.mlflow_conn_id).environment()

    def publish(self, context: Context, result: Result, interval: Interval) -> None:
        """Log what happened and give the asset events of the outlets the interval and the outputs' digests."""
        level = self.log.warning if result.status != "ok" else self.log.info
        level("%s: %s %s", self.task_id, result.status, result.reason)
        for ref in result.outputs:
            self.log.info("wrote %s %s", ref.uri, ref.digest)
        extra: dict[str, Any] = {
            "interval_start": interval.start.isoformat(),
            "interval_end": interval.end.isoformat(),
            "partition": interval.key,
            "digests": {ref.name: ref.digest for ref in result.outputs},
        }
        for outlet in self.outlets or ():
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra.update(extra)

    def conclude(self, context: Context, result: Result) -> Any:
        """Return the XCom value, or push it and skip or fail the task.

        Each ref also gets a key of its own, so that `ingest.output["dataset"]` works.
        """
        value = summary(result)
        for name, item in value.items():
            if isinstance(item, Mapping) and item.get("kind"):
                context["ti"].xcom_push(key=name, value=item)
        if result.status == "ok":
            return value
        context["ti"].xcom_push(key="return_value", value=value)
        if result.status == "skipped" or self.on_refusal == "skip":
            raise AirflowSkipException(result.reason)
        raise AirflowFailException(f"{self.task_id} refused: {result.reason}")

    def on_kill(self) -> None:
        if self._pod_call:
            self._pod_call.cancel()
        elif not isinstance(self._active, Pod):
            self._active.cancel()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return the inputs, outputs and facets of the run; OpenLineage's listener calls this, after failures too."""
        from airflow_ml_provider.operators._lineage import operator_lineage

        return operator_lineage(self.result, self.info, inlets=self.inlets, outlets=self.outlets)

    get_openlineage_facets_on_failure = get_openlineage_facets_on_complete


@contextmanager
def verdicts() -> Iterator[None]:
    """Let errors that another try cannot mend fail the task without one."""
    try:
        yield
    except MlError as error:
        if error.verdict == "terminal":
            raise AirflowFailException(str(error)) from error
        raise


def summary(result: Result) -> dict[str, Any]:
    """Return a result as it goes into XCom: plain JSON, refs and small numbers, no facets."""
    body: dict[str, Any] = codec.encode(result)
    body.pop("facets")
    return body


def names(value: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return names that were given as a list, or one that was given alone; nothing is none."""
    return (value,) if isinstance(value, str) and value else tuple(value or ())


def boolean(value: Any, what: str) -> bool:
    """Return a truth value that a template may have made text of.

    Raises:
        SpecError: it is neither.
    """
    texts = {"true": True, "false": False}
    if isinstance(value, str) and value.strip().lower() in texts:
        return texts[value.strip().lower()]
    return codec.decode(bool, value, what)
