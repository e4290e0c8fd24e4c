"""What the evaluate stage is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Optional

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.refs import DatasetRef, ModelRef, ReportRef
from airflow_ml_provider.stages import Result, Spec


@dataclass(frozen=True)
class OperatingPoint:
    """How the threshold is chosen, on validation rows, before the test set is looked at.

    Attributes:
        by: `threshold` takes `value` itself; `recall` the highest threshold with at least that recall; `precision` the
            lowest with at least that precision; `fpr` the lowest with at most that false positive rate; `share` the
            threshold that flags that share of rows.
        value: in [0, 1].
    """

    by: Literal["threshold", "recall", "precision", "fpr", "share"] = "threshold"
    value: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise invalid("operating point value", self.value, "in [0, 1]", "give a fraction, not percent")


@dataclass(frozen=True)
class EvaluateResult(Result):
    """How good, and where not.

    Attributes:
        report: all metrics with intervals, the calibration curve and the slices, as JSON and as a page.
        predictions: key, timestamp, slice columns, label and score of the test rows.
        model: the model that was evaluated, with its metrics.
        worst_slice: name of the judged slice with the lowest AUC; empty when none was judged.
    """

    report: Optional[ReportRef] = None
    predictions: Optional[DatasetRef] = None
    model: Optional[ModelRef] = None
    worst_slice: str = ""


@dataclass(frozen=True)
class EvaluateSpec(Spec):
    """Measure a model on the locked test set, overall and by slice.

    Attributes:
        model: the model package.
        test: the locked test set; rows outside the model's segment are left out.
        output: root folder for reports and predictions.
        label: column with 0 or 1.
        timestamp: column with the time of a row.
        key: columns that identify a row.
        slices: columns, or pairs joined by `*`, such as `carrier*origin`. A number column is cut into quartiles unless
            it has 24 or fewer different values; a column or pair makes at most 5,000 slices.
        min_rows: slices with fewer rows, or without both labels, are listed but not judged.
        operating_point: where precision and recall are measured.
        resamples: bootstrap resamples for intervals.
        confidence: of the intervals.
        seed: seed of the bootstrap.
        experiment: MLflow experiment; the model's run gets metrics and report. None leaves MLflow alone.
    """

    stage: ClassVar[str] = "evaluate"
    entry: ClassVar[str] = "airflow_ml_provider.stages.evaluate.report:run"
    result: ClassVar[type[Result]] = EvaluateResult
    model: ModelRef
    test: DatasetRef
    output: str
    label: str = "label"
    timestamp: str = "event_timestamp"
    key: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    min_rows: int = 100
    operating_point: OperatingPoint = field(default_factory=OperatingPoint)
    resamples: int = 500
    confidence: float = 0.95
    seed: int = 0
    experiment: Optional[str] = None

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise invalid("confidence", self.confidence, "in (0, 1)", "give a fraction, not percent")
        if self.resamples < 100:
            raise invalid("resamples", self.resamples, "at least 100")
        if self.min_rows < 1:
            raise invalid("min_rows", self.min_rows, "at least 1")
        for name in self.slices:
            parts = name.split("*")
            if len(parts) > 2 or len(set(parts)) != len(parts) or not all(parts):
                raise invalid("slices", name, "columns or pairs of two different columns such as 'carrier*origin'")

    def requires(self) -> dict[str, str]:
        needs = {"pyarrow": "pyarrow", "numpy": "numpy", "onnxruntime": "onnxruntime"}
        if self.experiment:
            needs["mlflow"] = "mlflow-skinny"
        return needs
