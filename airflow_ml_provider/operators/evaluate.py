"""Measure a model on the locked test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_ml_provider import codec
from airflow_ml_provider.links import ReportLink
from airflow_ml_provider.operators._base import StageOperator, names
from airflow_ml_provider.refs import DatasetRef, ModelRef, as_ref
from airflow_ml_provider.stages.evaluate.spec import EvaluateSpec, OperatingPoint

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval


class EvaluateOperator(StageOperator):
    """Measure a model on the locked test set, overall and by slice, with intervals.

    A test set that was changed is an error; one that is not later than the model's training rows is refused.
    `GateOperator` judges the report; `airflow_ml_provider.stages.evaluate.logic.winners` picks the best of several
    candidates from the XComs of mapped tasks.

    Parameters:
        model: the model package: the train stage's result, its `model`, or a ref.
        test: the locked test set: the training set stage's `test`, or a ref.
        output: root folder for reports and predictions.
        label: column with 0 or 1.
        timestamp: column with the time of a row.
        key: columns that identify a row; they stand in the predictions.
        slices: columns, or pairs joined by `*`, that are measured apart, such as `carrier*origin`.
        min_rows: slices with fewer rows, or without both labels, are listed but not judged.
        operating_point: where precision and recall are measured; none takes the threshold 0.5.
        resamples: bootstrap resamples for intervals.
        confidence: of the intervals, in (0, 1).
        seed: seed of the bootstrap.
        experiment: MLflow experiment that the model was trained in; its run gets metrics and report. None leaves
            MLflow alone.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields, "model", "test", "output_root", "label_column", "timestamp", "key", "slices",
        "min_rows", "operating_point", "resamples", "confidence", "seed", "experiment",
    )  # fmt: skip
    operator_extra_links = (*StageOperator.operator_extra_links, ReportLink())  # type: ignore[assignment]
    uses_mlflow: ClassVar[bool] = True

    def __init__(
        self,
        *,
        model: ModelRef | Mapping[str, Any],
        test: DatasetRef | Mapping[str, Any],
        output: str,
        label: str = "label",
        timestamp: str = "event_timestamp",
        key: Sequence[str] = (),
        slices: Sequence[str] = (),
        min_rows: int = 100,
        operating_point: OperatingPoint | Mapping[str, Any] | None = None,
        resamples: int = 500,
        confidence: float = 0.95,
        seed: int = 0,
        experiment: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(operating_point, Mapping) and "{{" not in str(operating_point):
            codec.decode(OperatingPoint, operating_point, "operating_point")
        self.model = model
        self.test = test
        self.output_root = output  # `output` and `label` are properties of every operator
        self.label_column = label
        self.timestamp = timestamp
        self.key = key
        self.slices = slices
        self.min_rows = min_rows
        self.operating_point = operating_point
        self.resamples = resamples
        self.confidence = confidence
        self.seed = seed
        self.experiment = experiment

    def environment(self) -> dict[str, str]:
        return super().environment() if self.experiment else {}

    def build_spec(self, interval: Interval, context: Context) -> EvaluateSpec:
        return EvaluateSpec(
            model=as_ref(ModelRef, self.model, "model"),
            test=as_ref(DatasetRef, self.test, "test"),
            output=self.output_root,
            label=self.label_column,
            timestamp=self.timestamp,
            key=names(self.key),
            slices=names(self.slices),
            min_rows=int(self.min_rows),
            operating_point=codec.decode(OperatingPoint, self.operating_point or {}, "operating_point"),
            resamples=int(self.resamples),
            confidence=float(self.confidence),
            seed=int(self.seed),
            experiment=self.experiment or None,
        )
