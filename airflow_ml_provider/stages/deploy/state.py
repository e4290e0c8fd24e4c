"""Where a rollout stands, what a back end sees of it, and what is to be done. JSON by `codec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Optional

from airflow_ml_provider.stages.deploy.policy import Step
from airflow_ml_provider.stages.deploy.stats import Histogram, Moments, VersionStats

Health = Literal["pending", "ready", "failed", "gone"]
Phase = Literal["starting", "shifting", "baking", "finishing", "rolling_back", "done", "rolled_back"]
Action = Literal["wait", "set_traffic", "promote", "roll_back", "done", "failed"]

Reading = Mapping[str, VersionStats]
"""Name of a server (a pod) to what it counted since it started."""

MOMENTS = 12
"""In how many moments of equal length a step's bake time is looked at."""


@dataclass(frozen=True)
class Seen:
    """What a back end observes.

    Attributes:
        health: whether the candidate can answer.
        reason: why it failed, in the back end's words.
        percent: of the users' requests that go to the candidate now.
        mirror_percent: of the users' requests that are copied to it now.
        promoted: the candidate has taken the stable version's place.
        settled: what was asked for last is in effect. What lags behind is not acted upon.
        stable: readings of the stable version's servers. A server that does not answer is left out.
        candidate: readings of the candidate's servers.
    """

    health: Health
    reason: str = ""
    percent: float = 0.0
    mirror_percent: float = 0.0
    promoted: bool = False
    settled: bool = True
    stable: Reading = field(default_factory=dict)
    candidate: Reading = field(default_factory=dict)

    @property
    def exposed(self) -> bool:
        """Whether any request reaches the candidate."""
        return self.percent > 0 or self.mirror_percent > 0

    def counted(self, metric: str) -> Moments:
        """Return a metric's sums over the stable version's servers."""
        return sum((stats.moments(metric) for stats in self.stable.values()), Moments())

    def has(self, step: Step) -> bool:
        """Return whether the traffic is that of a step."""
        return (self.percent, self.mirror_percent) == (step.percent, step.mirror_percent)


@dataclass(frozen=True)
class Version:
    """One of both versions, and what it has counted since the step began.

    Attributes:
        digest: of the model.
        readings: the last one of each server.
        window: what all servers counted since the step began.
        restarts: how often a server's counters were seen to start anew in that time.
        moments: the window's latencies by moment, as counts per bucket; the last moment goes on.
    """

    digest: str
    readings: Reading = field(default_factory=dict)
    window: VersionStats = field(default_factory=VersionStats)
    restarts: int = 0
    moments: tuple[tuple[int, ...], ...] = ()

    @property
    def latencies(self) -> tuple[Histogram, ...]:
        """Those of each moment (seconds)."""
        return tuple(Histogram(self.window.latency_s.bounds, counts) for counts in self.moments)

    def read(self, readings: Reading, fresh: bool = False) -> Version:
        """Return it with what came since the last readings. A server that is new started after them.

        Parameters:
            readings: what each server has counted.
            fresh: what came begins a moment.
        """
        came, restarts = VersionStats(), self.restarts
        for server, now in readings.items():
            before = self.readings.get(server, VersionStats())
            came, restarts = came + (now - before), restarts + now.restarted(before)
        moments = _with(self.moments, came.latency_s.counts, fresh)
        readings, window = {**self.readings, **readings}, self.window + came
        return replace(self, readings=readings, window=window, restarts=restarts, moments=moments)

    def anew(self) -> Version:
        """Return it with an empty window."""
        return replace(self, window=VersionStats(), restarts=0, moments=())


@dataclass(frozen=True)
class RolloutState:
    """Where a rollout stands. JSON by `codec`; everything else that a decision needs comes with the observation.

    Attributes:
        phase: `starting` until the candidate is ready; `shifting` until the step's traffic is seen, then `baking`;
            `finishing` until it is seen promoted (a shadow: unmirrored), then `done`; `rolling_back` until nothing
            reaches it, then `rolled_back`.
        policy: digest of the policy that it began with.
        candidate: the new version.
        stable: the version that answers now; none when there is none yet.
        step: index of the step: in the policy's plan, or of a bandit's re-allocations.
        now: time of the last look (seconds, of any clock).
        waited_s: since the step, or the start, was asked for. Time that runs backwards does not count.
        baked_s: since the step's traffic was seen to be as asked for.
        looks: looks at the statistics in this step so far.
        percent: that a bandit has given the candidate; none for a plan's own.
        asked: when the split that an experiment or a bandit counts in was asked for.
        counting: that split has been seen, so that what is counted takes part.
        unsettled_s: for how long the traffic has not been as asked for.
        moment_s: how long the last moment of the candidate's window has lasted.
        total_s: since the candidate was ready.
        promotes: whether it ends with the candidate as the stable version.
        reason: why it ended or is being rolled back.
        evidence: one record for each step that was decided.
    """

    phase: Phase
    policy: str
    candidate: Version
    stable: Optional[Version]
    now: float
    step: int = 0
    waited_s: float = 0.0
    baked_s: float = 0.0
    looks: int = 0
    percent: Optional[float] = None
    asked: float = 0.0
    counting: bool = False
    unsettled_s: float = 0.0
    moment_s: float = 0.0
    total_s: float = 0.0
    promotes: bool = True
    reason: str = ""
    evidence: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Decision:
    """What to do now.

    Attributes:
        action: `wait`; `set_traffic` to `percent` and `mirror_percent`; `promote` the candidate to be the stable
            version; `roll_back`: no request to the candidate; `done` and `failed`: it is over.
        state: to keep until the next look.
        reason: for humans, in one sentence.
        percent: of the users' requests that the candidate shall answer.
        mirror_percent: of the users' requests that shall be copied to it.
        evidence: record of the step that was decided by this look.
    """

    action: Action
    state: RolloutState
    reason: str
    percent: float = 0.0
    mirror_percent: float = 0.0
    evidence: Optional[Mapping[str, Any]] = None

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.action in ("done", "failed")


def _with(moments: tuple[tuple[int, ...], ...], came: tuple[int, ...], fresh: bool) -> tuple[tuple[int, ...], ...]:
    """Return moments with what came. When there are too many, the two neighbours with the fewest values become one."""
    if not came:
        return moments
    if not (fresh and moments):
        return (*moments[:-1], _sum(moments[-1], came) if moments else came)
    if len(moments) < MOMENTS:
        return (*moments, came)
    sizes = [sum(a) + sum(b) for a, b in zip(moments, moments[1:])]
    at = sizes.index(min(sizes))
    return (*moments[:at], _sum(moments[at], moments[at + 1]), *moments[at + 2 :], came)


def _sum(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b))
