"""The model registry: versions, aliases, evidence and the journal of who held an alias when. Airflow-free.

Importing it loads no MLflow; that happens when a `Registry` first speaks to a server.
"""

from __future__ import annotations

from airflow_ml_provider.registry.journal import JournalEntry
from airflow_ml_provider.registry.mlflow import Registry

__all__ = ["JournalEntry", "Registry"]
