"""The request with which a version shows that it answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from airflow_ml_provider import models, tables
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.refs import ModelRef

log = logging.getLogger(__name__)


def rows_for(model: ModelRef, rows: Optional[Mapping[str, Sequence[Any]]] = None) -> Mapping[str, Sequence[Any]]:
    """Return the rows to ask a model with, column to values; none when its manifest cannot be read here.

    Parameters:
        model: the model.
        rows: taken as they are; none makes one row of zeros and empty texts by the model's manifest.
    """
    if rows is not None:
        return rows
    try:
        inputs = models.read_manifest(tables.local_path(model.uri)).inputs
    except (DataError, SpecError) as error:
        log.warning("the service is asked nothing, for want of rows: %s", error)
        return {}
    return {column: [0.0 if kind == "float" else ""] for column, kind in inputs.items()}
