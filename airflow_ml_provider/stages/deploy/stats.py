"""What is kept of the requests of one version: counters that only grow, small, exact to merge and to subtract.

A server counts from its start. Two readings of one server give the window between them, `later - earlier`; windows of
several servers add up. Everything is a count per fixed bucket, as in Prometheus, or a sum.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any, Optional

from airflow_ml_provider.exceptions import DataError, invalid
from airflow_ml_provider.stages.deploy import sequential

SUCCESS = "success"
"""The metric that every server counts."""


@dataclass(frozen=True)
class Quantile:
    """A quantile with what is not known of it.

    Attributes:
        value: interpolated in its bucket, evenly in the logarithm.
        low: lower bound by the sample's size.
        high: upper bound by the sample's size; infinite when it lies above the last bound.
        bucket: bounds of the bucket that the value lies in, which is all that is known without interpolating.
    """

    value: float
    low: float
    high: float
    bucket: tuple[float, float]


@dataclass(frozen=True)
class Histogram:
    """Counts between fixed bounds. One without bounds has measured nothing, and adds to any other.

    Attributes:
        bounds: ascending; a value on a bound belongs to the bucket below it, as with Prometheus' `le`.
        counts: values per bucket, not cumulative; the last bucket is that above the last bound.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(not a < b for a, b in zip(self.bounds, self.bounds[1:])):
            raise invalid("bounds", self.bounds, "ascending")
        if len(self.counts) != len(self.bounds) + bool(self.bounds):
            raise invalid("counts", self.counts, f"one per bucket, {len(self.bounds) + 1}")
        if any(count < 0 for count in self.counts):
            raise invalid("counts", self.counts, "at least 0")

    @classmethod
    def empty(cls, bounds: Iterable[float]) -> Histogram:
        """Return a histogram without values."""
        bounds = tuple(bounds)
        return cls(bounds, (0,) * (len(bounds) + 1))

    @classmethod
    def from_cumulative(cls, buckets: Mapping[float, float]) -> Histogram:
        """Return the histogram of Prometheus' buckets: each `le`, infinity included, to how many values it holds."""
        levels = sorted(buckets)
        counts = [int(buckets[level]) for level in levels]
        steps = [b - a for a, b in zip([0, *counts], counts)]
        return cls(tuple(level for level in levels if math.isfinite(level)), tuple(steps))

    @property
    def total(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def __add__(self, other: Histogram) -> Histogram:
        if not self.bounds or not other.bounds:
            return self if self.bounds else other
        if self.bounds != other.bounds:
            raise DataError(
                f"histograms have different bounds: {len(self.bounds)} up to {self.bounds[-1]:g} and "
                f"{len(other.bounds)} up to {other.bounds[-1]:g}; all servers of a rollout must use the same"
            )
        return Histogram(self.bounds, tuple(a + b for a, b in zip(self.counts, other.counts)))

    def __sub__(self, earlier: Histogram) -> Histogram:
        if self.restarted(earlier) or not earlier.bounds:
            return self
        return Histogram(self.bounds, tuple(a - b for a, b in zip(self.counts, earlier.counts)))

    def above(self, value: float) -> int:
        """Return how many values are surely above one: those in buckets that begin there or later."""
        return sum(self.counts[bisect_left(self.bounds, value) + 1 :])

    def restarted(self, earlier: Histogram) -> bool:
        """Return whether this cannot be a later reading of the same counters."""
        if self.bounds != earlier.bounds:
            return bool(earlier.total)
        return any(a < b for a, b in zip(self.counts, earlier.counts))

    def quantile(self, level: float, alpha: float) -> Optional[Quantile]:
        """Return the quantile at `level` with its confidence sequence; none without values.

        Parameters:
            level: such as 0.99.
            alpha: chance that the interval ever misses the quantile.
        """
        total = self.total
        if not total:
            return None
        low, high = sequential.ranks(level, total, alpha)
        index = self._bucket(level * total)
        bucket = (self.bounds[index - 1] if index else 0.0, (*self.bounds, math.inf)[index])
        endless = high >= total or self._bucket(high) == len(self.bounds)
        return Quantile(self.at(level * total), self.at(low), math.inf if endless else self.at(high), bucket)

    def at(self, rank: float) -> float:
        """Return the value with so many values below it, interpolated; the last bound where it lies above that."""
        index = self._bucket(rank)
        if index == len(self.bounds):
            return self.bounds[-1]
        before = sum(self.counts[:index])
        share = min(1.0, max(0.0, (rank - before) / self.counts[index])) if self.counts[index] else 0.0
        top = self.bounds[index]
        bottom = self.bounds[index - 1] if index else 0.0
        return bottom * (top / bottom) ** share if bottom > 0 else bottom + (top - bottom) * share

    def _bucket(self, rank: float) -> int:
        cumulative = list(accumulate(self.counts))
        return bisect_left(cumulative, min(rank, cumulative[-1])) if rank > 0 else self._first()

    def _first(self) -> int:
        return next((i for i, count in enumerate(self.counts) if count), 0)


@dataclass(frozen=True)
class Moments:
    """Sums of a number per request.

    Attributes:
        count: requests that have one.
        total: sum.
        squares: sum of squares.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        """Their mean; 0 without any."""
        return self.total / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """Variance of their mean; infinite with fewer than two."""
        if self.count < 2:
            return math.inf
        return max(0.0, self.squares - self.count * self.mean**2) / (self.count - 1) / self.count

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def __sub__(self, earlier: Moments) -> Moments:
        if self.restarted(earlier):
            return self
        squares = max(0.0, self.squares - earlier.squares)
        return Moments(self.count - earlier.count, self.total - earlier.total, squares)

    def restarted(self, earlier: Moments) -> bool:
        """Return whether this cannot be a later reading of the same sums."""
        return self.count < earlier.count

    def variance_beside(self, other: Moments) -> float:
        """Return the variance of the mean, or what it would be if the numbers varied as those of both together.

        The larger one: three hundred requests without one click say nothing of how clicks vary.
        """
        both = self + other
        return max(self.variance, both.variance * both.count / self.count)


@dataclass(frozen=True)
class VersionStats:
    """Counters of one version on one server since it started, or of a window.

    Attributes:
        requests: answered ones, failed ones included.
        errors: failed ones.
        latency_s: seconds until the answer.
        scores: what the model said.
        metrics: name of a business metric to its sums.
        compared: mirrored requests whose two answers were compared …
        agreed: … and were the same.
    """

    requests: int = 0
    errors: int = 0
    latency_s: Histogram = field(default_factory=Histogram)
    scores: Histogram = field(default_factory=Histogram)
    metrics: Mapping[str, Moments] = field(default_factory=dict)
    compared: int = 0
    agreed: int = 0

    def __post_init__(self) -> None:
        for part, whole in (("errors", "requests"), ("agreed", "compared")):
            if not 0 <= getattr(self, part) <= getattr(self, whole):
                raise invalid(part, getattr(self, part), f"between 0 and {whole} ({getattr(self, whole)})")

    def moments(self, metric: str) -> Moments:
        """Return the sums of a metric; `success` is that a request did not fail, which every server counts."""
        if metric == SUCCESS and metric not in self.metrics:
            good = float(self.requests - self.errors)
            return Moments(self.requests, good, good)
        return self.metrics.get(metric, Moments())

    def __add__(self, other: VersionStats) -> VersionStats:
        metrics = {n: self.metrics.get(n, Moments()) + m for n, m in other.metrics.items()}
        return VersionStats(**{**self._each(other, lambda a, b: a + b), "metrics": {**self.metrics, **metrics}})

    def __sub__(self, earlier: VersionStats) -> VersionStats:
        """Return the window between two readings. After a restart that is everything since it: what the server counted
        between the earlier reading and its end is lost."""
        if self.restarted(earlier):
            return self
        metrics = {n: m - earlier.metrics.get(n, Moments()) for n, m in self.metrics.items()}
        return VersionStats(**{**self._each(earlier, lambda a, b: a - b), "metrics": metrics})

    def restarted(self, earlier: VersionStats) -> bool:
        """Return whether the server has started anew since an earlier reading: a counter has fallen."""
        counters = any(now < before for now, before in zip(self._counters, earlier._counters))
        histograms = self.latency_s.restarted(earlier.latency_s) or self.scores.restarted(earlier.scores)
        sums = any(self.metrics.get(n, Moments()).restarted(m) for n, m in earlier.metrics.items())
        return counters or histograms or sums

    @property
    def _counters(self) -> tuple[int, ...]:
        """Every number that only grows: those of the good ones, too."""
        good, differ = self.requests - self.errors, self.compared - self.agreed
        return good, self.errors, self.agreed, differ

    def _each(self, other: VersionStats, combine: Any) -> dict[str, Any]:
        names = [f.name for f in fields(self) if f.name != "metrics"]
        return {name: combine(getattr(self, name), getattr(other, name)) for name in names}
