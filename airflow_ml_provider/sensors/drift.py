"""Wait for drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.sensors._base import CheckSensor, is_known, parts

if TYPE_CHECKING:
    from airflow_ml_provider.stages.checks import DriftCheck


class DriftSensor(CheckSensor):
    """Wait until the monitor has found drift in the run's interval.

    It fails by `timeout` when there is none; `soft_fail=True` skips what follows instead. To start training after
    sustained drift, schedule on the monitor's asset: it knows hysteresis and cool-down, this sensor does not.

    Parameters:
        series: root folder of the monitor's reports and series (its `output`).
        name: name of the series.
        severity: `warn` or `significant`: at least this severity …
        share: … or at least this share of drifted columns, in [0, 1]; none looks at the severity alone.
        interval: the window of data, as `START/END`, a partition key or an `Interval`; by default that of the run.
        grain: length of the window in runs that have no data interval and no partition key.
        deferrable: wait in the triggerer, without a worker slot; by default as `[operators] default_deferrable` says.
    """

    template_fields: Sequence[str] = (*CheckSensor.template_fields, "series", "name", "severity", "share")

    def __init__(
        self,
        *,
        series: str,
        name: str,
        severity: Literal["warn", "significant"] = "significant",
        share: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if is_known(severity, str) and severity not in ("warn", "significant"):
            raise invalid("severity", severity, "one of warn, significant")
        if share is not None and is_known(share, (int, float)) and not 0 <= share <= 1:
            raise invalid("share", share, "in [0, 1]", "give a fraction, not percent")
        self.series = series
        self.name = name
        self.severity = severity
        self.share = share

    def question(self, interval: Interval) -> DriftCheck:
        from airflow_ml_provider.stages.checks import DriftCheck

        return DriftCheck(
            series=self.series,
            name=self.name,
            interval=interval.key,
            severity=self.severity,
            share=None if self.share is None else float(self.share),
            parts=parts(interval, self.grain),
        )
