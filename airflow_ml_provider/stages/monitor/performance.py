"""Predictions against the labels that arrive later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.models import SCORE
from airflow_ml_provider.stages.evaluate.metrics import Rows, measure
from airflow_ml_provider.stages.monitor.logic import Performance
from airflow_ml_provider.stages.monitor.spec import DriftPolicy

LABEL, KNOWN_AT = "label", "label_known_at"
# Columns of the predictions that say which model made them; predictions without them count as those of one model.
MODEL, VERSION = "model_name", "model_version"
# Partitions are read from the newest on, so many at a time, until every label has found its prediction.
_AT_ONCE = 32
# Name of the column with the file of a prediction, which no column of the predictions has.
_FILE = "airflow_ml_file"


@dataclass(frozen=True)
class Arrived:
    """Labels that arrived in an interval and what was read to judge the predictions.

    Attributes:
        performance: the judgement.
        read: the partition of labels and the partitions of predictions that met them.
    """

    performance: Performance
    read: tuple[Path, ...] = ()


def measure_arrived(
    labels: Optional[str], predictions: str, key: Sequence[str], interval: Interval, policy: DriftPolicy
) -> Arrived:
    """Compare the labels that arrived in an interval with what had been predicted by then.

    A row that was scored more than once counts with the newest prediction; of several labels of a row the one known
    last counts. Labels of rows that were never scored, or whose score is not a number, are counted, not judged.

    Parameters:
        labels: root folder of labels by the interval in which they arrived; none measures nothing.
        predictions: root folder of predictions; partitions up to and with `interval` are looked at.
        key: columns that identify a row in both.
        interval: the window.
        policy: `min_labels`.

    Raises:
        DataError: a column is missing, or a label is not 0 or 1.
    """
    path = tables.partition(labels, interval) if labels else None
    if path is None or not path.is_file():
        return Arrived(Performance())
    with tables.connect() as connection:
        count = _load(connection, path, key)
        sources = _match(connection, predictions, key, interval, count)
        rows = connection.execute("SELECT model, version, label, score FROM met").fetchnumpy()
    performance = judge(rows["model"], rows["version"], rows["label"], rows["score"], policy.min_labels)
    return Arrived(replace(performance, labels=count), (path, *sources))


def judge(models: Any, versions: Any, labels: Any, scores: Any, min_labels: int) -> Performance:
    """Return the performance over rows, overall and by model.

    Parameters:
        models: name of the model per row.
        versions: its version per row.
        labels: 0 or 1 per row.
        scores: predicted probability per row; rows where it is not a number are left out and counted.
        min_labels: fewer rows, or rows of one label, are not judged.
    """
    overall = _metrics(labels, scores)
    by_model = {}
    for name in sorted(set(models.tolist())):
        here = models == name
        by_model[name] = {"versions": sorted(set(versions[here].tolist())), **_metrics(labels[here], scores[here])}
    judged = overall["rows"] >= min_labels and overall["auc"] is not None
    return Performance(labels=len(labels), judged=judged, models=by_model, **overall)


def _metrics(labels: Any, scores: Any) -> dict[str, Any]:
    import numpy as np

    known = ~np.isnan(scores)
    labels, scores, lost = labels[known], scores[known], len(scores) - int(known.sum())
    if not len(labels):
        return {"rows": 0, "not_a_number": lost, "auc": None, "log_loss": None, "base_rate": None}
    found = measure(Rows.of(labels, scores), 0.5)
    body = {"rows": len(labels), "not_a_number": lost, "auc": found["auc"], "log_loss": found["log_loss"]}
    return {**body, "base_rate": float(labels.mean())}


def _load(connection: Any, path: Path, key: Sequence[str]) -> int:
    """Load the newest known label of each row; return how many there are. NaN is a missing label."""
    source = f"read_parquet({tables.quote(str(path))}, hive_partitioning = false)"
    columns = _columns(connection, source)
    _require(columns, [*key, LABEL], path)
    keys = ", ".join(map(tables.quote_name, key))
    taken = ", ".join([keys, LABEL, *([KNOWN_AT] if KNOWN_AT in columns else [])])
    # DuckDB takes a Parquet file's word that it has no NaN, but its statistics just leave NaN out: into memory first.
    connection.execute(f"CREATE TABLE delivered AS SELECT {taken} FROM {source} WHERE {LABEL} IS NOT NULL")  # noqa: S608
    number = f"TRY_CAST({LABEL} AS DOUBLE)"
    wrong, example = connection.execute(
        f"SELECT count(*), min({LABEL}::VARCHAR) FROM delivered "  # noqa: S608
        f"WHERE coalesce({number} NOT IN (0, 1) AND NOT isnan({number}), true)"
    ).fetchone()
    if wrong:
        raise DataError(f"label in {path} must be 0 or 1, got {example} in {wrong} rows")
    newest = f"ORDER BY {KNOWN_AT} DESC, {LABEL}" if KNOWN_AT in columns else f"ORDER BY {LABEL}"
    connection.execute(
        f"CREATE TABLE arrived AS SELECT {keys}, {number} AS label FROM delivered WHERE {number} IN (0, 1) "  # noqa: S608
        f"QUALIFY row_number() OVER (PARTITION BY {keys} {newest}) = 1"
    )
    return int(connection.execute("SELECT count(*) FROM arrived").fetchone()[0])


def _match(connection: Any, root: str, key: Sequence[str], interval: Interval, wanted: int) -> list[Path]:
    """Fill the table `met` with every label's newest prediction; return the partitions that these stand in."""
    keys = ", ".join(map(tables.quote_name, key))
    connection.execute("CREATE TABLE met (file VARCHAR, model VARCHAR, version VARCHAR, label DOUBLE, score DOUBLE)")
    connection.execute("CREATE TABLE waiting AS SELECT * FROM arrived")
    partitions = tables.partitions(root, until=interval)
    while wanted and partitions:
        newest, partitions = partitions[-_AT_ONCE:], partitions[:-_AT_ONCE]
        files = ", ".join(tables.quote(str(path)) for path in newest)
        source = f"read_parquet([{files}], filename = '{_FILE}', union_by_name = true, hive_partitioning = false)"
        columns = _columns(connection, source)
        _require(columns, [*key, SCORE], tables.local_path(root))
        model, version = (name if name in columns else "''" for name in (MODEL, VERSION))
        connection.execute(
            f"CREATE OR REPLACE TABLE found AS SELECT {keys}, waiting.label, {_FILE} AS file, {model} AS model, "  # noqa: S608
            f"{version} AS version, {SCORE} AS score FROM waiting JOIN {source} USING ({keys}) "
            # Keys of one grain sort in time order, and so do the names of their folders.
            f"WHERE {SCORE} IS NOT NULL QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {_FILE} DESC) = 1"
        )
        connection.execute("INSERT INTO met SELECT file, model, version, label, score FROM found")
        connection.execute(f"DELETE FROM waiting WHERE ({keys}) IN (SELECT ({keys}) FROM found)")  # noqa: S608
        if connection.execute("SELECT count(*) FROM waiting").fetchone()[0] == 0:
            break
    files = connection.execute("SELECT DISTINCT file FROM met ORDER BY file").fetchall()
    return [Path(row[0]) for row in files]


def _columns(connection: Any, source: str) -> Mapping[str, str]:
    return {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}  # noqa: S608


def _require(columns: Mapping[str, str], needed: Sequence[str], place: Path) -> None:
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(f"{place} lacks column {', '.join(missing)}; there are {', '.join(columns)}")
