"""What a deployment and a rollout answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages import Result


@dataclass(frozen=True)
class DeployResult(Result):
    """What serves now.

    Attributes:
        model: the model.
    """

    model: Optional[ModelRef] = None


@dataclass(frozen=True)
class RolloutResult(DeployResult):
    """How a rollout ended; `model` is the candidate.

    Attributes:
        rollout: the evidence, one record for each step.
        verdict: what an experiment or a bandit said at its end: outcome, effect and interval, or chances and loss.
    """

    rollout: Optional[ReportRef] = None
    verdict: Mapping[str, Any] = field(default_factory=dict)
