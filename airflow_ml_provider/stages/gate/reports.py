"""Reports of other stages, proven to be what their refs name and about the model that they are used for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.refs import ModelRef, ReportRef

Kind = Literal["evaluation report", "parity report", "load test report"]

# What a report of each kind must say, and who writes one.
_SAYS: Mapping[str, tuple[str, ...]] = {
    "evaluation report": ("test", "metrics", "operating_point"),
    "parity report": ("passed", "max_difference", "flips"),
    "load test report": ("rate", "metrics", "generator"),
}
_SOURCES = {
    "evaluation report": "the evaluate stage's `report`",
    "parity report": "the register stage's `parity`",
    "load test report": "the load test stage's `report`",
}


def read(ref: ReportRef, model: ModelRef, what: Kind) -> dict[str, Any]:
    """Return a report about a model.

    Raises:
        DataError: the file cannot be read, or is another kind of report.
        IntegrityError: it was changed, or is about another model.
    """
    path = tables.local_path(ref.uri)
    try:
        found = tables.file_digest(path)
        body: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{what} {path} cannot be read: {error}") from error
    if found != ref.digest:
        raise IntegrityError(f"{what} {path} has digest {found}, not {ref.digest}: it was changed")
    about = body.get("model") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(about, dict):
        raise DataError(f"{what} {path} does not say which model it is about")
    if lacking := [name for name in _SAYS[what] if name not in body]:
        known = next((f": it is the {kind}" for kind, names in _SAYS.items() if set(names) <= set(body)), "")
        raise DataError(f"{what} {path} lacks {', '.join(lacking)}{known}; pass {_SOURCES[what]}")
    if about.get("digest") != model.digest:
        version = f" version {model.version}" if model.version else ""
        raise IntegrityError(f"{what} is about model {about.get('digest')}, not {model.digest} ({model.name}{version})")
    return body
