"""What the score stage says and decides without touching data. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import ModelRef

SCORE, FLAGGED = "score", "flagged"
MODEL_COLUMNS = ("model_name", "model_version", "model_digest")
ADDED = (SCORE, FLAGGED, *MODEL_COLUMNS)


def carried(keep: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the columns that go over to the predictions: those named, or all of them.

    Raises:
        SpecError: a column has the name of one that scoring adds.
        DataError: a column is missing.
    """
    names = list(keep or columns)
    if clash := [name for name in names if name in ADDED]:
        raise SpecError(f"column {clash[0]!r} is one that scoring adds; name the columns to carry over in keep")
    require(names, columns, "keep")
    return names


def require(names: Sequence[str], columns: Sequence[str], whose: str) -> None:
    """Raise `DataError` unless the data has all the columns that somebody needs."""
    if missing := [name for name in names if name not in columns]:
        raise DataError(f"{whose} needs {', '.join(map(repr, missing))}; the data has {', '.join(columns)}")


def nobody(names: Sequence[str], alias: str, interval: Interval) -> str:
    """Return why nothing is scored."""
    began = f"{interval.start:%Y-%m-%d %H:%M} UTC"
    return f"no {alias} for data of {interval.key}: nobody held it at {began} for {', '.join(names)}"


def remark(counts: Mapping[str, int], absent: Sequence[str], alias: str) -> str:
    """Return what the reader should know of rows that were not scored; empty when all were."""
    parts = []
    if counts["without_model"]:
        parts.append(f"{counts['without_model']} of {counts['rows']} rows belong to no model and were left out")
    if absent:
        parts.append(f"no {alias} yet: {', '.join(absent)}")
    if counts.get("not_a_number"):
        parts.append(f"{counts['not_a_number']} scores are not a number")
    return "; ".join(parts)


def column_lineage(
    uri: str, keep: Sequence[str], inputs: Sequence[str], segments: Sequence[str]
) -> dict[str, list[list[str]]]:
    """Return which columns of the data each column of the predictions comes from."""
    used = [[uri, name] for name in dict.fromkeys((*inputs, *segments))]
    chosen = [[uri, name] for name in segments]
    return {
        **{name: [[uri, name]] for name in keep},
        SCORE: used,
        FLAGGED: used,
        **(dict.fromkeys(MODEL_COLUMNS, chosen) if chosen else {}),
    }


def told(models: Sequence[ModelRef], rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return the models as the file's metadata lists them."""
    return [
        {"name": model.name, "version": model.version, "digest": model.digest, "rows": count}
        for model, count in zip(models, rows)
    ]
