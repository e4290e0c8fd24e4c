"""Wait for features to catch up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.sensors._base import CheckSensor, is_known

if TYPE_CHECKING:
    from airflow_ml_provider.stages.checks import FreshnessCheck


class FeatureFreshnessSensor(CheckSensor):
    """Wait until the newest partition of a feature table is recent enough, seen from the end of the run's interval.

    A backfilled run looks from its own time, not from today's. Where exactly the run's own partition is needed,
    `PartitionSensor` says so more strictly.

    Parameters:
        table: root folder of the feature table.
        max_age_s: the newest partition must end at most this long before the end of the interval (seconds).
        interval: the window of data, as `START/END`, a partition key or an `Interval`; by default that of the run.
        grain: length of the window in runs that have no data interval and no partition key.
        deferrable: wait in the triggerer, without a worker slot; by default as `[operators] default_deferrable` says.
    """

    template_fields: Sequence[str] = (*CheckSensor.template_fields, "table", "max_age_s")

    def __init__(self, *, table: str, max_age_s: float = 86400.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if is_known(max_age_s, (int, float)) and max_age_s < 0:
            raise invalid("max_age_s", max_age_s, "at least 0 (seconds)")
        self.table = table
        self.max_age_s = max_age_s

    def question(self, interval: Interval) -> FreshnessCheck:
        from airflow_ml_provider.stages.checks import FreshnessCheck

        return FreshnessCheck(table=self.table, at=interval.end, max_age_s=float(self.max_age_s))
