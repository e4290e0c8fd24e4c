"""`@task.deploy` on a place in memory."""

from __future__ import annotations

import pytest

pytest.importorskip("airflow")

from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_ml_provider import codec
from airflow_ml_provider.decorators.deploy import deploy_task
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.serving import Behaviour, MemoryServing
from airflow_ml_provider.testing.tasks import go_on

MODEL = ModelRef("late", "/m", "sha256:7", version="7")


@pytest.fixture
def place(monkeypatch):
    found = MemoryServing()
    monkeypatch.setattr("airflow_ml_provider.hooks._serving.serving", lambda _: found)
    return found


def build(function, *args, **settings):
    """Return the operator of a decorated function that is called with `args` in a DAG."""
    settings = {"service": "late", "place": {"local": {"root": "nowhere"}}, "gate": "waived", **settings}
    with DAG("d", schedule=None):
        output = deploy_task(function, **settings)(*args)
    return output.operator


def test_what_the_function_returns_is_served(place):
    def choose(number: int, run_id=None):
        return ModelRef("late", f"/{run_id}", "sha256:7", version=str(number))

    task = build(choose, 7)
    assert (task.task_id, task.custom_operator_name) == ("choose", "@task.deploy")
    value = task.execute(context(run_id="r"))
    assert value["status"] == "ok"
    assert value["model"]["digest"] == "sha256:7"
    assert place.look("late").wanted.stable.model == ModelRef("late", "/r", "sha256:7", version="7")


@pytest.mark.parametrize("form", [codec.encode(MODEL), {"status": "ok", "model": codec.encode(MODEL), "metrics": {}}])
def test_results_of_other_tasks(place, form):
    build(lambda: form, task_id="choose").execute(context())
    assert place.look("late").wanted.stable.model == MODEL


def test_what_is_returned_comes_before_the_arguments(place):
    def choose():
        return {"model": MODEL, "server": {"max_batch": 8}}

    build(choose, server={"max_batch": 2}, rows={"x": [1.0]}).execute(context())
    assert place.look("late").wanted.stable.server.max_batch == 8


def test_it_goes_on_in_another_process_without_calling_the_function_again(place):
    calls = []

    def choose():
        calls.append(1)
        return {"model": MODEL, "rows": {"x": [1.0]}}

    place.behaviours["v7"] = Behaviour("waits")
    with pytest.raises(TaskDeferred) as deferred:
        build(choose, poll_s=0.01).execute(context())
    place.behaviours.clear()
    other = build(choose)
    assert go_on(other, deferred.value, context())["status"] == "ok"
    assert calls == [1]
    assert other.rows == {"x": [1.0]}


@pytest.mark.parametrize("returned", [None, "late", {"rows": {}}])
def test_something_else_than_a_model(place, returned):
    def choose():
        return returned

    with pytest.raises(AirflowFailException, match="what choose returns: model must be a ModelRef"):
        build(choose).execute(context())
    assert place.look("late") is None


def test_the_gate_is_asked(place):
    def choose():
        return ModelRef("late", "/m", "sha256:7")

    with pytest.raises(AirflowFailException, match="is not registered, so no gate has judged it"):
        build(choose, gate="required", mlflow_conn_id=None).execute(context())
    assert place.look("late") is None


def test_the_model_is_the_functions_business():
    with pytest.raises(SpecError, match="model must be left out"):
        build(lambda: MODEL, task_id="choose", model=MODEL)


def test_mapped_over_services():
    def choose(number):
        return ModelRef("late", "/m", "sha256:7", version=number)

    with DAG("d", schedule=None):
        mapped = deploy_task(choose, place={"local": {"root": "/s"}}, service="late").expand(number=["1", "2"])
    assert mapped.operator.task_id == "choose"
