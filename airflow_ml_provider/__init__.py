"""Machine learning on Apache Airflow: every stage of a model's life as operators, sensors, hooks and DAG templates.

Importing this package loads neither Airflow nor any ML library: public names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "DatasetRef": "refs",
    "ModelRef": "refs",
    "ReportRef": "refs",
    "Interval": "intervals",
    "InProcess": "runtime",
    "Interpreter": "runtime",
    "IngestOperator": "operators.ingest",
    "ValidateOperator": "operators.validate",
    "FeaturesOperator": "operators.features",
    "TrainingSetOperator": "operators.features",
    "TrainOperator": "operators.train",
    "OptimiseOperator": "operators.optimise",
    "EvaluateOperator": "operators.evaluate",
    "RegisterOperator": "operators.register",
    "GateOperator": "operators.gate",
    "PromoteOperator": "operators.promote",
    "RollbackOperator": "operators.promote",
    "ScoreOperator": "operators.score",
    "MonitorOperator": "operators.monitor",
    "LoadTestOperator": "operators.load_test",
    "DeployOperator": "operators.deploy",
    "RolloutOperator": "operators.deploy",
    "RolloutOutcomeOperator": "operators.deploy",
    "UndeployOperator": "operators.deploy",
    "EdgeExportOperator": "operators.edge",
    "OtaReleaseOperator": "operators.edge",
    "KServeOperator": "operators.kserve",
    "ReapOperator": "operators.reap",
    "training_dag": "templates",
    "load_config": "templates",
    "rollback_dag": "templates",
    "rollout_dag": "templates",
    "maintenance_dag": "templates",
    "scoring_dag": "templates",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
