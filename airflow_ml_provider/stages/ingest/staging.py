"""Landing files to two tables in DuckDB: `staged`, typed rows, and `dead`, what cannot be a row and why."""

# ruff: noqa: S608 - the SQL is made of quoted names and texts

from __future__ import annotations

import io
from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError, Unavailable
from airflow_ml_provider.stages.ingest import logic, reader
from airflow_ml_provider.stages.ingest.logic import FileReport
from airflow_ml_provider.stages.ingest.spec import IngestSpec
from airflow_ml_provider.tables import quote

_CHUNK = 1 << 18  # bytes of CSV that make one piece of work for a thread of the table engine


def stage(connection: Any, spec: IngestSpec, base: Path, paths: Sequence[Path]) -> list[FileReport]:
    """Fill `staged` (columns c0, c1 … and `reason` where a row is dead) and `dead`; return what became of each file."""
    typed = ", ".join(f"c{i} {logic.SQL_TYPES[column.type]}" for i, column in enumerate(spec.columns.values()))
    connection.execute(f"CREATE TABLE staged (file INT, line BIGINT, reason VARCHAR, {typed})")
    connection.execute("CREATE TABLE dead (file INT, line BIGINT, reason VARCHAR, raw VARCHAR)")
    files: list[FileReport] = []
    for number, path in enumerate(paths):
        name, before = path.relative_to(base).as_posix(), _stamp(path)
        digest = tables.file_digest(path)
        report = FileReport(name, str(path), digest, reader.file_format(path))
        twin = next((f for f in files if f.same_as(report)), None)
        files.append(report)
        if twin is not None:
            report.status, report.reason = "duplicate", f"same bytes as {twin.name}"
            continue
        try:
            _read(connection, spec, number, path, report)
        except reader.BadFile as error:
            for table in ("staged", "dead"):
                connection.execute(f"DELETE FROM {table} WHERE file = {number}")
            report.status, report.reason, report.quarantined = "quarantined", str(error), report.rows
        if _stamp(path) != before:
            raise Unavailable(f"landing file {path} changed while it was read; try again when its sender is done")
        if report.status == "quarantined":
            continue
        query = f"SELECT count(*), coalesce(min_by(reason, line), '') FROM dead WHERE file = {number}"
        report.quarantined, report.reason = connection.execute(query).fetchall()[0]
        if report.rows == 0:
            report.status, report.reason = "empty", "no rows"
    return files


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(connection: Any, spec: IngestSpec, number: int, path: Path, report: FileReport) -> None:
    lines = reader.Lines(path)
    kind = report.format.partition(".")[0]
    if kind == "csv":
        header = reader.csv_header(lines, spec.delimiter)
        if header is None:
            return
        match = logic.match_columns(header, spec.columns)
        report.ignored = match.ignored
        for batch in reader.csv_batches(lines, len(header), spec.delimiter):
            report.rows += len(batch)
            if not match.problem:
                _insert_csv(connection, spec, number, batch, len(header), match)
    elif kind == "jsonl":
        keys: set[str] = set()
        for batch in reader.jsonl_batches(lines):
            report.rows += len(batch)
            keys |= _insert_json(connection, spec, number, batch)
        if not keys:  # every line is broken or an empty object: the rows themselves say so
            return
        match = logic.match_columns(sorted(keys), spec.columns)
        report.ignored = match.ignored
    else:
        raise reader.BadFile(f"format {report.format!r} is none of csv, jsonl and ndjson, plain or with .gz or .zst")
    if match.problem:
        raise reader.BadFile(match.problem)


def _insert_csv(
    connection: Any, spec: IngestSpec, number: int, batch: reader.Batch, width: int, match: logic.Match
) -> None:
    import pyarrow as pa
    import pyarrow.csv as pc

    fields = {name: [f"f{i}" for i in positions] for name, positions in match.found.items()}
    read = list(dict.fromkeys(field for found in fields.values() for field in found))
    names = [f"f{i}" for i in range(width)]
    body = b"\n".join([*batch.records, b""])
    table = pc.read_csv(
        io.BytesIO(body),
        read_options=pc.ReadOptions(
            column_names=names, block_size=max(_CHUNK, 2 * max(map(len, batch.records), default=0)), use_threads=False
        ),
        parse_options=pc.ParseOptions(delimiter=spec.delimiter, newlines_in_values=True, ignore_empty_lines=False),
        convert_options=pc.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=read,
            strings_can_be_null=False,
            check_utf8=False,
        ),
    ) if body else pa.table({field: _texts([]) for field in read})  # fmt: skip
    _insert(connection, spec, number, batch, table, "batch", fields, "NULL")


def _insert_json(connection: Any, spec: IngestSpec, number: int, batch: reader.Batch) -> set[str]:
    """Insert the rows of a batch of JSON Lines and return the keys that its objects have."""
    import pyarrow as pa

    table = pa.table({"text": _texts(batch.records)})
    connection.register("batch", table)
    keys, twice = connection.execute("""
        SELECT coalesce(list_distinct(flatten(list(keys))), []), coalesce(bool_or(len(keys) > list_unique(keys)), false)
        FROM (SELECT DISTINCT json_keys(text) AS keys FROM batch
              WHERE json_valid(text) AND json_type(text) = 'OBJECT')""").fetchall()[0]
    connection.unregister("batch")
    titles = list(dict.fromkeys(title for name, column in spec.columns.items() for title in (name, *column.aliases)))
    pointers = {title: quote("/" + title.replace("~", "~0").replace("/", "~1")) for title in titles}
    kind = "CASE WHEN json_valid(text) THEN json_type(text) ELSE 'broken' END"
    values = f"CASE WHEN kind = 'OBJECT' THEN json_extract_string(text, [{', '.join(pointers.values())}]) END"
    rows = f"(SELECT *, {values} AS v FROM (SELECT *, {kind} AS kind FROM batch))"
    places = {title: f"v[{i + 1}]" for i, title in enumerate(titles)}
    fields = {name: [places[title] for title in (name, *column.aliases)] for name, column in spec.columns.items()}
    faults = [logic.repeated_sql("json_keys(text)", titles)] if twice else []
    for name, column in spec.columns.items():
        if column.type in ("int", "string"):
            for title in (name, *column.aliases):
                faults.append(logic.inexact_sql(name, places[title], f"json_type(text, {pointers[title]})"))
    shape = (
        f"CASE kind WHEN 'OBJECT' THEN {logic.all_sql(faults)} WHEN 'broken' THEN 'broken JSON' "
        "ELSE 'no JSON object but ' || kind END"
    )
    _insert(connection, spec, number, batch, table, rows, fields, shape)
    return set(keys)


def _insert(
    connection: Any,
    spec: IngestSpec,
    number: int,
    batch: reader.Batch,
    table: Any,
    rows: str,
    fields: Mapping[str, Sequence[str]],
    shape: str,
) -> None:
    """Type the fields of `rows` and insert them; bury the raw text of what is dead.

    `fields` is SQL by column for the texts of which the first that is a value counts, `shape` SQL for what is wrong
    with a row as such.
    """
    if table.num_rows != len(batch.lines):
        raise DataError(f"{table.num_rows} of {len(batch.lines)} records came through the parser: a fault in ingest")
    required = logic.required_columns(spec)
    texts, values, reasons = [], [], []
    for i, (name, column) in enumerate(spec.columns.items()):
        found = [logic.text_sql(field, spec.null_values) for field in fields[name]]
        texts.append(f"{logic.first_sql(found)} AS t{i}")
        values.append(f"{logic.parse_sql(f't{i}', column.type)} AS p{i}")
        reasons.append(logic.reason_sql(name, f"t{i}", f"p{i}", column.type, spec.null_values, name in required))
    connection.register("batch", table.append_column("line", _numbers(batch.lines)))
    connection.execute(f"""
        INSERT INTO staged
        SELECT {number}, line, coalesce(shape, {logic.all_sql(reasons)}), COLUMNS('p[0-9]+')
        FROM (SELECT *, {", ".join(values)} FROM (SELECT line, {shape} AS shape, {", ".join(texts)} FROM {rows}))""")
    connection.unregister("batch")
    buried = [(broken.line, broken.reason, broken.raw.encode()) for broken in batch.broken]
    if batch.lines:
        span = f"file = {number} AND line BETWEEN {batch.lines[0]} AND {batch.lines[-1]}"
        dead = connection.execute(f"SELECT line, reason FROM staged WHERE {span} AND reason IS NOT NULL").fetchall()
        raw = dict(zip(batch.lines, batch.raw)) if dead else {}
        buried += [(line, reason, raw[line].rstrip(b"\r")) for line, reason in dead]
    _bury(connection, number, buried)


def _bury(connection: Any, number: int, buried: Sequence[tuple[int, str, bytes]]) -> None:
    import pyarrow as pa

    if not buried:
        return
    lines, reasons, raw = zip(*buried)
    table = {"line": _numbers(lines), "reason": _texts([text.encode() for text in reasons]), "raw": _texts(raw)}
    connection.register("buried", pa.table(table))
    connection.execute(f"INSERT INTO dead SELECT {number}, line, reason, raw FROM buried")
    connection.unregister("buried")


def _numbers(values: Sequence[int]) -> Any:
    """Return an Arrow array of int64; `pa.array` would import pandas."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(array("q", values))])


def _texts(values: Sequence[bytes]) -> Any:
    """Return an Arrow array of texts that are known to be UTF-8."""
    import pyarrow as pa

    ends = array("q", accumulate(map(len, values), initial=0))
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.large_utf8(), len(values), buffers)
