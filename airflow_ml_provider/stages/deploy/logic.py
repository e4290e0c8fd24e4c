"""Between a rollout's decisions and a service: what was seen, what shall be, and whose rollout it is. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.experiment import ExperimentPolicy
from airflow_ml_provider.stages.deploy.policy import Agreement, RolloutPolicy
from airflow_ml_provider.stages.deploy.service import Observed, Readings, Server, Service, Sticky, Version
from airflow_ml_provider.stages.deploy.state import Decision, Seen
from airflow_ml_provider.stages.deploy.strategies import Policy

_ENDED = ("done", "rolled_back")


def version_of(model: ModelRef, server: Server) -> Version:
    """Return the version of a service for a model; it is called by its number in the registry, or by its digest.

    >>> version_of(ModelRef("m", "u", "sha256:12ab34cd56ef78", version="7"), Server()).name
    'v7'
    >>> version_of(ModelRef("m", "u", "sha256:12ab34cd56ef78"), Server()).name
    'm-12ab34cd56ef'
    """
    number = re.sub(r"[^a-z0-9]+", "-", (model.version or "").lower()).strip("-")
    return Version(f"v{number}" if number else f"m-{model.digest.partition(':')[2][:12]}", model, server)


def rollout_of(info: RunInfo, stable: Optional[Version], candidate: Version, **more: Any) -> dict[str, Any]:
    """Return the record that a service carries while a task changes it: whose change it is, from what to what."""
    return {
        "identity": info.identity,
        "dag_id": info.dag_id,
        "task_id": info.task_id,
        "run_id": info.run_id,
        "map_index": info.map_index,
        "stable": codec.encode(stable),
        "candidate": codec.encode(candidate),
        **more,
    }


def stable_of(service: Service) -> Optional[Version]:
    """Return the version that was stable when the change of a service began; none if there was none."""
    before = service.rollout["stable"]
    return None if before is None else codec.decode(Version, before, "stable version")


def candidate_of(service: Service) -> Version:
    """Return the version that the change of a service is to end with."""
    candidate: Version = codec.decode(Version, service.rollout["candidate"], "candidate")
    return candidate


def is_over(service: Service) -> bool:
    """Return whether nobody changes a service; how the last rollout ended may still be noted."""
    return not service.rollout or service.rollout.get("state", {}).get("phase") in _ENDED


def is_of(service: Service, info: RunInfo) -> bool:
    """Return whether the change is that of this very task instance, or of it before it was cleared."""
    return all(
        service.rollout.get(name) == getattr(info, name) for name in ("dag_id", "task_id", "run_id", "map_index")
    )


def seen_of(observed: Observed, readings: Readings, candidate: Version) -> Seen:
    """Return what a rollout's decision needs of a service as it is."""
    wanted, states = observed.wanted, observed.states
    promoted = wanted.stable == candidate
    if not promoted and wanted.candidate != candidate:
        return Seen(health="gone", reason=f"service {wanted.name!r} has it no longer")
    state = states[candidate.name]
    settled = (state.percent, state.mirror) == ((100, 0) if promoted else (wanted.percent, wanted.mirror))
    return Seen(
        health="pending" if state.phase == "waits" else state.phase,
        reason=state.why,
        percent=state.percent,
        mirror_percent=state.mirror,
        promoted=promoted,
        settled=settled,
        stable={} if promoted else readings.get(wanted.stable.name, {}),
        candidate=readings.get(candidate.name, {}),
    )


def sticky_of(policy: Policy, candidate: Version) -> Optional[Sticky]:
    """Return how requests keep their version in a rollout; each candidate mixes the users anew."""
    if isinstance(policy, RolloutPolicy) or not policy.key:
        return None
    salt = policy.salt if isinstance(policy, ExperimentPolicy) else "bandit"
    return Sticky(policy.key, f"{salt}:{candidate.name}")


def tolerance_of(policy: Policy) -> float:
    """Return within what two numbers of a rollout's answers are the same."""
    return next((check.tolerance for check in policy.checks if isinstance(check, Agreement)), Service.tolerance)


def completed(policy: Policy, log: str) -> Policy:
    """Return a policy with the place's log of predictions, where it has users whose outcomes are looked up."""
    if isinstance(policy, RolloutPolicy) or policy.outcomes is None or policy.outcomes.log or not policy.key:
        return policy
    return replace(policy, outcomes=replace(policy.outcomes, log=log))


def wanted_after(decision: Decision, service: Service) -> Service:
    """Return what a service shall be after a decision; the decision's state is noted with it."""
    rollout: Mapping[str, Any] = {**service.rollout, "state": codec.encode(decision.state)}
    candidate = candidate_of(service)
    if decision.action == "promote":
        return Service(service.name, candidate, rollout=rollout)
    if decision.action == "roll_back" and service.candidate is not None:
        # Traffic first, the candidate afterwards: KServe takes its time to remove one.
        return replace(service, percent=0, mirror=0, rollout=rollout, sticky=None)
    if decision.action == "roll_back":
        return Service(service.name, stable_of(service) or service.stable, rollout=rollout)
    if decision.over:
        return Service(service.name, service.stable, rollout=rollout)
    return replace(
        service, candidate=candidate, percent=decision.percent, mirror=decision.mirror_percent, rollout=rollout
    )
