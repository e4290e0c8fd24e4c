"""DAG factories: one validated configuration (Python or YAML) gives the scoring, training, rollback and rollout DAGs.

The maintenance DAG serves all pipelines and needs no configuration.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "PipelineConfig": "config",
    "load_config": "load",
    "scoring_dag": "scoring",
    "training_dag": "training",
    "rollback_dag": "rollback",
    "rollout_dag": "rollout",
    "maintenance_dag": "maintenance",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
