"""Landing files to Parquet: read, judge every file and row, type and deduplicate in DuckDB, commit."""

# ruff: noqa: S608 - the SQL is made of quoted names and texts

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, provenance, tables
from airflow_ml_provider.exceptions import DataError, Unavailable
from airflow_ml_provider.provenance import Provenance, RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.ingest import logic, merge, reader
from airflow_ml_provider.stages.ingest.logic import FileReport
from airflow_ml_provider.stages.ingest.spec import IngestResult, IngestSpec
from airflow_ml_provider.stages.ingest.staging import stage
from airflow_ml_provider.tables import quote_name

log = logging.getLogger(__name__)


def run(spec: IngestSpec, info: RunInfo) -> IngestResult:
    """Bring the landing files of the interval into the table, once, and say what became of every file and row.

    Raises:
        SpecError: `source` is a folder, or the table to merge into has other columns.
        Unavailable: no file is there and `on_missing` is `fail`.
    """
    source = logic.resolve_source(spec.source, spec.interval)
    base, paths = reader.landing_files(source)
    if not paths and spec.on_missing == "fail":
        raise Unavailable(
            f"no landing file matches {source!r} for interval {spec.interval.key}; wait for the delivery (sensor, "
            f"retries), mend the path, or say on_missing='empty'"
        )
    with _engine(spec) as connection:
        files = stage(connection, spec, base, paths)
        good, accepted = _deduplicate(connection, spec, files)
        _check_nothing_lost(files, good)
        where = tables.partition(spec.quarantine_root, spec.interval)
        status, reason = logic.verdict(files, accepted, str(where.parent))
        counts = logic.counts(files, accepted)
        dead = _write_dead_letters(connection, spec, files, where)
        dataset: Optional[DatasetRef] = None
        metrics: dict[str, float] = {}
        if status == "ok" and spec.mode == "overwrite":
            dataset = _overwrite(connection, spec, counts)
        elif status == "ok":
            dataset, metrics = merge.merge(connection, spec, counts)
    for file in files:
        log.info("%s: %s, %d rows %s", file.name, file.status, file.rows, file.reason)
    return _result(spec, info, files, dataset, dead, status, reason, counts, metrics)


@contextmanager
def _engine(spec: IngestSpec) -> Iterator[Any]:
    """Give an in-memory DuckDB connection that spills to a folder named after this very work.

    A killed run leaves the folder to the next try, which removes it.
    """
    name = codec.digest([spec.target, spec.interval.key, spec.source])[-16:]
    folder = Path(tempfile.gettempdir()) / f"ml-ingest-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder, 0o700)  # fails if it is somebody else's
    try:
        connection = tables.connect(memory_limit=f"{spec.memory_gib}GiB", temp_directory=str(folder))
        try:
            yield connection
        finally:
            connection.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _deduplicate(connection: Any, spec: IngestSpec, files: list[FileReport]) -> tuple[int, int]:
    """Make `accepted` with the user's column names; return how many good rows there were and how many are left."""
    names = list(spec.columns)
    columns = {name: f"c{i}" for i, name in enumerate(names)}
    renamed = ", ".join(f"{columns[name]} AS {quote_name(name)}" for name in names)
    if spec.key:
        key = ", ".join(columns[name] for name in spec.key)
        order = logic.newest_first_sql(columns[spec.version] if spec.version else None, logic.place_sql(files), "line")
        # Few rows have a twin: ranking only those costs a fraction of ranking all.
        query = f"""
            WITH good AS (SELECT * FROM staged WHERE reason IS NULL),
                 twins AS (SELECT {key} FROM good GROUP BY {key} HAVING count(*) > 1)
            SELECT {renamed} FROM good ANTI JOIN twins USING ({key})
            UNION ALL
            SELECT {renamed} FROM (
                FROM good SEMI JOIN twins USING ({key})
                QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {order}) = 1)"""
    else:
        query = f"SELECT DISTINCT {renamed} FROM staged WHERE reason IS NULL"
    connection.execute(f"CREATE TABLE accepted AS {query}")
    good = connection.execute("SELECT count(*) FROM staged WHERE reason IS NULL").fetchall()[0][0]
    accepted = connection.execute("SELECT count(*) FROM accepted").fetchall()[0][0]
    return good, accepted


def _check_nothing_lost(files: list[FileReport], good: int) -> None:
    read, dead = sum(f.rows for f in files), sum(f.quarantined for f in files)
    if read != good + dead:
        raise DataError(f"of {read} rows read {good} are good and {dead} dead letters: a fault in ingest")


def _overwrite(connection: Any, spec: IngestSpec, counts: dict[str, int]) -> DatasetRef:
    path = tables.partition(spec.target, spec.interval)
    tables.write(connection, f"SELECT * FROM accepted ORDER BY {logic.order_sql(spec.columns, spec.key)}", path)
    return tables.describe(spec.name, path, interval=spec.interval, counts=counts)


def _write_dead_letters(connection: Any, spec: IngestSpec, files: list[FileReport], path: Path) -> Optional[DatasetRef]:
    """Replace the dead letters of the interval; without any, those of an earlier try disappear.

    A file that is quarantined as a whole is one dead letter without line and text, and `rows` says how many it had.
    """
    if not any(f.quarantined or f.status == "quarantined" for f in files):
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()
        return None
    connection.execute(
        "CREATE TABLE files (file INT, name VARCHAR, digest VARCHAR, bad BOOLEAN, rows BIGINT, reason VARCHAR)"
    )
    connection.executemany(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)",
        [[i, f.name, f.digest, f.status == "quarantined", f.rows, f.reason] for i, f in enumerate(files)],
    )
    query = """
        SELECT name AS file, digest, line, 1::BIGINT AS rows, dead.reason, raw FROM dead JOIN files USING (file)
        UNION ALL
        SELECT name, digest, NULL, rows, reason, NULL FROM files WHERE bad
        ORDER BY file, line NULLS FIRST"""
    tables.write(connection, query, path)
    return tables.describe(f"{spec.name}_quarantine", path, interval=spec.interval)


def _result(
    spec: IngestSpec,
    info: RunInfo,
    files: list[FileReport],
    dataset: Optional[DatasetRef],
    dead: Optional[DatasetRef],
    status: Any,
    reason: str,
    counts: dict[str, int],
    metrics: dict[str, float],
) -> IngestResult:
    inputs = tuple(
        DatasetRef(
            name=f"landing/{spec.name}",
            uri=f.path,
            digest=f.digest,
            format=f.format,
            interval=spec.interval,
            rows=None if f.status == "duplicate" else f.rows,  # it was not read again
        )
        for f in files
    )
    outputs = tuple(ref for ref in (dataset, dead) if ref is not None)
    made_from = Provenance(
        code=provenance.code(info),
        data={f.name: f.digest for f in files},
        environment=provenance.environment(["duckdb", "pyarrow"]),
        why=provenance.why(info),
    )
    facets = {
        "inputs": {ref.uri: {"input_rows": ref.rows or 0} for ref in inputs},
        "outputs": {ref.uri: {"quality_metrics": {"row_count": ref.rows}} for ref in outputs},
        "run": {"provenance": made_from},
    }
    return IngestResult(
        status=status,
        reason=reason,
        inputs=inputs,
        outputs=outputs,
        metrics={**counts, **metrics},
        facets=facets,
        dataset=dataset,
        quarantine=dead,
        counts=counts,
        files=tuple(f.public() for f in files),
    )
