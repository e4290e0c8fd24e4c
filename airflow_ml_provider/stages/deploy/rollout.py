"""The state machine of a rollout: what was seen in, what to do next out. It does no I/O and reads no clock.

    state = begin(policy, look(), now(), candidate="sha256:…", stable="sha256:…")
    while True:
        decision = advance(state, policy, look(), now())
        state = keep(decision.state)  # as JSON, before it is done: a crash in between loses an action, no decision
        if decision.over:
            break
        act(decision)  # sets what shall be, not what shall change, so that it can be repeated

- The candidate's share grows only after a step whose criteria were met, or, if the policy says so, could not be told.
- Whatever fails takes the candidate's traffic away, and nothing gives it back afterwards.
- An action is repeated until it is seen to have worked; the same observation again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Callable, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.deploy import analysis
from airflow_ml_provider.stages.deploy.analysis import Finding, Windows
from airflow_ml_provider.stages.deploy.policy import RolloutPolicy, Step
from airflow_ml_provider.stages.deploy.state import Action, Decision, RolloutState, Seen, Version
from airflow_ml_provider.stages.gate.evidence import PASSED, REFUSED
from airflow_ml_provider.stages.gate.logic import Criterion

KIND = "airflow_ml.rollout/1"
ADVANCED = "advanced"
"""The decision of a step that went on without a clear answer, because the policy says so."""


def begin(policy: RolloutPolicy, seen: Seen, now: float, *, candidate: str, stable: Optional[str]) -> RolloutState:
    """Return the state of a rollout that begins. What was counted before this look takes no part in it.

    Parameters:
        policy: how it shall go; the same must be given to every `advance`.
        seen: the first look; all servers of the stable version should answer.
        now: seconds.
        candidate: digest of the new version.
        stable: digest of the version that answers now; none when there is none yet: the candidate gets all traffic at
            once then, and only what needs no comparison is checked.

    Raises:
        SpecError: both versions are the same, or there is nothing to mirror.
    """
    if candidate == stable:
        raise invalid("candidate", candidate, "another version than the stable one")
    if stable is None and policy.plan[-1].mirror_percent:
        raise invalid("stable", stable, "a version whose requests can be mirrored", "begin with a canary")
    old = Version(stable, seen.stable) if stable is not None else None
    return RolloutState("starting", codec.digest(policy), Version(candidate, seen.candidate), old, now)


def advance(state: RolloutState, policy: RolloutPolicy, seen: Seen, now: float) -> Decision:
    """Return what to do after one more look.

    Parameters:
        state: of the last decision, or of `begin`.
        policy: that of `begin`.
        seen: what a back end observes now.
        now: seconds, of the same clock as before.

    Raises:
        SpecError: the policy is another one than the rollout began with.
        DataError: servers of one version count in different buckets.
    """
    if state.policy != codec.digest(policy):
        raise SpecError(f"policy has digest {codec.digest(policy)}, but the rollout began with {state.policy}")
    passed_s = max(0.0, now - state.now)
    state = replace(state, now=now, waited_s=state.waited_s + passed_s)
    if state.phase in _ENDINGS:
        return _ENDINGS[state.phase](state, seen)
    state = _counted(state, seen)
    if why := _lost(state, seen):
        return _roll_back(state, policy, why, seen)
    if state.phase == "starting":
        return _starting(state, policy, seen)
    criteria = _criteria(state, policy)
    failed = [c for c in criteria if isinstance(c, Finding) and c.verdict == "fail"]
    if failed and not seen.promoted:
        return _roll_back(state, policy, _sentences(failed))
    if state.phase == "finishing":
        return _finishing(state, policy, seen)
    return _step(state, policy, seen, passed_s, criteria)


def _lost(state: RolloutState, seen: Seen) -> str:
    """Return why the rollout is lost whatever its checks say; empty while it is not."""
    if seen.promoted:
        return "" if state.phase == "finishing" else "the candidate was promoted by somebody else"
    return {"failed": "the candidate has failed", "gone": "the candidate is gone"}.get(seen.health, "")


def plan(state: RolloutState, policy: RolloutPolicy) -> tuple[Step, ...]:
    """Return the steps of a rollout: without a stable version only the last one."""
    return policy.plan if state.stable else policy.plan[-1:]


def _counted(state: RolloutState, seen: Seen) -> RolloutState:
    """Return the state with what the servers counted since the last look; nothing new is no look."""
    candidate = state.candidate.read(seen.candidate)
    stable = state.stable and state.stable.read(seen.stable)
    looks = state.looks + ((candidate, stable) != (state.candidate, state.stable))
    return replace(state, candidate=candidate, stable=stable, looks=looks)


def _starting(state: RolloutState, policy: RolloutPolicy, seen: Seen) -> Decision:
    if seen.health == "ready":
        return _shift(state, policy, 0, "the candidate is ready")
    if state.waited_s >= policy.max_start_s:
        return _roll_back(state, policy, f"the candidate was not ready within {policy.max_start_s:g} s", seen)
    # What an earlier rollout has left, or somebody has set.
    action: Action = "set_traffic" if state.stable and seen.exposed else "wait"
    return Decision(action, state, f"the candidate is not ready yet{_because(seen)}")


def _shift(state: RolloutState, policy: RolloutPolicy, index: int, why: str) -> Decision:
    """Begin a step: windows and clocks anew."""
    step = plan(state, policy)[index]
    stable = state.stable
    # Once all users are with the candidate, the step before is the last that is known of the stable version.
    if stable and step.percent < 100:
        stable = stable.anew()
    state = replace(
        state, phase="shifting", step=index, stable=stable, candidate=state.candidate.anew(), waited_s=0.0,
        baked_s=0.0, looks=0,
    )  # fmt: skip
    return Decision("set_traffic", state, f"to {step}: {why}", step.percent, step.mirror_percent)


def _step(
    state: RolloutState, policy: RolloutPolicy, seen: Seen, passed_s: float, criteria: tuple[Criterion, ...]
) -> Decision:
    step = plan(state, policy)[state.step]
    if not (seen.has(step) and seen.settled and seen.health == "ready"):
        return _shifting(replace(state, phase="shifting", baked_s=0.0), policy, seen, step)
    baked_s = state.baked_s + passed_s if state.phase == "baking" else 0.0
    return _baking(replace(state, phase="baking", baked_s=baked_s), policy, criteria)


def _shifting(state: RolloutState, policy: RolloutPolicy, seen: Seen, step: Step) -> Decision:
    if state.waited_s >= policy.max_wait_s:
        return _roll_back(state, policy, f"the traffic could not be held at {step} for {policy.max_wait_s:g} s", seen)
    if seen.has(step) or not seen.settled:
        what = "the candidate is not ready" if seen.health != "ready" else "the traffic is not settled"
        return Decision("wait", state, f"{what}{_because(seen)}", step.percent, step.mirror_percent)
    what = f"to {step}: the candidate has {seen.percent:g} %"
    return Decision("set_traffic", state, what, step.percent, step.mirror_percent)


def _baking(state: RolloutState, policy: RolloutPolicy, criteria: tuple[Criterion, ...]) -> Decision:
    step = plan(state, policy)[state.step]
    unmet = [c for c in criteria if not c.passed]
    baked = state.baked_s >= step.bake_s
    if baked and not unmet:
        return _go_on(state, policy, PASSED, f"all {len(criteria)} criteria are met at {step}")
    held = f"{step} since {state.baked_s:.0f} of {step.bake_s:.0f} s" + (f"; {_sentences(unmet)}" if unmet else "")
    if state.waited_s < policy.max_wait_s or policy.on_unsure == "hold":
        return Decision("wait", state, held, step.percent, step.mirror_percent)
    why = f"no clear answer within {policy.max_wait_s:g} s: {held}"
    beyond = any(isinstance(c, Finding) and c.beyond for c in unmet)
    if policy.on_unsure == "advance" and baked and not beyond:
        return _go_on(state, policy, ADVANCED, why)
    return _roll_back(state, policy, why)


def _go_on(state: RolloutState, policy: RolloutPolicy, decision: str, why: str) -> Decision:
    """Leave a step for the next one, or for the end."""
    record = _record(state, policy, decision, why)
    state = replace(state, evidence=(*state.evidence, record))
    if state.step + 1 < len(plan(state, policy)):
        return replace(_shift(state, policy, state.step + 1, why), evidence=record)
    state = replace(state, phase="finishing", waited_s=0.0, reason=why)
    return replace(_finish(state, policy), evidence=record)


def _finish(state: RolloutState, policy: RolloutPolicy) -> Decision:
    if plan(state, policy)[-1].mirror_percent:
        return Decision("set_traffic", state, f"the mirroring ends: {state.reason}")
    return Decision("promote", state, f"the candidate becomes the stable version: {state.reason}", 100.0)


def _finishing(state: RolloutState, policy: RolloutPolicy, seen: Seen) -> Decision:
    decision = _finish(state, policy)
    if not seen.settled:
        return replace(decision, action="wait")
    reached = seen.promoted if decision.action == "promote" else not seen.exposed
    return _done(replace(state, phase="done"), seen) if reached else decision


def _done(state: RolloutState, seen: Seen) -> Decision:
    return Decision("done", state, state.reason, seen.percent, seen.mirror_percent)


def _roll_back(state: RolloutState, policy: RolloutPolicy, why: str, seen: Optional[Seen] = None) -> Decision:
    """Take the candidate's traffic away, with a record of why."""
    why += _because(seen) if seen else ""
    record = _record(state, policy, REFUSED, why)
    state = replace(state, phase="rolling_back", reason=why, evidence=(*state.evidence, record))
    return Decision("roll_back", state, why, evidence=record)


def _rolling_back(state: RolloutState, seen: Seen) -> Decision:
    # Also what was asked for before, and takes effect only now, is taken back.
    if seen.exposed or seen.promoted or not seen.settled:
        return Decision("roll_back", replace(state, phase="rolling_back"), state.reason)
    return Decision("failed", replace(state, phase="rolled_back"), state.reason)


_ENDINGS: Mapping[str, Callable[[RolloutState, Seen], Decision]] = {
    "rolling_back": _rolling_back, "rolled_back": _rolling_back, "done": _done,
}  # fmt: skip


def _criteria(state: RolloutState, policy: RolloutPolicy) -> tuple[Criterion, ...]:
    steps = plan(state, policy)
    step, new = steps[state.step], state.candidate.window
    old = state.stable.window if state.stable else None
    enough = [_at_least("requests", new.requests, step.min_samples)]
    findings = analysis.judge(
        policy.checks_at(step), Windows(old, new, policy.alpha / len(steps), policy.min_samples, policy.use_bound)
    )
    if step.smoke and old:
        enough.append(_at_least("requests.stable", old.requests, policy.min_samples))
        findings = tuple(finding for finding in findings if finding.verdict != "unsure")
    return (*enough, *findings)


def _at_least(name: str, observed: int, least: int) -> Criterion:
    return Criterion(name, observed >= least, observed, {"at_least": least})


def _record(state: RolloutState, policy: RolloutPolicy, decision: str, reason: str) -> Mapping[str, Any]:
    """Return the evidence of a step: like that of the gate, plain JSON without a clock or a path."""
    steps = plan(state, policy)
    step = None if state.phase == "starting" else steps[state.step]
    versions = {"stable": state.stable, "candidate": state.candidate}
    body = {
        "kind": KIND,
        "decision": decision,
        "reason": reason,
        "strategy": policy.strategy,
        "step": None if step is None else {"index": state.step, "of": len(steps)},
        "percent": step.percent if step else None,
        "mirror_percent": step.mirror_percent if step else None,
        "window_s": round(state.baked_s, 3),
        "looks": state.looks,
        "restarts": {name: version.restarts for name, version in versions.items() if version},
        "criteria": _criteria(state, policy) if step else (),
        "policy": {"digest": state.policy, "body": policy},
        "digests": {name: version and version.digest for name, version in versions.items()},
    }
    plain: Mapping[str, Any] = codec.encode(body)
    return plain


def _sentences(criteria: Sequence[Criterion]) -> str:
    return "; ".join(criterion.sentence for criterion in criteria)


def _because(seen: Seen) -> str:
    return f": {seen.reason}" if seen.reason else ""
