"""The validator of OpenLineage's events."""

from __future__ import annotations

from airflow_ml_provider.testing.fixtures import event_validator

__all__ = ["event_validator"]
