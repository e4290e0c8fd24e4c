"""Decisions of the train stage: what is learnt from, where the validation rows begin, how good the scores are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import DataError, unknown_name
from airflow_ml_provider.models import SCORE, InputType
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.train.spec import Launch, TrainSpec

# What names inside of the exported graph begin with (see export.py).
_TAKEN = ("pre/", "model/", "post/")


def model_name(name: str, segment: Mapping[str, str]) -> str:
    """Return the name of the model of a segment.

    >>> model_name("flight_delay", {"origin": "EWR"})
    'flight_delay_ewr'
    """
    parts = [re.sub(r"[^a-z0-9.-]+", "_", value.lower()).strip("_") or "empty" for value in segment.values()]
    return "_".join([name, *parts])


def identity(spec: TrainSpec, info: RunInfo) -> str:
    """Return what is equal for all tries of one training and for no other: the task instance and the engine."""
    return f"{info.identity}_{spec.engine}"


def recipe(spec: TrainSpec) -> str:
    """Return the digest of everything that decides what the model will be.

    Where the rows lie, where the package goes and how it is kept going is not part of it. The number of ranks is: sums
    have another order.
    """
    return _digest(spec, Launch(processes=spec.launch.ranks))


def snapshot_recipe(spec: TrainSpec) -> str:
    """Return the recipe without the number of ranks: a training goes on with more or fewer of them."""
    return _digest(spec, Launch())


def _digest(spec: TrainSpec, launch: Launch) -> str:
    return codec.digest(replace(spec, output="", dataset=replace(spec.dataset, uri=""), launch=launch))


def clear_mark(spec: TrainSpec, info: RunInfo) -> str:
    """Return what tells a training that begins anew after a clear from those before it; empty where that is no matter.

    It is the same for all tries of the cleared run: what they have written is gone on with.
    """
    number = max(info.clear_number, int(info.cleared))
    return f"cleared-{number}" if number and spec.launch.after_clear == "fresh" else ""


def choose_inputs(spec: TrainSpec, types: Mapping[str, str]) -> dict[str, InputType]:
    """Return the columns to learn from, in the order of the data, and what each is read as.

    Parameters:
        types: column to `float`, `string` or, for what cannot be learnt from, the name of its type.

    Raises:
        SpecError: a column that was asked for is missing.
        DataError: label or timestamp is missing, a column is neither numbers nor text, or none is left.
    """
    for what, name in (("label", spec.label), ("timestamp", spec.timestamp)):
        if name not in types:
            raise DataError(f"{what} column {name!r} is missing; the training rows have {', '.join(types)}")
    for name in spec.features:
        if name not in types:
            raise unknown_name("feature", name, types)
        if name in (spec.label, spec.timestamp):
            raise DataError(f"feature {name!r} is the label or the timestamp; nothing can be learnt from it")
    never = {spec.label, spec.timestamp, *spec.exclude, *(() if spec.features else spec.segment)}
    names = [name for name in types if name not in never and (not spec.features or name in spec.features)]
    chosen: dict[str, InputType] = {}
    for name in names:
        kind = types[name]
        if name == SCORE or name.startswith(_TAKEN):
            raise DataError(f"column {name!r} has a name that the model's own graph uses; rename or exclude it")
        if kind not in ("float", "string"):
            raise DataError(
                f"column {name!r} has type {kind}; models learn from numbers, booleans and texts: derive such a "
                f"column from it, or put it into exclude"
            )
        chosen[name] = kind  # type: ignore[assignment]
    if not chosen:
        raise DataError(f"no column is left to learn from; of {', '.join(types)} these are left out: {sorted(never)}")
    return chosen


def split_point(times: Any, share: float) -> int:
    """Return where the validation rows begin among rows in time order; rows of one moment stay together.

    Raises:
        DataError: all rows are of one moment, so nothing can be divided by time.

    >>> split_point([1, 2, 3, 4, 4, 4, 4, 5, 6, 7], 0.5)
    3
    """
    from bisect import bisect_left, bisect_right

    count = len(times)
    cut = min(count - 1, max(1, round(count * (1 - share))))
    first = bisect_left(times, times[cut])
    if first == 0:  # the oldest moment alone is more than its share
        first = bisect_right(times, times[cut])
    if first == count:
        raise DataError(f"all {count} training rows have one and the same timestamp; validation needs a later part")
    return first


def quality(labels: Any, scores: Any) -> dict[str, float]:
    """Return metrics of scores in [0, 1] on labels 0 and 1; `auc` only where both labels occur.

    AUC is the Mann-Whitney statistic with ties counted half (Hanley and McNeil 1982); log loss clips scores to
    [1e-7, 1 - 1e-7], what float32 can tell from 0 and 1.
    """
    import numpy as np

    y, p = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    found = {
        "log_loss": float(-np.mean(y * np.log(clipped) + (1 - y) * np.log(1 - clipped))),
        "brier": float(np.mean((p - y) ** 2)),
        "base_rate": float(y.mean()),
        "mean_score": float(p.mean()),
    }
    positives = int(y.sum())
    negatives = len(y) - positives
    if positives and negatives:
        _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
        wins = ranks[y == 1].sum() - positives * (positives + 1) / 2
        found["auc"] = float(wins / (positives * negatives))
    return found
