"""The one way in which every sensor works: a question from the rendered fields, asked here or by the triggerer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, conf
from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import MlError
from airflow_ml_provider.intervals import Grain, Interval
from airflow_ml_provider.operators._context import resolve_interval

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.stages import checks


class CheckSensor(BaseSensorOperator):
    """Base of the sensors of this package; a subclass only says what is asked.

    A system that does not answer counts as "not yet"; a wrong parameter fails the task at once, without retries.
    The XCom value is what the check found.

    Parameters:
        interval: the window of data, as `START/END`, a partition key or an `Interval`; by default that of the run.
        grain: length of the window in runs that have no data interval and no partition key.
        deferrable: wait in the triggerer, without a worker slot; by default as `[operators] default_deferrable` says.
    """

    template_fields: Sequence[str] = ("interval",)
    ui_color = "#e6f2e6"

    def __init__(
        self,
        *,
        interval: Interval | Mapping[str, Any] | str | None = None,
        grain: Grain = "day",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.interval = interval
        self.grain = grain
        self.deferrable = deferrable

    def question(self, interval: Interval) -> checks.Check:
        """Return what is asked about an interval; the sensor's fields are rendered by now."""
        raise TypeError(f"{type(self).__name__} must define question")

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once."""
        from airflow_ml_provider.stages import checks

        try:
            answer = checks.poll(self._question(context), self.settings)
        except MlError as error:
            raise AirflowFailException(str(error)) from error
        self.log.info("%s", answer.message)
        return PokeReturnValue(answer.done, dict(answer.value) if answer.done else None)

    def execute(self, context: Context) -> Any:
        """Wait; deferred unless what is waited for is there already."""
        if not self.deferrable:
            return super().execute(context)
        if first := self.poke(context):
            return first.xcom_value
        from airflow_ml_provider.triggers.check import CheckTrigger

        asked = self._question(context)
        self.defer(
            trigger=CheckTrigger(asked.check, codec.encode(asked), self.poke_interval or 1.0, self.conn_id()),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )
        return None

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Return what the trigger found.

        Raises:
            AirflowFailException: the question could not be asked.
        """
        if event["status"] == "error":
            raise AirflowFailException(event["message"])
        self.log.info("%s", event["message"])
        return event["value"]

    def conn_id(self) -> str | None:
        """Return the connection that the check needs, if any."""
        return None

    def settings(self) -> dict[str, str]:
        """Return the settings of that connection."""
        if not (conn_id := self.conn_id()):
            return {}
        from airflow_ml_provider.hooks.mlflow import MlflowHook

        return MlflowHook(conn_id).environment()

    def _question(self, context: Context) -> checks.Check:
        try:
            return self.question(resolve_interval(context, self.grain, self.interval))
        except MlError as error:
            raise AirflowFailException(str(error)) from error


def is_known(value: object, kind: type | tuple[type, ...]) -> bool:
    """Return whether a constructor's value can be checked when the DAG is parsed: no template, no upstream result."""
    return isinstance(value, kind) and "{{" not in str(value)


def parts(interval: Interval, grain: Grain) -> tuple[str, ...]:
    """Return the keys of the partitions of `grain` that make up an interval; none when it is a partition itself.

    It is one within a single `grain`, and as long as one but not of the calendar (a day of New York).
    """
    first = Interval.of_grain(interval.start, grain)
    if interval.end <= first.end or interval.end - interval.start <= first.end - first.start:
        return ()
    found = [first]
    while found[-1].end < interval.end:
        found.append(Interval.of_grain(found[-1].end, grain))
    return tuple(window.key for window in found)
