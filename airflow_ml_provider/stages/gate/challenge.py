"""Is the challenger better than the champion? A paired bootstrap on the same rows.

Both models' rows are cut into score bins; a resample draws how often each joint cell (challenger's bin, champion's bin,
label) occurs, so that both metrics of a resample stand on the same rows and what makes the rows hard for both cancels
out. The cost of a resample does not grow with the rows. (Poisson bootstrap: Chamandy et al., 2012.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from airflow_ml_provider.stages.evaluate.metrics import Cells, Rows, descending, from_cells, measure
from airflow_ml_provider.stages.gate.logic import signed_gain

_CHUNK = 100
"""Resamples in memory at a time."""


@dataclass(frozen=True)
class Gain:
    """Values of both models and the gain of the challenger with its interval; none where the metric is undefined."""

    challenger: Optional[float]
    champion: Optional[float]
    gain: Optional[float] = None
    low: Optional[float] = None
    high: Optional[float] = None


def paired(
    labels: Any,
    challenger: Any,
    champion: Any,
    *,
    metric: str,
    thresholds: tuple[float, float],
    confidence: float,
    resamples: int,
    seed: int,
) -> Gain:
    """Return how much better the challenger's scores are than the champion's.

    Parameters:
        labels: 0 or 1 per row.
        challenger: its scores of the rows.
        champion: its scores of the same rows.
        metric: name of the metric; its direction is known.
        thresholds: operating points of challenger and champion.
        confidence: of the interval.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap; equal arguments give an equal result.
    """
    import numpy as np

    labels = np.asarray(labels, np.float64)
    pair = [Rows.of(labels, scores) for scores in (challenger, champion)]
    if not pair[0].both_labels:
        return Gain(None, None)
    exact = [measure(rows, threshold)[metric] for rows, threshold in zip(pair, thresholds)]
    if exact[0] is None or exact[1] is None:
        return Gain(exact[0], exact[1])
    gain = signed_gain(metric, exact[0], exact[1])
    cells = [Cells.of(rows, threshold) for rows, threshold in zip(pair, thresholds)]
    places = [_cell_of_row(c, scores, labels) for c, scores in zip(cells, (challenger, champion))]
    joint, counts = np.unique(np.stack(places), axis=1, return_counts=True)
    base = _gains(metric, cells, joint, counts[None].astype(np.float64))[0]
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, _CHUNK):
        weights = rng.poisson(counts, size=(min(_CHUNK, resamples - start), len(counts))).astype(np.float64)
        drawn.append(_gains(metric, cells, joint, weights))
    sample = np.concatenate(drawn)
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        return Gain(exact[0], exact[1], gain)
    # What the bins lose is put right by centring the resamples on the exact gain.
    low, high = np.quantile(sample, [(1 - confidence) / 2, (1 + confidence) / 2]) + (gain - base)
    return Gain(exact[0], exact[1], gain, float(min(low, gain)), float(max(high, gain)))


def _cell_of_row(cells: Cells, scores: Any, labels: Any) -> Any:
    """Return per row, in the original order, the index of its cell: bin * 2 + label."""
    import numpy as np

    order = descending(labels, np.asarray(scores, np.float64))
    sizes = cells.counts.sum(axis=1).astype(np.int64)
    bins = np.empty(len(labels), np.int64)
    bins[order] = np.repeat(np.arange(len(sizes)), sizes)
    return bins * 2 + (labels > 0)


def _gains(metric: str, cells: list[Cells], joint: Any, weights: Any) -> Any:
    """Return the gain for each row of `weights`, shape [resamples, joint cells]."""
    import numpy as np

    values = []
    for model, place in zip(cells, joint):
        size = model.counts.size
        counts = np.stack([np.bincount(place, row, size) for row in weights]).reshape(-1, *model.counts.shape)
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append(from_cells(model, counts)[metric])
    return signed_gain(metric, values[0], values[1])
