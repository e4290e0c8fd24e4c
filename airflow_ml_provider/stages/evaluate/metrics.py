"""The metrics of binary classifiers: which direction is good, exact values, and bootstrap intervals.

Values come from one sort of the scores. Intervals come from cells: the sorted rows are cut into up to 128 bins, and a
resample draws how often each (bin, label) cell occurs (Poisson bootstrap; Chamandy et al., 2012), so its cost does not
grow with the rows. What the bins lose is put right by centring the resamples on the exact value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from airflow_ml_provider.exceptions import unknown_name

# Reliability bins of equal width, as usual for the expected calibration error.
CALIBRATION_BINS = 10
MAX_BINS, MIN_BINS, ROWS_PER_BIN = 128, 16, 100
# Scores are float32: nearer to 0 or 1 than this is rounding, not certainty (scikit-learn clips float32 alike).
_CLIP = 2.0**-23


@dataclass(frozen=True)
class Metric:
    """One metric and its good direction.

    Attributes:
        name: as in reports and policies.
        higher_is_better: the good direction; it belongs to the metric, nobody passes it along.
        text: what it says.
        at_threshold: whether it depends on the operating point.
    """

    name: str
    higher_is_better: bool
    text: str
    at_threshold: bool = False


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("auc", True, "probability that a positive row scores higher than a negative one"),
        Metric("pr_auc", True, "average precision over all thresholds"),
        Metric("log_loss", False, "mean negative log-likelihood"),
        Metric("brier", False, "mean squared error of the probability"),
        Metric("ece", False, f"mean gap between score and frequency, in {CALIBRATION_BINS} bins of equal width"),
        Metric("precision", True, "share of flagged rows that are positive", at_threshold=True),
        Metric("recall", True, "share of positive rows that are flagged", at_threshold=True),
        Metric("f1", True, "harmonic mean of precision and recall", at_threshold=True),
        Metric("fpr", False, "share of negative rows that are flagged", at_threshold=True),
    )
}


def metric(name: str) -> Metric:
    """Return a metric by its name.

    Raises:
        SpecError: there is none; the message names the nearest.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


def better(name: str, a: float, b: float) -> bool:
    """Return whether `a` is a strictly better value of a metric than `b`.

    >>> better("auc", 0.8, 0.7), better("log_loss", 0.8, 0.7)
    (True, False)
    """
    return a > b if metric(name).higher_is_better else a < b


def descending(labels: Any, scores: Any) -> Any:
    """Return the order of rows in `Rows`: by score, equal ones by label, since sums of floats depend on their order."""
    import numpy as np

    return np.lexsort((labels, -scores))


@dataclass(frozen=True)
class Rows:
    """Labels and scores of some rows, in descending order of score.

    Attributes:
        labels: 0.0 or 1.0.
        scores: P(label = 1), rounded to float32 as they are served.
        losses: negative log-likelihood per row.
    """

    labels: Any
    scores: Any
    losses: Any

    @classmethod
    def of(cls, labels: Any, scores: Any) -> Rows:
        """Return rows in any order as `Rows`; equal rows in another order give equal bits."""
        import numpy as np

        scores, labels = np.asarray(scores, np.float32).astype(np.float64), np.asarray(labels, np.float64)
        order = descending(labels, scores)
        scores, labels = scores[order], labels[order]
        clipped = np.clip(scores, _CLIP, 1 - _CLIP)
        return cls(labels, scores, -np.log(np.where(labels > 0, clipped, 1 - clipped)))

    def take(self, index: Any) -> Rows:
        """Return the rows at ascending positions."""
        return Rows(self.labels[index], self.scores[index], self.losses[index])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def both_labels(self) -> bool:
        """Whether there are rows of either label; without, nothing can be measured."""
        return bool(0 < self.labels.sum() < len(self))


def measure(rows: Rows, threshold: float) -> dict[str, Optional[float]]:
    """Return the exact value of every metric; none where it is undefined (no row flagged, one label only).

    Parameters:
        rows: at least one row.
        threshold: rows that score at least this, both in float32, are flagged: what the score stage does.
    """
    import numpy as np

    n, positives = len(rows), float(rows.labels.sum())
    negatives = n - positives
    ends = np.append(np.flatnonzero(rows.scores[1:] != rows.scores[:-1]), n - 1)  # ties are one threshold
    tp = np.cumsum(rows.labels)[ends]
    fp = ends + 1 - tp
    new_tp, new_fp = np.diff(tp, prepend=0), np.diff(fp, prepend=0)
    values: dict[str, Optional[float]] = {
        "auc": _ratio((new_fp * (tp - new_tp / 2)).sum(), positives * negatives),
        "pr_auc": _ratio((new_tp * tp / (tp + fp)).sum(), positives),
        "log_loss": float(rows.losses.mean()),
        "brier": float(((rows.scores - rows.labels) ** 2).mean()),
        "ece": sum(b["rows"] * abs(b["score"] - b["frequency"]) for b in calibration(rows)) / n,
    }
    flagged = _flagged(rows, threshold)
    hits = float(rows.labels[:flagged].sum())
    return {
        **values,
        "precision": _ratio(hits, flagged),
        "recall": _ratio(hits, positives),
        "f1": _ratio(2 * hits, flagged + positives),
        "fpr": _ratio(flagged - hits, negatives),
    }


def calibration(rows: Rows) -> list[dict[str, float]]:
    """Return the reliability curve: per bin of equal width its `low`, `high`, `rows`, mean `score` and `frequency`."""
    import numpy as np

    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.clip(np.searchsorted(edges, rows.scores, side="right") - 1, 0, CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    scores = np.bincount(bins, rows.scores, CALIBRATION_BINS)
    labels = np.bincount(bins, rows.labels, CALIBRATION_BINS)
    return [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "rows": int(counts[i]),
            "score": float(scores[i] / counts[i]),
            "frequency": float(labels[i] / counts[i]),
        }
        for i in np.flatnonzero(counts)
    ]


def _flagged(rows: Rows, threshold: float) -> int:
    import numpy as np

    return int(np.searchsorted(-rows.scores, -float(np.float32(threshold)), side="right"))


def _ratio(a: float, b: float) -> Optional[float]:
    return float(a / b) if b else None


@dataclass(frozen=True)
class Cells:
    """Rows counted by score bin and label, bins in descending order of score.

    Attributes:
        counts: shape [bins, 2].
        scores: mean score of a cell, shape [bins, 2].
        losses: mean log-loss of a cell.
        errors: mean squared error of a cell.
        groups: first bin of each reliability bin that occurs.
        flagged: number of bins at or above the threshold.
    """

    counts: Any
    scores: Any
    losses: Any
    errors: Any
    groups: Any
    flagged: int

    @classmethod
    def of(cls, rows: Rows, threshold: float) -> Cells:
        """Cut rows into bins of about equal size; reliability bins and the threshold begin bins of their own.

        Rows of equal scores share a bin.
        """
        import numpy as np

        n = len(rows)
        bins = min(MAX_BINS, max(MIN_BINS, n // ROWS_PER_BIN))
        edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
        # Rows at an edge belong to the bin above it, and the order is descending.
        at_edges = np.searchsorted(-rows.scores, -edges, side="right")
        at_threshold = _flagged(rows, threshold)
        even = rows.scores[np.arange(bins) * n // bins]
        at_even = np.searchsorted(-rows.scores, -even, side="left")
        cuts = np.unique(np.concatenate(([0], at_even, at_edges, [at_threshold])))
        cuts = cuts[cuts < n]
        positive = rows.labels > 0

        def by_cell(values: Any) -> Any:
            ones = np.add.reduceat(np.where(positive, values, 0.0), cuts)
            return np.stack((np.add.reduceat(values, cuts) - ones, ones), axis=1)

        counts = np.rint(by_cell(np.ones(n)))
        size = np.maximum(counts, 1)
        return cls(
            counts=counts,
            scores=by_cell(rows.scores) / size,
            losses=by_cell(rows.losses) / size,
            errors=by_cell((rows.scores - rows.labels) ** 2) / size,
            groups=np.searchsorted(cuts, np.unique(np.concatenate(([0], at_edges[at_edges < n])))),
            flagged=int(np.searchsorted(cuts, at_threshold)),
        )


def from_cells(cells: Cells, counts: Any) -> dict[str, Any]:
    """Return every metric for each of several counts of the same cells, shape [resamples, bins, 2].

    Undefined values are NaN.
    """
    import numpy as np

    negative, positive = counts[..., 0], counts[..., 1]
    tp, fp = positive.cumsum(axis=1), negative.cumsum(axis=1)
    positives, negatives = tp[:, -1], fp[:, -1]
    n = positives + negatives

    def mean(values: Any) -> Any:
        return np.tensordot(counts, values, axes=2) / n

    gap = negative * cells.scores[:, 0] + positive * (cells.scores[:, 1] - 1)
    last = cells.flagged - 1
    hits, alarms = (tp[:, last], fp[:, last]) if last >= 0 else (np.zeros(len(n)), np.zeros(len(n)))
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = tp / (tp + fp)
        return {
            "auc": (negative * (tp - positive / 2)).sum(axis=1) / (positives * negatives),
            "pr_auc": (positive * np.nan_to_num(precision)).sum(axis=1) / positives,
            "log_loss": mean(cells.losses),
            "brier": mean(cells.errors),
            "ece": np.abs(np.add.reduceat(gap, cells.groups, axis=1)).sum(axis=1) / n,
            "precision": hits / (hits + alarms),
            "recall": hits / positives,
            "f1": 2 * hits / (hits + alarms + positives),
            "fpr": alarms / negatives,
        }


def resample(counts: Any, resamples: int, rng: Any) -> Any:
    """Return Poisson resamples of counts, shape [resamples, *counts.shape]; empty cells stay empty."""
    import numpy as np

    flat = counts.reshape(-1)
    occupied = np.flatnonzero(flat)
    drawn = np.zeros((resamples, len(flat)))
    drawn[:, occupied] = rng.poisson(flat[occupied], size=(resamples, len(occupied)))
    return drawn.reshape(resamples, *counts.shape)


def estimate(
    rows: Rows, threshold: float, *, resamples: int, confidence: float, seed: tuple[int, ...]
) -> dict[str, dict[str, Optional[float]]]:
    """Return every metric with its bootstrap interval: name to `value`, `low` and `high`.

    Percentile intervals; `low` and `high` are none where the value is. Equal arguments give equal results.

    Parameters:
        rows: rows of both labels.
        threshold: operating point.
        resamples: bootstrap resamples.
        confidence: of the intervals, in (0, 1).
        seed: seed of the bootstrap.
    """
    import numpy as np

    exact = measure(rows, threshold)
    cells = Cells.of(rows, threshold)
    base = from_cells(cells, cells.counts[None])
    drawn = from_cells(cells, resample(cells.counts, resamples, np.random.default_rng(seed)))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    found: dict[str, dict[str, Optional[float]]] = {}
    for name, value in exact.items():
        sample = drawn[name][np.isfinite(drawn[name])]
        if value is None or not len(sample):
            found[name] = {"value": value, "low": None, "high": None}
            continue
        low, high = np.quantile(sample, tails) + (value - base[name][0])
        bounds = np.clip([min(low, value), max(high, value)], 0.0, None if name == "log_loss" else 1.0)
        found[name] = {"value": value, "low": float(bounds[0]), "high": float(bounds[1])}
    return found
