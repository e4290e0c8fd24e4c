"""Reports of other stages, proven to be what their refs name and about the model that they are used for."""

from __future__ import annotations

import json
from typing import Any

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.refs import ModelRef, ReportRef


def read(ref: ReportRef, model: ModelRef, what: str) -> dict[str, Any]:
    """Return a report about a model.

    Raises:
        DataError: the file cannot be read.
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
    if about.get("digest") != model.digest:
        version = f" version {model.version}" if model.version else ""
        raise IntegrityError(f"{what} is about model {about.get('digest')}, not {model.digest} ({model.name}{version})")
    return body
