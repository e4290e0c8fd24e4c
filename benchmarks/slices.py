"""How long the slices of an evaluation take with bootstrap intervals, beside scikit-learn in a loop.

    python benchmarks/slices.py --rows 1000000 --resamples 500

A million rows with four slice columns and two pairs make about 820 slices; every one gets nine metrics, exact, with
bootstrap intervals. scikit-learn measures the same slices without intervals, and resamples a few of them to say what a
loop over all would take. Medians of three runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn import metrics as sk

from airflow_ml_provider.stages.evaluate.metrics import Rows, estimate
from airflow_ml_provider.stages.evaluate.slices import Groups, group, judge

RESAMPLED = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--resamples", type=int, default=500)
    args = parser.parse_args()
    labels, scores, columns = _data(args.rows)
    slices = _slices(labels, scores, columns, args.resamples)
    ours = _median(lambda: _slices(labels, scores, columns, args.resamples))
    exact = _median(lambda: _slices(labels, scores, columns, 1))
    whole = _median(
        lambda: estimate(Rows.of(labels, scores), 0.3, resamples=args.resamples, confidence=0.95, seed=(0,))
    )
    codes = columns["carrier"]
    loop = _median(lambda: [_sklearn(labels[codes == c], scores[codes == c]) for c in np.unique(codes)])
    resample = _resample(labels, scores, columns["carrier"])
    every = 6 * resample * args.resamples  # six divisions of the same rows
    print(f"{args.rows:,} rows, {len(slices)} slices, 9 metrics, {args.resamples} resamples, medians of 3")
    print(f"all slices with intervals          {ours:9.2f} s")
    print(f"all slices, next to no resamples   {exact:9.2f} s")
    print(f"all rows with intervals            {whole:9.2f} s")
    print(f"scikit-learn, one column, exact    {loop:9.2f} s   {6 * loop / exact:7.1f} x ours (for six)")
    print(f"scikit-learn, resampled, estimate  {every:9.0f} s   {every / ours:7.0f} x ours")


def _data(rows: int) -> tuple[Any, Any, dict[str, Any]]:
    rng = np.random.default_rng(0)
    scores = rng.beta(2, 6, rows)
    labels = (rng.random(rows) < scores).astype(float)
    sizes = {"carrier": 16, "origin": 3, "hour": 19, "dest": 24}
    return labels, scores, {name: rng.integers(0, size, rows) for name, size in sizes.items()}


def _slices(labels: Any, scores: Any, columns: dict[str, Any], resamples: int) -> list[Any]:
    order = np.argsort(-scores, kind="stable")
    rows = Rows.of(labels[order], scores[order])
    groups = {}
    for name, values in columns.items():
        found = group(name, pa.chunked_array([pa.array(values)]))
        groups[name] = Groups(found.names, found.codes[order])
    pairs = [groups["carrier"].cross(groups["dest"]), groups["carrier"].cross(groups["hour"])]
    found = []
    for division in (*groups.values(), *pairs):
        found += judge(rows, division, 0.3, min_rows=100, resamples=resamples, confidence=0.95, seed=0)
    return found


def _sklearn(labels: Any, scores: Any) -> None:
    flagged = scores >= 0.3
    sk.roc_auc_score(labels, scores)
    sk.average_precision_score(labels, scores)
    sk.log_loss(labels, scores)
    sk.brier_score_loss(labels, scores)
    sk.precision_recall_fscore_support(labels, flagged, average="binary")
    sk.confusion_matrix(labels, flagged)


def _resample(labels: Any, scores: Any, codes: Any) -> float:
    """Return the seconds of one resample of all values of a column, from a few resamples of one value."""
    rng = np.random.default_rng(0)
    here = np.flatnonzero(codes == 0)
    start = time.perf_counter()
    for _ in range(RESAMPLED):
        index = rng.choice(here, len(here))
        _sklearn(labels[index], scores[index])
    return (time.perf_counter() - start) / RESAMPLED * len(np.unique(codes))


def _median(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


if __name__ == "__main__":
    main()
