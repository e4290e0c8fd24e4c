"""The steps of a rollout on a place that serves: look and decide, act on it, hand back. Airflow-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import Conflict
from airflow_ml_provider.stages.deploy import outcomes, strategies
from airflow_ml_provider.stages.deploy.logic import candidate_of, is_over, seen_of, stable_of, wanted_after
from airflow_ml_provider.stages.deploy.policy import RolloutPolicy
from airflow_ml_provider.stages.deploy.rollout import advance
from airflow_ml_provider.stages.deploy.service import Observed, Readings, Service, Serving
from airflow_ml_provider.stages.deploy.state import Decision, RolloutState
from airflow_ml_provider.stages.deploy.stats import VersionStats
from airflow_ml_provider.stages.deploy.strategies import Policy


def look(
    place: Serving, name: str, identity: str, state: Mapping[str, Any], now: float
) -> Optional[tuple[Observed, Decision]]:
    """Return a service as it is and what its rollout shall do now; none when it is not in this rollout any more.

    Parameters:
        place: where the service is.
        name: its name.
        identity: of the task whose rollout it is.
        state: of the rollout, as JSON.
        now: seconds since 1970.
    """
    observed = place.look(name)
    if observed is None or observed.wanted.rollout.get("identity") != identity:
        return None
    known: RolloutState = codec.decode(RolloutState, state, "state")
    policy = strategies.decode(observed.wanted.rollout["policy"])
    readings = with_outcomes(place.readings(name), policy, known, now)
    return observed, advance(known, policy, seen_of(observed, readings, candidate_of(observed.wanted)), now)


def act(place: Serving, observed: Observed, decision: Decision) -> None:
    """Make the service what a decision says, with the decision's state beside it: both or neither.

    Raises:
        Conflict: somebody else has changed it since it was looked at.
    """
    place.put(wanted_after(decision, observed.wanted), observed.revision)


def with_outcomes(readings: Readings, policy: Policy, state: RolloutState, now: float) -> Readings:
    """Return readings with what a policy's table tells of the users that have come since the split was asked for."""
    told = None if isinstance(policy, RolloutPolicy) else policy.outcomes
    if isinstance(policy, RolloutPolicy) or told is None or not state.counting:
        return readings
    found = dict(readings)
    for version, moments in outcomes.read(told, state.asked, now).items():
        # A name of its own for each split: what is told of another one is no earlier reading of this.
        more = {f"outcomes since {state.asked:.3f}": VersionStats(metrics={policy.metric: moments})}
        found[version] = {**found.get(version, {}), **more}
    return found


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
                revision = place.put(replace(wanted, percent=0, mirror=0, sticky=None), revision)
            place.put(Service(name, stable), revision)
        except Conflict:
            continue
        return f"service {name!r} is back at version {stable.name!r} alone"
    raise Conflict(f"service {name!r} keeps being changed by somebody else")
