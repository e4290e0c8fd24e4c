"""What Airflow says of task instances: a task asks through the Task SDK, a command on the server in the database."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from airflow_ml_provider.exceptions import Unavailable
from airflow_ml_provider.leftovers.logic import GONE, NO_STATE, Task

log = logging.getLogger(__name__)

Ask = Callable[[str, str, str], Mapping[int, Any]]
"""Return the state of each instance of a task in a run by its map index. Raises Unavailable when it cannot be known."""

_NOT_FOUND = 404


def states_of(tasks: Iterable[Task], ask: Ask) -> dict[Task, str]:
    """Return the state of each task instance; those that cannot be asked for are missing, and the log says why."""
    wanted: dict[tuple[str, str, str], list[Task]] = {}
    for task in sorted(set(tasks)):
        wanted.setdefault((task.dag_id, task.task_id, task.run_id), []).append(task)
    found = {}
    for question, asked in wanted.items():
        try:
            answer = ask(*question)
        except Unavailable as error:
            log.warning("the state of %s is not known: %s", " ".join(question), error)
            continue
        found.update({task: _text(answer, task.map_index) for task in asked})
    return found


def _text(answer: Mapping[int, Any], index: int) -> str:
    if index not in answer:
        return GONE
    state = answer[index]
    return NO_STATE if state is None else str(getattr(state, "value", state))


def through(ti: Any) -> Ask:
    """Return how a running task asks, by its own task instance.

    Runs and DAGs that are not there have no task instances: the answer is empty, or, should Airflow come to that, 404.
    """

    def ask(dag_id: str, task_id: str, run_id: str) -> dict[int, Any]:
        from airflow.sdk.exceptions import AirflowRuntimeError

        try:
            states = ti.get_task_states(dag_id=dag_id, task_ids=[task_id], run_ids=[run_id])
        except AirflowRuntimeError as error:
            if (error.error.detail or {}).get("status_code") == _NOT_FOUND:
                return {}
            raise Unavailable(str(error)) from error
        return {_index(name, task_id): state for name, state in states.get(run_id, {}).items()}

    return ask


def _index(name: str, task_id: str) -> int:
    """Return the map index in a name as the Task SDK gives it: `TASK`, or `TASK_INDEX` of a mapped task."""
    return -1 if name == task_id else int(name[len(task_id) + 1 :])


def database() -> Ask:
    """Return how a command on Airflow's server asks: in the database."""

    def ask(dag_id: str, task_id: str, run_id: str) -> dict[int, Any]:
        from airflow.models.taskinstance import TaskInstance as Row
        from airflow.utils.session import create_session
        from sqlalchemy import select
        from sqlalchemy.exc import SQLAlchemyError

        mine = (Row.dag_id == dag_id, Row.task_id == task_id, Row.run_id == run_id)
        try:
            with create_session() as session:
                return dict(session.execute(select(Row.map_index, Row.state).where(*mine)).tuples().all())
        except SQLAlchemyError as error:
            raise Unavailable(f"Airflow's database does not answer: {error}") from error

    return ask
