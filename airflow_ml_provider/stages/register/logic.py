"""What register decides and says: is the export the model that was trained, what does the version tell of it. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.models import ONNX, SCORE, Manifest
from airflow_ml_provider.provenance import RunInfo

TAG = "airflow_ml."
ROUNDING = 1e-6
"""What float32 may lose of a probability. An operating point is often the score of some row, which then is a tie."""


@dataclass(frozen=True)
class Parity:
    """How far two ways of scoring the same rows are apart.

    Attributes:
        rows: rows compared.
        max_difference: highest absolute difference of two scores; none when a score is not a number.
        flips: rows whose decision at the operating point differs by more than rounding.
        ties: rows that are at the operating point but for rounding; whichever way they go is no flip.
        flip_share: the same as a share of the rows.
        nearest: smallest distance of a native score to the operating point: smaller differences flip nothing.
        worst_flip: largest distance to the operating point among the rows that flipped; 0 without flips.
        threshold: the operating point.
        passed: both are within their tolerance.
        reason: why not.
    """

    rows: int
    max_difference: Optional[float]
    flips: int
    ties: int
    flip_share: float
    nearest: Optional[float]
    worst_flip: float
    threshold: float
    passed: bool
    reason: str


def compare(
    native: Sequence[float], exported: Sequence[float], *, threshold: float, max_difference: float, max_flips: float
) -> Parity:
    """Return how far `exported` scores are from `native` ones, and whether that is near enough.

    A row is flagged when its score is at least `threshold`. A score that is not a number is never near enough.

    >>> compare([0.1, 0.5], [0.1, 0.25], threshold=0.5, max_difference=0.3, max_flips=0.1).reason
    '1 of 2 sample rows (50 %) would be decided differently at 0.5; at most 10 % may'
    """
    pairs = list(zip(native, exported))
    if not pairs:
        return Parity(0, None, 0, 0, 0.0, None, 0.0, threshold, False, "the sample has no rows to compare")
    differences = [abs(a - b) for a, b in pairs]
    worst = max(differences) if all(math.isfinite(d) for d in differences) else None
    flipped = [
        abs(a - threshold)
        for a, b in pairs
        if (a >= threshold) != (b >= threshold) and not max(abs(a - threshold), abs(a - b)) <= ROUNDING
    ]
    share = len(flipped) / len(pairs)
    reasons = []
    if worst is None or worst > max_difference:
        shown = "no number" if worst is None else f"{worst:.3g}"
        reasons.append(f"the scores differ by up to {shown}; at most {max_difference:g} is allowed")
    if share > max_flips:
        reasons.append(
            f"{len(flipped)} of {len(pairs)} sample rows ({share * 100:.3g} %) would be decided differently at "
            f"{threshold:g}; at most {max_flips * 100:.3g} % may"
        )
    return Parity(
        rows=len(pairs),
        max_difference=worst,
        flips=len(flipped),
        ties=sum(abs(a - threshold) <= ROUNDING for a, _ in pairs),
        flip_share=share,
        nearest=min((abs(a - threshold) for a, _ in pairs if math.isfinite(a)), default=None),
        worst_flip=max((d for d in flipped if math.isfinite(d)), default=0.0),
        threshold=threshold,
        passed=not reasons,
        reason="; ".join(reasons),
    )


def version_tags(
    manifest: Manifest, info: RunInfo, *, threshold: float, evaluation: str, parity: str
) -> dict[str, str]:
    """Return what a version tells about where it comes from, as tags.

    Parameters:
        threshold: operating point that the version is used with.
        evaluation: digest of the evaluation report; empty without one.
        parity: digest of the parity report.
    """
    origin = manifest.provenance
    body = {
        "identity": info.identity,
        "dag_id": info.dag_id,
        "run_id": info.run_id,
        "reason": info.reason,
        "trigger": info.trigger,
        "dataset": manifest.training.digest,
        "code": codec.digest(origin.code),
        "environment": origin.environment.get("digest") or codec.digest(origin.environment),
        "provenance": codec.canonical(origin),
        "threshold": repr(threshold),
        "evaluation": evaluation,
        "parity": parity,
    }
    return {f"{TAG}{key}": value for key, value in body.items() if value}


def description(manifest: Manifest, threshold: float) -> str:
    """Return what a version's page says at the top."""
    rows = f"{manifest.training.rows:,} rows" if manifest.training.rows is not None else "rows"
    segment = ", ".join(f"{column} = {value}" for column, value in manifest.segment.items())
    return (
        f"P({manifest.label} = 1){f' for {segment}' if segment else ''} by {manifest.engine}, trained on {rows} of "
        f"`{manifest.training.name}` until {manifest.trained_until:%Y-%m-%d %H:%M} UTC; "
        f"operating point {threshold:.4g}."
    )


def mlmodel(manifest: Manifest, digest: str, versions: Mapping[str, str]) -> str:
    """Return the `MLmodel` file: MLflow's pages show the signature from it, `mlflow.onnx.load_model` opens by it.

    It names the ONNX flavour only: no flavour that would have to unpickle anything. JSON is YAML, too.
    """
    inputs = [{"type": kind, "name": name, "required": True} for name, kind in manifest.inputs.items()]
    body: dict[str, Any] = {
        "flavors": {"onnx": {"data": ONNX, "onnx_version": versions.get("onnx", "")}},
        "mlflow_version": versions.get("mlflow", ""),
        "model_uuid": digest.partition(":")[2][:32],
        "signature": {
            "inputs": json.dumps(inputs),
            "outputs": json.dumps([{"type": "float", "name": SCORE, "required": True}]),
            "params": None,
        },
    }
    return json.dumps(body, indent=1, sort_keys=True) + "\n"
