"""The arithmetic of a load test: when requests are due, what their latencies say, and where the knee is. Pure.

A latency is counted from the moment at which a request was *due*, not from when it could be sent: while a server
stalls, the requests that should have been sent meanwhile wait, and their wait belongs to what users see. Leaving it out
is the coordinated omission (G. Tene, "How NOT to Measure Latency").
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from airflow_ml_provider.exceptions import unknown_name
from airflow_ml_provider.stages.load_test.spec import Arrivals

QUANTILES: Mapping[str, float] = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
BUDGET_QUANTILE = 0.99
HIGHER_IS_BETTER: Mapping[str, bool] = {
    **dict.fromkeys(QUANTILES, False), "error_rate": False, "cold_start_s": False, "knee_per_s": True
}  # fmt: skip
KNEE_FACTOR = 3.0
"""A rate is beyond the knee when the median latency there is so many times that of the lowest rate. In a queue with one
server, M/M/1, waiting and service take 1 / (1 - load) of the service: three times at two thirds of the capacity."""
MOST_ERRORS = 0.01
KEPT_PACE = 0.95


def better_when_higher(name: str) -> bool:
    """Return the good direction of a figure of a load test.

    Raises:
        SpecError: there is no such figure; the message names the nearest.
    """
    if name not in HIGHER_IS_BETTER:
        raise unknown_name("figure of a load test", name, HIGHER_IS_BETTER)
    return HIGHER_IS_BETTER[name]


def arrivals(rate: float, seconds: float, kind: Arrivals, seed: int = 0) -> list[float]:
    """Return when requests are due, in seconds from the beginning.

    >>> arrivals(4, 1, "constant")
    [0.0, 0.25, 0.5, 0.75]
    """
    if kind == "constant":
        return [i / rate for i in range(max(1, round(rate * seconds)))]
    draw, due, at = random.Random(seed), [], 0.0  # noqa: S311 - arrivals, not secrets
    while (at := at + draw.expovariate(rate)) < seconds:
        due.append(at)
    return due or [0.0]


def replayed(times: Sequence[float], seconds: float, speed: float) -> list[float]:
    """Return when recorded requests are due again.

    Parameters:
        times: when they were recorded, in seconds, in order.
        seconds: those that would come later are left out.
        speed: the gaps are divided by it.
    """
    return [due for at in times if (due := (at - times[0]) / speed) < seconds]


@dataclass(frozen=True)
class Sample:
    """What became of one request; all times in seconds.

    Attributes:
        due: when it should have been sent, from the beginning.
        lag: by how much later the generator came to it, by its own fault.
        wait: how long it waited for a free connection after that: the server had too many of them.
        answered: from sending to the answer; none when there was none.
        error: why there was no good answer; empty when there was.
        parts: what the server says it spent on it: `queue`, `pre`, `model`, `post`.
    """

    due: float
    lag: float
    wait: float = 0.0
    answered: Optional[float] = None
    error: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def latency(self) -> float:
        """From the due moment to the answer; infinite without a good one, so that failing fast is not being fast."""
        return math.inf if self.error or self.answered is None else self.lag + self.wait + self.answered

    def part(self, name: str) -> Optional[float]:
        """Return the time of one part; none where the server does not tell its own."""
        if name == "wait":
            return self.lag + self.wait
        if self.error or self.answered is None or not self.parts:
            return None
        if name == "network":
            return max(0.0, self.answered - sum(self.parts.values()))
        return self.parts.get(name)


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; none where it is unknown or has no bound.

    Attributes:
        value: the figure.
        low: lower bound.
        high: upper bound; none when there are too few requests for one.
    """

    value: Optional[float]
    low: Optional[float] = None
    high: Optional[float] = None


def quantile(ordered: Sequence[float], q: float, confidence: float) -> Estimate:
    """Return a quantile of sorted values with a distribution-free interval.

    The interval is between two order statistics: the number of values below the true quantile is binomial, whatever
    their distribution (H. A. David, H. N. Nagaraja: Order Statistics, section 7.1). It holds for independent values.

    >>> quantile([float(i) for i in range(1, 101)], 0.5, 0.95)
    Estimate(value=50.0, low=40.0, high=61.0)
    """
    n = len(ordered)
    if not n:
        return Estimate(None)
    low, high = order_bounds(n, q, confidence)
    value = ordered[max(0, math.ceil(q * n) - 1)]
    bounds = [None if at is None else _finite(ordered[at - 1]) for at in (low, high)]
    return Estimate(_finite(value), *bounds)


def order_bounds(n: int, q: float, confidence: float) -> tuple[Optional[int], Optional[int]]:
    """Return which order statistics, counted from 1, enclose a quantile; none where n values cannot bound it."""
    tail, low, high, below = (1 - confidence) / 2, None, None, 0.0
    for k, probability in _binomial(n, q):
        if below + probability <= tail:  # P(Bin <= k) <= tail: order statistic k + 1 is below the quantile
            low = k + 1
        if high is None and below >= 1 - tail:  # P(Bin <= k - 1) >= 1 - tail
            high = k
        below += probability
    return low, high


def _binomial(n: int, q: float) -> Iterator[tuple[int, float]]:
    """Give k and P(Bin(n, q) = k) where that is not negligible, from below; what lies outside is less than 1e-15."""
    width = 10 * math.sqrt(n * q * (1 - q)) + 10
    for k in range(max(0, math.floor(n * q - width)), min(n, math.ceil(n * q + width)) + 1):
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        yield k, math.exp(ways + k * math.log(q) + (n - k) * math.log1p(-q))


def share(found: int, n: int, confidence: float) -> Estimate:
    """Return a share with its Wilson score interval (E. B. Wilson, 1927).

    >>> share(0, 100, 0.95).high < 0.04
    True
    """
    from statistics import NormalDist

    if not n:
        return Estimate(None)
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), found / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return Estimate(p, low if found else 0.0, high if found < n else 1.0)


@dataclass(frozen=True)
class Step:
    """What was seen at one rate.

    Attributes:
        rate: requests per second that were asked for.
        sent: that were due, per second.
        completed: good answers per second, over the time until the last one.
        requests: how many.
        figures: `p50_ms`, `p95_ms`, `p99_ms` and `error_rate`.
        errors: how many by reason.
        lag_ms: how late the generator was, by its own fault: `p50`, `p99` and `max`.
        problem: why the generator's figures cannot be trusted; empty when they can.
    """

    rate: float
    sent: float
    completed: float
    requests: int
    figures: Mapping[str, Estimate]
    errors: Mapping[str, int]
    lag_ms: Mapping[str, float]
    problem: str = ""


def measured(samples: Sequence[Sample], rate: float, seconds: float, max_lag_ms: float, confidence: float) -> Step:
    """Return what the requests of one rate say."""
    latencies = sorted(1000 * sample.latency for sample in samples)
    lags = sorted(1000 * sample.lag for sample in samples)
    errors: dict[str, int] = {}
    for sample in samples:
        if sample.error:
            errors[sample.error] = errors.get(sample.error, 0) + 1
    good = [sample.due + sample.latency for sample in samples if not sample.error]
    figures = {name: quantile(latencies, q, confidence) for name, q in QUANTILES.items()}
    figures["error_rate"] = share(sum(errors.values()), len(samples), confidence)
    lag = {"p50": _at(lags, 0.5), "p99": _at(lags, 0.99), "max": lags[-1]}
    problem = ""
    if lag["p99"] > max_lag_ms:
        problem = (
            f"the generator fell behind at {rate:g} requests/s: it sent 1 % of them {lag['p99']:.3g} ms late or later, "
            f"at most {max_lag_ms:g} ms are allowed"
        )
    completed = len(good) / max(seconds, max(good, default=seconds))
    return Step(rate, len(samples) / seconds, completed, len(samples), figures, errors, lag, problem)


def sustained(step: Step, first: Step) -> bool:
    """Return whether a server sustained a rate: it kept pace, answered well, and did not let requests queue up.

    Parameters:
        first: the lowest rate of the ramp, whose latency is that of a server at rest.
    """
    median, base = step.figures["p50_ms"].value, first.figures["p50_ms"].value
    errors = step.figures["error_rate"].value
    return (
        median is not None
        and base is not None
        and (errors or 0.0) <= MOST_ERRORS
        and step.completed >= KEPT_PACE * (1 - (errors or 0.0)) * step.sent
        and median <= KNEE_FACTOR * base
    )


@dataclass(frozen=True)
class Knee:
    """Where the server begins to queue.

    Attributes:
        rate: the highest rate that was sustained, and all lower ones, too; none when not even the first was.
        beyond: the next rate, which was not; none when the server sustained all that could be tried.
        note: why the knee may be elsewhere.
    """

    rate: Optional[float] = None
    beyond: Optional[float] = None
    note: str = ""


def knee(steps: Sequence[Step]) -> Knee:
    """Return the knee of a ramp. A step at which the generator fell behind says nothing about the server."""
    highest: Optional[float] = None
    for step in steps:
        if step.problem:
            return Knee(highest, None, step.problem)
        if not sustained(step, steps[0]):
            return Knee(highest, step.rate, "" if highest else "not even the lowest rate was sustained")
        highest = step.rate
    return Knee(highest, None, "every rate was sustained: the knee is higher" if steps else "")


@dataclass(frozen=True)
class Part:
    """One line of the latency budget.

    Attributes:
        name: the part.
        estimate: its 99 % quantile (ms).
        limit: what the budget allows (ms); none without a limit.
        met: whether it was kept; what is limited and was not told is not.
    """

    name: str
    estimate: Estimate
    limit: Optional[float] = None
    met: bool = True


def parts(
    samples: Sequence[Sample], names: Sequence[str], budget: Mapping[str, float], confidence: float
) -> list[Part]:
    """Return where the time went, by part, against the budget. Quantiles of parts do not add up to that of the sum."""
    found = []
    for name in names:
        values = sorted(1000 * value for sample in samples if (value := sample.part(name)) is not None)
        estimate, limit = quantile(values, BUDGET_QUANTILE, confidence), budget.get(name)
        if estimate.value is None and limit is None:
            continue
        met = limit is None or (estimate.value is not None and estimate.value <= limit)
        found.append(Part(name, estimate, limit, met))
    return found


def over_budget(found: Sequence[Part]) -> str:
    """Return in one sentence which parts exceed their budget; empty when none does."""
    bad = []
    for part in found:
        if not part.met:
            seen = "is not told by the server" if part.estimate.value is None else f"takes {part.estimate.value:.4g} ms"
            bad.append(f"{part.name} {seen} at the 99th percentile, {part.limit:g} ms are allowed")
    return "; ".join(bad)


def server_timing(header: str) -> dict[str, float]:
    """Return the durations (seconds) of a `Server-Timing` header (https://www.w3.org/TR/server-timing/).

    >>> server_timing('pre;dur=0.5, model;desc="the graph";dur=2, miss')
    {'pre': 0.0005, 'model': 0.002}
    """
    found: dict[str, float] = {}
    for metric in header.split(","):
        name, *params = (text.strip() for text in metric.split(";"))
        for param in params:
            key, _, value = param.partition("=")
            if key.strip().lower() == "dur":
                try:
                    found[name] = float(value.strip().strip('"')) / 1000
                except ValueError:
                    continue
    return found


def _at(ordered: Sequence[float], q: float) -> float:
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def _finite(value: float) -> Optional[float]:
    return value if math.isfinite(value) else None
