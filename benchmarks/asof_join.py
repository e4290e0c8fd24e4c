"""The exact as-of join, against a plain join with ranking, and against Feast's DuckDB store with its created filter.

    python benchmarks/asof_join.py [--rows 1000000] [--labels 100000] [--plans "one pass" "join and rank" feast]

Two histories: sparse (10 feature rows for each entity) and dense (2,000). Every plan runs in a process of its own; time
and memory are those of the process, reading and writing Parquet included, medians of three. All plans must agree.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from airflow_ml_provider import tables
from airflow_ml_provider.stages.features import asof
from airflow_ml_provider.stages.features.logic import View, whole

PLANS = ("one pass", "join and rank", "feast")  # feast needs feast[duckdb]
DAY = 86400


def make(folder: Path, rows: int, labels: int, density: int) -> None:
    """Write `history.parquet` and `labels.parquet`; 5 % of the rows are known a day late, events span 90 days."""
    connection = tables.connect()
    entities = max(1, rows // density)
    event = f"TIMESTAMPTZ '2024-01-01' + to_microseconds((hash(i) % {90 * DAY * 1_000_000})::BIGINT)"
    connection.execute(
        f"COPY (SELECT (hash(i + 7) % {entities})::BIGINT AS entity, {event} AS event_timestamp, event_timestamp + "
        f"to_seconds(CASE WHEN hash(i * 3) % 20 = 0 THEN {DAY} ELSE 0 END) AS created_timestamp, i::DOUBLE AS value "
        f"FROM range({rows}) t(i)) TO {tables.quote(str(folder / 'history.parquet'))}"
    )
    connection.execute(
        f"COPY (SELECT i AS row, (hash(i * 11) % {entities})::BIGINT AS entity, "
        f"TIMESTAMPTZ '2024-01-01' + to_seconds((hash(i + 99) % {90 * DAY})::BIGINT) AS event_timestamp "
        f"FROM range({labels}) t(i)) TO {tables.quote(str(folder / 'labels.parquet'))}"
    )


def run(plan: str, folder: Path) -> float:
    """Run one plan in this process and return the wall time (seconds)."""
    started = time.perf_counter()
    history, labels, out = (folder / name for name in ("history.parquet", "labels.parquet", f"{plan}.parquet"))
    if plan == "feast":
        _feast(folder, out)
        return time.perf_counter() - started
    connection = tables.connect()
    connection.execute(f"CREATE TABLE spine AS FROM {tables.quote(str(labels))}")
    view = View(
        "v", str(history), "event_timestamp", {"entity": "entity"}, {"value": "value"}, created="created_timestamp"
    )
    if plan == "one pass":
        query = asof.join(connection, "spine", "event_timestamp", [whole(view)], {"v": [history]})
    else:
        query = (
            f"SELECT s.*, f.value AS v__value FROM spine s LEFT JOIN (SELECT s.row, f.value FROM spine s JOIN "
            f"{tables.quote(str(history))} f ON s.entity = f.entity AND f.event_timestamp <= s.event_timestamp "
            f"AND f.created_timestamp <= s.event_timestamp QUALIFY row_number() OVER (PARTITION BY s.row ORDER BY "
            f"f.event_timestamp DESC, f.created_timestamp DESC, f.value DESC) = 1) f USING (row)"
        )
    tables.write(connection, f"SELECT row, v__value FROM ({query}) ORDER BY row", out)
    return time.perf_counter() - started


def _feast(folder: Path, out: Path) -> None:
    import pandas as pd
    import pyarrow.parquet as pq
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64

    config = RepoConfig(
        project="bench", provider="local", registry=str(folder / "registry.db"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")}, offline_store={"type": "duckdb"},
        entity_key_serialization_version=3,
    )  # fmt: skip
    entity = Entity(name="entity", value_type=ValueType.INT64)
    source = FileSource(
        path=str(folder / "history.parquet"), timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )  # fmt: skip
    view = FeatureView(name="v", entities=[entity], schema=[Field(name="value", dtype=Float64)], source=source)
    store = FeatureStore(config=config)
    store.apply([entity, view])
    labels = pd.read_parquet(folder / "labels.parquet")
    job = store.get_historical_features(labels, ["v:value"], full_feature_names=True, filter_by_created_timestamp=True)
    pq.write_table(job.to_arrow().select(["row", "v__value"]).sort_by("row"), out)


def main() -> None:
    """Make the data, run every plan in its own process, compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=PLANS)
    parser.add_argument("--densities", nargs="+", type=int, default=[10, 2000])
    parser.add_argument("--run", nargs=2, metavar=("PLAN", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        seconds = run(args.run[0], Path(args.run[1]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"seconds": round(seconds, 2), "mib": peak}))
        return
    print("| rows per entity | plan | seconds | peak MiB |\n| --- | --- | --- | --- |")
    for density in args.densities:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(folder, args.rows, args.labels, density)
            done = []
            for plan in args.plans:
                command = [sys.executable, __file__, "--run", plan, name]
                replies = [subprocess.run(command, capture_output=True, text=True) for _ in range(args.repeat)]
                if failed := [reply for reply in replies if reply.returncode]:
                    print(f"| {density} | {plan} | failed: {failed[0].stderr.strip().splitlines()[-1][:80]} | |")
                    continue
                found = [json.loads(reply.stdout.strip().splitlines()[-1]) for reply in replies]
                seconds, mib = (median(one[what] for one in found) for what in ("seconds", "mib"))
                print(f"| {density} | {plan} | {seconds} | {mib} |", flush=True)
                done.append(tables.quote(str(folder / f"{plan}.parquet")))
            for other in done[1:]:
                both = f"FROM {done[0]} a FULL JOIN {other} b USING (row)"
                query = f"SELECT count(*) {both} WHERE a.v__value IS DISTINCT FROM b.v__value"
                differing = tables.connect().execute(query).fetchall()
                assert differing == [(0,)], (density, other, differing)


if __name__ == "__main__":
    main()
