"""A task's context without a running Airflow, for tests that call `operator.execute(context)` themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

from airflow_ml_provider.intervals import Interval


@dataclass
class FakeTaskInstance:
    """The part of a running task instance that operators of this package use; pushed XComs stay in `xcoms`."""

    dag_id: str = "dag"
    task_id: str = "task"
    run_id: str = "run"
    map_index: int = -1
    try_number: int = 1
    max_tries: int = 0
    start_date: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    dag_version_id: str | None = None
    bundle_instance: Any = None
    xcoms: dict[str, Any] = field(default_factory=dict)
    previous: tuple[str, str | None] | tuple[str, dict[str, str | None]] | None = None
    """States of the run before this one and of its task of the same name (mapped: of each `TASK_INDEX`)."""

    def get_previous_dagrun(self, state: str | None = None) -> Any:
        """Return the run before, whatever `state` is."""
        return self.previous and SimpleNamespace(run_id="previous", state=self.previous[0])

    def get_task_states(self, **_: Any) -> dict[str, dict[str, str | None]]:
        """Return the state of the task of the run before."""
        if self.previous is None:
            return {}
        state = self.previous[1]
        return {"previous": state if isinstance(state, dict) else {self.task_id: state}}

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        """Keep a value."""
        self.xcoms[key] = value


def context(
    interval: Interval | None = None,
    *,
    run_type: str = "scheduled",
    run_after: datetime = datetime(2013, 1, 7, tzinfo=timezone.utc),
    partition_key: str | None = None,
    params: dict[str, Any] | None = None,
    cleared: bool = False,
    **ids: Any,
) -> dict[str, Any]:
    """Return the context of one task.

    Parameters:
        interval: data interval; none gives a run without one, and without a logical date.
        run_type: `scheduled`, `backfill`, `manual` or `asset_triggered`.
        run_after: when the run was due.
        partition_key: key of a partitioned run.
        params: the run's parameters.
        cleared: the run was cleared and runs again.
        ids: `dag_id`, `task_id`, `run_id`, `map_index`, `try_number`, `max_tries`, `previous` … of the task instance.
    """
    from airflow.sdk.execution_time.context import OutletEventAccessors

    run = SimpleNamespace(
        run_type=run_type, run_after=run_after, partition_key=partition_key, conf={}, clear_number=int(cleared)
    )
    ti = FakeTaskInstance(**ids)
    body: dict[str, Any] = {
        "ti": ti,
        "dag": SimpleNamespace(dag_id=ti.dag_id),
        "run_id": ti.run_id,
        "dag_run": run,
        "params": params or {},
        "outlet_events": OutletEventAccessors(),
        "triggering_asset_events": {},
    }
    if interval:
        body.update(logical_date=interval.start, data_interval_start=interval.start, data_interval_end=interval.end)
    return body
