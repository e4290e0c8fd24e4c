"""What exports for devices and releases over the air are asked for, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Optional

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.refs import DatasetRef, ModelRef, ReportRef
from airflow_ml_provider.stages import Result, Spec
from airflow_ml_provider.stages.evaluate.spec import OperatingPoint
from airflow_ml_provider.stages.optimise.spec import Allowance

KEY = "ML_EDGE_SIGNING_KEY"  # variable with the private key; it is in no spec

Format = Literal["ort", "executorch", "litert", "coreml"]
FILES: Mapping[str, str] = {
    "ort": "model.ort", "executorch": "model.pte", "litert": "model.tflite", "coreml": "model.mlpackage.zip",
}  # fmt: skip
RUNTIMES: Mapping[str, str] = {
    "ort": "onnxruntime", "executorch": "executorch", "litert": "litert", "coreml": "coreml",
}  # fmt: skip
_CONVERTERS: Mapping[str, Mapping[str, str]] = {
    "ort": {"onnx": "onnx", "flatbuffers": "flatbuffers"},
    "executorch": {"executorch": "executorch"},
    "litert": {"litert_torch": "litert-torch", "ai_edge_litert": "ai-edge-litert"},
    "coreml": {"coremltools": "coremltools"},
}


@dataclass(frozen=True)
class ExportPolicy(Allowance):
    """When a file for devices counts as the model that it was made from.

    Attributes:
        max_difference: highest absolute difference between a score of the file and one of the model.
        unmeasured: what happens where this machine cannot run the file, as Core ML's anywhere but on macOS: `refuse`
            it, or `allow` it with a report that has no verdict.
    """

    max_loss: float = 0.001
    max_slice_loss: float = 0.005
    max_flips: float = 0.001
    max_difference: float = 1e-4
    unmeasured: Literal["refuse", "allow"] = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.max_difference >= 0:
            raise invalid("max_difference", self.max_difference, "at least 0")


@dataclass(frozen=True)
class EdgeExportResult(Result):
    """The model in the format of a device.

    Attributes:
        model: a package with the file, child of the model that it was made from; none where it was refused.
        report: parity with the model and what else was measured; its verdict is none where nothing could be measured.
        file: name of the file in the package, for `OtaReleaseOperator`.
        edge_runtime: what runs it, for `OtaReleaseOperator`.
        parent: the model that it was made from.
    """

    model: Optional[ModelRef] = None
    report: Optional[ReportRef] = None
    file: str = ""
    edge_runtime: str = ""
    parent: Optional[ModelRef] = None


@dataclass(frozen=True)
class EdgeExportSpec(Spec):
    """Convert a model to the format of a device, and measure the file against the model on the same rows.

    Attributes:
        model: the model package; all formats but `ort` take a network of PyTorch.
        format: `ort` for ONNX Runtime, `executorch`, `litert` or `coreml`.
        output: root folder for packages and reports.
        dataset: labelled rows to measure on, as in the optimise stage; none compares scores on the package's sample.
        network: `package.module:function` that makes the untrained module of a package whose training function was
            your own; none takes the network of engine `torch`.
        batch_size: rows of a call of the file; `ort` takes any number.
        precision: of weights and arithmetic; `float16` is for `coreml`, whose Neural Engine has no other one.
        policy: when the file counts as the model.
        label: column with 0 or 1.
        timestamp: column with the time of a row.
        slices: as in the evaluate stage.
        min_rows: slices with fewer rows are not judged.
        operating_point: where decisions are compared.
        older_share: share of the rows, oldest first, that are left out where the package does not say which rows it was
            fitted to.
        repeats: calls whose latency is measured.
        resamples: bootstrap resamples for intervals.
        confidence: of the intervals.
        seed: seed of the bootstrap.
    """

    stage: ClassVar[str] = "edge_export"
    entry: ClassVar[str] = "airflow_ml_provider.stages.edge.export:run"
    result: ClassVar[type[Result]] = EdgeExportResult
    model: ModelRef
    format: Format
    output: str
    dataset: Optional[DatasetRef] = None
    network: str = ""
    batch_size: int = 1
    precision: Literal["float32", "float16"] = "float32"
    policy: ExportPolicy = field(default_factory=ExportPolicy)
    label: str = "label"
    timestamp: str = "event_timestamp"
    slices: tuple[str, ...] = ()
    min_rows: int = 100
    operating_point: OperatingPoint = field(default_factory=OperatingPoint)
    older_share: float = 0.5
    repeats: int = 50
    resamples: int = 500
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.format not in FILES:
            raise invalid("format", self.format, f"one of {', '.join(FILES)}")
        for name in ("batch_size", "repeats", "min_rows"):
            if getattr(self, name) < 1:
                raise invalid(name, getattr(self, name), "at least 1")
        if self.precision == "float16" and self.format != "coreml":
            raise SpecError(f"precision 'float16' is for format 'coreml'; '{self.format}' has float32")
        if self.network and (self.format == "ort" or self.network.count(":") != 1):
            raise invalid("network", self.network, "package.module:function, for a format other than ort")
        if self.slices and self.dataset is None:
            raise SpecError("slices are measured on labelled rows; give `dataset`")
        if not 0 < self.older_share < 1 or not 0 < self.confidence < 1:
            raise invalid("older_share, confidence", (self.older_share, self.confidence), "in (0, 1)")
        if self.resamples < 100:
            raise invalid("resamples", self.resamples, "at least 100")

    def requires(self) -> dict[str, str]:
        source = {} if self.format == "ort" else {"torch": "torch", "safetensors": "safetensors"}
        common = {"numpy": "numpy", "pyarrow": "pyarrow", "onnx": "onnx", "onnxruntime": "onnxruntime"}
        return {**common, **source, **_CONVERTERS[self.format]}


@dataclass(frozen=True)
class OtaResult(Result):
    """The release that devices find.

    Attributes:
        model: the model that is rolled out.
        release: the signed manifest.
    """

    model: Optional[ModelRef] = None
    release: Optional[ReportRef] = None


@dataclass(frozen=True)
class OtaSpec(Spec):
    """Publish a model for devices by a signed manifest; the same again changes nothing.

    Attributes:
        model: the model package.
        target: folder of the releases, which a web server shows to the devices.
        file: file of the package that devices get.
        percent: share of the devices that get it; another one for the same model moves the rollout on.
        runtime: what runs it on the devices; empty for anything.
        minimum: lowest version of that.
        valid_days: until when devices believe the manifest; after half of that the same release is signed anew.
        deltas: whether devices with the model before get a delta; it takes `bsdiff4` here and on them.
    """

    stage: ClassVar[str] = "ota"
    entry: ClassVar[str] = "airflow_ml_provider.stages.edge.release:run"
    result: ClassVar[type[Result]] = OtaResult
    model: ModelRef
    target: str
    file: str = "model.onnx"
    percent: float = 100.0
    runtime: str = "onnxruntime"
    minimum: str = ""
    valid_days: float = 30.0
    deltas: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 100:
            raise invalid("percent", self.percent, "in [0, 100]")
        if not self.file or "/" in self.file or self.file.startswith("."):
            raise invalid("file", self.file, "the name of a file of the package")
        if self.valid_days <= 0:
            raise invalid("valid_days", self.valid_days, "greater than 0")
        from airflow_ml_provider.stages.edge.logic import numbers  # not above: every DAG file would load it

        numbers(self.minimum)

    def requires(self) -> dict[str, str]:
        return {"cryptography": "cryptography", **({"bsdiff4": "bsdiff4"} if self.deltas else {})}
