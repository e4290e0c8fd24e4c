"""What is left over? Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

Verdict = Literal["left over", "in use", "too young", "unknown", "another Airflow's", "going", "with its owner"]

GONE, NO_STATE = "does not exist", "none"
ENDED = ("success", "failed", "skipped", "upstream_failed", "removed", GONE)
"""States after which nothing of a task instance runs. One that this version does not know counts as alive."""

CALL, PACKAGE = "Call", "Package"


@dataclass(frozen=True, order=True)
class Task:
    """A task instance, whatever its try; `map_index` is -1 when it is not mapped."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: int = -1

    def __str__(self) -> str:
        index = f"[{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.dag_id}.{self.task_id}{index} {self.run_id}"


@dataclass(frozen=True)
class Found:
    """One thing that a stage has made.

    Attributes:
        kind: what it is: a kind of the cluster, or `Call` and `Package` in the exchange folder.
        name: its name.
        uid: what makes it differ from a later one of the same name.
        created: since when it is there, or was last written to.
        task: whose it is; none when that cannot be known.
        owner: what Kubernetes removes it with, as `KIND/NAME`; empty if it stands alone.
        leaving: it is being deleted already.
        where: node and phase of a pod.
        airflow: address of the Airflow that it was made for; empty where that had none.
    """

    kind: str
    name: str
    uid: str
    created: datetime
    task: Task | None = None
    owner: str = ""
    leaving: bool = False
    where: str = ""
    airflow: str = ""


@dataclass(frozen=True)
class Judged:
    """A thing, the state of its task (empty: not known), and what follows from it."""

    found: Found
    state: str
    verdict: Verdict


def task_of(text: object) -> Task | None:
    """Return the task that an annotation names as JSON; none if it names none.

    >>> task_of('{"dag_id": "d", "task_id": "t", "run_id": "r", "map_index": -1}')
    Task(dag_id='d', task_id='t', run_id='r', map_index=-1)
    """
    body = _mapping(text)
    names, index = [body.get(key) for key in ("dag_id", "task_id", "run_id")], body.get("map_index", -1)
    if not all(isinstance(name, str) and name for name in names) or type(index) is not int:
        return None
    dag_id, task_id, run_id = map(str, names)
    return Task(dag_id, task_id, run_id, index)


def airflow_of(text: object) -> str:
    """Return the address of the Airflow that an annotation names as JSON; empty if it names none."""
    return str(_mapping(text).get("airflow", ""))


def _mapping(text: object) -> Mapping[str, Any]:
    try:
        body = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return {}
    return body if isinstance(body, Mapping) else {}


def judge(
    things: Sequence[Found],
    states: Mapping[Task, str],
    now: datetime,
    older_than: timedelta,
    named: Collection[str] = (),
    here: str = "",
) -> list[Judged]:
    """Return what each thing is.

    Parameters:
        things: all that were found.
        states: state of each task instance that could be asked for, `GONE` and `NO_STATE` included; a task that is
            missing could not.
        now: the time.
        older_than: what is younger is never left over: its task may not have been noted yet.
        named: names that were asked for; of these, what is unknown or another Airflow's may go, too.
        here: address of this Airflow; what was made for another one is not judged by the states of this one's tasks.
    """
    judged = [_judge(thing, states, now - older_than, named, here) for thing in things if thing.kind != PACKAGE]
    # A package serves calls that do not say which one they use. So old ones stay as long as any call does.
    busy = any(one.found.kind == CALL and one.verdict != "left over" for one in judged)
    packages = [thing for thing in things if thing.kind == PACKAGE]
    return judged + [Judged(thing, "", _age(thing, now - older_than, busy)) for thing in packages]


def _judge(thing: Found, states: Mapping[Task, str], before: datetime, named: Collection[str], here: str) -> Judged:
    another_s = bool(here and thing.airflow and thing.airflow != here)
    state = "" if another_s else states.get(thing.task, "") if thing.task else ""
    if thing.leaving:
        return Judged(thing, state, "going")
    if thing.owner:
        return Judged(thing, state, "with its owner")
    if not state and thing.name not in named:
        return Judged(thing, state, "another Airflow's" if another_s else "unknown")
    return Judged(thing, state, _age(thing, before, bool(state) and state not in ENDED))


def _age(thing: Found, before: datetime, in_use: bool) -> Verdict:
    if in_use:
        return "in use"
    return "left over" if thing.created < before else "too young"


def row(one: Judged, now: datetime) -> dict[str, str]:
    """Return a line of the table that people see."""
    thing = one.found
    return {
        "kind": thing.kind,
        "name": thing.name,
        "uid": thing.uid,
        "task": str(thing.task or ""),
        "state": one.state,
        "age": _shown(now - thing.created),
        "where": thing.where,
        "verdict": f"with {thing.owner}" if one.verdict == "with its owner" else one.verdict,
    }


def _shown(age: timedelta) -> str:
    """Return an age as people read it: `3 d 4 h`, `2 h 5 min`, `7 min`.

    >>> _shown(timedelta(hours=2, minutes=5, seconds=59))
    '2 h 5 min'
    """
    minutes = max(0, int(age.total_seconds() // 60))
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
