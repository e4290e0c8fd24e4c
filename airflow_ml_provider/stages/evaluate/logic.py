"""The decisions of the evaluate stage: the operating point, the worst slices, the winning candidates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.stages.evaluate.metrics import METRICS, Rows, better, metric
from airflow_ml_provider.stages.evaluate.spec import OperatingPoint
from airflow_ml_provider.stages.register.logic import ROUNDING


def choose_threshold(point: OperatingPoint, rows: Rows) -> float:
    """Return the score from which a row is flagged, chosen on validation rows.

    It lies half-way between the lowest flagged score and the next lower one, or beyond all scores by what rounding may
    lose: rounding, as in another runtime, then changes no decision on the rows that it was chosen on. It is a float32,
    as the scores are that it is compared with. Where no threshold reaches the wanted precision, the one of highest
    precision is taken.

    Raises:
        DataError: the validation rows lack a label that the choice needs.
    """
    import numpy as np

    if point.by == "threshold":
        return point.value
    n = len(rows)
    positives = float(rows.labels.sum())
    need = {"recall": positives, "precision": positives, "fpr": n - positives, "share": n}[point.by]
    if not need:
        kind = "negative" if point.by == "fpr" else "positive"
        raise DataError(f"operating point by {point.by}: none of the {n} validation rows is {kind}; give by: threshold")
    ends = np.append(np.flatnonzero(rows.scores[1:] != rows.scores[:-1]), n - 1)  # ties are one threshold
    tp, flagged = np.cumsum(rows.labels)[ends], ends + 1
    if point.by == "recall":
        at = int(np.argmax(tp / positives >= point.value))
    elif point.by == "precision":
        precision = tp / flagged
        reached = np.flatnonzero(precision >= point.value)
        at = int(reached[-1]) if len(reached) else int(np.argmax(precision))
    else:
        share = (flagged - tp) / (n - positives) if point.by == "fpr" else flagged / n
        allowed = np.flatnonzero(share <= point.value)
        at = int(allowed[-1]) if len(allowed) else -1  # even the best scored rows are too many: flag none
    above, under = rows.scores[0] + 2 * ROUNDING, max(0.0, rows.scores[-1] - 2 * ROUNDING)
    levels = np.concatenate(([above], rows.scores[ends], [under]))
    lowest, below = levels[at + 1 : at + 3]
    half = np.float32((lowest + below) / 2)
    return float(half if half > below else lowest)


def worst_slices(slices: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the worst judged slice by each metric: its `slice`, `rows`, `value`, `low` and `high`."""
    worst: dict[str, dict[str, Any]] = {}
    for entry in slices:
        for name, body in entry["metrics"].items():
            if body["value"] is None or (name in worst and not better(name, worst[name]["value"], body["value"])):
                continue
            worst[name] = {"slice": entry["slice"], "rows": entry["rows"], **body}
    return {name: worst[name] for name in METRICS if name in worst}


def winners(candidates: Sequence[Mapping[str, Any]], metric_name: str) -> list[dict[str, Any]]:
    """Return the best candidate of each model name, in the order of names.

    Parameters:
        candidates: results of the evaluate stage as they stand in XCom; refused and skipped ones, and `None` of tasks
            that left nothing, take no part.
        metric_name: metric to compare; of equal candidates the one with the smallest model digest wins.

    Raises:
        SpecError: there is no such metric.
    """
    metric(metric_name)
    best: dict[str, tuple[float, str, Mapping[str, Any]]] = {}
    for candidate in candidates:
        value = _value(candidate, metric_name)
        if value is None:
            continue
        model = candidate["model"]
        held = best.get(model["name"])
        if held is None or better(metric_name, value, held[0]) or (value == held[0] and model["digest"] < held[1]):
            best[model["name"]] = (value, model["digest"], candidate)
    return [dict(best[name][2]) for name in sorted(best)]


def _value(candidate: Optional[Mapping[str, Any]], name: str) -> Optional[float]:
    if not candidate or candidate.get("status") != "ok" or not candidate.get("model"):
        return None
    value: Optional[float] = candidate["metrics"].get(name)
    return value
