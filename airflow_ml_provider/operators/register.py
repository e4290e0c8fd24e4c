"""Make a version of a trained model in the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_ml_provider.operators._base import StageOperator
from airflow_ml_provider.refs import ModelRef, ReportRef, as_ref
from airflow_ml_provider.stages.register.spec import RegisterSpec

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval


class RegisterOperator(StageOperator):
    """Register a trained model in MLflow once ONNX Runtime is proven to score like the engine that trained it.

    The version carries digest, segment, provenance and reason as tags, and the alias `candidate`. A model that scores
    differently as ONNX is refused and not registered. `GateOperator` decides about the version, `PromoteOperator` makes
    it champion.

    Parameters:
        model: the model package: the train stage's result, its `model`, or a ref.
        evaluation: its evaluation report: the evaluate stage's result, its `report`, or a ref; the version is
            used at the operating point that it measured at. None takes the package's own.
        name: registered name; none takes the model's own.
        alias: alias that the new version gets.
        max_difference: highest absolute difference between a native and an ONNX score.
        max_flips: highest share of sample rows, in [0, 1], whose decision at the operating point may differ.
        tags: further tags of the version.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields, "model", "evaluation", "name", "alias", "max_difference", "max_flips", "tags",
    )  # fmt: skip
    uses_mlflow: ClassVar[bool] = True

    def __init__(
        self,
        *,
        model: ModelRef | Mapping[str, Any],
        evaluation: ReportRef | Mapping[str, Any] | None = None,
        name: str | None = None,
        alias: str = "candidate",
        max_difference: float = 1e-4,
        max_flips: float = 0.001,
        tags: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.evaluation = evaluation
        self.name = name
        self.alias = alias
        self.max_difference = max_difference
        self.max_flips = max_flips
        self.tags = tags

    def build_spec(self, interval: Interval, context: Context) -> RegisterSpec:
        return RegisterSpec(
            model=as_ref(ModelRef, self.model, "model"),
            evaluation=report(self.evaluation, "evaluation") if self.evaluation else None,
            name=self.name or None,
            alias=self.alias,
            max_difference=float(self.max_difference),
            max_flips=float(self.max_flips),
            tags=dict(self.tags or {}),
        )


def report(value: Any, what: str) -> ReportRef:
    """Return a report's ref; the whole result of a stage stands for its `report`."""
    if isinstance(value, Mapping) and "kind" not in value and what not in value and value.get("report"):
        value = value["report"]
    return as_ref(ReportRef, value, what)
