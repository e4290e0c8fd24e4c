"""Wait for outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators._base import names
from airflow_ml_provider.sensors._base import CheckSensor, is_known, parts

if TYPE_CHECKING:
    from airflow_ml_provider.stages.checks import LabelsCheck


class LabelsSensor(CheckSensor):
    """Wait until enough outcomes have arrived for the predictions of the run's interval.

    Some predictions never get one (a cancelled flight has no delay), so ask for less than all. For a training that only
    needs its label table to be complete, `PartitionSensor` on that table is the right one.

    Parameters:
        predictions: root folder of the score stage's table.
        labels: root folder of the labels (see the features stage).
        key: columns that join labels to predictions.
        min_share: lowest share of predictions with an outcome, in [0, 1].
        min_labels: fewest outcomes.
        label_column: column with the outcome.
        interval: the window of data, as `START/END`, a partition key or an `Interval`; by default that of the run.
        grain: length of the window in runs that have no data interval and no partition key.
        deferrable: wait in the triggerer, without a worker slot; by default as `[operators] default_deferrable` says.
    """

    template_fields: Sequence[str] = (
        *CheckSensor.template_fields, "predictions", "labels", "key", "min_share", "min_labels", "label_column",
    )  # fmt: skip

    def __init__(
        self,
        *,
        predictions: str,
        labels: str,
        key: Sequence[str],
        min_share: float = 0.9,
        min_labels: int = 1,
        label_column: str = "label",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if is_known(min_share, (int, float)) and not 0 <= min_share <= 1:
            raise invalid("min_share", min_share, "in [0, 1]", "give a fraction, not percent")
        self.predictions = predictions
        self.labels = labels
        self.key = key
        self.min_share = min_share
        self.min_labels = min_labels
        self.label_column = label_column

    def question(self, interval: Interval) -> LabelsCheck:
        from airflow_ml_provider.stages.checks import LabelsCheck

        return LabelsCheck(
            predictions=self.predictions,
            labels=self.labels,
            key=names(self.key),
            interval=interval.key,
            min_share=float(self.min_share),
            min_labels=int(self.min_labels),
            label=self.label_column,
            parts=parts(interval, self.grain),
        )
