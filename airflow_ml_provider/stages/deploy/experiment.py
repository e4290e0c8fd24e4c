"""An A/B test: who gets which version, how many it takes, and when one may stop. Pure.

A rollout asks whether a candidate does harm, an experiment whether it does good. Users keep their version (a hash of
their key decides), the difference of one primary metric is what counts, guardrails stop what hurts, and everything may
be looked at at any time: the intervals are those of `sequential`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, Optional

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.deploy import analysis, sequential
from airflow_ml_provider.stages.deploy.analysis import Finding, Windows
from airflow_ml_provider.stages.deploy.outcomes import Outcomes
from airflow_ml_provider.stages.deploy.policy import Check, ErrorRate
from airflow_ml_provider.stages.deploy.stats import Histogram, Moments, VersionStats

Outcome = Literal["running", "better", "worse", "harmful", "no_difference", "undecided", "broken"]

MISMATCH_ALPHA = 0.001
"""A sample ratio mismatch is nobody's finding but a defect, so it takes more to be called one."""


@dataclass(frozen=True)
class ExperimentPolicy:
    """Treatment against control.

    Attributes:
        salt: name of the experiment; another salt mixes the users anew.
        metric: the primary metric, one number for each user (0 or 1 for a conversion); more is better.
        mde: least difference of the means that matters; the interval is narrowest for differences of its size, and a
            difference that is certainly smaller ends the experiment.
        share: of the users that get the treatment.
        guardrails: what must not get worse, whatever the metric says.
        alpha: chance of a wrong `better` or `worse` where there is no difference, however often one looks; the
            guardrails have as much for themselves.
        min_samples: fewest users of each version before anything but an exact guardrail speaks.
        max_samples: users of each version after which it ends undecided.
        strategy: `ab`.
        key: header that carries a user's key; empty assigns each request by itself, which is right only for a metric of
            requests, such as `success`.
        outcomes: table with the metric; none where the servers count it.
        baseline: mean of the metric of the stable version, for the sample size; none takes what has been counted.
        deviation: standard deviation of the metric, where it is not a rate.
        power: chance to see a difference of `mde`.
        per_day: users (without a key: requests) a day; with it, an experiment that could not end in time is refused.
        min_s: it says `better` or `no_difference` after so many seconds at the earliest; whole weeks are wise.
        max_s: after so many seconds it ends, undecided, and the traffic goes back.
        max_start_s: how long the candidate may take to get ready (seconds).
        max_wait_s: how long the traffic may be otherwise than asked for (seconds).
        on_better: `promote` the candidate, or `keep_stable` and leave that to somebody else.
        on_no_difference: `rollback`, or `promote` all the same.
    """

    salt: str
    metric: str
    mde: float
    share: float = 0.5
    guardrails: tuple[Check, ...] = (ErrorRate(),)
    alpha: float = 0.05
    min_samples: int = 300
    max_samples: int = 1_000_000
    strategy: Literal["ab"] = "ab"
    key: str = "x-sticky-key"
    outcomes: Optional[Outcomes] = None
    baseline: Optional[float] = None
    deviation: Optional[float] = None
    power: float = 0.8
    per_day: Optional[float] = None
    min_s: float = 0.0
    max_s: float = 14 * 86400.0
    max_start_s: float = 1800.0
    max_wait_s: float = 3600.0
    on_better: Literal["promote", "keep_stable"] = "promote"
    on_no_difference: Literal["rollback", "promote"] = "rollback"

    def __post_init__(self) -> None:
        if not self.salt or not self.metric:
            raise invalid("salt, metric", (self.salt, self.metric), "given")
        if not 0 < self.mde < math.inf:
            raise invalid("mde", self.mde, "greater than 0", "it is a difference of means, not a ratio")
        for name in ("share", "alpha", "power"):
            if not 0 < getattr(self, name) < 1:
                raise invalid(name, getattr(self, name), "in (0, 1)", "give a fraction, not percent")
        if not 1 <= self.min_samples <= self.max_samples:
            raise invalid("min_samples", self.min_samples, f"between 1 and max_samples ({self.max_samples})")
        for name in ("max_s", "max_start_s", "max_wait_s", "per_day", "deviation"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise invalid(name, value, "greater than 0")
        if not 0 <= self.min_s <= self.max_s:
            raise invalid("min_s", self.min_s, f"between 0 and max_s ({self.max_s:g} s)")

    @property
    def checks(self) -> tuple[Check, ...]:
        """What a place must be able to count."""
        return self.guardrails


@dataclass(frozen=True)
class Result:
    """What an experiment says at a look.

    Attributes:
        outcome: `running`; `better` or `worse` than the control; `harmful` by a guardrail; `no_difference` of `mde` or
            more; `undecided` after `max_samples`; `broken` when the users are not split as they should be.
        reason: one sentence with the numbers.
        effect: mean of the treatment less that of the control; none before both have users.
        interval: its confidence sequence.
        guardrails: findings of the guardrails.
    """

    outcome: Outcome
    reason: str
    effect: Optional[float] = None
    interval: Optional[tuple[float, float]] = None
    guardrails: tuple[Finding, ...] = ()

    @property
    def over(self) -> bool:
        """Whether the experiment has ended."""
        return self.outcome != "running"


def assign(key: str, salt: str, weights: Mapping[str, float]) -> str:
    """Return the version that a user gets: always the same one, while salt and weights stay.

    The first 64 bits of SHA-256 of salt and key are a number in [0, 1), and versions take their shares of it in
    alphabetical order. Of two versions, changing the weights moves only the users between the old and the new border.

    Parameters:
        key: what identifies the user.
        salt: name of the experiment.
        weights: version to its weight; they need not add up to 1.

    >>> [assign(user, "spring", {"a": 0.5, "b": 0.5}) for user in ("ann", "joe", "ann")]
    ['a', 'b', 'a']
    """
    total = sum(weights.values())
    if not weights or min(weights.values()) < 0 or not 0 < total < math.inf:
        raise invalid("weights", dict(weights), "at least 0, and not all 0")
    digest = hashlib.sha256(f"{len(salt)}:{salt}{key}".encode("utf-8", "surrogatepass")).digest()
    point, border, chosen = int.from_bytes(digest[:8], "big") / 2**64 * total, 0.0, ""
    for name in sorted(name for name, weight in weights.items() if weight):
        chosen, border = name, border + weights[name]
        if point < border:
            break
    return chosen


def sample_size(
    baseline: float,
    mde: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    sequential_test: bool = True,
    deviation: Optional[float] = None,
) -> int:
    r"""Return how many users of each version it takes to see a difference of a conversion rate, or of another mean.

    For one look: \( (z_{1-\alpha/2} \sqrt{2 \bar p \bar q} + z_{power} \sqrt{p_1 q_1 + p_2 q_2})^2 / mde^2 \) (Fleiss,
    Levin, Paik, 2003, "Statistical methods for rates and proportions", chapter 4, without continuity correction). With
    looks at any time: after how many users the interval of `sequential.half_width` excludes 0 with this power. That is
    more, but a look before may have ended the experiment already.

    Parameters:
        baseline: rate of the control.
        mde: difference to be seen, such as 0.01 from 0.10 to 0.11; negative for a fall.
        alpha: two-sided.
        power: chance to see it.
        sequential_test: whether it is looked at at any time, as `judge` does, or once.
        deviation: standard deviation of a number that is no rate.

    >>> sample_size(0.10, 0.02, sequential_test=False)
    3841
    """
    treated = baseline + mde
    if not mde or (deviation is None and not (0 < baseline < 1 and 0 < treated < 1)):
        raise invalid("baseline, baseline + mde", (baseline, treated), "different and in (0, 1)")
    for name, value in (("alpha", alpha), ("power", power)):
        if not 0 < value < 1:
            raise invalid(name, value, "in (0, 1)", "give a fraction, not percent")
    z_power, middle = NormalDist().inv_cdf(power), (baseline + treated) / 2
    pooled, spread = 2 * middle * (1 - middle), baseline * (1 - baseline) + treated * (1 - treated)
    if deviation is not None:
        pooled = spread = 2 * deviation**2
    once = NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt(pooled) + z_power * math.sqrt(spread)
    size = (once / mde) ** 2
    if not sequential_test:
        return math.ceil(size)

    def too_few(users: float) -> bool:
        width = sequential.half_width(spread / users, abs(mde), alpha)
        return width + z_power * math.sqrt(spread / users) > abs(mde)

    low, high = 1.0, 100 * size
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (middle, high) if too_few(middle) else (low, middle)
    return math.ceil(high)


def prospect(policy: ExperimentPolicy, counted: Moments) -> str:
    """Return in one sentence how many samples an experiment takes, and how long that is.

    Parameters:
        policy: the experiment.
        counted: the metric of the stable version so far, which tells the baseline where the policy does not.

    Raises:
        SpecError: there is no baseline, or it could not see `mde` within `max_samples` and `max_s`.
    """
    baseline, deviation = policy.baseline, policy.deviation
    if baseline is None:
        if counted.count < policy.min_samples:
            raise SpecError(
                f"the sample size takes a baseline: {counted.count} values of {policy.metric!r} have been counted for "
                f"the stable version, which is too few; give its mean as baseline"
            )
        baseline = counted.mean
    users = sample_size(baseline, policy.mde, alpha=policy.alpha, power=policy.power, deviation=deviation)
    unit = "users" if policy.key else "requests"
    said = (
        f"it takes {users} {unit} of each version to see a difference of {policy.mde:g} from {baseline:.4g} with power "
        f"{policy.power:g} at alpha {policy.alpha:g}"
    )
    if users > policy.max_samples:
        raise SpecError(f"{said}, but max_samples is {policy.max_samples}; take a larger mde or more samples")
    if policy.per_day is None:
        return said
    days = users / policy.per_day / min(policy.share, 1 - policy.share)
    said += f", which are {days:.3g} days at {policy.per_day:g} {unit} a day"
    late = policy.outcomes.window_s / 86400 if policy.outcomes else 0.0
    if days + late > policy.max_s / 86400:
        raise SpecError(
            f"{said}, but max_s is {policy.max_s / 86400:.3g} days, and outcomes take {late:.3g} days; take a larger "
            "mde, more time, or a share nearer to a half"
        )
    return said


def judge(
    policy: ExperimentPolicy, control: VersionStats, treatment: VersionStats, moments: Sequence[Histogram] = ()
) -> Result:
    """Return what an experiment says; the statistics are those since it began.

    Parameters:
        policy: the experiment.
        control: of the version that is there.
        treatment: of the version that may be better.
        moments: its latencies, by moment.
    """
    windows = Windows(control, treatment, policy.alpha, policy.min_samples, moments=moments)
    guardrails = analysis.judge(policy.guardrails, windows)
    old, new = (stats.moments(policy.metric) for stats in (control, treatment))
    effect = interval = None
    if min(old.count, new.count) >= 2:
        effect = new.mean - old.mean
        variance = old.variance_beside(new) + new.variance_beside(old)
        # As long as all values are the same, how they vary is not known.
        width = sequential.half_width(variance, policy.mde, policy.alpha) if variance else math.inf
        interval = (effect - width, effect + width)
    if harm := [finding for finding in guardrails if finding.verdict == "fail"]:
        reason = "; ".join(finding.sentence for finding in harm)
        return Result("harmful", reason, effect, interval, guardrails)
    if mismatch(policy.share, old.count, new.count):
        split = f"{new.count} of {old.count + new.count} users got the treatment, not {policy.share:.1%}"
        return Result("broken", f"{split}: look for a defect", effect, interval, guardrails)
    users = min(old.count, new.count)
    if effect is None or interval is None or users < policy.min_samples:
        reason = f"only {users} of {policy.min_samples} users have a {policy.metric}"
        return Result("running", reason, effect, interval, guardrails)
    reason = (
        f"{policy.metric} is {new.mean:.4g} against {old.mean:.4g}, a difference of {effect:+.4g} "
        f"[{interval[0]:+.4g}, {interval[1]:+.4g}]"
    )
    return Result(_outcome(policy, interval, users), reason, effect, interval, guardrails)


def mismatch(share: float, control: int, treatment: int) -> bool:
    """Return whether users are split otherwise than they should be: a sample ratio mismatch.

    It can be looked at at any time (Lindon and Malek, 2022, "Anytime-valid inference for multinomial count data").
    """
    return sequential.log_ratio(treatment, control + treatment, share, _centred(share)) >= -math.log(MISMATCH_ALPHA)


def _outcome(policy: ExperimentPolicy, interval: tuple[float, float], users: int) -> Outcome:
    low, high = interval
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    if -policy.mde < low and high < policy.mde:
        return "no_difference"
    return "undecided" if users >= policy.max_samples else "running"


def _centred(share: float) -> float:
    """Return the second parameter of a prior Beta(1/2, b) with its mean at `share`."""
    return 0.5 * (1 - share) / share
