"""Training sets: labelled rows with what was known at their time, and the newest ones locked away as the test set."""

# ruff: noqa: S608 - the SQL is made of quoted names and of expressions from the user's own repository

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import IntegrityError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.features import compute, joined, logic, repository, sources, spine
from airflow_ml_provider.stages.features.definition import EVENT
from airflow_ml_provider.stages.features.feast import provenance
from airflow_ml_provider.stages.features.logic import Pick, Windows
from airflow_ml_provider.stages.features.spec import TrainingSetResult, TrainingSetSpec
from airflow_ml_provider.stages.features.spine import LABEL

LOCK = "lock.json"


def run(spec: TrainingSetSpec, info: RunInfo) -> TrainingSetResult:
    """Join, split by time, check, and lock the test set."""
    bounds = logic.windows(spec.interval, spec.split, spec.since)
    repo, store = tables.local_path(spec.repo).absolute(), tables.local_path(spec.store).absolute()
    connection = tables.connect()  # no sums here, so any number of threads gives the same bytes
    opened = sources.open_source(connection, spec.spine.source, spec.sources[spec.spine.source], spec.interval)
    rows = spine.Rows(connection, spec.spine, opened)
    loaded = repository.load(repo, store)
    picks = logic.choose(spec.features, loaded.views, loaded.services)
    logic.check_columns([*rows.columns(), *(column for pick in picks for column in pick.columns()), LABEL])
    folder = store / "training" / spec.name / f"interval={spec.interval.key}"
    with tables.replacing(folder / "train.parquet") as train, tables.replacing(folder / "test.parquet") as test:
        for path, start, end in ((train, spec.since, bounds.train_end), (test, bounds.test_start, bounds.test_end)):
            query = _labelled(rows, start, end, rows.join_keys(picks))
            joined.write(connection, rows, query, picks, path, store, spec.interval)
        _check(connection, spec, bounds, train, test)
        lock = _lock(folder, spec, bounds, test)
    tables.write_text(folder / LOCK, lock)
    return _result(spec, info, loaded, picks, rows, folder, bounds)


def _labelled(rows: spine.Rows, since: Optional[datetime], until: datetime, extra: Sequence[str]) -> str:
    """Return SQL for the rows with t in [since, until) whose outcome was known at `until`, with that outcome."""
    keys = ", ".join(map(tables.quote_name, rows.spine.key))
    labels = f"SELECT {keys}, {LABEL} FROM ({rows.labels_as_of(until)}) WHERE {LABEL} IS NOT NULL"
    return f"SELECT * FROM ({rows.at_t(since, until, extra)}) JOIN ({labels}) USING ({keys})"


def _check(connection: Any, spec: TrainingSetSpec, bounds: Windows, train: Path, test: Path) -> None:
    counts = []
    for path in (train, test):
        query = f"SELECT count(*), count(*) FILTER ({LABEL} NOT IN (0, 1)) FROM read_parquet({tables.quote(str(path))})"
        counts.append(connection.execute(query).fetchall()[0])
    (trained, bad), (tested, worse) = counts
    logic.check_counts(trained, tested, bad + worse, spec.min_rows, spec.split, bounds)


def _lock(folder: Path, spec: TrainingSetSpec, bounds: Windows, test: Path) -> str:
    """Return the lock for a test set.

    Raises:
        IntegrityError: the interval's test set was locked with other rows.
    """
    digest = tables.file_digest(test)
    path = folder / LOCK
    if path.exists():
        locked = json.loads(path.read_text(encoding="utf-8"))["digest"]
        if locked != digest:
            raise IntegrityError(
                f"test set {spec.name!r} of {spec.interval.key} was locked with digest {locked}, but would now have "
                f"{digest}: its source, features or window changed. Give the training set another name, or remove "
                f"{path} if models that were measured on the old rows no longer matter"
            )
    window = {"start": codec.encode(bounds.test_start), "end": codec.encode(bounds.test_end)}
    return json.dumps({"digest": digest, "window": window}, indent=1, sort_keys=True)


def _result(
    spec: TrainingSetSpec,
    info: RunInfo,
    repo: repository.Repository,
    picks: Sequence[Pick],
    rows: spine.Rows,
    folder: Path,
    bounds: Windows,
) -> TrainingSetResult:
    train = _ref(f"{spec.name}_train", folder / "train.parquet", spec, spec.since, bounds.train_end)
    test = _ref(f"{spec.name}_test", folder / "test.parquet", spec, bounds.test_start, bounds.test_end)
    views = tuple({p.view.name: _view_ref(p.view, repo, spec.interval) for p in picks}.values())
    inputs = (*views, rows.source.ref())
    uris = {ref.name: ref.uri for ref in inputs}
    origins = {**rows.lineage(), **joined.lineage(picks), LABEL: rows.label_lineage()[LABEL]}
    lineage = compute.column_lineage(origins, uris)
    facets = {
        "inputs": {ref.uri: {"input_rows": ref.rows} for ref in inputs},
        "outputs": {
            ref.uri: {"column_lineage": lineage, "quality_metrics": {"row_count": ref.rows, "columns": {}}}
            for ref in (train, test)
        },
        "run": {"provenance": provenance(info, repo, inputs)},
    }
    metrics = {f"{part}_{name}": float(value) for part, ref in (("train", train), ("test", test))
               for name, value in (("rows", ref.rows or 0), ("positives", ref.counts["positives"]))}  # fmt: skip
    return TrainingSetResult(
        inputs=inputs, outputs=(train, test), metrics=metrics, facets=facets, train=train, test=test, views=views
    )


def _ref(name: str, path: Path, spec: TrainingSetSpec, start: Optional[datetime], end: datetime) -> DatasetRef:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns = file.read(columns=[LABEL, EVENT])
    first = start or min(columns.column(EVENT).to_pylist(), default=None)
    interval = Interval(first, end, spec.interval.key) if first and first < end else None
    positives = pc.sum(columns.column(LABEL)).as_py() or 0
    return replace(tables.describe(name, path, interval=interval), counts={"positives": positives})


def _view_ref(view: logic.View, repo: repository.Repository, until: Interval) -> DatasetRef:
    root = str(compute.root(repo.store, view.table)) if view.table else view.path
    parts = [tables.describe(view.name, path) for path in compute.files(view, repo.store, until)]
    return tables.combined(view.name, root, parts)
