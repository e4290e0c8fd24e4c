"""What a rollout answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages import Result


@dataclass(frozen=True)
class RolloutResult(Result):
    """How a rollout ended.

    Attributes:
        rollout: the evidence, one record for each step.
        model: the candidate.
    """

    rollout: Optional[ReportRef] = None
    model: Optional[ModelRef] = None
