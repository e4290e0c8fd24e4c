"""The model registry as sensors, pages and users' own tasks see it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_ml_provider.hooks.mlflow import MlflowHook

if TYPE_CHECKING:
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.refs import ModelRef
    from airflow_ml_provider.registry import JournalEntry, Registry
    from airflow_ml_provider.stages.promote.spec import PromoteResult


class RegistryHook(BaseHook):
    """Who holds an alias, since when, on what evidence; and giving it back. Over a connection of type `mlflow`.

    Parameters:
        mlflow_conn_id: connection to MLflow.
    """

    conn_name_attr = "mlflow_conn_id"
    default_conn_name = "mlflow_default"
    conn_type = "mlflow"
    hook_name = "Model registry"

    def __init__(self, mlflow_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mlflow_conn_id = mlflow_conn_id
        self._registry: Registry | None = None

    def get_conn(self) -> Registry:
        """Return the registry. Its credentials stay with it and do not enter the process's environment for long."""
        from airflow_ml_provider.registry import Registry

        if self._registry is None:
            self._registry = Registry.from_env(MlflowHook(self.mlflow_conn_id).environment())
        return self._registry

    def holder(self, name: str, alias: str = "champion", at: datetime | None = None) -> ModelRef | None:
        """Return the version that holds an alias, now or for data of the moment `at`."""
        return self.get_conn().holder(name, alias, at)

    def journal(self, name: str, alias: str = "champion") -> tuple[JournalEntry, ...]:
        """Return the moves of an alias, oldest first; raises `IntegrityError` when it was altered."""
        return self.get_conn().journal(name, alias)

    def rollback(
        self, name: str, info: RunInfo, *, alias: str = "champion", reason: str = "", to: str | None = None
    ) -> PromoteResult:
        """Give an alias back to version `to`, or to the last healthy holder. `RollbackOperator` does it in a task."""
        from airflow_ml_provider.stages.promote.mlflow import roll_back
        from airflow_ml_provider.stages.promote.spec import RollbackSpec

        return roll_back(self.get_conn(), RollbackSpec(name=name, alias=alias, reason=reason, to=to), info)

    def test_connection(self) -> tuple[bool, str]:
        """Ask the server for one experiment; what the button `Test` in the UI does."""
        return MlflowHook(self.mlflow_conn_id).test_connection()
