"""Rows with the features that were known at their time, written as Parquet."""

# ruff: noqa: S608 - the SQL is made of quoted names and of expressions from the user's own repository

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features import asof, compute, spine
from airflow_ml_provider.stages.features.definition import EVENT
from airflow_ml_provider.stages.features.logic import Pick
from airflow_ml_provider.stages.features.spine import LABEL
from airflow_ml_provider.stages.features.windows import Lineage


def write(
    connection: Any, rows: spine.Rows, query: str, picks: Sequence[Pick], path: Path, store: Path, until: Interval
) -> None:
    """Join the features that a run for the interval `until` may see to the rows of `query`, and write them in order.

    A column `label` in the query comes last.

    Raises:
        DataError: the key does not identify the rows, or a view has no data.
    """
    with compute.explained("spine"):
        connection.execute(f"CREATE OR REPLACE TEMP TABLE __spine AS {query}")
    keys = ", ".join(map(tables.quote_name, rows.spine.key))
    twice = f"SELECT {keys}, count(*) FROM __spine GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1"
    if found := connection.execute(twice).fetchall():
        *values, count = found[0]
        raise DataError(f"spine.key {list(rows.spine.key)} does not identify the rows: {count} of them have {values}")
    files = {pick.view.name: compute.files(pick.view, store, until) for pick in picks}
    names = [row[0] for row in connection.execute("DESCRIBE __spine").fetchall()]
    columns = f"* EXCLUDE ({LABEL}), {LABEL}" if LABEL in names else "*"
    with compute.explained(f"feature views {', '.join(pick.view.name for pick in picks)}"):
        query = asof.join(connection, "__spine", EVENT, picks, files, rows.join_keys(picks))
        tables.write(connection, f"SELECT {columns} FROM ({query}) ORDER BY {EVENT}, {keys}", path)


def lineage(picks: Sequence[Pick]) -> Lineage:
    """Return output column to (view, feature)."""
    return {column: [(p.view.name, feature)] for p in picks for column, feature in p.columns().items()}
