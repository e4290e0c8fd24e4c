"""A bandit: traffic moves to the version that pays, while it is still being found out. Pure and seeded.

Thompson sampling: each version gets requests in proportion to the chance that it is the best one, by the Beta
posteriors of its reward (Thompson, 1933; Scott, 2010, "A modern Bayesian look at the multi-armed bandit"). Every
version keeps a floor of traffic, so that a late bloomer is seen, and no step moves more than a cap, so that an early
fluke moves little.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Optional

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.stages.deploy.outcomes import Outcomes
from airflow_ml_provider.stages.deploy.policy import Check, ErrorRate
from airflow_ml_provider.stages.deploy.stats import Moments, VersionStats

PERIODS = 200
"""Most periods of a bandit: a record of each stands beside the service, which may be in a ConfigMap of 1 MiB."""


@dataclass(frozen=True)
class BanditPolicy:
    """How traffic follows the rewards.

    Attributes:
        metric: the reward of a request, in [0, 1] (0 or 1 for a click); more is better.
        floor: least share of the traffic of each version.
        max_change: most that the share of a version changes in one step.
        min_samples: rewards that each version must have before any traffic moves.
        max_loss: it is over when sending all traffic to the best version is expected to lose at most this share of its
            mean reward to another one that may be better (Scott's value remaining, its mean).
        draws: from the posteriors at each step.
        seed: equal numbers give equal steps.
        strategy: `bandit`.
        share: of the traffic that the candidate gets in the first period.
        period_s: the traffic is allocated anew every so many seconds.
        max_s: it ends at the first period after so many seconds, if it was not over before.
        on_limit: then the candidate gets all traffic if it is the `best`; `rollback` gives the traffic back.
        guardrails: what ends it at once, whatever the rewards.
        alpha: chance that a candidate within the guardrails is ever taken away for one of them.
        key: header whose value keeps its version as long as the shares allow; empty for none.
        outcomes: table with the rewards; none where the servers count them.
        max_start_s: how long the candidate may take to get ready (seconds).
        max_wait_s: how long the traffic may be otherwise than asked for (seconds).
    """

    metric: str
    floor: float = 0.05
    max_change: float = 0.2
    min_samples: int = 300
    max_loss: float = 0.01
    draws: int = 2000
    seed: int = 0
    strategy: Literal["bandit"] = "bandit"
    share: float = 0.5
    period_s: float = 3600.0
    max_s: float = 7 * 86400.0
    on_limit: Literal["rollback", "best"] = "rollback"
    guardrails: tuple[Check, ...] = (ErrorRate(),)
    alpha: float = 0.05
    key: str = ""
    outcomes: Optional[Outcomes] = None
    max_start_s: float = 1800.0
    max_wait_s: float = 3600.0

    def __post_init__(self) -> None:
        if not self.floor <= self.share <= 1 - self.floor or not 0 < self.share < 1:
            raise invalid("share", self.share, f"between floor ({self.floor:g}) and 1 - floor", "give a fraction")
        for name in ("period_s", "max_start_s", "max_wait_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise invalid(name, getattr(self, name), "greater than 0 (seconds)")
        if not self.period_s <= self.max_s <= PERIODS * self.period_s:
            most = f"between period_s ({self.period_s:g} s) and {PERIODS} of them"
            raise invalid("max_s", self.max_s, most, "the service carries the record of each")
        if not 0 < self.alpha < 1:
            raise invalid("alpha", self.alpha, "in (0, 1)", "give a fraction, not percent")
        if not 0 <= self.floor < 0.5:
            raise invalid("floor", self.floor, "in [0, 0.5)", "give a fraction, not percent")
        for name in ("max_change", "max_loss"):
            if not 0 < getattr(self, name) <= 1:
                raise invalid(name, getattr(self, name), "in (0, 1]", "give a fraction, not percent")
        if self.min_samples < 1 or self.draws < 100:
            raise invalid("min_samples, draws", (self.min_samples, self.draws), "at least 1 and 100")

    @property
    def checks(self) -> tuple[Check, ...]:
        """What a place must be able to count."""
        return self.guardrails


@dataclass(frozen=True)
class Allocation:
    """Where the traffic goes next.

    Attributes:
        weights: version to its share; they add up to 1.
        best: the version that is most probably the best.
        chances: version to the probability that it is the best.
        loss: share of the best version's reward that is expected to be lost if all traffic went there now.
        over: the loss is small enough to stop.
        reason: one sentence with the numbers.
    """

    weights: Mapping[str, float]
    best: str
    chances: Mapping[str, float]
    loss: float
    over: bool
    reason: str


def allocate(policy: BanditPolicy, stats: Mapping[str, VersionStats], weights: Mapping[str, float]) -> Allocation:
    """Return the next weights.

    Parameters:
        policy: how traffic follows the rewards.
        stats: version to what it has counted since the bandit began.
        weights: version to its share now.

    Raises:
        SpecError: fewer than two versions, other versions than have weights, rewards outside [0, 1].
    """
    _check(policy, stats, weights)
    rewards = {name: stats[name].moments(policy.metric) for name in sorted(stats)}
    chances, loss = _chances(policy, rewards)
    best = max(chances, key=lambda name: chances[name])
    least = min(moments.count for moments in rewards.values())
    if least < policy.min_samples:
        reason = f"only {least} of {policy.min_samples} rewards of {policy.metric} for each version"
        return Allocation(dict(weights), best, chances, loss, False, reason)
    free = 1 - policy.floor * len(rewards)
    goal = {name: policy.floor + free * chance for name, chance in chances.items()}
    # One step of the same direction for all keeps the sum at 1 and everybody above the floor.
    furthest = max(abs(goal[name] - weights[name]) for name in goal)
    pace = min(1.0, policy.max_change / furthest) if furthest else 1.0
    moved = {name: weights[name] + pace * (goal[name] - weights[name]) for name in goal}
    reason = (
        f"{best} is the best with {chances[best]:.1%} and would lose {loss:.2%} of {policy.metric} at most on average"
    )
    return Allocation(moved, best, chances, loss, loss <= policy.max_loss, reason)


def _check(policy: BanditPolicy, stats: Mapping[str, VersionStats], weights: Mapping[str, float]) -> None:
    if len(stats) < 2 or policy.floor * len(stats) >= 1:
        raise invalid("versions", sorted(stats), f"at least 2, and few enough for a floor of {policy.floor:g} each")
    if set(stats) != set(weights) or abs(sum(weights.values()) - 1) > 1e-6 or min(weights.values()) < 0:
        raise invalid("weights", dict(weights), f"shares of {', '.join(sorted(stats))} that add up to 1")
    for name, one in stats.items():
        moments = one.metrics.get(policy.metric, Moments())
        if not 0 <= moments.total <= moments.count or moments.squares > moments.total * (1 + 1e-9):
            raise invalid(f"{policy.metric} of {name}", moments.mean, "a reward in [0, 1]", "scale it")


def _chances(policy: BanditPolicy, rewards: Mapping[str, Moments]) -> tuple[dict[str, float], float]:
    """Return each version's chance to be the best one, and the mean loss if the likeliest is taken.

    Draws are from Beta(1 + rewards, 1 + missed rewards); fractions count as so much of a success.
    """
    counted = sum(moments.count for moments in rewards.values())
    draw = random.Random(f"{policy.seed}:{counted}").betavariate  # noqa: S311
    samples = [
        {name: draw(1 + m.total, 1 + max(0.0, m.count - m.total)) for name, m in rewards.items()}
        for _ in range(policy.draws)
    ]
    wins = [max(sample, key=lambda name: sample[name]) for sample in samples]
    chances = {name: wins.count(name) / policy.draws for name in rewards}
    best = max(chances, key=lambda name: chances[name])
    lost = [(sample[win] - sample[best]) / sample[best] for sample, win in zip(samples, wins)]
    return chances, sum(lost) / policy.draws
