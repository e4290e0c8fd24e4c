"""The operator of graphs and language models, on a place in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, AirflowTaskTimeout, TaskDeferred

from airflow_ml_provider.exceptions import SpecError, StageCrashed, Unavailable
from airflow_ml_provider.operators.kserve import KServeOperator
from airflow_ml_provider.stages.deploy.kserve.llm import LLM
from airflow_ml_provider.stages.deploy.service import VersionState
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.tasks import event_of

CHAT = {"llm": {"model": {"name": "chat", "uri": "s3://chat/7", "digest": "sha256:7"}}}


class Objects:
    """What is applied here goes through the states that a test gives it, one per look."""

    def __init__(self) -> None:
        self.there: dict[str, LLM] = {}
        self.states: list[VersionState] = []
        self.away = False

    def apply(self, name: str, wanted: LLM) -> None:
        if self.away:
            raise Unavailable("the cluster is away")
        self.there[name] = wanted

    def state(self, name: str, wanted: LLM) -> tuple[VersionState, str]:
        assert self.there[name] == wanted
        return (self.states.pop(0) if self.states else VersionState("ready")), f"http://{name}"

    def is_there(self, name: str, wanted: LLM) -> bool:
        return name in self.there

    def delete(self, name: str, wanted: LLM) -> None:
        self.there.pop(name, None)


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Objects:
    found = Objects()
    monkeypatch.setattr("airflow_ml_provider.hooks._serving.objects", lambda _: found)
    return found


def operator(**settings: Any) -> KServeOperator:
    return KServeOperator(
        task_id="apply", service="chat", place={"kserve": {}}, **{"wanted": CHAT, "poll_s": 0.01, **settings}
    )


def test_waits_until_it_is_ready(objects: Objects) -> None:
    objects.states = [VersionState("waits", "no pod"), VersionState("waits", "no pod")]
    with pytest.raises(TaskDeferred) as deferred:
        operator().execute(context())
    told = operator().go_further(context(), event_of(deferred.value))
    assert told["links"] == {"service": "http://chat"}
    assert told["outputs"][0]["uri"] == "s3://chat/7"


def test_ready_at_once(objects: Objects) -> None:
    assert operator().execute(context())["status"] == "ok"


def test_what_will_never_be_ready_stays_as_it_was_applied(objects: Objects) -> None:
    objects.states = [VersionState("failed", "ImagePullBackOff")]
    with pytest.raises(StageCrashed, match="LLMInferenceService 'chat' cannot serve: ImagePullBackOff"):
        operator().execute(context())
    assert "chat" in objects.there


def test_its_time_is_over(objects: Objects) -> None:
    objects.states = [VersionState("waits", "no pod")] * 3
    with pytest.raises(TaskDeferred) as deferred:
        operator(wait_s=1e-6).execute(context())
    with pytest.raises(AirflowTaskTimeout):
        operator().go_further(context(), event_of(deferred.value))


def test_removed(objects: Objects) -> None:
    operator().execute(context())
    assert operator(state="absent").execute(context())["status"] == "ok"
    assert objects.there == {}
    with pytest.raises(AirflowSkipException, match="LLMInferenceService 'chat' does not exist"):
        operator(state="absent").execute(context())


def test_a_killed_task_leaves_it(objects: Objects) -> None:
    objects.states = [VersionState("waits", "no pod")]
    task = operator()
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context())
    task.on_kill()
    asyncio.run(deferred.value.trigger.on_kill())
    assert "chat" in objects.there


def test_what_lives_no_longer_than_its_run_is_deleted_when_it_fails_or_is_killed(objects: Objects) -> None:
    task = operator(on_failure="delete")
    objects.states = [VersionState("failed", "ImagePullBackOff")]
    with pytest.raises(StageCrashed):
        task.execute(context())
    assert objects.there == {}
    for kill in (lambda _: task.on_kill(), lambda deferred: asyncio.run(deferred.trigger.on_kill())):
        objects.states = [VersionState("waits", "no pod")]
        with pytest.raises(TaskDeferred) as found:
            task.execute(context())
        assert "chat" in objects.there
        kill(found.value)
        assert objects.there == {}
    assert task.execute(context())["status"] == "ok"
    assert "chat" in objects.there


def test_the_place_is_away(objects: Objects) -> None:
    objects.away = True
    with pytest.raises(Unavailable):
        operator().execute(context())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state": "gone"}, "state must be one of present, absent"),
        ({"on_failure": "both"}, "on_failure must be one of keep, delete"),
        ({"place": {"local": {"root": "here"}}}, "place must be one on KServe"),
        ({"wait_s": 0}, "wait_s must be greater than 0"),
    ],
)
def test_refused_when_the_dag_is_parsed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        KServeOperator(**{"task_id": "a", "service": "chat", "place": {"kserve": {}}, "wanted": CHAT, **settings})


def test_refused_in_the_task(objects: Objects) -> None:
    with pytest.raises(AirflowFailException, match=r"wanted must be Graph\("):
        operator(wanted={"model": {}}).execute(context())
