"""The quality of a table over time: one small file per batch, below the root of the validate stage's reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.intervals import Interval

_FOLDER, _PREFIX, _SUFFIX = "series", "interval=", ".json"


def point(root: str, interval: Interval) -> Path:
    """Return the file with the quality of the batch of `interval`."""
    return tables.local_path(root) / _FOLDER / f"{_PREFIX}{interval.key}{_SUFFIX}"


def write_point(root: str, interval: Interval, body: Mapping[str, Any]) -> Path:
    """Replace the point of `interval`."""
    text = json.dumps(codec.encode(body), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return tables.write_text(point(root, interval), text + "\n")


def read_series(root: str, until: Optional[Union[Interval, str]] = None) -> list[dict[str, Any]]:
    """Return the quality of each batch in order of time.

    Parameters:
        root: `reports` of the validate stage; a folder without any series gives an empty list.
        until: an interval or its key: later batches are left out, so that a re-run of an old day sees what it saw.

    Returns:
        Per batch `interval` (key), `rows`, `quarantined`, `quality` (score per measured dimension and `overall`; empty
        for an empty batch), `passed` (whether it was admitted), `failed` (names of the expectations that did not hold,
        by severity), `reason` and `dataset` (digest of the batch).

    Raises:
        DataError: a file is not a point of a series.
    """
    last = until.key if isinstance(until, Interval) else until
    found = {
        path.name[len(_PREFIX) : -len(_SUFFIX)]: path
        for path in (tables.local_path(root) / _FOLDER).glob(f"{_PREFIX}*{_SUFFIX}")
    }
    return [_read(found[key]) for key in sorted(found) if last is None or key <= last]


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"quality series {path} cannot be read: {error}; run validate of that interval again"
        ) from error
    if not isinstance(body, dict) or "interval" not in body or "quality" not in body:
        raise DataError(f"{path} is not a point of a quality series; run validate of that interval again")
    return body
