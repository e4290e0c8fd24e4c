"""What is left over, decided without a cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.leftovers.logic import (
    CALL,
    GONE,
    NO_STATE,
    PACKAGE,
    Found,
    Task,
    airflow_of,
    judge,
    row,
    task_of,
)

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
AGE = timedelta(minutes=10)
OLD, YOUNG = NOW - timedelta(hours=1), NOW - timedelta(minutes=9)
TASK = Task("d", "t", "r")
POD = Found("Pod", "p", "1", OLD, TASK)
ALIVE = ("running", "deferred", "queued", "scheduled", "up_for_retry", "up_for_reschedule", "restarting", NO_STATE)
ENDED = ("success", "failed", "skipped", "upstream_failed", "removed", GONE)


def verdict(thing: Found, states: dict[Task, str] | None = None, named: tuple[str, ...] = ()) -> str:
    (one,) = judge([thing], {TASK: "failed"} if states is None else states, NOW, AGE, named)
    return one.verdict


@pytest.mark.parametrize("state", ENDED)
def test_what_an_ended_task_has_made_is_left_over(state: str) -> None:
    assert verdict(POD, {TASK: state}) == "left over"


@pytest.mark.parametrize("state", [*ALIVE, "awaiting_input", "a state of a later Airflow"])
def test_what_a_living_task_has_made_is_in_use(state: str) -> None:
    assert verdict(POD, {TASK: state}) == "in use"
    assert verdict(POD, {TASK: state}, named=("p",)) == "in use", "a name does not help"


def test_what_was_made_just_now_stays() -> None:
    assert verdict(replace(POD, created=YOUNG)) == "too young"
    assert verdict(replace(POD, created=NOW + timedelta(hours=1))) == "too young", "clocks differ"


def test_what_cannot_be_asked_for_goes_only_by_its_name() -> None:
    for thing, states in ((replace(POD, task=None), {TASK: "failed"}), (POD, {})):
        assert verdict(thing, states) == "unknown"
        assert verdict(thing, states, named=("another",)) == "unknown"
        assert verdict(thing, states, named=("p",)) == "left over"
        assert verdict(replace(thing, created=YOUNG), states, named=("p",)) == "too young"


@pytest.mark.parametrize("state", [*ENDED, *ALIVE])
def test_what_another_airflow_has_made_goes_only_by_its_name(state: str) -> None:
    there = replace(POD, airflow="https://there")
    for here, expected in (("https://here", "another Airflow's"), ("https://there", None), ("", None)):
        (one,) = judge([there], {TASK: state}, NOW, AGE, here=here)
        assert one.verdict == (expected or verdict(POD, {TASK: state}))
    (one,) = judge([there], {TASK: state}, NOW, AGE, named=("p",), here="https://here")
    assert one.verdict == "left over"


def test_what_is_owned_goes_with_its_owner_and_what_goes_is_left_alone() -> None:
    secret = replace(POD, kind="Secret", owner="Pod/p")
    assert verdict(secret) == "with its owner"
    assert verdict(replace(POD, leaving=True)) == "going"
    (one,) = judge([secret], {}, NOW, AGE)
    assert row(one, NOW)["verdict"] == "with Pod/p"


def test_packages_stay_as_long_as_a_call_may_use_them() -> None:
    package, call = Found(PACKAGE, "a.zip", "1", OLD), Found(CALL, "c", "1", OLD, TASK)
    assert verdict(package) == "left over"
    assert verdict(replace(package, created=YOUNG)) == "too young"
    for state, expected in (("failed", "left over"), ("deferred", "in use"), (None, "in use")):
        found = judge([package, call], {TASK: state} if state else {}, NOW, AGE)
        assert {one.found.kind: one.verdict for one in found}[PACKAGE] == expected


@given(
    state=st.sampled_from([*ALIVE, *ENDED, None]),
    minutes=st.floats(-60, 60),
    owner=st.sampled_from(["", "Pod/p"]),
    leaving=st.booleans(),
    named=st.booleans(),
    has_task=st.booleans(),
)
def test_nothing_goes_that_might_be_needed(state, minutes, owner, leaving, named, has_task) -> None:
    thing = Found("Pod", "p", "1", NOW - timedelta(minutes=minutes), TASK if has_task else None, owner, leaving)
    states = {TASK: state} if state else {}
    known = has_task and state is not None
    goes = verdict(thing, states, ("p",) if named else ()) == "left over"
    ended = state in ENDED if known else named
    assert goes == (ended and NOW - thing.created > AGE and not owner and not leaving)


@pytest.mark.parametrize(
    "text",
    [None, "", "{", "[]", "{}", '{"dag_id": "d", "task_id": "t"}', '{"dag_id": 1, "task_id": "t", "run_id": "r"}',
     '{"dag_id": "d", "task_id": "t", "run_id": "r", "map_index": "0"}'],
)  # fmt: skip
def test_an_annotation_that_names_no_task(text: str | None) -> None:
    assert task_of(text) is None
    assert airflow_of(text) == ""


def test_a_row_is_what_people_read() -> None:
    mapped = replace(POD, task=Task("d", "t", "r", 3), where="n Running", created=NOW - timedelta(days=2, hours=3))
    (one,) = judge([mapped], {Task("d", "t", "r", 3): "failed"}, NOW, AGE)
    assert row(one, NOW) == {
        "kind": "Pod", "name": "p", "uid": "1", "task": "d.t[3] r", "state": "failed", "age": "2 d 3 h",
        "where": "n Running", "verdict": "left over",
    }  # fmt: skip
