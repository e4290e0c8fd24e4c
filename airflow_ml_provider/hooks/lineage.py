"""Where OpenLineage's events are, as an Airflow connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

from airflow_ml_provider.exceptions import MlError, SpecError

if TYPE_CHECKING:
    from airflow_ml_provider.lineage.graph import Graph


class LineageHook(BaseHook):
    """Read the lineage events that OpenLineage's file transport writes, as a graph.

    Parameters:
        lineage_conn_id: connection of type `lineage_events`; its host is the path of the events' file or folder.
    """

    conn_name_attr = "lineage_conn_id"
    default_conn_name = "lineage_default"
    conn_type = "lineage_events"
    hook_name = "OpenLineage events (file)"

    def __init__(self, lineage_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.lineage_conn_id = lineage_conn_id

    def path(self) -> Path:
        """Return the file or folder with the events.

        Raises:
            SpecError: there is no such connection, or it names no path.
        """
        from airflow.providers.common.compat.sdk import AirflowNotFoundException

        try:
            host = self.get_connection(self.lineage_conn_id).host
        except AirflowNotFoundException as error:
            raise SpecError(
                f"connection {self.lineage_conn_id!r} is not defined; create it with type lineage_events and the path "
                "of the events as host"
            ) from error
        if not host:
            raise SpecError(f"connection {self.lineage_conn_id!r} has no path; put that of the events into its host")
        return Path(host)

    def get_conn(self) -> Graph:
        """Return the graph of all events so far.

        Raises:
            DataError: there is no such file or folder.
        """
        from airflow_ml_provider.lineage.graph import Graph

        return Graph.read(self.path())

    def test_connection(self) -> tuple[bool, str]:
        """Return whether the events can be read, and how many runs they tell of."""
        try:
            graph = self.get_conn()
        except (MlError, OSError) as error:
            return False, str(error)
        return True, f"{len(graph.runs)} runs, {len(graph.datasets)} datasets, {graph.broken} unreadable lines"
