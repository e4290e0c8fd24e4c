"""Merging rows into a table by key: every changed partition is written aside, then all are put in place as one.

An intent file lists what is about to be put in place. Whoever finds one (the retry of a killed task) finishes it first,
so that a merge happens wholly or not at all. A lock lets one merge at a time touch the table; the kernel releases it
when its holder ends, however it ends.
"""

# ruff: noqa: S608 - the SQL is made of quoted names and texts

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.ingest import logic
from airflow_ml_provider.stages.ingest.spec import IngestSpec
from airflow_ml_provider.tables import quote, quote_name

log = logging.getLogger(__name__)

ASIDE, INTENT, LOCK = ".merge", "intent.json", ".merge.lock"


def merge(connection: Any, spec: IngestSpec, counts: Mapping[str, int]) -> tuple[DatasetRef, dict[str, float]]:
    """Merge the rows of `accepted` into the table; return the table and how many rows were new, newer and stale.

    Raises:
        SpecError: the table has other columns, another layout, or rows that the key does not tell apart.
    """
    root = tables.local_path(spec.target)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root):
        roll_forward(root)
        _check_layout(root, spec)
        held = {path.relative_to(root).as_posix(): path for path in _files(root, spec)}
        _check(connection, spec, held)
        metrics = _choose(connection, spec, held)
        _put(connection, spec, root, held)
        return _describe(spec, root, counts), metrics


def roll_forward(root: Path) -> None:
    """Finish a merge that was killed while it put its files in place; forget one that was killed before."""
    aside = root / ASIDE
    intent = aside / INTENT
    if intent.exists():
        names = json.loads(intent.read_text(encoding="utf-8"))
        log.info("finishing an interrupted merge of %d files in %s", len(names), root)
        for staged, final in names.items():
            source, goal = aside / staged, root / final
            if source.exists():  # else it is in place already
                goal.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, goal)
        intent.unlink()
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    import fcntl

    with open(root / LOCK, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _files(root: Path, spec: IngestSpec) -> list[Path]:
    if spec.partition_by:
        return tables.partitions(str(root))
    return [root / tables.DATA] if (root / tables.DATA).exists() else []


def _check_layout(root: Path, spec: IngestSpec) -> None:
    """Raise `SpecError` when the table was laid out otherwise: its rows would be neither updated nor read any more."""
    if spec.partition_by and (root / tables.DATA).exists():
        found, wanted = "one file", f"partitions by {spec.partition_by!r}"
    elif not spec.partition_by and (parts := tables.partitions(str(root))):
        found, wanted = f"partitions such as {parts[0].parent.name}", "one file (no partition_by)"
    else:
        return
    raise SpecError(
        f"the table {root} is laid out as {found}, not as {wanted}; change partition_by or use another target"
    )


def _scan(path: Path) -> str:
    """Return SQL for the rows of a file; the name of its folder is not taken for a column."""
    return f"read_parquet({quote(str(path))}, hive_partitioning = false)"


def _columns(connection: Any, path: Path) -> dict[str, str]:
    """Return the columns of a file and their SQL types."""
    return {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {_scan(path)}").fetchall()}


def _rows(connection: Any, spec: IngestSpec, path: Path) -> str:
    """Return SQL for the rows of a file with all columns of the spec; those that it lacks have no value."""
    found = _columns(connection, path)
    columns = ", ".join(
        quote_name(name) if name in found else f"NULL::{logic.SQL_TYPES[column.type]} AS {quote_name(name)}"
        for name, column in spec.columns.items()
    )
    return f"(SELECT {columns} FROM {_scan(path)})"


def _place(spec: IngestSpec) -> str:
    """Return SQL for the file, below the table's root, that a row belongs to."""
    if not spec.partition_by:
        return quote(tables.DATA)
    return f"strftime({quote_name(spec.partition_by)}, 'interval=%Y-%m-%d/{tables.DATA}')"


def _check(connection: Any, spec: IngestSpec, held: Mapping[str, Path]) -> None:
    for path in held.values():
        logic.check_table(spec.columns, _columns(connection, path), str(path), spec.key)


def _choose(connection: Any, spec: IngestSpec, held: Mapping[str, Path]) -> dict[str, float]:
    """Make `old` (what the table holds of the delivered keys, and where) and `applied` (rows that go in)."""
    key = ", ".join(map(quote_name, spec.key))
    version = quote_name(spec.version) if spec.version else "NULL"
    connection.execute(
        f"CREATE TABLE old AS SELECT {key}, {version} AS _ml_version, '' AS _ml_place FROM accepted LIMIT 0"
    )
    candidates = set(held)
    if spec.partition_by in spec.key:  # then a key never moves to another partition
        candidates &= _places(connection, f"SELECT {_place(spec)} FROM accepted")
    for place in sorted(candidates):
        columns = f"{key}, {version} AS _ml_version, {quote(place)} AS _ml_place"
        rows = _rows(connection, spec, held[place])
        connection.execute(f"INSERT INTO old SELECT {columns} FROM {rows} SEMI JOIN accepted USING ({key})")
    _check_key(connection, spec)
    newer = "true"
    if spec.version:
        newer = f"old._ml_version IS NULL OR accepted.{version} >= old._ml_version"
    connection.execute(f"""
        CREATE TABLE applied AS
        SELECT accepted.*, {_place(spec)} AS _ml_place, old._ml_place AS _ml_from
        FROM accepted LEFT JOIN old USING ({key}) WHERE old._ml_place IS NULL OR {newer}""")
    row = connection.execute(
        "SELECT count(*) FILTER (WHERE _ml_from IS NULL), count(_ml_from) FROM applied"
    ).fetchall()[0]
    total = connection.execute("SELECT count(*) FROM accepted").fetchall()[0][0]
    return {"inserted": row[0], "updated": row[1], "stale": total - row[0] - row[1]}


def _check_key(connection: Any, spec: IngestSpec) -> None:
    """Raise `SpecError` when the table has several rows of a delivered key: a merge would multiply them."""
    key = ", ".join(map(quote_name, spec.key))
    query = f"SELECT {key}, count(*) FROM old GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1"
    if found := connection.execute(query).fetchall():
        *values, count = found[0]
        raise SpecError(
            f"key {list(spec.key)} does not identify the rows of the table {spec.target}: {count} of them have "
            f"{values}; give the key that the table was made with, or use another target"
        )


def _put(connection: Any, spec: IngestSpec, root: Path, held: Mapping[str, Path]) -> None:
    """Write every partition that changes aside, then put them all in place."""
    changed = _places(connection, "SELECT _ml_place FROM applied UNION SELECT _ml_from FROM applied")
    if not spec.partition_by and not held:
        changed.add(tables.DATA)  # a table without rows is a table, too
    if not changed:
        return
    aside = root / ASIDE
    names: dict[str, str] = {}
    for number, place in enumerate(sorted(changed)):
        staged = f"{number}.parquet"
        tables.write(connection, _merged(connection, spec, place, held), aside / staged)
        names[staged] = place
    tables.write_text(aside / INTENT, json.dumps(names))
    roll_forward(root)


def _merged(connection: Any, spec: IngestSpec, place: str, held: Mapping[str, Path]) -> str:
    """Return the query for the new rows of one file: the old ones that stay and the delivered ones that go there."""
    columns = ", ".join(map(quote_name, spec.columns))
    query = f"SELECT {columns} FROM applied WHERE _ml_place = {quote(place)}"
    if place in held:
        key = ", ".join(map(quote_name, spec.key))
        query += (
            f" UNION ALL SELECT {columns} FROM {_rows(connection, spec, held[place])} ANTI JOIN applied USING ({key})"
        )
    return f"SELECT * FROM ({query}) ORDER BY {logic.order_sql(spec.columns, spec.key)}"


def _places(connection: Any, query: str) -> set[str]:
    return {place for (place,) in connection.execute(query).fetchall() if place is not None}


def _describe(spec: IngestSpec, root: Path, counts: Mapping[str, int]) -> DatasetRef:
    refs = [tables.describe(spec.name, path) for path in _files(root, spec)]
    if not spec.partition_by:
        return dataclasses.replace(refs[0], interval=spec.interval, counts=dict(counts))
    whole = tables.combined(spec.name, spec.target, refs)
    return dataclasses.replace(whole, interval=spec.interval, counts=dict(counts))
