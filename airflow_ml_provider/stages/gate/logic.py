"""May the model go on? A pure decision by a policy on facts, each criterion with its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.evaluate.metrics import metric
from airflow_ml_provider.stages.gate.spec import Challenge, GatePolicy, Load, Threshold

Estimate = Mapping[str, Optional[float]]
"""`value`, `low` and `high` of a metric."""


@dataclass(frozen=True)
class Comparison:
    """Challenger against champion on the same rows.

    Attributes:
        champion: version that was compared with; none when there is nobody to compare with.
        challenger_value: the challenger's metric.
        champion_value: the champion's metric.
        gain: how much better the challenger is; negative when it is worse, whatever the metric's direction.
        low: lower bound of the gain.
        high: upper bound of the gain.
        rows: rows that both have scored.
        same: champion and challenger are the same model.
        problem: why the comparison could not be made; empty when it was.
        note: what the reader should know.
    """

    champion: Optional[str] = None
    challenger_value: Optional[float] = None
    champion_value: Optional[float] = None
    gain: Optional[float] = None
    low: Optional[float] = None
    high: Optional[float] = None
    rows: Optional[int] = None
    same: bool = False
    problem: str = ""
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """What is known of a model when it is judged.

    Attributes:
        rows: rows of the test set that the model is for.
        metrics: metric to its estimate on the whole test set.
        worst_slice: metric to the estimate on the worst judged slice, with `slice` and `rows`.
        comparison: with the champion; none when it was not made.
        quality: per batch of the training window `series` (whose), `interval`, `rows`, `overall` and `passed`; none
            when nobody looked.
        silent: names of the quality series that say nothing about the training window.
        parity: `passed`, `max_difference`, `flips`, `rows` of the parity report; none without one.
        missing_lineage: parts of the chain of custody that are not recorded.
        approved_by: people who approved.
        load: the load test report; none without one.
    """

    rows: int = 0
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    worst_slice: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    comparison: Optional[Comparison] = None
    quality: Optional[Sequence[Mapping[str, Any]]] = None
    silent: tuple[str, ...] = ()
    parity: Optional[Mapping[str, Any]] = None
    missing_lineage: tuple[str, ...] = ()
    approved_by: tuple[str, ...] = ()
    load: Optional[Mapping[str, Any]] = None


@dataclass(frozen=True)
class Criterion:
    """One criterion and whether it was met.

    Attributes:
        name: such as `metric.auc`.
        passed: it was met.
        observed: the number that was judged, or none when there is none.
        threshold: the bounds by `at_least` and `at_most`.
        interval: bounds of the observed value.
        rows: sample size.
        note: what the numbers do not say.
    """

    name: str
    passed: bool
    observed: Optional[float] = None
    threshold: Mapping[str, float] = field(default_factory=dict)
    interval: Optional[tuple[float, float]] = None
    rows: Optional[int] = None
    note: str = ""

    @property
    def expected(self) -> str:
        """The bounds in words."""
        words = {"at_least": "at least", "at_most": "at most"}
        return " and ".join(f"{words[side]} {bound:g}" for side, bound in self.threshold.items())

    @property
    def sentence(self) -> str:
        """The criterion with its numbers."""
        parts = [self.name]
        if self.observed is not None:
            parts.append(f"is {self.observed:.4g}")
        if self.interval:
            parts.append(f"[{self.interval[0]:.4g}, {self.interval[1]:.4g}]")
        if self.rows is not None:
            samples = {"quality": "over {} batches", "load": "over {} requests"}
            parts.append(samples.get(self.name.partition(".")[0], "on {} rows").format(self.rows))
        if self.expected:
            parts.append(f"and must be {self.expected}")
        return " ".join(parts) + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Decision:
    """The decision and what it stands on.

    Attributes:
        passed: every criterion was met.
        criteria: all that were checked.
        unchecked: criteria that the policy does not ask for.
    """

    passed: bool
    criteria: tuple[Criterion, ...]
    unchecked: tuple[str, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the criteria that were not met."""
        return tuple(c.name for c in self.criteria if not c.passed)

    @property
    def reason(self) -> str:
        """Why not, in one sentence; empty when it passed."""
        bad = [c.sentence for c in self.criteria if not c.passed]
        return f"{len(bad)} of {len(self.criteria)} criteria were not met: {'; '.join(bad)}" if bad else ""


def decide(policy: GatePolicy, facts: Facts) -> Decision:
    """Return the decision of a policy on facts. What the policy asks for and nobody measured is not met."""
    criteria = [
        _bounded(f"metric.{name}", facts.metrics.get(name), t, facts.rows) for name, t in policy.metrics.items()
    ]
    if policy.min_rows:
        enough = facts.rows >= policy.min_rows
        criteria.append(Criterion("min_rows", enough, facts.rows, {"at_least": policy.min_rows}, rows=facts.rows))
    for name, threshold in policy.worst_slice.items():
        worst = facts.worst_slice.get(name)
        note = str(worst["slice"]) if worst else "no slice was large enough to be judged"
        rows = worst["rows"] if worst else None
        criteria.append(_bounded(f"worst_slice.{name}", worst, threshold, rows, note))
    if policy.challenge:
        criteria.append(_challenge(policy.challenge, facts.comparison))
    if policy.min_quality is not None:
        criteria.append(_quality(policy.min_quality, facts.quality or (), facts.silent))
    if policy.parity:
        criteria.append(_parity(facts.parity))
    if policy.lineage:
        missing = facts.missing_lineage
        criteria.append(
            Criterion("lineage", not missing, note=f"not recorded: {', '.join(missing)}" if missing else "")
        )
    if policy.approvals:
        criteria.append(_approvals(policy.approvals, facts.approved_by))
    if policy.load:
        criteria += _load(policy.load, facts.load)
    unchecked = tuple(name for name, wanted in policy.asked.items() if not wanted)
    return Decision(all(c.passed for c in criteria), tuple(criteria), unchecked)


def _bounded(
    name: str, found: Optional[Mapping[str, Any]], threshold: Threshold, rows: Optional[int], note: str = ""
) -> Criterion:
    bounds = {side: b for side in ("at_least", "at_most") if (b := getattr(threshold, side)) is not None}
    if found is None or found.get("value") is None:
        return Criterion(name, False, None, bounds, None, rows, note or "the evaluation has no such value")
    value, low, high = found["value"], found.get("low"), found.get("high")
    interval = None if low is None or high is None else (low, high)
    if not threshold.use_bound:
        judged = (value, value)
    elif interval is None:
        return Criterion(name, False, value, bounds, None, rows, _join("the value has no interval to judge", note))
    else:
        judged = interval
        note = _join(f"judged by the bound{'s' if len(bounds) == 2 else ''} of its interval", note)
    passed = judged[0] >= bounds.get("at_least", judged[0]) and judged[1] <= bounds.get("at_most", judged[1])
    return Criterion(name, passed, value, bounds, interval, rows, note)


def _challenge(challenge: Challenge, found: Optional[Comparison]) -> Criterion:
    name, bounds = f"challenge.{challenge.metric}", {"at_least": challenge.min_gain}
    if found is None:
        return Criterion(name, False, None, bounds, note="champion and challenger were not compared")
    if found.problem:
        return Criterion(name, False, None, bounds, None, found.rows, found.problem)
    if found.champion is None:
        return Criterion(name, True, None, bounds, note="there is no champion to compare with")
    if found.same:
        return Criterion(name, True, 0.0, bounds, note=f"the champion, version {found.champion}, is the same model")
    if found.gain is None or found.low is None or found.high is None:
        return Criterion(name, False, None, bounds, None, found.rows, f"{challenge.metric} is undefined on these rows")
    note = (
        f"gain over version {found.champion}: {found.challenger_value:.4g} against {found.champion_value:.4g}; judged "
        f"by the lower bound of its {challenge.confidence * 100:g} % interval"
    )
    interval = (found.low, found.high)
    return Criterion(
        name, found.low >= challenge.min_gain, found.gain, bounds, interval, found.rows, _join(note, found.note)
    )


def _quality(minimum: float, batches: Sequence[Mapping[str, Any]], silent: Sequence[str]) -> Criterion:
    """Judge the worst admitted batch. An admitted batch that has rows and no score, or a silent series, is not met."""
    bounds = {"at_least": minimum}
    admitted = [b for b in batches if b["passed"] and b.get("rows") != 0]
    used = sorted((b for b in admitted if b["overall"] is not None), key=lambda b: str(b["interval"]))
    unscored = sorted(f"{b['interval']} of {b.get('series')}" for b in admitted if b["overall"] is None)
    gaps = _join(
        f"no quality is recorded for the training window in {', '.join(silent)}" if silent else "",
        f"no score is recorded for {len(unscored)} admitted batches, such as {unscored[0]}" if unscored else "",
    )
    if not used:
        note = gaps or "no quality is recorded for the training window"
        return Criterion("quality", False, None, bounds, note=note)
    worst = min(used, key=lambda batch: (batch["overall"], batch["interval"]))
    refused = sum(1 for batch in batches if not batch["passed"])
    note = _join(
        gaps,
        f"worst batch {worst['interval']} of {len(used)} from {used[0]['interval']} to {used[-1]['interval']}",
        f"{refused} refused batches were left out" if refused else "",
    )
    passed = worst["overall"] >= minimum and not gaps
    return Criterion("quality", passed, worst["overall"], bounds, None, len(used), note)


def _parity(found: Optional[Mapping[str, Any]]) -> Criterion:
    if found is None:
        return Criterion("parity", False, note="there is no parity report of this model")
    note = str(found.get("reason") or f"{found.get('flips')} decisions flip")
    return Criterion("parity", bool(found["passed"]), found.get("max_difference"), rows=found.get("rows"), note=note)


def _approvals(needed: int, people: Sequence[str]) -> Criterion:
    distinct = sorted(set(people))
    note = f"approved by {', '.join(distinct)}" if distinct else "nobody has approved"
    return Criterion("approvals", len(distinct) >= needed, len(distinct), {"at_least": needed}, note=note)


def _load(wanted: Load, found: Optional[Mapping[str, Any]]) -> list[Criterion]:
    """Judge the figures of a load test. One at a lower rate, or by a generator that fell behind, shows nothing."""
    problem, note = "there is no load test report of this model", ""
    if found is not None:
        problem = "" if found["generator"]["trusted"] else str(found["generator"]["reason"])
        if found["rate"] < wanted.rate:
            problem = f"it was tested at {found['rate']:g} requests/s, not at {wanted.rate:g}"
        note = f"at {found['rate']:g} requests/s"
        if not found["target"]["own"]:
            note += f" of {found['target']['url']}, which is not proven to serve this model"
    criteria = []
    for name, threshold in wanted.metrics.items():
        if found is None or problem:
            criteria.append(_bounded(f"load.{name}", None, threshold, None, problem))
            continue
        estimate = found["metrics"].get(name)
        rows = found["judged"]["requests"] if name in found["judged"]["figures"] else None
        absent = estimate is None or estimate.get("value") is None
        because = f"the load test has no such value {note}" if absent else note
        criteria.append(_bounded(f"load.{name}", estimate, threshold, rows, because))
    return criteria


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def is_newer(challenger: ModelRef, champion: ModelRef) -> bool:
    """Return whether a challenger could replace a champion: it has seen newer data."""
    one, other = challenger.trained_until, champion.trained_until
    return one is not None and other is not None and one > other


def signed_gain(name: str, challenger: float, champion: float) -> float:
    """Return by how much the challenger is better, whatever the metric's direction.

    >>> signed_gain("log_loss", 0.4, 0.5) > 0
    True
    """
    return challenger - champion if metric(name).higher_is_better else champion - challenger
