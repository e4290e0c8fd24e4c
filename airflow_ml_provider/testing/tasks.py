"""Run a task that defers to its end, without a running Airflow, for tests of DAGs and operators.

    value = run(DeployOperator(...), context())

Between trigger and task everything passes through JSON, as it does in Airflow's database.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from airflow_ml_provider.stages import load


def run(operator: Any, context: Mapping[str, Any], meanwhile: Callable[[], object] | None = None) -> Any:
    """Execute a task to its end, as worker and triggerer do; return its XCom value.

    Parameters:
        operator: the task's operator.
        context: of the task, such as `testing.context.context()`.
        meanwhile: called each time the task has deferred, before its trigger runs.

    Raises:
        Exception: what the task raises, unless it defers.
    """
    from airflow.sdk.exceptions import TaskDeferred

    try:
        return operator.execute(context)
    except TaskDeferred as deferred:
        pending = deferred
    while True:
        if meanwhile:
            meanwhile()
        try:
            return go_on(operator, pending, context)
        except TaskDeferred as deferred:
            pending = deferred


def go_on(operator: Any, deferred: Any, context: Mapping[str, Any]) -> Any:
    """Wait for the first event of a deferred task, and let the task go on with it, as another process would.

    Parameters:
        operator: of the task; another one, made alike, shows that nothing is kept in it.
        deferred: the `TaskDeferred` that the task raised.
        context: of the task.

    Raises:
        Exception: what the task raises; `TaskDeferred` when it defers again.
    """
    kept = json.loads(json.dumps(deferred.kwargs or {}))
    return operator.resume_execution(deferred.method_name, {**kept, "event": event_of(deferred)}, context)


def event_of(deferred: Any, timeout_s: float = 600.0) -> Any:
    """Make the trigger of a deferred task anew and run it, as the triggerer does; return its first event's payload.

    Parameters:
        deferred: the `TaskDeferred` that the task raised.
        timeout_s: how long to wait for an event (seconds).

    Raises:
        TimeoutError: there was none in time.
    """
    path, arguments = deferred.trigger.serialize()
    trigger = load(":".join(path.rsplit(".", 1)))(**json.loads(json.dumps(arguments)))

    async def first() -> Any:
        return (await asyncio.wait_for(anext(aiter(trigger.run())), timeout_s)).payload

    return json.loads(json.dumps(asyncio.run(first())))
