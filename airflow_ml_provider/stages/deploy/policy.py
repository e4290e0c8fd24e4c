"""How a candidate gets its traffic, and what it must not do on the way."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, Optional, Union

from airflow_ml_provider.exceptions import SpecError, invalid

Strategy = Literal["canary", "blue_green", "shadow"]


def _some(kind: str, **limits: Optional[float]) -> None:
    if all(limit is None for limit in limits.values()):
        raise invalid(kind, None, f"given as {' or '.join(limits)}")


def _within(name: str, value: Optional[float], low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise invalid(name, value, f"in [{low}, {high}]", "give a fraction, not percent")


@dataclass(frozen=True)
class ErrorRate:
    """Share of requests that fail.

    Attributes:
        max_increase: most that it may lie above the stable version's (a difference of fractions).
        max: most that it may be, whatever the stable version's is.
    """

    kind: ClassVar[str] = "error_rate"
    max_increase: Optional[float] = 0.005
    max: Optional[float] = None

    def __post_init__(self) -> None:
        _some(self.kind, max_increase=self.max_increase, max=self.max)
        for name in ("max_increase", "max"):
            _within(name, getattr(self, name), 0, 1)


@dataclass(frozen=True)
class Latency:
    """Quantile of the seconds until the answer; too long at the two worst twelfths of the bake time only fails nobody.

    Attributes:
        quantile: which one.
        max_ratio: most that it may be of the stable version's (1.5: half as long again).
        max_s: most that it may be, in seconds, whatever the stable version's is.
    """

    kind: ClassVar[str] = "latency"
    quantile: float = 0.99
    max_ratio: Optional[float] = 1.5
    max_s: Optional[float] = None

    def __post_init__(self) -> None:
        _some(self.kind, max_ratio=self.max_ratio, max_s=self.max_s)
        if not 0 < self.quantile < 1:
            raise invalid("quantile", self.quantile, "in (0, 1)", "give a fraction, not percent")
        if self.max_ratio is not None and not self.max_ratio > 1:
            raise invalid("max_ratio", self.max_ratio, "greater than 1")
        if self.max_s is not None and not self.max_s > 0:
            raise invalid("max_s", self.max_s, "greater than 0 (seconds)")


@dataclass(frozen=True)
class ScoreShift:
    """How differently the scores are distributed, by the population stability index.

    Attributes:
        max_psi: largest index; 0.1 is called a small, 0.25 a large shift.
    """

    kind: ClassVar[str] = "score_shift"
    max_psi: float = 0.2

    def __post_init__(self) -> None:
        if not self.max_psi > 0:
            raise invalid("max_psi", self.max_psi, "greater than 0")


@dataclass(frozen=True)
class Business:
    """Mean per request of a number that says what the answer was worth: clicks, accepted suggestions, revenue.

    Attributes:
        metric: its name in the statistics; more is better.
        min_ratio: least that it may be of the stable version's (0.95: at most 5 % less).
    """

    kind: ClassVar[str] = "business"
    metric: str
    min_ratio: float = 0.95

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", self.metric):
            raise invalid("metric", self.metric, "a name of letters, digits, '_', '.' and '-'")
        if not 0 < self.min_ratio < 1:
            raise invalid("min_ratio", self.min_ratio, "in (0, 1)", "give a fraction, not percent")


@dataclass(frozen=True)
class Agreement:
    """Share of mirrored requests to which both versions give the same answer; only mirrored ones can tell.

    Attributes:
        min_share: least share.
        tolerance: real numbers a and b are the same if `abs(a - b) <= tolerance · max(1, abs(a), abs(b))`; all else
            must be equal.
    """

    kind: ClassVar[str] = "agreement"
    min_share: float = 0.95
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        _within("min_share", self.min_share, 0, 1)
        if not 0 <= self.tolerance < 1:
            raise invalid("tolerance", self.tolerance, "in [0, 1)")


Check = Union[ErrorRate, Latency, ScoreShift, Business, Agreement]


def thresholds(check: Check) -> int:
    """Return how many thresholds a check has."""
    limits = (f.name for f in fields(check) if f.name.startswith(("max", "min")))
    return sum(getattr(check, name) is not None for name in limits)


@dataclass(frozen=True)
class Step:
    """One step of a rollout.

    Attributes:
        percent: of the users' requests that the candidate answers.
        mirror_percent: of the users' requests that it gets a copy of; nobody sees those answers.
        bake_s: how long the traffic stays so at least (seconds).
        min_samples: fewest requests of the candidate.
        smoke: only whether nothing failed counts, not whether every check could be made.
    """

    percent: float
    mirror_percent: float = 0.0
    bake_s: float = 0.0
    min_samples: int = 0
    smoke: bool = False

    def __str__(self) -> str:
        return f"a copy of {self.mirror_percent:g} %" if self.mirror_percent else f"{self.percent:g} %"


@dataclass(frozen=True)
class RolloutPolicy:
    """How traffic moves from the stable version to the candidate.

    Attributes:
        strategy: `canary` in growing steps; `blue_green` at once, the old version stays warm meanwhile; `shadow` gets
            copies of requests and answers nobody.
        steps: percent of the traffic at each step of a canary, growing to 100.
        bake_s: how long each step lasts at least (seconds).
        min_samples: fewest requests of each version before a check can be met.
        max_wait_s: how long after its begin a step is decided by `on_unsure` (seconds).
        on_unsure: what becomes of a step that met no clear answer in that time, for want of requests or because the
            numbers lie beyond a threshold by what may be chance: `rollback`; `hold` waits on; `advance` goes on, but
            not when an observed number lies beyond its threshold.
        max_start_s: how long the candidate may take to get ready (seconds).
        checks: what is checked, at every look.
        alpha: chance that a candidate which is within all thresholds is ever rolled back for one of them; it is shared
            out over steps and checks, and holds however often one looks.
        use_bound: a check is met only when the bound of its interval on the bad side is within the threshold, which
            takes many more requests, instead of when the observed value is.
        smoke_samples: blue-green: requests that the candidate must have answered before users come to it.
        mirror_percent: shadow: percent of the requests that are copied.
        after_shadow: shadow: `stop` with a verdict, or go on as a `canary`.
    """

    strategy: Strategy = "canary"
    steps: tuple[float, ...] = (1.0, 5.0, 25.0, 50.0, 100.0)
    bake_s: float = 600.0
    min_samples: int = 300
    max_wait_s: float = 3600.0
    on_unsure: Literal["rollback", "hold", "advance"] = "rollback"
    max_start_s: float = 1800.0
    checks: tuple[Check, ...] = (ErrorRate(), Latency())
    alpha: float = 0.05
    use_bound: bool = False
    smoke_samples: int = 0
    mirror_percent: float = 100.0
    after_shadow: Literal["stop", "canary"] = "stop"

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.steps), self.steps))
        if not self.steps or not rising or self.steps[-1] != 100:
            raise invalid("steps", self.steps, "growing percentages that end with 100")
        if not 0 < self.mirror_percent <= 100:
            raise invalid("mirror_percent", self.mirror_percent, "in (0, 100]")
        for name in ("bake_s", "max_start_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise invalid(name, getattr(self, name), "greater than 0 (seconds)")
        if not self.bake_s <= self.max_wait_s < math.inf:
            raise invalid("max_wait_s", self.max_wait_s, f"at least bake_s ({self.bake_s:g} s)")
        for name, least in (("min_samples", 1), ("smoke_samples", 0)):
            if getattr(self, name) < least:
                raise invalid(name, getattr(self, name), f"at least {least}")
        if not 0 < self.alpha < 1:
            raise invalid("alpha", self.alpha, "in (0, 1)", "give a fraction, not percent")
        self._check_checks()

    def _check_checks(self) -> None:
        if not self.checks:
            raise invalid("checks", "none at all", "at least one", "nothing would stop a bad candidate")
        if len(set(self.checks)) < len(self.checks):
            raise invalid("checks", self.checks, "different ones")
        agreements = sum(isinstance(check, Agreement) for check in self.checks)
        if agreements > 1:
            raise invalid("checks", self.checks, "with one agreement", "answers are compared once, by its tolerance")
        if agreements and self.strategy != "shadow":
            raise SpecError(
                f"checks has an agreement, but only a shadow's requests are mirrored, not a {self.strategy}'s"
            )
        for step in self.plan:
            if not self.checks_at(step):
                kinds = ", ".join(check.kind for check in self.checks)
                raise SpecError(f"nothing would be checked at {step}: {kinds} cannot be measured there; add error_rate")

    @property
    def plan(self) -> tuple[Step, ...]:
        """The steps in order. Blue-green begins by reading the stable version alone, to have what to compare with."""
        bake = self.bake_s, self.min_samples
        canary = tuple(Step(percent, 0.0, *bake) for percent in self.steps)
        if self.strategy == "canary":
            return canary
        if self.strategy == "blue_green":
            return Step(0.0, min_samples=self.smoke_samples, smoke=True), Step(100.0, 0.0, *bake)
        shadow = Step(0.0, self.mirror_percent, *bake)
        return (shadow, *canary) if self.after_shadow == "canary" else (shadow,)

    def checks_at(self, step: Step) -> tuple[Check, ...]:
        """Return the checks that a step can make: users do not see mirrored answers, and others are not compared."""
        blind = Business if step.mirror_percent else Agreement
        return tuple(check for check in self.checks if not isinstance(check, blind))
