"""What the gate is asked and what it answers; the policy is a file in the user's repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Optional

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.refs import DatasetRef, ModelRef, ReportRef
from airflow_ml_provider.stages import Result, Spec

if TYPE_CHECKING:
    from airflow_ml_provider.stages.evaluate.metrics import Metric


@dataclass(frozen=True)
class Threshold:
    """Bounds of one metric. Give `at_least` or `at_most`, whichever is the metric's bad side, or both.

    Attributes:
        at_least: lowest value that passes.
        at_most: highest value that passes.
        use_bound: judge the interval's bound on the bad side instead of the point estimate.
    """

    at_least: Optional[float] = None
    at_most: Optional[float] = None
    use_bound: bool = False

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise invalid("threshold", None, "given as at_least or at_most")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise invalid("threshold", (self.at_least, self.at_most), "at_least <= at_most")


@dataclass(frozen=True)
class Challenge:
    """Challenger against champion on the same rows, by a paired bootstrap.

    Attributes:
        metric: metric to compare; its direction is known.
        min_gain: the gain must be at least this (may be negative: how much worse is tolerable).
        confidence: of the interval of the gain; its lower bound is what is compared.
        resamples: bootstrap resamples.
    """

    metric: str = "auc"
    min_gain: float = 0.0
    confidence: float = 0.95
    resamples: int = 1000

    def __post_init__(self) -> None:
        _metric(self.metric)
        if not 0 < self.confidence < 1:
            raise invalid("confidence", self.confidence, "in (0, 1)", "give a fraction, not percent")
        if self.resamples < 100:
            raise invalid("resamples", self.resamples, "at least 100")


@dataclass(frozen=True)
class Load:
    """What a server of the model must withstand, by the report of the load test stage.

    Attributes:
        rate: requests per second at which it must have been tested, or at more.
        metrics: figure to its bounds: `p50_ms`, `p95_ms`, `p99_ms`, `error_rate`, `cold_start_s`, `knee_per_s`.
    """

    rate: float
    metrics: Mapping[str, Threshold]

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise invalid("load.rate", self.rate, "greater than 0 (requests per second)")
        if not self.metrics:
            raise invalid("load.metrics", dict(self.metrics), "at least one figure, such as p99_ms")
        from airflow_ml_provider.stages.load_test.logic import better_when_higher  # a DAG file is parsed without it

        for name, threshold in self.metrics.items():
            _check_side(f"load.metrics.{name}", name, threshold, better_when_higher(name))


@dataclass(frozen=True)
class GatePolicy:
    """What a model must fulfil. A criterion that is not given is not checked, and the evidence says so.

    A policy must ask for something: without any criterion there would be no evidence to promote on.

    Attributes:
        metrics: metric to its bounds on the whole test set.
        min_rows: fewest test rows.
        worst_slice: bounds on the metric of the worst judged slice, by metric.
        challenge: challenger against champion; passes with a note when there is no champion yet.
        min_quality: lowest `overall` quality score of the batches that the training set was made from; every root of
            quality reports must have some.
        parity: the ONNX parity report must have passed.
        lineage: data, code, environment and reason must all be recorded.
        approvals: how many people must have approved.
        load: what a server of the model must withstand.
    """

    metrics: Mapping[str, Threshold] = field(default_factory=dict)
    min_rows: int = 0
    worst_slice: Mapping[str, Threshold] = field(default_factory=dict)
    challenge: Optional[Challenge] = None
    min_quality: Optional[float] = None
    parity: bool = True
    lineage: bool = True
    approvals: int = 0
    load: Optional[Load] = None

    def __post_init__(self) -> None:
        for place in ("metrics", "worst_slice"):
            for name, threshold in getattr(self, place).items():
                _check(f"{place}.{name}", name, threshold)
        if self.min_quality is not None and not 0 <= self.min_quality <= 1:
            raise invalid("min_quality", self.min_quality, "in [0, 1]", "give a fraction, not percent")
        for place in ("min_rows", "approvals"):
            if getattr(self, place) < 0:
                raise invalid(place, getattr(self, place), "at least 0")
        if not any(self.asked.values()):
            raise invalid("criteria", "none at all", f"at least one of {', '.join(self.asked)}")

    @property
    def asked(self) -> dict[str, bool]:
        """Name of each criterion to whether the policy asks for it."""
        return {
            "metrics": bool(self.metrics), "min_rows": self.min_rows > 0, "worst_slice": bool(self.worst_slice),
            "challenge": self.challenge is not None, "quality": self.min_quality is not None, "parity": self.parity,
            "lineage": self.lineage, "approvals": self.approvals > 0, "load": self.load is not None,
        }  # fmt: skip


def _metric(name: str) -> Metric:
    from airflow_ml_provider.stages.evaluate.metrics import metric  # a DAG file is parsed without it

    return metric(name)


def _check(place: str, name: str, threshold: Threshold) -> None:
    """Raise unless a threshold bounds the bad side of its metric, in the metric's range."""
    _check_side(place, name, threshold, _metric(name).higher_is_better)
    if name != "log_loss":
        for bound in ("at_least", "at_most"):
            value = getattr(threshold, bound)
            if value is not None and not 0 <= value <= 1:
                raise invalid(f"{place}.{bound}", value, "in [0, 1]", "give a fraction, not percent")


def _check_side(place: str, name: str, threshold: Threshold, higher_is_better: bool) -> None:
    side = "at_least" if higher_is_better else "at_most"
    if getattr(threshold, side) is None:
        good = "higher" if higher_is_better else "lower"
        raise SpecError(f"{place} lacks {side}: {name} is better when it is {good}")


@dataclass(frozen=True)
class GateResult(Result):
    """The decision.

    Attributes:
        passed: whether the model may go on.
        evidence: the content-addressed record.
        model: the model that was judged.
        failed: names of the criteria that were not met.
    """

    passed: bool = False
    evidence: Optional[ReportRef] = None
    model: Optional[ModelRef] = None
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class GateSpec(Spec):
    """Judge one registered version by a policy and write the evidence.

    Attributes:
        model: the registered version.
        evaluation: its evaluation report.
        policy: YAML or JSON file with a `GatePolicy`.
        output: root folder for evidence.
        test: the locked test set, for the challenge.
        label: column with 0 or 1.
        parity: the parity report.
        quality: root folders of the validate stage's reports (quality series); each must say something about the
            training window.
        alias: alias of the champion.
        approved_by: people who approved.
        load_test: the load test report.
    """

    stage: ClassVar[str] = "gate"
    entry: ClassVar[str] = "airflow_ml_provider.stages.gate.mlflow:run"
    result: ClassVar[type[Result]] = GateResult
    model: ModelRef
    evaluation: ReportRef
    policy: str
    output: str
    test: Optional[DatasetRef] = None
    label: str = "label"
    parity: Optional[ReportRef] = None
    quality: tuple[str, ...] = ()
    alias: str = "champion"
    approved_by: tuple[str, ...] = ()
    load_test: Optional[ReportRef] = None

    def requires(self) -> dict[str, str]:
        return {
            "mlflow": "mlflow-skinny", "numpy": "numpy", "pyarrow": "pyarrow", "onnxruntime": "onnxruntime",
            "yaml": "PyYAML",
        }  # fmt: skip
