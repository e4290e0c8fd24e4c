"""The connection to a Feast feature store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_ml_provider.exceptions import SpecError

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from feast import FeatureStore


class FeastHook(BaseHook):
    """Turn a connection of type `feast` into Feast's `FeatureStore`.

    The extra `repo` (or the host) is the folder with `feature_store.yaml`; the extra `store` is what
    `${ML_FEATURE_STORE}` means in it, the root folder of the features stage. `definitions.py` is not run: what counts
    is the registry.

    Parameters:
        feast_conn_id: the connection.
    """

    conn_name_attr = "feast_conn_id"
    default_conn_name = "feast_default"
    conn_type = "feast"
    hook_name = "Feast"

    def __init__(self, feast_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feast_conn_id = feast_conn_id

    def get_conn(self) -> FeatureStore:
        """Return the feature store.

        Raises:
            SpecError: there is no such connection, or it names no repository.
        """
        from airflow_ml_provider.stages.features.repository import open_store

        conn = self._connection()
        extra = conn.extra_dejson
        repo = str(extra.get("repo") or conn.host or "").strip()
        if not repo:
            raise SpecError(f"connection {conn.conn_id!r} names no repository; give the folder of feature_store.yaml")
        return open_store(Path(repo), Path(extra["store"]).absolute() if extra.get("store") else None)

    def test_connection(self) -> tuple[bool, str]:
        """Read the registry; what the button `Test` in the UI does."""
        from airflow_ml_provider.exceptions import MlError

        try:
            store = self.get_conn()
            views = [view.name for view in store.list_feature_views()]
        except MlError as error:
            return False, str(error)
        except Exception as error:  # noqa: BLE001 - whatever Feast raises is the answer to the question
            return False, f"{type(error).__name__}: {error}"
        shown = ", ".join(sorted(views)) or "none yet"
        return True, f"Feast project {store.project!r} has {len(views)} feature views: {shown}"

    def _connection(self) -> Connection:
        from airflow.providers.common.compat.sdk import AirflowNotFoundException

        try:
            return self.get_connection(self.feast_conn_id)
        except AirflowNotFoundException as error:
            raise SpecError(
                f"connection {self.feast_conn_id!r} is not defined; create it with type feast and the folder of "
                "feature_store.yaml as its repository"
            ) from error
