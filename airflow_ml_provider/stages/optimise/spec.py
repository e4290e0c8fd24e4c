"""What the optimise stage is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Optional, Protocol, Union

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.refs import DatasetRef, ModelRef, ReportRef
from airflow_ml_provider.stages import Result, Spec
from airflow_ml_provider.stages.evaluate.spec import OperatingPoint

Step = Literal["graph", "fp16", "int8_dynamic", "int8_static", "int4", "magnitude", "structured", "distill", "qat"]
TRAINED = ("structured", "distill", "qat")
"""Steps that train; they make a graph of their own, so they come first."""
DEFAULT_RECIPES = ("graph", "fp16", "int8_dynamic", "int8_static")
ORIGINAL = "original"


@dataclass(frozen=True)
class Recipe:
    """One way to make a model smaller or faster; its steps are done one after the other.

    Attributes:
        steps: `graph` lets ONNX Runtime fold and fuse the graph; `fp16` halves the weights; `int8_dynamic` has integer
            weights and measures the ranges of activations in every call; `int8_static` fixes these ranges on
            calibration rows; `int4` packs the weights of matrix products into four bits, block by block; `magnitude`
            sets the smallest weights to zero; `structured` takes whole hidden units out and trains on; `distill` trains
            a small network on the model's own scores; `qat` trains on with the rounding of eight bits in place. The
            last three train, so one of them comes first.
        name: name in the table; by default the steps joined by `+`.
        level: of `graph`: `basic` keeps to the standard's operators, `extended` fuses into ONNX Runtime's own.
        calibrate: of `int8_static`: how a range follows from the values that were seen.
        per_channel: of the two `int8`: a scale for each output of a layer instead of one for all.
        reduce_range: of the two `int8`: weights of seven bits. With eight, sums of products overflow on x86 processors
            without VNNI and scores depend on the machine; without it, measure where the model will serve.
        block: of `int4`: weights that share a scale; a power of two from 16 on.
        share: of `magnitude` and `structured`: what part of the weights, or units of a layer, goes.
        hidden: of `distill`: width of each hidden layer of the student.
        weight: of `distill`: weight of the teacher's scores in the loss; the rest is that of the labels.
        epochs: of the steps that train.
        learning_rate: of the steps that train.
        seed: of the steps that train.
    """

    steps: tuple[Step, ...]
    name: str = ""
    level: Literal["basic", "extended"] = "extended"
    calibrate: Literal["minmax", "entropy", "percentile"] = "minmax"
    per_channel: bool = True
    reduce_range: bool = True
    block: int = 32
    share: float = 0.5
    hidden: tuple[int, ...] = (32,)
    weight: float = 0.7
    epochs: int = 5
    learning_rate: float = 0.002
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.steps or any(step in TRAINED for step in self.steps[1:]):
            raise invalid("steps of a recipe", self.steps, f"at least one, with {', '.join(TRAINED)} only at the front")
        if not self.name:
            object.__setattr__(self, "name", "+".join(self.steps))
        if self.name == ORIGINAL:
            raise invalid("name of a recipe", self.name, "another name", "this one is the model's as it came")
        if not 0 < self.share < 1:
            raise invalid("share", self.share, "in (0, 1)", "give a fraction, not percent")
        if not 0 <= self.weight <= 1:
            raise invalid("weight", self.weight, "in [0, 1]")
        if self.block < 16 or self.block & (self.block - 1):
            raise invalid("block", self.block, "a power of two from 16 on")
        if self.epochs < 1 or self.learning_rate <= 0 or any(width < 1 for width in self.hidden):
            raise invalid("epochs, learning_rate, hidden", (self.epochs, self.learning_rate, self.hidden), "positive")


def recipe(value: Union[str, Recipe, Any], what: str = "recipes") -> Recipe:
    """Return a recipe from its steps as text, such as `distill+int8_dynamic`, or from its fields.

    Raises:
        SpecError: there is no such step.
    """
    if isinstance(value, str):
        value = {"steps": value.split("+")}
    return codec.decode(Recipe, value, what)


@dataclass(frozen=True)
class Allowance:
    """What may be lost when another form of a model takes its place.

    Attributes:
        metric: what accuracy is; its direction is known.
        max_loss: by how much it may be worse, in the metric's own unit.
        judge: `bound` holds `max_loss` against the upper end of the paired interval of the loss, `value` against the
            loss itself.
        max_slice_loss: by how much it may be worse in any judged slice.
        max_flips: share of rows whose decision at the operating point may differ from the model's.
    """

    metric: str = "auc"
    max_loss: float = 0.005
    judge: Literal["bound", "value"] = "bound"
    max_slice_loss: float = 0.02
    max_flips: float = 0.02

    def __post_init__(self) -> None:
        if min(self.max_loss, self.max_slice_loss) < 0:
            raise invalid("max_loss, max_slice_loss", (self.max_loss, self.max_slice_loss), "at least 0")
        if not 0 <= self.max_flips <= 1:
            raise invalid("max_flips", self.max_flips, "in [0, 1]", "give a fraction, not percent")


class Measurement(Protocol):
    """How other forms of a model are measured on labelled rows: fields that the specs which ask for it share."""

    @property
    def policy(self) -> Allowance: ...
    @property
    def label(self) -> str: ...
    @property
    def timestamp(self) -> str: ...
    @property
    def slices(self) -> tuple[str, ...]: ...
    @property
    def min_rows(self) -> int: ...
    @property
    def older_share(self) -> float: ...
    @property
    def resamples(self) -> int: ...
    @property
    def confidence(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class OptimisePolicy(Allowance):
    """Which candidates may replace the model, and which of them does.

    Attributes:
        choose: `fastest` takes the lowest median latency at `batch_size`, `smallest` the fewest bytes.
        batch_size: rows of a call that `fastest` looks at; none takes the first that is measured.
        min_gain: share of the model's latency or bytes that must be saved; less is not worth another model, and of
            latencies may be noise.
    """

    choose: Literal["fastest", "smallest"] = "fastest"
    batch_size: Optional[int] = None
    min_gain: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_gain <= 1:
            raise invalid("min_gain", self.min_gain, "in [0, 1]", "give a fraction, not percent")


@dataclass(frozen=True)
class Instances:
    """Copies of a model that Triton runs side by side.

    Attributes:
        count: how many, on each device.
        kind: `cpu`, `gpu`, or `auto` for GPUs where there are some.
        gpus: which ones; empty takes all.
    """

    count: int = 1
    kind: Literal["cpu", "gpu", "auto"] = "cpu"
    gpus: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise invalid("count of instances", self.count, "at least 1")
        if self.gpus and self.kind == "cpu":
            raise invalid("gpus", self.gpus, "empty for instances on the CPU")


@dataclass(frozen=True)
class TritonSettings:
    """How Triton serves a model.

    Attributes:
        version: number of the version's folder.
        max_batch_size: rows of a request, and of what the batcher joins.
        dynamic_batching: whether requests that wait are joined.
        preferred_batch_sizes: sizes that are sent off at once; none joins whatever waits.
        queue_delay_us: how long a request may wait for others (microseconds).
        instances: copies of the model.
        warm_up: batch sizes that are scored, with a row of the package's sample, before the model counts as ready.
        threads: ONNX Runtime's intra-op threads of an instance.
        accelerator: execution provider of ONNX Runtime; TensorRT needs instances on GPUs, OpenVINO some on CPUs.
        accelerator_parameters: its parameters, such as `{"precision_mode": "FP16"}`.
    """

    version: int = 1
    max_batch_size: int = 1024
    dynamic_batching: bool = True
    preferred_batch_sizes: tuple[int, ...] = ()
    queue_delay_us: int = 200
    instances: tuple[Instances, ...] = (Instances(),)
    warm_up: tuple[int, ...] = (1,)
    threads: int = 1
    accelerator: Optional[Literal["tensorrt", "openvino"]] = None
    accelerator_parameters: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("version", "max_batch_size", "threads"):
            if getattr(self, name) < 1:
                raise invalid(name, getattr(self, name), "at least 1")
        for name in ("preferred_batch_sizes", "warm_up"):
            if any(not 1 <= size <= self.max_batch_size for size in getattr(self, name)):
                raise invalid(name, getattr(self, name), f"in [1, {self.max_batch_size}], the largest batch")
        if self.queue_delay_us < 0:
            raise invalid("queue_delay_us", self.queue_delay_us, "at least 0")
        if not self.instances:
            raise invalid("instances", self.instances, "at least one group")
        needs = {"tensorrt": ("gpu", "auto"), "openvino": ("cpu", "auto")}.get(self.accelerator or "")
        if needs and not any(group.kind in needs for group in self.instances):
            raise invalid("accelerator", self.accelerator, f"used with instances of kind {' or '.join(needs)}")
        if self.accelerator_parameters and not self.accelerator:
            raise invalid("accelerator_parameters", dict(self.accelerator_parameters), "given with an accelerator")


@dataclass(frozen=True)
class OptimiseResult(Result):
    """The model to go on with.

    Attributes:
        model: the chosen candidate's package, or the model itself when nothing beats it.
        report: the table of all candidates with the reasons, as JSON and as a page.
        chosen: name of the chosen candidate; `original` when nothing beats the model.
        parent: the model that the candidates were made from.
        repository: folder of the Triton model repository; empty where none was asked for.
    """

    model: Optional[ModelRef] = None
    report: Optional[ReportRef] = None
    chosen: str = ""
    parent: Optional[ModelRef] = None
    repository: str = ""


@dataclass(frozen=True)
class OptimiseSpec(Spec):
    """Make smaller and faster candidates of a model, measure all on the same rows, and choose one by policy.

    Attributes:
        model: the model package.
        dataset: labelled rows, those that the model was fitted to among them, as the training set stage's `train`. Rows
            older than the package's validation rows calibrate and train; the others measure. The locked test set does
            not belong here: choosing by it would spend it.
        output: root folder for packages and reports.
        recipes: what to try.
        others: packages of the same inputs that were trained otherwise, such as a distilled one, for the same table.
        policy: what a candidate may lose, and what it is chosen by.
        label: column with 0 or 1.
        timestamp: column with the time of a row.
        slices: as in the evaluate stage.
        min_rows: slices with fewer rows are not judged.
        operating_point: where decisions are compared.
        calibration_rows: rows that `int8_static` finds its ranges on.
        older_share: share of the rows, oldest first, that calibrate where the package does not say which rows it was
            fitted to.
        batch_sizes: rows of a call whose latency is measured.
        repeats: calls per candidate and batch size.
        threads: intra-op threads of a call.
        providers: execution providers to measure latency on; those that this ONNX Runtime lacks are told and left out.
            The first that is there decides.
        triton: write a Triton model repository of what was chosen, too; none writes none.
        resamples: bootstrap resamples for intervals.
        confidence: of the intervals.
        seed: seed of the bootstrap.
    """

    stage: ClassVar[str] = "optimise"
    entry: ClassVar[str] = "airflow_ml_provider.stages.optimise.run:run"
    result: ClassVar[type[Result]] = OptimiseResult
    model: ModelRef
    dataset: DatasetRef
    output: str
    recipes: tuple[Recipe, ...] = field(default_factory=lambda: tuple(map(recipe, DEFAULT_RECIPES)))
    others: tuple[ModelRef, ...] = ()
    policy: OptimisePolicy = field(default_factory=OptimisePolicy)
    label: str = "label"
    timestamp: str = "event_timestamp"
    slices: tuple[str, ...] = ()
    min_rows: int = 100
    operating_point: OperatingPoint = field(default_factory=OperatingPoint)
    calibration_rows: int = 1024
    older_share: float = 0.5
    batch_sizes: tuple[int, ...] = (1, 64, 1024)
    repeats: int = 50
    threads: int = 1
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    triton: Optional[TritonSettings] = None
    resamples: int = 500
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        names = [r.name for r in self.recipes] + [f"other {i + 1}" for i in range(len(self.others))]
        if not names or len(set(names)) < len(names):
            raise invalid("recipes", names, "at least one, of different names", "give `name`")
        if not self.batch_sizes or min(self.batch_sizes) < 1 or len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise invalid("batch_sizes", self.batch_sizes, "different numbers of rows, at least 1")
        for name in ("repeats", "threads", "calibration_rows", "min_rows"):
            if getattr(self, name) < 1:
                raise invalid(name, getattr(self, name), "at least 1")
        if not 0 < self.older_share < 1 or not 0 < self.confidence < 1:
            raise invalid("older_share, confidence", (self.older_share, self.confidence), "in (0, 1)")
        if self.resamples < 100:
            raise invalid("resamples", self.resamples, "at least 100")
        if not self.providers:
            raise SpecError("providers must name at least one execution provider, such as CPUExecutionProvider")
        if self.at_batch not in self.batch_sizes:
            raise invalid("policy.batch_size", self.at_batch, f"one of batch_sizes {self.batch_sizes}")

    @property
    def at_batch(self) -> int:
        """Rows of a call that the policy looks at."""
        return self.policy.batch_size or self.batch_sizes[0]

    def requires(self) -> dict[str, str]:
        needs = {"numpy": "numpy", "pyarrow": "pyarrow", "onnx": "onnx", "onnxruntime": "onnxruntime"}
        if any("int4" in r.steps for r in self.recipes):
            needs["onnx_ir"] = "onnx-ir"  # ONNX Runtime's quantiser imports it and does not install it
        if any(r.steps[0] in TRAINED for r in self.recipes):
            needs.update(torch="torch", safetensors="safetensors", onnxscript="onnxscript")
        return needs
