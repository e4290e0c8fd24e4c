"""What a release over the air is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages import Result, Spec

KEY = "ML_EDGE_SIGNING_KEY"  # variable with the private key; it is in no spec


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
