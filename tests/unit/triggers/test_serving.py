"""The trigger of services opens a place once, and anew before it believes an error."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.triggers.serving import ServingTrigger

WAITS, READY = "waits", "ready"


class Place:
    """Answers each look with the next phase of the stable version, or with an error."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)

    def look(self, name: str) -> SimpleNamespace:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(
            wanted=SimpleNamespace(stable=SimpleNamespace(name="v1")), states={"v1": SimpleNamespace(phase=answer)}
        )


@pytest.fixture
def told(monkeypatch):
    """The event's status and message, and how many places are left, when these are opened one after the other."""

    def inner(*places: Place) -> tuple[str, str, int]:
        left = list(places)
        monkeypatch.setattr("airflow_ml_provider.hooks._serving.serving", lambda _: left.pop(0))
        trigger = ServingTrigger({"local": {"root": "/none"}}, "late", "me", poll_s=0.001)

        async def first():
            return (await anext(trigger.run())).payload

        event = asyncio.run(first())
        return event["status"], event["message"], len(left)

    return inner


def test_a_place_is_opened_once(told):
    assert told(Place(WAITS, WAITS, READY)) == ("changed", "", 0)


def test_a_token_that_has_run_out_costs_no_rollout(told):
    assert told(Place(WAITS, SpecError("401")), Place(WAITS, READY)) == ("changed", "", 0)


def test_what_a_place_just_opened_refuses_is_refused(told):
    assert told(Place(SpecError("401")), Place(READY)) == ("refused", "401", 1)
    assert told(Place(WAITS, SpecError("401")), Place(SpecError("403"))) == ("refused", "403", 0)
