"""Is the candidate worse than the stable version? Pure, from what both counted in the same window.

Every check compares one number with one threshold and keeps its confidence sequence (see `sequential`), hence

- `fail`: the whole interval lies beyond the threshold. At any look, after any number of looks. That of a latency must
  do so without its two worst moments, too (a moment is a twelfth of the bake time): requests that come while a machine
  stands still are all slow, but tell of one event, not of as many.
- `pass`: there are enough requests, and the observed value (or the interval's bound, by `use_bound`) is within it.
- `unsure`: neither. More requests will tell.

Error rates, latencies and agreement are exact for any sample size, so that a candidate that fails half of its requests
is found out within tens of them. Scores and business metrics rest on the central limit theorem and fail nobody before
there are enough requests. The bounds of both versions are taken at half of `alpha` each (Bonferroni): simple, and
nearly free where the candidate has few requests and the stable version has many. Canaries are judged this way in
Lindon, Sanden, Shirikian (2022), "Rapid regression detection in software deployments through sequential testing".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Callable, Literal, Optional

from airflow_ml_provider.stages.deploy import sequential
from airflow_ml_provider.stages.deploy.policy import (
    Agreement,
    Business,
    Check,
    ErrorRate,
    Latency,
    ScoreShift,
    thresholds,
)
from airflow_ml_provider.stages.deploy.stats import Histogram, Moments, Quantile, VersionStats
from airflow_ml_provider.stages.gate.logic import Criterion
from airflow_ml_provider.stages.monitor import measures
from airflow_ml_provider.stages.monitor.measures import Pair

Verdict = Literal["pass", "fail", "unsure"]

# What the intervals are narrowest for: the size of accidents, an index and a share of the stable version's mean.
_PSI_SPREAD, _MEAN_SPREAD = 0.5, 0.25
# A stall is over within a moment, but may lie on the border of two.
_WORST = 2

ALONE = "there is no stable version to compare with"


@dataclass(frozen=True)
class Finding(Criterion):
    """A criterion of the gate's kind with its verdict; `rows` are requests of the candidate.

    Attributes:
        verdict: `pass`, `fail` or `unsure`.
        stable: what was observed of the stable version; none where nothing is compared.
        candidate: what was observed of the candidate.
        stable_rows: requests of the stable version.
    """

    verdict: Verdict = "unsure"
    stable: Optional[float] = None
    candidate: Optional[float] = None
    stable_rows: Optional[int] = None

    @property
    def beyond(self) -> bool:
        """Whether the observed value itself is on the wrong side."""
        return self.observed is not None and _beyond(self.observed, self.threshold)


@dataclass(frozen=True)
class Windows:
    """What both versions counted in the same time, and how it is judged.

    Attributes:
        stable: none when the candidate is the first version.
        candidate: window of the candidate.
        alpha: chance that any finding ever fails although the truth is within its threshold; Bonferroni.
        min_samples: fewest requests of each.
        use_bound: judge the interval's bound on the bad side instead of the observed value.
        moments: the candidate's latencies, by moment; none when only the whole is known.
    """

    stable: Optional[VersionStats]
    candidate: VersionStats
    alpha: float
    min_samples: int
    use_bound: bool = False
    moments: Sequence[Histogram] = ()

    def steady(self, limit_s: float) -> Histogram:
        """Return the candidate's latencies without the moments that have the most above a limit."""
        kept = sorted(self.moments, key=lambda moment: moment.above(limit_s))[:-_WORST]
        return sum(kept, Histogram()) if self.moments else self.candidate.latency_s


@dataclass(frozen=True)
class _Measured:
    """What a check has measured, before it is judged; `exact` for any sample size, or by the central limit theorem.

    `lasting` is whether an interval beyond the threshold is so at most times, not for a moment only.
    """

    name: str
    threshold: Mapping[str, float]
    rows: int
    stable_rows: Optional[int] = None
    stable: Optional[float] = None
    candidate: Optional[float] = None
    observed: Optional[float] = None
    interval: Optional[tuple[float, float]] = None
    note: str = ""
    exact: bool = True
    lasting: bool = True


def judge(checks: Sequence[Check], windows: Windows) -> tuple[Finding, ...]:
    """Return one finding for each threshold of the checks."""
    each = replace(windows, alpha=_share_of(windows.alpha, checks))
    return tuple(_finding(found, each) for check in checks for found in _MEASURES[type(check)](check, each))


def known(checks: Sequence[Check], stable: VersionStats, alpha: float) -> tuple[Criterion, ...]:
    """Return for each relative latency whether the stable version's is known well enough to compare with.

    It is when its upper bound is within `max_ratio` of what was observed: no candidate is failed below that bound, and
    of few requests there is none.

    Parameters:
        checks: those that will be made.
        stable: what the stable version has counted.
        alpha: that of the window in which they will be.
    """
    found = []
    for check in checks:
        if isinstance(check, Latency) and check.max_ratio is not None:
            base = stable.latency_s.quantile(check.quantile, _share_of(alpha, checks) / 2)
            spread = _ratio(base.high, base.value) if base else math.inf
            name, limit = f"latency.p{check.quantile * 100:g}.stable.bound", {"at_most": check.max_ratio}
            found.append(Criterion(name, spread <= check.max_ratio, spread, limit, rows=stable.latency_s.total))
    return tuple(found)


def _share_of(alpha: float, checks: Sequence[Check]) -> float:
    """Return the part of each threshold (Bonferroni)."""
    return alpha / max(1, sum(map(thresholds, checks)))


def _error_rate(check: ErrorRate, windows: Windows) -> Iterator[_Measured]:
    new, old = windows.candidate, windows.stable or VersionStats()
    rate, before = _share(new.errors, new.requests), _share(old.errors, old.requests)
    if check.max_increase is not None:
        low, high = sequential.proportion(new.errors, new.requests, windows.alpha / 2)
        old_low, old_high = sequential.proportion(old.errors, old.requests, windows.alpha / 2)
        yield _Measured(
            "error_rate.increase", {"at_most": check.max_increase}, new.requests, old.requests, before, rate,
            None if rate is None or before is None else rate - before, (low - old_high, high - old_low),
        )  # fmt: skip
    if check.max is not None:
        interval = sequential.proportion(new.errors, new.requests, windows.alpha)
        yield _Measured(
            "error_rate.max", {"at_most": check.max}, new.requests, candidate=rate, observed=rate, interval=interval
        )


def _latency(check: Latency, windows: Windows) -> Iterator[_Measured]:
    new, old = windows.candidate.latency_s, windows.stable.latency_s if windows.stable else Histogram()
    name = f"latency.p{check.quantile * 100:g}"
    if check.max_ratio is not None:
        mine, base = (h.quantile(check.quantile, windows.alpha / 2) for h in (new, old))
        found = _Measured(f"{name}.ratio", {"at_most": check.max_ratio}, new.total, old.total)
        if mine and base:
            found = replace(
                found, stable=base.value, candidate=mine.value, observed=mine.value / base.value,
                interval=(mine.low / base.high, _ratio(mine.high, base.low)), note=_coarse(mine, check.max_ratio),
                lasting=_lasting(check, windows, windows.alpha / 2, base.high * check.max_ratio),
            )  # fmt: skip
        yield found
    if check.max_s is not None:
        found = _Measured(f"{name}.max", {"at_most": check.max_s}, new.total)
        if mine := new.quantile(check.quantile, windows.alpha):
            found = replace(
                found, candidate=mine.value, observed=mine.value, interval=(mine.low, mine.high),
                lasting=_lasting(check, windows, windows.alpha, check.max_s),
            )  # fmt: skip
        yield found


def _lasting(check: Latency, windows: Windows, alpha: float, limit_s: float) -> bool:
    """Return whether the quantile lies beyond a limit without the worst moments, too."""
    steady = windows.steady(limit_s).quantile(check.quantile, alpha)
    return steady is not None and steady.low > limit_s


def _score_shift(check: ScoreShift, windows: Windows) -> Iterator[_Measured]:
    r"""Measure the index less what equal distributions show by chance, \( (k - 1)(1/n + 1/m) \).

    (Yurdakul, 2018, "Statistical properties of population stability index".) Its variance is that of the delta method,
    plus that of the chi-square law which it follows when nothing has shifted.
    """
    new, old = windows.candidate.scores, windows.stable.scores if windows.stable else Histogram()
    found = _Measured("scores.psi", {"at_most": check.max_psi}, new.total, old.total, exact=False)
    if not new.total or not old.total:
        yield replace(found, note="no scores were seen")
    elif new.bounds != old.bounds:
        yield replace(found, note="the versions' scores have different bins")
    else:
        cells = _cells(old, new)
        index = measures.psi(cells) - (len(cells.keys) - 1) * (1 / old.total + 1 / new.total)
        width = sequential.half_width(_psi_variance(cells), _PSI_SPREAD, windows.alpha)
        interval = (max(0.0, index - width), max(0.0, index + width))
        yield replace(found, observed=max(0.0, index), interval=interval, note=f"over {len(cells.keys)} cells")


def _business(check: Business, windows: Windows) -> Iterator[_Measured]:
    new = windows.candidate.metrics.get(check.metric, Moments())
    old = windows.stable.metrics.get(check.metric, Moments()) if windows.stable else Moments()
    found = _Measured(
        f"business.{check.metric}.ratio", {"at_least": check.min_ratio}, new.count, old.count, old.mean, new.mean,
        exact=False,
    )  # fmt: skip
    if min(new.count, old.count) < 2:
        yield replace(found, stable=None, candidate=None, note="no values were seen")
    elif old.mean <= 0:
        yield replace(found, note="the stable version's mean is not positive, so there is no ratio")
    else:
        # The contrast of the means is judged, which unlike their ratio is about normal; its sign says the same.
        variance = (new.variance_beside(old) + check.min_ratio**2 * old.variance) / old.mean**2
        width = sequential.half_width(variance, _MEAN_SPREAD, windows.alpha)
        ratio = new.mean / old.mean
        yield replace(found, observed=ratio, interval=(ratio - width, ratio + width))


def _agreement(check: Agreement, windows: Windows) -> Iterator[_Measured]:
    new = windows.candidate
    share = _share(new.agreed, new.compared)
    low, high = sequential.proportion(new.compared - new.agreed, new.compared, windows.alpha)
    yield _Measured(
        "agreement",
        {"at_least": check.min_share},
        new.compared,
        candidate=share,
        observed=share,
        interval=(1 - high, 1 - low),
    )


_MEASURES: Mapping[type, Callable[..., Iterator[_Measured]]] = {
    ErrorRate: _error_rate, Latency: _latency, ScoreShift: _score_shift, Business: _business, Agreement: _agreement,
}  # fmt: skip


def _finding(found: _Measured, windows: Windows) -> Finding:
    samples = found.rows if found.stable_rows is None else min(found.rows, found.stable_rows)
    if windows.stable is None and found.stable_rows is not None:
        found = replace(found, observed=None, interval=None, stable_rows=None, note=ALONE)
        verdict: Verdict = "pass"
    else:
        verdict = _verdict(found, windows, samples >= windows.min_samples)
        few = f"only {samples} of {windows.min_samples} requests" if samples < windows.min_samples else ""
        brief = "" if found.lasting or not _certain(found) else "but for a moment only"
        found = replace(found, note="; ".join(part for part in (_versus(found), found.note, brief, few) if part))
    return Finding(
        name=found.name, passed=verdict == "pass", observed=found.observed, threshold=found.threshold,
        interval=found.interval, rows=found.rows, note=found.note, verdict=verdict, stable=found.stable,
        candidate=found.candidate, stable_rows=found.stable_rows,
    )  # fmt: skip


def _verdict(found: _Measured, windows: Windows, enough: bool) -> Verdict:
    if found.observed is None or found.interval is None:
        return "unsure"
    if _certain(found) and found.lasting and (found.exact or enough):
        return "fail"
    judged = _sides(found)[1] if windows.use_bound else found.observed
    return "pass" if enough and not _beyond(judged, found.threshold) else "unsure"


def _certain(found: _Measured) -> bool:
    """Return whether the whole interval lies beyond the threshold."""
    return found.interval is not None and _beyond(_sides(found)[0], found.threshold)


def _sides(found: _Measured) -> tuple[float, float]:
    """Return the bounds of an interval, that on the good side first."""
    low, high = found.interval or (-math.inf, math.inf)
    return (low, high) if "at_most" in found.threshold else (high, low)


def _beyond(value: float, limit: Mapping[str, float]) -> bool:
    return value > limit.get("at_most", math.inf) or value < limit.get("at_least", -math.inf)


def _versus(found: _Measured) -> str:
    if found.stable is None or found.candidate is None:
        return ""
    return f"{found.candidate:.4g} against {found.stable:.4g}"


def _share(part: int, whole: int) -> Optional[float]:
    return part / whole if whole else None


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.inf


def _coarse(found: Optional[Quantile], ratio: float) -> str:
    """Say when the buckets are too wide for the ratio that is asked for."""
    if found is None or found.bucket[0] <= 0 or found.bucket[1] / found.bucket[0] <= ratio:
        return ""
    return f"interpolated in a bucket from {found.bucket[0]:g} s to {found.bucket[1]:g} s, wider than the ratio"


def _cells(stable: Histogram, candidate: Histogram) -> Pair:
    """Return the counts in about ten cells of equal share in the stable version."""
    pair = Pair(range(len(stable.counts)), stable.counts, candidate.counts)
    counts: dict[int, list[int]] = {}
    for cell, a, b in zip(measures.decile_cells(pair), pair.reference, pair.current):
        both = counts.setdefault(cell, [0, 0])
        both[0] += a
        both[1] += b
    return Pair(list(counts), [c[0] for c in counts.values()], [c[1] for c in counts.values()])


def _psi_variance(pair: Pair) -> float:
    n, m = pair.sizes
    shares = [(max(a, 0.5) / n, max(b, 0.5) / m) for a, b in zip(pair.reference, pair.current)]
    logs = [math.log(q / p) for p, q in shares]
    slopes = (
        ([p for p, _ in shares], [1 - log - q / p for log, (p, q) in zip(logs, shares)], n),
        ([q for _, q in shares], [1 + log - p / q for log, (p, q) in zip(logs, shares)], m),
    )
    linear = 0.0
    for weights, slope, size in slopes:
        mean = sum(w * s for w, s in zip(weights, slope))
        linear += sum(w * (s - mean) ** 2 for w, s in zip(weights, slope)) / size
    return linear + 2 * (len(shares) - 1) * (1 / n + 1 / m) ** 2
