"""What each strategy says of a step that has its traffic: go on, give more, end, or give the traffic back. Pure.

The machine in `rollout` moves the traffic, waits for it, and takes it away from what fails; these judges say how much
there shall be, and when it has been looked at for long enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Optional, Union

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import unknown_name
from airflow_ml_provider.stages.deploy import analysis, bandit, experiment
from airflow_ml_provider.stages.deploy.analysis import Finding, Windows
from airflow_ml_provider.stages.deploy.bandit import BanditPolicy
from airflow_ml_provider.stages.deploy.experiment import ExperimentPolicy
from airflow_ml_provider.stages.deploy.policy import RolloutPolicy, Step
from airflow_ml_provider.stages.deploy.state import RolloutState
from airflow_ml_provider.stages.deploy.stats import VersionStats
from airflow_ml_provider.stages.gate.evidence import PASSED
from airflow_ml_provider.stages.gate.logic import Criterion

Policy = Union[RolloutPolicy, ExperimentPolicy, BanditPolicy]

ADVANCED = "advanced"
"""The decision of a step that went on without a clear answer, because the policy says so."""
REALLOCATED = "reallocated"
"""The decision of a period of a bandit after which it goes on with other shares."""

_POLICIES: Mapping[str, type[Any]] = {
    "canary": RolloutPolicy, "blue_green": RolloutPolicy, "shadow": RolloutPolicy,
    "ab": ExperimentPolicy, "bandit": BanditPolicy,
}  # fmt: skip


def decode(data: Any, where: str = "policy") -> Policy:
    """Return the policy that an operator's argument means: one, or its attributes; `strategy` says of which.

    Raises:
        SpecError: there is no such strategy, or its policy does not take these attributes.
    """
    if isinstance(data, (RolloutPolicy, ExperimentPolicy, BanditPolicy)):
        return data
    strategy = data.get("strategy", "canary") if isinstance(data, Mapping) else "canary"
    if strategy not in _POLICIES:
        raise unknown_name("strategy", str(strategy), _POLICIES)
    found: Policy = codec.decode(_POLICIES[strategy], data, where)
    return found


@dataclass(frozen=True)
class Ruling:
    """What becomes of a step.

    Attributes:
        course: `wait`; `next` step; `end` it all well; `give_back` the traffic.
        reason: one sentence with the numbers.
        decision: what the step's record calls it.
        percent: of the next step, where no plan says it.
        promotes: at the end the candidate becomes the stable version; otherwise all stays as it was before.
    """

    course: Literal["wait", "next", "end", "give_back"]
    reason: str
    decision: str = PASSED
    percent: Optional[float] = None
    promotes: bool = True


class Planned:
    """Canary, blue-green, shadow: the steps of a plan, each held to the checks.

    Parameters:
        policy: the policy.
    """

    counts_anew = False
    """Counting begins only when the split has been seen, and an outage of the candidate does not end it."""
    sums_up = False
    """What was counted in earlier steps counts in the next one, too."""

    def __init__(self, policy: RolloutPolicy) -> None:
        self.policy = policy

    def steps(self, state: RolloutState) -> tuple[Step, ...]:
        """Return the steps: without a stable version only the last one."""
        return self.policy.plan if state.stable else self.policy.plan[-1:]

    def step(self, state: RolloutState) -> Step:
        """Return the step that a rollout is in."""
        return self.steps(state)[state.step]

    def overdue(self, state: RolloutState) -> bool:
        """Return whether the traffic has not been as asked for, for too long."""
        return state.waited_s >= self.policy.max_wait_s

    def criteria(self, state: RolloutState) -> tuple[Criterion, ...]:
        """Return what is looked at, with what was counted."""
        policy, step, new = self.policy, self.step(state), state.candidate.window
        old = state.stable.window if state.stable else None
        enough = [at_least("requests", new.requests, step.min_samples)]
        alpha = policy.alpha / len(self.steps(state))
        windows = Windows(old, new, alpha, policy.min_samples, policy.use_bound, state.candidate.latencies)
        findings = analysis.judge(policy.checks_at(step), windows)
        if step.smoke and old:
            enough.append(at_least("requests.stable", old.requests, policy.min_samples))
            if state.baked_s < policy.bake_s:
                enough += analysis.known(policy.checks, old, alpha)
            findings = tuple(finding for finding in findings if finding.verdict != "unsure")
        return (*enough, *findings)

    def rule(self, state: RolloutState, criteria: Sequence[Criterion]) -> Ruling:
        """Return what becomes of the step."""
        policy, step = self.policy, self.step(state)
        unmet = [c for c in criteria if not c.passed]
        baked = state.baked_s >= step.bake_s
        if baked and not unmet:
            return self._go_on(state, PASSED, f"all {len(criteria)} criteria are met at {step}")
        held = f"{step} since {state.baked_s:.0f} of {step.bake_s:.0f} s" + (f"; {sentences(unmet)}" if unmet else "")
        if state.waited_s < policy.max_wait_s or policy.on_unsure == "hold":
            return Ruling("wait", held)
        why = f"no clear answer within {policy.max_wait_s:g} s: {held}"
        beyond = any(isinstance(c, Finding) and c.beyond for c in unmet)
        if policy.on_unsure == "advance" and baked and not beyond:
            return self._go_on(state, ADVANCED, why)
        return Ruling("give_back", why)

    def said(self, state: RolloutState) -> Mapping[str, Any]:
        """Return what the record of a step says beside the criteria."""
        return {"step": {"index": state.step, "of": len(self.steps(state))}}

    def _go_on(self, state: RolloutState, decision: str, why: str) -> Ruling:
        steps = self.steps(state)
        if state.step + 1 < len(steps):
            return Ruling("next", why, decision)
        return Ruling("end", why, decision, promotes=not steps[-1].mirror_percent)


class Experiment:
    """A/B: one step with a fixed split, until its metric speaks.

    Parameters:
        policy: the policy.
    """

    counts_anew, sums_up = True, False

    def __init__(self, policy: ExperimentPolicy) -> None:
        self.policy = policy

    def step(self, state: RolloutState) -> Step:
        """Return the only step."""
        return Step(round(100 * self.policy.share, 6), 0.0, self.policy.min_s)

    def overdue(self, state: RolloutState) -> bool:
        """Return whether the traffic has not been as asked for, for too long."""
        return state.unsettled_s >= self.policy.max_wait_s

    def criteria(self, state: RolloutState) -> tuple[Criterion, ...]:
        """Return the metric's difference and the guardrails."""
        found, new, name = self._found(state), state.candidate.window, self.policy.metric
        difference = Criterion(
            f"{name}.difference", found.outcome == "better", found.effect, {"at_least": 0.0}, found.interval,
            new.moments(name).count, f"{found.outcome}: {found.reason}",
        )  # fmt: skip
        return (at_least("requests", new.requests, 1), difference, *found.guardrails)

    def rule(self, state: RolloutState, criteria: Sequence[Criterion]) -> Ruling:
        """Return what becomes of the experiment."""
        policy, found = self.policy, self._found(state)
        why = f"{found.outcome}: {found.reason}"
        if found.outcome in ("harmful", "worse", "broken"):
            return Ruling("give_back", why)
        if found.over and state.baked_s >= policy.min_s:
            answer = {"better": policy.on_better, "no_difference": policy.on_no_difference}.get(found.outcome)
            if answer in ("promote", "keep_stable"):
                return Ruling("end", why, promotes=answer == "promote")
            return Ruling("give_back", why)
        if state.waited_s >= policy.max_s:
            return Ruling("give_back", f"undecided within {policy.max_s:g} s: {found.reason}")
        return Ruling("wait", why)

    def said(self, state: RolloutState) -> Mapping[str, Any]:
        """Return the verdict."""
        found, name = self._found(state), self.policy.metric
        old, new = _windows(state)
        verdict = {
            "outcome": found.outcome, "metric": name, "effect": found.effect, "interval": found.interval,
            "samples": {"stable": old.moments(name).count, "candidate": new.moments(name).count},
        }  # fmt: skip
        return {"step": {"index": 0, "of": 1}, "verdict": verdict}

    def _found(self, state: RolloutState) -> experiment.Result:
        return experiment.judge(self.policy, *_windows(state), state.candidate.latencies)


class Bandit:
    """Shares that follow the rewards, period after period.

    Parameters:
        policy: the policy.
    """

    counts_anew, sums_up = True, True

    def __init__(self, policy: BanditPolicy) -> None:
        self.policy = policy

    def step(self, state: RolloutState) -> Step:
        """Return the period: the first one has the share of the policy, each later one what was allocated."""
        percent = round(100 * self.policy.share, 6) if state.percent is None else state.percent
        return Step(percent, 0.0, self.policy.period_s)

    def overdue(self, state: RolloutState) -> bool:
        """Return whether the traffic has not been as asked for, for too long."""
        return state.unsettled_s >= self.policy.max_wait_s

    def criteria(self, state: RolloutState) -> tuple[Criterion, ...]:
        """Return the guardrails."""
        old, new = _windows(state)
        windows = Windows(old, new, self.policy.alpha, self.policy.min_samples, moments=state.candidate.latencies)
        return (at_least("requests", new.requests, 1), *analysis.judge(self.policy.guardrails, windows))

    def rule(self, state: RolloutState, criteria: Sequence[Criterion]) -> Ruling:
        """Return the next shares once the period is over."""
        policy = self.policy
        if state.baked_s < policy.period_s:
            return Ruling("wait", f"{self.step(state)} since {state.baked_s:.0f} of {policy.period_s:.0f} s")
        found = self._found(state)
        if found.over:
            return self._to_the_best(found, found.reason)
        if state.total_s >= policy.max_s:
            why = f"undecided within {policy.max_s:g} s: {found.reason}"
            return self._to_the_best(found, why) if policy.on_limit == "best" else Ruling("give_back", why)
        return Ruling("next", found.reason, REALLOCATED, percent=self._percent(found.weights["candidate"]))

    def said(self, state: RolloutState) -> Mapping[str, Any]:
        """Return the chances, and where the traffic would go next."""
        found, name = self._found(state), self.policy.metric
        old, new = _windows(state)
        verdict = {
            "best": found.best, "chances": found.chances, "loss": found.loss, "weights": found.weights, "metric": name,
            "rewards": {"stable": old.moments(name), "candidate": new.moments(name)},
        }  # fmt: skip
        return {"step": {"index": state.step, "of": None}, "verdict": verdict}

    def _percent(self, weight: float) -> float:
        """Return whole percents, since KServe knows no others; the floor holds."""
        least = math.ceil(100 * self.policy.floor - 1e-9)
        return float(min(100 - least, max(least, round(100 * weight))))

    def _to_the_best(self, found: bandit.Allocation, why: str) -> Ruling:
        return Ruling("end" if found.best == "candidate" else "give_back", why)

    def _found(self, state: RolloutState) -> bandit.Allocation:
        share = self.step(state).percent / 100
        stats = dict(zip(("stable", "candidate"), _windows(state)))
        return bandit.allocate(self.policy, stats, {"stable": 1 - share, "candidate": share})


Judge = Union[Planned, Experiment, Bandit]


def judge_of(policy: Policy) -> Judge:
    """Return who judges the steps of a policy."""
    if isinstance(policy, ExperimentPolicy):
        return Experiment(policy)
    return Bandit(policy) if isinstance(policy, BanditPolicy) else Planned(policy)


def at_least(name: str, observed: int, least: int) -> Criterion:
    """Return the criterion of a number that must be reached."""
    return Criterion(name, observed >= least, observed, {"at_least": least})


def sentences(criteria: Sequence[Criterion]) -> str:
    """Return criteria with their numbers, in words."""
    return "; ".join(criterion.sentence for criterion in criteria)


def _windows(state: RolloutState) -> tuple[VersionStats, VersionStats]:
    """Return what the stable version and the candidate have counted."""
    return (state.stable.window if state.stable else VersionStats()), state.candidate.window
