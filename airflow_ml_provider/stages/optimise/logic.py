"""The decision of the optimise stage: from the table of candidates to the one to go on with. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from airflow_ml_provider.stages.optimise.spec import ORIGINAL, Allowance, OptimisePolicy


class NotApplicable(Exception):
    """A recipe has nothing to do on this kind of model; says why."""


@dataclass(frozen=True)
class Measured:
    """What was seen of one candidate.

    Attributes:
        size: bytes of the graph that serves.
        latency_ms: milliseconds of a call at the batch size and on the provider that the policy looks at: the median.
        value: the policy's metric; none where it is undefined.
        loss: by how much it is worse than the model's; negative where it is better.
        loss_bound: upper end of the paired interval of the loss; none where there is none.
        slice_losses: loss of every slice that was judged.
        flips: share of rows whose decision differs from the model's.
        finite: whether all scores are probabilities.
        fails: why it does not run where the policy looks; empty when it does.
    """

    size: int
    latency_ms: float
    value: Optional[float]
    loss: Optional[float] = 0.0
    loss_bound: Optional[float] = None
    slice_losses: Mapping[str, float] = field(default_factory=dict)
    flips: float = 0.0
    finite: bool = True
    fails: str = ""

    @property
    def worst_slice(self) -> tuple[str, float]:
        """The slice that loses most, and its loss; no name without slices."""
        return max(self.slice_losses.items(), key=lambda item: (item[1], item[0]), default=("", 0.0))


@dataclass(frozen=True)
class Choice:
    """The candidate to go on with.

    Attributes:
        name: its name; `original` for the model as it came.
        reason: why this one, in a sentence.
        verdicts: by candidate `chosen`, `allowed` or `refused`, and why.
    """

    name: str
    reason: str
    verdicts: Mapping[str, tuple[str, str]]


def choose(policy: OptimisePolicy, original: Measured, candidates: Mapping[str, Measured]) -> Choice:
    """Return the best candidate that the policy allows, or the original.

    >>> fast = Measured(size=10, latency_ms=1.0, value=0.8, loss=0.3, loss_bound=0.4)
    >>> choose(OptimisePolicy(), Measured(size=20, latency_ms=2.0, value=0.9), {"int8": fast}).name
    'original'
    """
    refusals = {name: refusal(policy, found) for name, found in candidates.items()}
    allowed = [name for name, why in refusals.items() if not why]
    verdicts = {name: ("refused", "; ".join(why)) for name, why in refusals.items() if why}
    before = _cost(policy, original)
    order = sorted(allowed, key=lambda name: (_cost(policy, candidates[name]), candidates[name].size, name))
    what = "latency" if policy.choose == "fastest" else "size"
    gains = {name: 1 - _cost(policy, candidates[name]) / before for name in order}
    best = order[0] if order and gains[order[0]] >= policy.min_gain else None
    for name in order:
        saved = f"{what} {gains[name]:+.1%} saved" if gains[name] >= 0 else f"{what} {-gains[name]:.1%} more"
        verdicts[name] = ("chosen" if name == best else "allowed", saved)
    if best:
        reason = f"{best} is the {policy.choose} of {len(order)} allowed: {gains[best]:.1%} less {what} than the model"
        return Choice(best, reason, {**verdicts, ORIGINAL: ("allowed", f"{best} is better by policy")})
    if order:
        reason = (
            f"nothing beats the original: the best of {len(order)} allowed, {order[0]}, saves {gains[order[0]]:.1%} of "
            f"its {what}; at least {policy.min_gain:.1%} is asked"
        )
    else:
        reason = f"nothing beats the original: none of {len(candidates)} measured candidates is allowed by policy"
    return Choice(ORIGINAL, reason, {**verdicts, ORIGINAL: ("chosen", reason)})


def refusal(policy: Allowance, found: Measured) -> list[str]:
    """Return what the policy has against a candidate; nothing when it is allowed."""
    if found.fails:
        return [found.fails]
    if not found.finite:
        return ["some scores are not probabilities in [0, 1]"]
    if found.loss is None:
        return [f"{policy.metric} is undefined"]
    reasons = []
    bound = policy.judge == "bound" and found.loss_bound is not None
    judged = found.loss_bound if bound and found.loss_bound is not None else found.loss
    if judged > policy.max_loss:
        what = "may lose up to" if bound else "loses"
        reasons.append(f"it {what} {judged:.4g} of {policy.metric}; {policy.max_loss:g} is allowed")
    name, loss = found.worst_slice
    if name and loss > policy.max_slice_loss:
        reasons.append(f"it loses {loss:.4g} of {policy.metric} in {name}; {policy.max_slice_loss:g} is allowed")
    if found.flips > policy.max_flips:
        reasons.append(f"{found.flips:.2%} of decisions differ; {policy.max_flips:.2%} may")
    return reasons


def _cost(policy: OptimisePolicy, found: Measured) -> float:
    return found.latency_ms if policy.choose == "fastest" else float(found.size)


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return median and 95th percentile in milliseconds, by the nearest rank.

    >>> quantiles([0.001, 0.002, 0.003])
    {'p50_ms': 2.0, 'p95_ms': 3.0}
    """
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 6)

    return {"p50_ms": at(0.5), "p95_ms": at(0.95)}


def slice_losses(
    gain: Any, original: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the loss of every slice that is judged in both.

    Parameters:
        gain: called with the candidate's and the model's value, returns by how much the candidate is better.
        original: the model's slices, each with `slice` and the metric's `value`; none where it is not judged.
        found: the candidate's.
    """
    before = {entry["slice"]: entry["value"] for entry in original}
    pairs = ((entry["slice"], entry["value"], before.get(entry["slice"])) for entry in found)
    return {name: -gain(value, was) for name, value, was in pairs if value is not None and was is not None}
