"""States of task instances, as a task and as the server learn them."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from airflow_ml_provider.leftovers.logic import GONE, NO_STATE, Task
from airflow_ml_provider.leftovers.states import states_of, through


def ti(answer):
    def get_task_states(**asked):
        assert set(asked) == {"dag_id", "task_ids", "run_ids"}
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SimpleNamespace(get_task_states=get_task_states)


def failure(status: int) -> AirflowRuntimeError:
    return AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": status}))


def test_mapped_and_other_instances():
    tasks = [Task("d", "a_1", "r"), Task("d", "a_1", "r", 0), Task("d", "a_1", "r", 12), Task("d", "a_1", "r", 3)]
    ask = through(ti({"r": {"a_1": "success", "a_1_0": None, "a_1_12": "running"}}))
    assert list(states_of(tasks, ask).values()) == ["success", NO_STATE, GONE, "running"]
    assert states_of(tasks, ask)[Task("d", "a_1", "r", 3)] == GONE


@pytest.mark.parametrize("answer", [{}, {"another run": {"t": "success"}}, failure(404)])
def test_what_is_not_there_does_not_exist(answer):
    assert states_of([Task("d", "t", "r")], through(ti(answer))) == {Task("d", "t", "r"): GONE}


@pytest.mark.parametrize("status", [401, 403, 422, 500, 503])
def test_other_errors_leave_it_unknown(status, caplog):
    with caplog.at_level(logging.WARNING):
        assert states_of([Task("d", "t", "r")], through(ti(failure(status)))) == {}
    assert "the state of d t r is not known" in caplog.text


def test_an_error_without_details_leaves_it_unknown():
    error = AirflowRuntimeError(ErrorResponse(error=ErrorType.GENERIC_ERROR, detail=None))
    assert states_of([Task("d", "t", "r")], through(ti(error))) == {}


def test_all_instances_of_a_task_are_asked_for_at_once():
    asked = []

    def ask(*question):
        asked.append(question)
        return dict.fromkeys(range(100), "success")

    assert len(states_of([Task("d", "t", "r", index) for index in range(100)], ask)) == 100
    assert asked == [("d", "t", "r")]
