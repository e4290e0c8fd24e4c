"""Simulated users: what a gateway would count, drawn by the second."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.stages.deploy.policy import RolloutPolicy
from airflow_ml_provider.stages.deploy.rollout import advance, begin
from airflow_ml_provider.stages.deploy.state import Decision, RolloutState, Seen
from airflow_ml_provider.stages.deploy.stats import Histogram, Moments, VersionStats

LATENCY_BOUNDS_S = tuple(0.001 * 2 ** (i / 4) for i in range(65))  # 1 ms to 65 s in steps of 19 %
SCORE_EDGES = tuple(i / 20 for i in range(1, 20))


@dataclass(frozen=True)
class Model:
    """How a version behaves: latencies are lognormal, scores are a normal squeezed into [0, 1].

    It stands still for `stall_s` every `stalls_every_s` on average; who comes meanwhile waits for the end of it.
    """

    errors: float = 0.001
    median_s: float = 0.03
    spread: float = 0.5
    score: float = 0.0
    clicks: float = 0.1
    stall_s: float = 0.3
    stalls_every_s: float = math.inf

    @property
    def latency(self) -> list[float]:
        law = NormalDist(math.log(self.median_s), self.spread)
        return shares([law.cdf(math.log(bound)) for bound in LATENCY_BOUNDS_S])

    @property
    def scores(self) -> list[float]:
        law = NormalDist(self.score)
        return shares([law.cdf(math.log(edge / (1 - edge))) for edge in SCORE_EDGES])


def shares(cumulative):
    return [b - a for a, b in zip([0.0, *cumulative], [*cumulative, 1.0], strict=True)]


class Users:
    """Users of both versions, and the counters of both.

    Attributes:
        served: requests that users got an answer to.
        failed: answers to users that were errors.
    """

    def __init__(self, seed: int, stable: Model, candidate: Model, rate: float = 200.0) -> None:
        import numpy as np

        self.random = np.random.default_rng(seed)
        self.models = {"stable": stable, "candidate": candidate}
        self.laws = {name: (model.latency, model.scores) for name, model in self.models.items()}
        self.stats = {name: VersionStats() for name in self.models}
        self.rate, self.served, self.failed = rate, 0, 0

    def pass_time(self, seconds: float, percent: float, mirror_percent: float) -> None:
        """Let users come."""
        requests = int(self.random.poisson(self.rate * seconds))
        to_candidate = int(self.random.binomial(requests, percent / 100))
        copies = int(self.random.binomial(requests - to_candidate, mirror_percent / 100))
        for name, count, seen in (
            ("stable", requests - to_candidate, True),
            ("candidate", to_candidate, True),
            ("candidate", copies, False),
        ):
            answers = self.answers(name, count, seconds)
            self.stats[name] += answers if seen else replace(answers, compared=count, agreed=count)
            self.served += seen * count
            self.failed += seen * answers.errors

    def answers(self, name: str, count: int, seconds: float = 0.0) -> VersionStats:
        """Return what one version counts of so many requests in so many seconds."""
        model, (latency, scores) = self.models[name], self.laws[name]
        waited = self.waited(model, count, seconds)
        clicks = int(self.random.binomial(count, model.clicks))
        return VersionStats(
            requests=count,
            errors=int(self.random.binomial(count, model.errors)),
            latency_s=Histogram(
                LATENCY_BOUNDS_S, tuple(map(int, self.random.multinomial(count - waited.total, latency)))
            ) + waited,
            scores=Histogram(SCORE_EDGES, tuple(map(int, self.random.multinomial(count, scores)))),
            metrics={"clicks": Moments(count, clicks, clicks)},
        )  # fmt: skip

    def waited(self, model: Model, count: int, seconds: float) -> Histogram:
        """Return the latencies of those who came while a version stood still."""
        import numpy as np

        stalled_s = model.stall_s * self.random.poisson(seconds / model.stalls_every_s)
        came = int(self.random.binomial(count, min(1.0, stalled_s / seconds) if stalled_s else 0.0))
        latencies = model.median_s + self.random.uniform(0, model.stall_s, came)
        counts = np.bincount(np.searchsorted(LATENCY_BOUNDS_S, latencies), minlength=len(LATENCY_BOUNDS_S) + 1)
        return Histogram(LATENCY_BOUNDS_S, tuple(map(int, counts)))


@dataclass(frozen=True)
class Ended:
    """How a simulated rollout ended."""

    action: str
    reason: str
    seconds: float
    bad_share: float
    highest: float
    candidate_requests: int
    state: RolloutState


class Simulation:
    """A rollout under simulated users with a back end that does what it is told."""

    model = Model
    users = Users

    @staticmethod
    def run(
        policy: RolloutPolicy,
        candidate: Model,
        *,
        stable: Model | None = None,
        seed: int = 0,
        rate: float = 200.0,
        every_s: float = 10.0,
        limit_s: float = 1e6,
    ) -> Ended:
        """Look every so many seconds until it is over; the state goes through JSON at every look."""
        users, now, highest = Users(seed, stable or Model(), candidate, rate), 0.0, 0.0
        seen = Seen("pending")
        state = begin(policy, seen, now, candidate="sha256:new", stable="sha256:old")
        decision = Decision("wait", state, "")
        while not decision.over and now < limit_s:
            now += every_s
            users.pass_time(every_s, seen.percent, seen.mirror_percent)
            readings = {name: {"gateway": stats} for name, stats in users.stats.items()}
            seen = replace(seen, health="ready", **readings)
            state = codec.decode(RolloutState, codec.encode(decision.state))
            assert state == decision.state
            decision = advance(state, policy, seen, now)
            if decision.action in ("set_traffic", "roll_back"):
                seen = replace(seen, percent=decision.percent, mirror_percent=decision.mirror_percent)
            elif decision.action == "promote":
                seen = replace(seen, promoted=True)
            highest = max(highest, seen.percent)
        return Ended(
            decision.action, decision.reason, now, users.failed / max(1, users.served), highest,
            users.stats["candidate"].requests, decision.state,
        )  # fmt: skip


@pytest.fixture(scope="session")
def simulation() -> type[Simulation]:
    pytest.importorskip("numpy")
    return Simulation
