"""What the score stage is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Optional

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef, ModelRef
from airflow_ml_provider.stages import Result, Spec


@dataclass(frozen=True)
class ScoreResult(Result):
    """Predictions.

    Attributes:
        dataset: the predictions of the interval.
        models: the versions that were used.
        counts: `rows`, `scored`, `without_model`, and rows per model.
    """

    dataset: Optional[DatasetRef] = None
    models: tuple[ModelRef, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreSpec(Spec):
    """Score the rows of one interval, Parquet to Parquet, in bounded memory.

    Every row group holds rows of one model version; its name, version and digest are columns whose statistics stand in
    the row group's metadata, and the file's metadata lists them per row group together with the provenance.

    Attributes:
        dataset: rows with the models' inputs.
        models: registered names; each scores the rows of its segment, the first that fits a row scores it.
        target: root folder of the predictions.
        interval: the window; by default that of `dataset`.
        alias: the holder of this alias when the interval began does the scoring: data of an old interval is never
            scored by a model that was trained on later data.
        version: use this version of the (single) model instead.
        rescore: score a window that was scored before by what the journal says now; by default promotions that were
            journalled after its first scoring do not count, so that running it again changes nothing.
        keep: columns to carry over, such as the key; empty carries all.
        batch_rows: rows per batch; two batches per core are in memory at a time.
        providers: ONNX Runtime execution providers, in order of preference.
    """

    stage: ClassVar[str] = "score"
    entry: ClassVar[str] = "airflow_ml_provider.stages.score.onnx:run"
    result: ClassVar[type[Result]] = ScoreResult
    dataset: DatasetRef
    models: tuple[str, ...]
    target: str
    interval: Optional[Interval] = None
    alias: str = "champion"
    version: Optional[str] = None
    rescore: bool = False
    keep: tuple[str, ...] = ()
    batch_rows: int = 65536
    providers: tuple[str, ...] = ("CUDAExecutionProvider", "CPUExecutionProvider")

    def __post_init__(self) -> None:
        if not self.models:
            raise invalid("models", self.models, "at least one registered name")
        if self.version and len(self.models) != 1:
            raise invalid("version", self.version, "given only with a single model")
        if self.batch_rows < 1:
            raise invalid("batch_rows", self.batch_rows, "at least 1")
        if self.interval is None:
            object.__setattr__(self, "interval", self.dataset.interval)
        if self.interval is None:
            raise invalid("interval", None, "given, or part of the dataset ref")

    def requires(self) -> dict[str, str]:
        return {"mlflow": "mlflow-skinny", "numpy": "numpy", "pyarrow": "pyarrow", "onnxruntime": "onnxruntime"}
