"""Tables as folders of Parquet: one file per interval, replaced in one step. Airflow-free.

`ROOT/interval=2013-01-05/data.parquet` holds the rows of one interval. A file is written aside and renamed into place,
so a reader sees the old rows or the new ones, and running an interval again replaces exactly its own rows. What a
computation for interval D may see is `partitions(root, until=D)`: later deliveries stay invisible, which is what makes
a re-run of an old day give the old result.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional
from urllib.parse import unquote

from airflow_ml_provider.exceptions import DataError, invalid
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef

DATA = "data.parquet"
_PREFIX = "interval="


def local_path(uri: str) -> Path:
    """Return the path that a plain path or a `file://` URI names.

    Raises:
        SpecError: the URI has another scheme; buckets are reached through a mounted folder.
    """
    found = re.match(r"file:(?://(?:localhost)?(?=/)|(?!//))(/.*)\Z", uri, re.DOTALL | re.IGNORECASE)
    if found:
        return Path(unquote(found.group(1)))  # all of it: `?` and `#` are characters of globs and names here
    if re.match("[A-Za-z][A-Za-z0-9+.-]*://", uri):
        raise invalid(
            "location", uri, "a path or a file:// URI", "mount the bucket (CSI, gcsfuse, s3fs) and give its path"
        )
    return Path(uri)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success it replaces `path` in one step, on failure it is removed.

    What a killed writer left beside `path` is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        stale.unlink(missing_ok=True)
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield aside
        with open(aside, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Replace the file at `path` by `text` in one step."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path


def file_digest(path: Path) -> str:
    """Return `sha256:…` of the bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return "sha256:" + digest.hexdigest()


def files_digest(root: Path, files: Iterable[Path]) -> str:
    """Return one digest over the relative names and the bytes of `files`."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_digest(path)}\n".encode())
    return "sha256:" + digest.hexdigest()


def partition(root: str, interval: Interval) -> Path:
    """Return the file that holds the rows of `interval`."""
    return local_path(root) / f"{_PREFIX}{interval.key}" / DATA


def partitions(root: str, until: Optional[Interval] = None, since: Optional[str] = None) -> list[Path]:
    """Return the files of a table in order of their keys, from key `since` up to and with the key of `until`."""
    found = {p.parent.name[len(_PREFIX) :]: p for p in local_path(root).glob(f"{_PREFIX}*/{DATA}")}
    return [
        found[key] for key in sorted(found) if (until is None or key <= until.key) and (since is None or key >= since)
    ]


def connect(**settings: Any) -> Any:
    """Return an in-memory DuckDB connection in UTC that neither installs extensions nor prints progress."""
    import duckdb

    config = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false", **settings}
    connection = duckdb.connect(config=config)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")
    return connection


def write(connection: Any, query: str, path: Path, *, metadata: Optional[Mapping[str, str]] = None) -> None:
    """Write the rows of `query`, in its order, to `path` as zstd Parquet in one step. Equal rows give equal bytes."""
    options = ["FORMAT parquet", "COMPRESSION zstd", "ROW_GROUP_SIZE 122880"]
    if metadata:
        pairs = ", ".join(f"{quote_name(k)}: {quote(v)}" for k, v in sorted(metadata.items()))
        options.append(f"KV_METADATA {{{pairs}}}")
    with replacing(path) as aside:
        connection.execute(f"COPY ({query}) TO {quote(str(aside))} ({', '.join(options)})")


def describe(
    name: str, path: Path, *, interval: Optional[Interval] = None, counts: Optional[Mapping[str, int]] = None
) -> DatasetRef:
    """Return the ref of a Parquet file: its digest, number of rows and columns as found in the file.

    Raises:
        DataError: the file is missing or is not Parquet.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except (OSError, ValueError) as error:
        raise DataError(f"dataset {name!r} at {path} cannot be read: {error}") from error
    return DatasetRef(
        name=name,
        uri=str(path),
        digest=file_digest(path),
        interval=interval,
        rows=rows,
        columns={field.name: str(field.type) for field in schema},
        counts=dict(counts or {}),
    )


def combined(name: str, root: str, parts: Iterable[DatasetRef]) -> DatasetRef:
    """Return one ref for several partitions of a table; its digest is that of the parts in order."""
    refs = sorted(parts, key=lambda ref: ref.uri)
    digest = hashlib.sha256("\n".join(ref.digest for ref in refs).encode()).hexdigest()
    columns: dict[str, str] = {}
    for ref in refs:
        columns.update(ref.columns)
    return DatasetRef(
        name=name, uri=root, digest=f"sha256:{digest}", rows=sum(ref.rows or 0 for ref in refs), columns=columns
    )


def quote(text: str) -> str:
    """Return `text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """Return `name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
