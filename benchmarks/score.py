"""How long batch scoring takes, Parquet to Parquet, beside the engine itself and MLflow's pyfunc, and with what memory.

    python benchmarks/score.py --rows 1000000

LightGBM with 100 trees on 20 numbers. Each way works in a process of its own: `read` only reads; `ours` streams record
batches through ONNX Runtime; `native` reads the whole file, predicts with the booster on all cores and writes;
`pyfunc` does the same through `mlflow.pyfunc` on a pandas frame, which is what most pipelines do. Medians of three.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

FEATURES = [f"f{i:02d}" for i in range(20)]
WAYS = ("read", "ours", "native", "pyfunc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(_measure(args.way, args.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder), args.rows)
        found = {way: [_process(way, folder) for _ in range(args.repeat)] for way in WAYS}
    print(f"{args.rows:,} rows, {len(FEATURES)} numbers, 100 trees, {os.cpu_count()} cores, medians of {args.repeat}")
    base = median(run["seconds"] for run in found["ours"])
    for way, runs in found.items():
        seconds, cpu, peak = (median(run[what] for run in runs) for what in ("seconds", "cpu", "peak_mib"))
        print(f"{way:8} {seconds:8.2f} s {seconds / base:6.2f} x ours   CPU {cpu:8.2f} s   peak {peak:7.0f} MiB")
    differences = {way: max(run["difference"] for run in runs) for way, runs in found.items() if way != "read"}
    print("largest difference to the booster:", ", ".join(f"{way} {value:.1e}" for way, value in differences.items()))


def _process(way: str, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--way", way, "--folder", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **_PATH})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


_PATH = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def _prepare(folder: Path, rows: int) -> None:
    """Write the rows, train on some of them and keep the model package, the booster and MLflow's model."""
    import lightgbm
    import mlflow.lightgbm
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from airflow_ml_provider import stages, tables
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.stages.train.spec import TrainSpec

    rng = np.random.default_rng(0)
    with pq.ParquetWriter(folder / "rows.parquet", _schema(pa)) as writer:
        for start in range(0, rows, 500_000):
            writer.write_table(_rows(rng, pa, start, min(500_000, rows - start)), row_group_size=122_880)
    pq.write_table(_rows(rng, pa, 0, 40_000), folder / "train.parquet")
    spec = TrainSpec(
        "bench", tables.describe("train", folder / "train.parquet"), str(folder / "models"), exclude=("id",),
        params={"num_boost_round": 100, "early_stopping_rounds": 0},
    )  # fmt: skip
    model = stages.run(spec, RunInfo()).model  # type: ignore[attr-defined]
    (folder / "package").symlink_to(model.uri)
    booster = lightgbm.Booster(model_file=str(Path(model.uri) / "model.txt"))
    mlflow.lightgbm.save_model(booster, str(folder / "pyfunc"))


def _schema(pa: Any) -> Any:
    fields = [("id", pa.int64()), *((name, pa.float32()) for name in FEATURES)]
    return pa.schema([*fields, ("label", pa.int64()), ("event_timestamp", pa.timestamp("us", tz="UTC"))])


def _rows(rng: Any, pa: Any, start: int, count: int) -> Any:
    import numpy as np

    values = rng.normal(size=(len(FEATURES), count)).astype(np.float32)
    label = (rng.random(count) < 1 / (1 + np.exp(-(values[0] + values[1] * values[2])))).astype(np.int64)
    times = (np.arange(start, start + count) * 1_000_000).astype("datetime64[us]")
    columns = [np.arange(start, start + count), *values, label]
    return pa.table([*map(pa.array, columns), pa.array(times, pa.timestamp("us", tz="UTC"))], schema=_schema(pa))


def _measure(way: str, folder: Path) -> dict[str, float]:
    importlib.import_module("pandas")  # pyarrow imports it when it can; that is not what is measured
    work = {"read": _read, "ours": _ours, "native": _native, "pyfunc": _pyfunc}[way](folder)
    began, cpu = time.perf_counter(), time.process_time()
    work()
    spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "peak_mib": _peak_mib()}
    return {**spent, "difference": 0.0 if way == "read" else _difference(folder)}


def _peak_mib() -> float:
    """Return the peak memory of this process; what `resource` says would begin with that of the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _read(folder: Path) -> Any:
    import pyarrow.parquet as pq

    def work() -> None:
        with pq.ParquetFile(folder / "rows.parquet") as file:
            for _ in file.iter_batches(columns=FEATURES):
                pass

    return work


def _ours(folder: Path) -> Any:
    from airflow_ml_provider import models
    from airflow_ml_provider.stages.score.stream import score_file

    package = (folder / "package").resolve()
    opened = [(models.describe(package), models.Scorer(package))]
    return lambda: score_file(folder / "rows.parquet", folder / "out.parquet", opened, keep=("id",))


def _native(folder: Path) -> Any:
    import lightgbm
    import numpy as np
    import pyarrow.parquet as pq

    booster = lightgbm.Booster(model_file=str(folder / "package" / "model.txt"))

    def work() -> None:
        table = pq.read_table(folder / "rows.parquet", columns=["id", *FEATURES])
        matrix = np.column_stack([table.column(name).to_numpy() for name in FEATURES])
        scores = booster.predict(matrix, num_threads=os.cpu_count())
        pq.write_table(table.select(["id"]).append_column("score", [scores]), folder / "out.parquet")

    return work


def _pyfunc(folder: Path) -> Any:
    import mlflow.pyfunc
    import pandas as pd

    model = mlflow.pyfunc.load_model(str(folder / "pyfunc"))

    def work() -> None:
        frame = pd.read_parquet(folder / "rows.parquet", columns=["id", *FEATURES])
        frame["score"] = model.predict(frame[FEATURES])
        frame[["id", "score"]].to_parquet(folder / "out.parquet")

    return work


def _difference(folder: Path) -> float:
    """Return how far the first scores are from the booster's own."""
    import lightgbm
    import numpy as np
    import pyarrow.parquet as pq

    booster = lightgbm.Booster(model_file=str(folder / "package" / "model.txt"))
    with pq.ParquetFile(folder / "rows.parquet") as file:
        head = file.read_row_group(0, columns=FEATURES).slice(0, 10_000)
    matrix = np.column_stack([head.column(name).to_numpy() for name in FEATURES])
    with pq.ParquetFile(folder / "out.parquet") as file:
        found = file.read_row_group(0, columns=["score"]).column("score").to_numpy()[: len(matrix)]
    return float(np.abs(found - booster.predict(matrix)).max())


if __name__ == "__main__":
    main()
