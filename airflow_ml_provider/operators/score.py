"""Batch predictions of one interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.operators._base import StageOperator, boolean, names
from airflow_ml_provider.refs import DatasetRef, as_ref
from airflow_ml_provider.stages.score.spec import ScoreSpec

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval


class ScoreOperator(StageOperator):
    """Score the rows of an interval with ONNX Runtime, Parquet to Parquet, in bounded memory.

    Data of an interval is scored by who held the alias when the interval began, so running an old day again gives the
    old predictions. Before the first promotion the task is skipped.

    Parameters:
        dataset: rows with the models' inputs: the features stage's result, its `dataset`, or a ref.
        models: registered names; each scores the rows of its segment, the first that fits a row scores it.
        target: root folder of the predictions; the interval's partition is replaced.
        alias: who holds it scores.
        version: use this version of the (single) model instead.
        rescore: score a window that was scored before by what the journal says now; by default promotions that were
            journalled after its first scoring do not count, so that running it again changes nothing.
        keep: columns to carry over, such as the key; empty carries all.
        batch_rows: rows per batch; two batches per core are in memory at a time.
        providers: ONNX Runtime execution providers, in order of preference; missing ones are left out.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields, "dataset", "models", "target", "alias", "version", "rescore", "keep",
        "batch_rows", "providers",
    )  # fmt: skip
    uses_mlflow: ClassVar[bool] = True
    ui_color = "#e3ddf4"

    def __init__(
        self,
        *,
        dataset: DatasetRef | Mapping[str, Any],
        models: Sequence[str] | str,
        target: str,
        alias: str = "champion",
        version: str | None = None,
        rescore: bool = False,
        keep: Sequence[str] = (),
        batch_rows: int = 65536,
        providers: Sequence[str] = ("CUDAExecutionProvider", "CPUExecutionProvider"),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(models, (list, tuple)) and not models:
            raise invalid("models", models, "at least one registered name")
        self.dataset = dataset
        self.models = models
        self.target = target
        self.alias = alias
        self.version = version
        self.rescore = rescore
        self.keep = keep
        self.batch_rows = batch_rows
        self.providers = providers

    def build_spec(self, interval: Interval, context: Context) -> ScoreSpec:
        dataset = as_ref(DatasetRef, self.dataset, "dataset")
        return ScoreSpec(
            dataset=dataset,
            models=names(self.models),
            target=self.target,
            interval=dataset.interval if dataset.interval and not self.interval else interval,
            alias=self.alias,
            version=str(self.version) if self.version else None,
            rescore=boolean(self.rescore, "rescore"),
            keep=names(self.keep),
            batch_rows=int(self.batch_rows),
            providers=names(self.providers),
        )
