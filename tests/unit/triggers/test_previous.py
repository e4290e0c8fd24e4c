"""The trigger that waits for a task of the run before."""

from __future__ import annotations

import asyncio

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from airflow_ml_provider.triggers.previous import PreviousRunTrigger, has_ended


@pytest.mark.parametrize(
    ("states", "ended"),
    [
        ({"r": {"t": "success"}}, True),
        ({"r": {"t": "upstream_failed"}}, True),
        ({"r": {"t": None}}, False),
        ({"r": {"t": "deferred"}}, False),
        ({"r": {"t_0": "success", "t_1": "skipped"}}, True),
        ({"r": {"t_0": "success", "t_1": "queued"}}, False),
        ({}, True),
        ({"another": {"t": "running"}}, True),
    ],
)
def test_has_ended(states, ended):
    assert has_ended(states, "r") is ended


def test_looks_until_the_task_has_ended(monkeypatch):
    answers = [{"r": {"t": "running"}}, {"r": {"t": "up_for_retry"}}, {"r": {"t": "failed"}}]
    asked = []

    def states(**question):
        asked.append(question)
        return answers[len(asked) - 1]

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(states))
    path, arguments = PreviousRunTrigger("d", "r", "t", poll_s=0.01).serialize()
    assert path == "airflow_ml_provider.triggers.previous.PreviousRunTrigger"

    async def first():
        return await anext(aiter(PreviousRunTrigger(**arguments).run()))

    assert asyncio.run(first()).payload == {"status": "done"}
    assert asked == [{"dag_id": "d", "task_ids": ["t"], "run_ids": ["r"]}] * 3
