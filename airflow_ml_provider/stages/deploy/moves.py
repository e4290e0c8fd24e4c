"""The steps of a rollout on a place that serves: look and decide, act on it, hand back. Airflow-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import Conflict
from airflow_ml_provider.stages.deploy.logic import candidate_of, is_over, seen_of, stable_of, wanted_after
from airflow_ml_provider.stages.deploy.policy import RolloutPolicy
from airflow_ml_provider.stages.deploy.rollout import advance
from airflow_ml_provider.stages.deploy.service import Service, Serving
from airflow_ml_provider.stages.deploy.state import Decision, RolloutState


def look(
    place: Serving, name: str, identity: str, policy: Mapping[str, Any], state: Mapping[str, Any], now: float
) -> Optional[Decision]:
    """Return what a rollout shall do now; none when the service is not in this rollout any more.

    Parameters:
        place: where the service is.
        name: its name.
        identity: of the task whose rollout it is.
        policy: of the rollout, as JSON.
        state: of the rollout, as JSON.
        now: seconds since 1970.
    """
    observed = place.look(name)
    if observed is None or observed.wanted.rollout.get("identity") != identity:
        return None
    seen = seen_of(observed, place.readings(name), candidate_of(observed.wanted))
    return advance(codec.decode(RolloutState, state, "state"), codec.decode(RolloutPolicy, policy, "policy"), seen, now)


def act(place: Serving, name: str, identity: str, decision: Decision) -> None:
    """Make the service what a decision says, with the decision's state beside it: both or neither.

    Raises:
        Conflict: the service is not in this rollout any more.
    """
    observed = place.look(name)
    if observed is None or observed.wanted.rollout.get("identity") != identity:
        raise Conflict(f"service {name!r} is not in this rollout any more: somebody else has changed it")
    place.put(wanted_after(decision, observed.wanted), observed.revision)


def hand_back(place: Serving, name: str, identity: str) -> str:
    """Give all traffic to the version that was stable when the rollout began; return what was done, for people."""
    for _ in range(5):
        observed = place.look(name)
        if observed is None or observed.wanted.rollout.get("identity") != identity or is_over(observed.wanted):
            return f"service {name!r} is in no rollout of this task"
        stable = stable_of(observed.wanted)
        if stable is None:
            place.remove(name)
            return f"service {name!r}, which had no version before, is removed"
        wanted, revision = observed.wanted, observed.revision
        try:
            if wanted.percent or wanted.mirror:  # traffic first, as KServe takes its time to remove a version
                revision = place.put(replace(wanted, percent=0, mirror=0), revision)
            place.put(Service(name, stable), revision)
        except Conflict:
            continue
        return f"service {name!r} is back at version {stable.name!r} alone"
    raise Conflict(f"service {name!r} keeps being changed by somebody else")
