"""What each version answered, in counters that only grow. Pure; a reader takes differences."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# Half powers of two from a quarter of a millisecond to 16 s: any quantile is known within a factor of 1.42.
LATENCY_BOUNDS_MS: tuple[float, ...] = tuple(round(0.25 * 2 ** (i / 2), 4) for i in range(33))

Traffic = Literal["live", "mirror", "direct"]
Fault = Literal["5xx", "timeout", "connection"]
TRAFFIC: tuple[Traffic, ...] = ("live", "mirror", "direct")
FAULTS: tuple[Fault, ...] = ("5xx", "timeout", "connection")


@dataclass
class Latency:
    """A histogram of latencies.

    Attributes:
        counts: per bound of LATENCY_BOUNDS_MS how many were not above it but above the one before; the last counts the
            rest.
        sum_ms: of all.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_MS) + 1))
    sum_ms: float = 0.0

    def add(self, milliseconds: float) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS_MS, milliseconds)] += 1
        self.sum_ms += milliseconds


@dataclass
class Scores:
    """A histogram of scores.

    Attributes:
        edges: increasing.
        counts: how many were below the first edge, from each edge up to the next one, and from the last edge on. A
            score of exactly the last edge counts with those just below it, so that [0, 1] ends with 1.
        not_a_number: how many were none.
    """

    edges: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    not_a_number: int = 0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.edges) + 1)

    def add(self, values: Iterable[Any]) -> None:
        last = self.edges[-1]
        for value in values:
            if not isinstance(value, (int, float)) or math.isnan(value):
                self.not_a_number += 1
            elif value == last:
                self.counts[-2] += 1
            else:
                self.counts[bisect_right(self.edges, value)] += 1


@dataclass
class Answers:
    """What one version did with one kind of traffic.

    Attributes:
        requests: answered or failed.
        errors: by fault: answers of 5xx, timeouts, connections refused or lost.
        rejected: answers of 4xx, the client's fault.
        latency: of all that were answered.
        scores: of all that were answered well.
    """

    scores: Scores
    requests: int = 0
    errors: dict[Fault, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))
    rejected: int = 0
    latency: Latency = field(default_factory=Latency)

    def answered(self, status: int, milliseconds: float, scores: Sequence[Any] = ()) -> None:
        """Count an answer."""
        self.requests += 1
        self.latency.add(milliseconds)
        if status >= 500:
            self.errors["5xx"] += 1
        elif status >= 400:
            self.rejected += 1
        self.scores.add(scores)

    def failed(self, fault: Fault) -> None:
        """Count a request without an answer."""
        self.requests += 1
        self.errors[fault] += 1


@dataclass
class VersionStats:
    """What one version did.

    Attributes:
        live: requests of users that the split gave to it.
        mirror: copies that nobody waited for.
        direct: requests that named the version.
        fallbacks: live requests that were its share but went to the stable version, since it was not ready or did not
            take the connection.
        mirror_dropped: copies that were not sent since too many were under way.
        compared: copies whose answers were compared with the users' answers to the same requests …
        agreed: … and were the same.
    """

    live: Answers
    mirror: Answers
    direct: Answers
    fallbacks: int = 0
    mirror_dropped: int = 0
    compared: int = 0
    agreed: int = 0

    @classmethod
    def empty(cls, edges: tuple[float, ...]) -> VersionStats:
        """Return counters that have counted nothing."""
        live, mirror, direct = (Answers(Scores(edges)) for _ in TRAFFIC)
        return cls(live, mirror, direct)

    def of(self, traffic: Traffic) -> Answers:
        """Return the counters of one kind of traffic."""
        found: Answers = getattr(self, traffic)
        return found


def count_scores_anew(stats: Iterable[VersionStats], edges: tuple[float, ...]) -> None:
    """Empty the histograms of scores whose edges are others."""
    for version in stats:
        for traffic in TRAFFIC:
            answers = version.of(traffic)
            if answers.scores.edges != edges:
                answers.scores = Scores(edges)
