"""Make a trained model smaller or faster, with measured evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_ml_provider import codec
from airflow_ml_provider.links import ReportLink
from airflow_ml_provider.operators._base import StageOperator, names
from airflow_ml_provider.refs import DatasetRef, ModelRef, as_ref
from airflow_ml_provider.stages.evaluate.spec import OperatingPoint
from airflow_ml_provider.stages.optimise.spec import (
    DEFAULT_RECIPES,
    OptimisePolicy,
    OptimiseSpec,
    Recipe,
    TritonSettings,
    recipe,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval


class OptimiseOperator(StageOperator):
    """Try recipes that make a model smaller or faster, measure all on the same rows, and choose one by policy.

    The result's `model` is the package of the chosen candidate, or the model as it came when nothing beats it: what
    comes after (`EvaluateOperator`, `RegisterOperator`, `GateOperator`) takes either. The report has one table with
    accuracy, slices, size, latency and parity of every candidate, and why it was chosen or refused.

    Parameters:
        model: the model package: the train stage's result, its `model`, or a ref.
        dataset: labelled rows, such as the training set stage's `train`: those that are older than the package's
            validation rows calibrate and train, the others measure. Not the locked test set.
        output: root folder for packages and reports.
        recipes: what to try: steps as text, such as `int8_static` or `distill+int8_dynamic`, or the fields of a
            `Recipe`.
        others: packages that were trained otherwise, for the same table.
        policy: what a candidate may lose and what it is chosen by, as the fields of an `OptimisePolicy`; none takes the
            defaults.
        label: column with 0 or 1.
        timestamp: column with the time of a row.
        slices: columns, or pairs joined by `*`, in which no candidate may lose more than the policy allows.
        min_rows: slices with fewer rows, or without both labels, are not judged.
        operating_point: where decisions are compared; none takes the threshold 0.5.
        calibration_rows: rows that `int8_static` finds its ranges on.
        older_share: share of the rows, oldest first, that calibrate where the package does not say which rows it was
            fitted to.
        batch_sizes: rows of a call whose latency is measured.
        repeats: calls per candidate and batch size.
        threads: intra-op threads of a call.
        providers: ONNX Runtime execution providers to measure latency on, such as `OpenVINOExecutionProvider`; those
            that are not there are told and left out, the first that is there decides.
        triton: write a Triton model repository of what was chosen, too, as the fields of a `TritonSettings` (`{}` for
            the defaults); none writes none.
        resamples: bootstrap resamples for intervals.
        confidence: of the intervals, in (0, 1).
        seed: seed of the bootstrap.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields, "model", "dataset", "output_root", "recipes", "others", "policy",
        "label_column", "timestamp", "slices", "min_rows", "operating_point", "calibration_rows", "older_share",
        "batch_sizes", "repeats", "threads", "providers", "triton", "resamples", "confidence", "seed",
    )  # fmt: skip
    operator_extra_links = (*StageOperator.operator_extra_links, ReportLink())  # type: ignore[assignment]

    def __init__(
        self,
        *,
        model: ModelRef | Mapping[str, Any],
        dataset: DatasetRef | Mapping[str, Any],
        output: str,
        recipes: Sequence[str | Mapping[str, Any]] | str = DEFAULT_RECIPES,
        others: Sequence[ModelRef | Mapping[str, Any]] = (),
        policy: OptimisePolicy | Mapping[str, Any] | None = None,
        label: str = "label",
        timestamp: str = "event_timestamp",
        slices: Sequence[str] = (),
        min_rows: int = 100,
        operating_point: OperatingPoint | Mapping[str, Any] | None = None,
        calibration_rows: int = 1024,
        older_share: float = 0.5,
        batch_sizes: Sequence[int] = (1, 64, 1024),
        repeats: int = 50,
        threads: int = 1,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        triton: TritonSettings | Mapping[str, Any] | None = None,
        resamples: int = 500,
        confidence: float = 0.95,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if "{{" not in str(recipes):
            _recipes(recipes)
        if isinstance(policy, Mapping) and "{{" not in str(policy):
            codec.decode(OptimisePolicy, policy, "policy")
        self.model = model
        self.dataset = dataset
        self.output_root = output  # `output` and `label` are properties of every operator
        self.recipes = recipes
        self.others = others
        self.policy = policy
        self.label_column = label
        self.timestamp = timestamp
        self.slices = slices
        self.min_rows = min_rows
        self.operating_point = operating_point
        self.calibration_rows = calibration_rows
        self.older_share = older_share
        self.batch_sizes = batch_sizes
        self.repeats = repeats
        self.threads = threads
        self.providers = providers
        self.triton = triton
        self.resamples = resamples
        self.confidence = confidence
        self.seed = seed

    def build_spec(self, interval: Interval, context: Context) -> OptimiseSpec:
        return OptimiseSpec(
            model=as_ref(ModelRef, self.model, "model"),
            dataset=as_ref(DatasetRef, self.dataset, "dataset"),
            output=self.output_root,
            recipes=_recipes(self.recipes),
            others=tuple(as_ref(ModelRef, one, "model") for one in self.others or ()),
            policy=codec.decode(OptimisePolicy, self.policy or {}, "policy"),
            label=self.label_column,
            timestamp=self.timestamp,
            slices=names(self.slices),
            min_rows=int(self.min_rows),
            operating_point=codec.decode(OperatingPoint, self.operating_point or {}, "operating_point"),
            calibration_rows=int(self.calibration_rows),
            older_share=float(self.older_share),
            batch_sizes=tuple(int(size) for size in self.batch_sizes),
            repeats=int(self.repeats),
            threads=int(self.threads),
            providers=names(self.providers),
            triton=None if self.triton is None else codec.decode(TritonSettings, self.triton, "triton"),
            resamples=int(self.resamples),
            confidence=float(self.confidence),
            seed=int(self.seed),
        )


def _recipes(value: Sequence[str | Mapping[str, Any]] | str) -> tuple[Recipe, ...]:
    return tuple(recipe(one) for one in ([value] if isinstance(value, str) else value))
