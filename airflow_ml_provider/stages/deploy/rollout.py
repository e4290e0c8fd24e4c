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

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Callable, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.deploy.analysis import Finding
from airflow_ml_provider.stages.deploy.policy import RolloutPolicy, Step
from airflow_ml_provider.stages.deploy.state import MOMENTS, Action, Decision, RolloutState, Seen, Version
from airflow_ml_provider.stages.deploy.strategies import Judge, Policy, Ruling, judge_of, sentences
from airflow_ml_provider.stages.gate.evidence import REFUSED
from airflow_ml_provider.stages.gate.logic import Criterion

KIND = "airflow_ml.rollout/1"


def begin(policy: Policy, seen: Seen, now: float, *, candidate: str, stable: Optional[str]) -> RolloutState:
    """Return the state of a rollout that begins. What was counted before this look takes no part in it.

    Parameters:
        policy: how it shall go; the same must be given to every `advance`.
        seen: the first look; all servers of the stable version should answer.
        now: seconds.
        candidate: digest of the new version.
        stable: digest of the version that answers now; none when there is none yet: the candidate gets all traffic at
            once then, and only what needs no comparison is checked.

    Raises:
        SpecError: both versions are the same, or there is nothing to mirror or to compare with.
    """
    if candidate == stable:
        raise invalid("candidate", candidate, "another version than the stable one")
    if stable is None and not isinstance(policy, RolloutPolicy):
        raise invalid("stable", stable, "a version to compare with", "begin with a canary")
    if stable is None and isinstance(policy, RolloutPolicy) and policy.plan[-1].mirror_percent:
        raise invalid("stable", stable, "a version whose requests can be mirrored", "begin with a canary")
    old = Version(stable, seen.stable) if stable is not None else None
    return RolloutState("starting", codec.digest(policy), Version(candidate, seen.candidate), old, now)


def advance(state: RolloutState, policy: Policy, seen: Seen, now: float) -> Decision:
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
    passed_s, judge = max(0.0, now - state.now), judge_of(policy)
    state = replace(state, now=now, waited_s=state.waited_s + passed_s)
    if state.phase in _ENDINGS:
        return _ENDINGS[state.phase](state, seen)
    state = _counted(state, judge, seen, passed_s)
    if why := _lost(state, seen):
        return _roll_back(state, judge, why, seen)
    if state.phase == "starting":
        return _starting(state, judge, seen)
    state = replace(state, total_s=state.total_s + passed_s)
    criteria = judge.criteria(state)
    failed = [c for c in criteria if isinstance(c, Finding) and c.verdict == "fail"]
    if failed and not seen.promoted:
        return _roll_back(state, judge, sentences(failed))
    if state.phase == "finishing":
        return _finishing(state, judge, seen)
    return _step(state, judge, seen, passed_s, criteria)


def _lost(state: RolloutState, seen: Seen) -> str:
    """Return why the rollout is lost whatever its checks say; empty while it is not."""
    if seen.promoted:
        return "" if state.phase == "finishing" and state.promotes else "the candidate was promoted by somebody else"
    return {"failed": "the candidate has failed", "gone": "the candidate is gone"}.get(seen.health, "")


def _counted(state: RolloutState, judge: Judge, seen: Seen, passed_s: float) -> RolloutState:
    """Return the state with what the servers counted since the last look; nothing new is no look."""
    fresh = not state.candidate.moments or state.moment_s >= judge.step(state).bake_s / MOMENTS
    candidate = state.candidate.read(seen.candidate, fresh)
    stable = state.stable and state.stable.read(seen.stable)
    looks = state.looks + ((candidate, stable) != (state.candidate, state.stable))
    moment_s = passed_s if fresh else state.moment_s + passed_s
    return replace(state, candidate=candidate, stable=stable, looks=looks, moment_s=moment_s)


def _starting(state: RolloutState, judge: Judge, seen: Seen) -> Decision:
    if seen.health == "ready":
        return _shift(state, judge, 0, "the candidate is ready")
    if state.waited_s >= judge.policy.max_start_s:
        return _roll_back(state, judge, f"the candidate was not ready within {judge.policy.max_start_s:g} s", seen)
    # What an earlier rollout has left, or somebody has set.
    action: Action = "set_traffic" if state.stable and seen.exposed else "wait"
    return Decision(action, state, f"the candidate is not ready yet{_because(seen)}")


def _shift(state: RolloutState, judge: Judge, index: int, why: str, percent: Optional[float] = None) -> Decision:
    """Begin a step: clocks anew, and windows, unless they go on."""
    state = replace(state, step=index, percent=percent)
    step = judge.step(state)
    if not (judge.sums_up and index):
        # Once all users are with the candidate, the step before is the last that is known of the stable version.
        state = replace(_anew(state, stable=step.percent < 100), asked=state.now)
    state = replace(state, phase="shifting", waited_s=0.0, baked_s=0.0, unsettled_s=0.0, looks=0)
    return Decision("set_traffic", state, f"to {step}: {why}", step.percent, step.mirror_percent)


def _anew(state: RolloutState, stable: bool = True) -> RolloutState:
    """Return the state with empty windows."""
    old = state.stable.anew() if state.stable and stable else state.stable
    return replace(state, candidate=state.candidate.anew(), stable=old)


def _step(state: RolloutState, judge: Judge, seen: Seen, passed_s: float, criteria: tuple[Criterion, ...]) -> Decision:
    step = judge.step(state)
    if not (seen.has(step) and seen.settled and seen.health == "ready"):
        state = replace(_disturbed(state, judge, seen), unsettled_s=state.unsettled_s + passed_s)
        return _shifting(state, judge, seen, step)
    baked_s = state.baked_s + passed_s if state.phase == "baking" else state.baked_s
    state = replace(state, phase="baking", baked_s=baked_s, unsettled_s=0.0)
    if judge.counts_anew and not state.counting:
        state = replace(_anew(state), counting=True)
        return Decision("wait", state, f"{step}: counting begins", step.percent)
    return _baking(state, judge, criteria)


def _disturbed(state: RolloutState, judge: Judge, seen: Seen) -> RolloutState:
    """Return the state when the traffic is not as asked for: the step's time begins again.

    An experiment or a bandit outlasts a candidate that is away for a while; but what was counted while somebody else
    had moved the traffic is no experiment, so that begins again, too.
    """
    moved = state.phase == "baking" and seen.health == "ready"
    if judge.counts_anew and not moved:
        return replace(state, phase="shifting")
    if judge.counts_anew and not judge.sums_up:
        state = replace(state, counting=False, asked=state.now)
    return replace(state, phase="shifting", baked_s=0.0)


def _shifting(state: RolloutState, judge: Judge, seen: Seen, step: Step) -> Decision:
    if judge.overdue(state):
        why = f"the traffic could not be held at {step} for {judge.policy.max_wait_s:g} s"
        return _roll_back(state, judge, why, seen)
    if seen.has(step) or not seen.settled:
        what = "the candidate is not ready" if seen.health != "ready" else "the traffic is not settled"
        return Decision("wait", state, f"{what}{_because(seen)}", step.percent, step.mirror_percent)
    what = f"to {step}: the candidate has {seen.percent:g} %"
    return Decision("set_traffic", state, what, step.percent, step.mirror_percent)


def _baking(state: RolloutState, judge: Judge, criteria: tuple[Criterion, ...]) -> Decision:
    ruling, step = judge.rule(state, criteria), judge.step(state)
    if ruling.course == "wait":
        return Decision("wait", state, ruling.reason, step.percent, step.mirror_percent)
    if ruling.course == "give_back":
        return _roll_back(state, judge, ruling.reason)
    return _go_on(state, judge, ruling)


def _go_on(state: RolloutState, judge: Judge, ruling: Ruling) -> Decision:
    """Leave a step for the next one, or for the end."""
    record = _record(state, judge, ruling.decision, ruling.reason)
    state = replace(state, evidence=(*state.evidence, record))
    if ruling.course == "next":
        return replace(_shift(state, judge, state.step + 1, ruling.reason, ruling.percent), evidence=record)
    state = replace(state, phase="finishing", waited_s=0.0, reason=ruling.reason, promotes=ruling.promotes)
    return replace(_finish(state, judge), evidence=record)


def _finish(state: RolloutState, judge: Judge) -> Decision:
    if state.promotes:
        return Decision("promote", state, f"the candidate becomes the stable version: {state.reason}", 100.0)
    what = "the mirroring ends" if judge.step(state).mirror_percent else "the stable version stays"
    return Decision("set_traffic", state, f"{what}: {state.reason}")


def _finishing(state: RolloutState, judge: Judge, seen: Seen) -> Decision:
    decision = _finish(state, judge)
    if not seen.settled:
        return replace(decision, action="wait")
    reached = seen.promoted if decision.action == "promote" else not seen.exposed
    return _done(replace(state, phase="done"), seen) if reached else decision


def _done(state: RolloutState, seen: Seen) -> Decision:
    return Decision("done", state, state.reason, seen.percent, seen.mirror_percent)


def _roll_back(state: RolloutState, judge: Judge, why: str, seen: Optional[Seen] = None) -> Decision:
    """Take the candidate's traffic away, with a record of why."""
    why += _because(seen) if seen else ""
    record = _record(state, judge, REFUSED, why)
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


def _record(state: RolloutState, judge: Judge, decision: str, reason: str) -> Mapping[str, Any]:
    """Return the evidence of a step: like that of the gate, plain JSON without a clock or a path."""
    step = None if state.phase == "starting" else judge.step(state)
    versions = {"stable": state.stable, "candidate": state.candidate}
    body = {
        "kind": KIND,
        "decision": decision,
        "reason": reason,
        "strategy": judge.policy.strategy,
        "step": None,
        "percent": step.percent if step else None,
        "mirror_percent": step.mirror_percent if step else None,
        "window_s": round(state.baked_s, 3),
        "looks": state.looks,
        "restarts": {name: version.restarts for name, version in versions.items() if version},
        "criteria": judge.criteria(state) if step else (),
        **(judge.said(state) if step else {}),
        "policy": {"digest": state.policy, "body": judge.policy},
        "digests": {name: version and version.digest for name, version in versions.items()},
    }
    plain: Mapping[str, Any] = codec.encode(body)
    return plain


def _because(seen: Seen) -> str:
    return f": {seen.reason}" if seen.reason else ""
