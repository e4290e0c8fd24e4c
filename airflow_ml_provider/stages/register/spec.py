"""What the register stage is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Optional

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages import Result, Spec


@dataclass(frozen=True)
class RegisterResult(Result):
    """The registered version.

    Attributes:
        model: the model with its version.
        parity: how far ONNX Runtime's scores are from the native ones on a real sample.
    """

    model: Optional[ModelRef] = None
    parity: Optional[ReportRef] = None


@dataclass(frozen=True)
class RegisterSpec(Spec):
    """Prove that the ONNX export is the model that was trained, and make a version in MLflow with its provenance.

    Attributes:
        model: the model package; training has put the ONNX file into it.
        evaluation: its evaluation report; the version is used at the operating point that it was measured at.
        name: registered name; by default the model's own.
        alias: alias that the new version gets.
        max_difference: highest absolute difference between a native and an ONNX score.
        max_flips: highest share of sample rows whose decision at the operating point differs.
        tags: further tags of the version.
    """

    stage: ClassVar[str] = "register"
    entry: ClassVar[str] = "airflow_ml_provider.stages.register.mlflow:run"
    result: ClassVar[type[Result]] = RegisterResult
    model: ModelRef
    evaluation: Optional[ReportRef] = None
    name: Optional[str] = None
    alias: str = "candidate"
    max_difference: float = 1e-4
    max_flips: float = 0.001
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_difference < 0:
            raise invalid("max_difference", self.max_difference, "at least 0")
        if not 0 <= self.max_flips <= 1:
            raise invalid("max_flips", self.max_flips, "in [0, 1]", "give a fraction, not percent")

    def requires(self) -> dict[str, str]:
        return {"mlflow": "mlflow-skinny", "numpy": "numpy", "pyarrow": "pyarrow", "onnxruntime": "onnxruntime"}
