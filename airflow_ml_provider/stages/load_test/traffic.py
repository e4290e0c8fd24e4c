"""The requests of a load test: recorded ones, or made from rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import models, tables
from airflow_ml_provider.exceptions import DataError

MOST = 10_000
"""Different requests that are kept; a longer test repeats them."""


@dataclass(frozen=True)
class Traffic:
    """Requests in the order of their source.

    Attributes:
        requests: bodies of the Open Inference Protocol.
        times: when each was recorded (seconds); none when they were not.
        digest: of the source.
    """

    requests: Sequence[Mapping[str, Any]]
    times: Optional[Sequence[float]]
    digest: str


def inputs_of(package: Path) -> list[dict[str, Any]]:
    """Return the inputs of a model package in the words of the protocol."""
    datatypes = {"float": "FP32", "string": "BYTES"}
    manifest = models.read_manifest(package)
    return [{"name": n, "datatype": datatypes[kind], "shape": [-1, 1]} for n, kind in manifest.inputs.items()]


def load(path: Path, inputs: Sequence[Mapping[str, Any]], rows: int, *, timed: bool) -> Traffic:
    """Return the requests of a Parquet file, a file of JSON lines, or a folder of such.

    Parameters:
        inputs: of the model, as its metadata describes them.
        rows: per request, where requests are made from rows.
        timed: all of them, with their times, in the order of these.

    Raises:
        DataError: there are none, or they lack an input or a time.
    """
    if path.suffix == ".parquet" and not timed:
        table = _parquet(path)
        return Traffic(_from_rows(table, inputs, rows), None, tables.file_digest(path))
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    try:
        lines = list(_lines(files, None if timed else MOST * rows))
        digest = tables.files_digest(path if path.is_dir() else path.parent, files)
    except (OSError, ValueError) as error:
        raise DataError(f"requests {path} cannot be read: {error}") from error
    if not lines:
        raise DataError(f"requests {path}: there are none")
    if timed:
        lines.sort(key=_time)
    if "request" in lines[0]:
        requests = [{"inputs": line["request"]["inputs"]} for line in lines if "request" in line]
    else:
        requests = _from_rows(lines, inputs, 1 if timed else rows)
    return Traffic(requests, [_time(line) for line in lines] if timed else None, digest)


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            batch = next(file.iter_batches(MOST), None)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"requests {path} cannot be read: {error}") from error
    if batch is None or not batch.num_rows:
        raise DataError(f"requests {path}: there are none")
    found: list[dict[str, Any]] = batch.to_pylist()
    return found


def _lines(files: Sequence[Path], most: Optional[int]) -> Iterator[dict[str, Any]]:
    """Give the lines, without copies that the gateway made by itself."""
    given = 0
    for file in files:
        with open(file, encoding="utf-8") as lines:
            for text in lines:
                if most is not None and given >= most:
                    return
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise DataError(f"requests {file}: a line must be a JSON object, got {text[:80]!r}")
                if line.get("traffic") != "mirror":
                    given += 1
                    yield line


def _time(line: Mapping[str, Any]) -> float:
    """Return when a request came; a prediction log has the time of the answer."""
    try:
        answered = datetime.fromisoformat(str(line["time"]).replace("Z", "+00:00")).timestamp()
        return answered - float(line.get("milliseconds", 0.0)) / 1000
    except (KeyError, ValueError) as error:
        raise DataError(f"recorded requests need a time in ISO 8601 each: {error!r} in {str(line)[:120]}") from error


def _from_rows(
    rows: Sequence[Mapping[str, Any]], inputs: Sequence[Mapping[str, Any]], per_request: int
) -> list[dict[str, Any]]:
    if missing := [i["name"] for i in inputs if i["name"] not in rows[0]]:
        raise DataError(f"the rows lack the model's inputs {', '.join(missing)}; they have {', '.join(rows[0])}")
    chunks = [rows[at : at + per_request] for at in range(0, len(rows), per_request)]
    if len(chunks) > 1 and len(chunks[-1]) < per_request:
        chunks.pop()
    return [{"inputs": [_tensor(one, [row.get(one["name"]) for row in chunk]) for one in inputs]} for chunk in chunks]


def _tensor(described: Mapping[str, Any], values: Sequence[Any]) -> dict[str, Any]:
    """Return a tensor of one value per row. Numbers that are missing are null, texts empty."""
    kind = described["datatype"]
    if kind == "BYTES":
        data: list[Any] = ["" if value is None else str(value) for value in values]
    elif kind.startswith("FP"):
        data = [None if value is None or value != value else float(value) for value in values]
    else:
        data = [None if value is None else int(value) for value in values]
    shape = [len(data), *(1 for _ in described.get("shape", (-1,))[1:])]
    return {"name": described["name"], "datatype": kind, "shape": shape, "data": data}
