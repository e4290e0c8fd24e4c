"""What a rollout answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages import Result


@dataclass(frozen=True)
class RolloutResult(Result):
    """How a rollout ended.

    Attributes:
        rollout: the evidence, one record for each step.
        model: the candidate.
        verdict: what an experiment or a bandit said at its end: outcome, effect and interval, or chances and loss.
    """

    rollout: Optional[ReportRef] = None
    model: Optional[ModelRef] = None
    verdict: Mapping[str, Any] = field(default_factory=dict)
