"""ONNX Runtime's FP32 against what the optimise stage makes of it: latency, size and accuracy in the same run.

    python benchmarks/optimise.py --rows 40000 --hidden 1024 512 --repeat 3

A perceptron is trained on made-up rows of 30 numbers; the stage then makes, measures and compares every candidate, the
calls of all taking turns. The whole is measured several times: medians of the medians.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_ml_provider import tables
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef, ModelRef
from airflow_ml_provider.stages import run
from airflow_ml_provider.stages.optimise.spec import OptimisePolicy, OptimiseSpec, Recipe, recipe
from airflow_ml_provider.stages.train.spec import TrainSpec

FEATURES = [f"f{i}" for i in range(30)]
GRAPH = (
    "graph", "fp16", "int8_dynamic", "int8_static", *(["int4"] if find_spec("onnx_ir") else []),
    Recipe(steps=("int8_dynamic",), reduce_range=False, name="int8_dynamic, 8 bits"),
)  # fmt: skip
TRAINED = ("structured", "distill", "qat", "structured+int8_dynamic")
BATCHES = (1, 64, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024, 512])
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--trained", action="store_true", help="with the candidates that PyTorch trains")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        rows = _rows(Path(folder), args.rows)
        model = _model(Path(folder), rows, args.hidden, "torch" if args.trained else "sklearn")
        recipes = tuple(recipe(r) for r in (*GRAPH, *(TRAINED if args.trained else ())))
        reports = [_measure(Path(folder), model, rows, recipes, args.calls, i) for i in range(args.repeat)]
    print(f"{args.rows:,} rows, hidden {args.hidden}, {args.calls} calls a size, medians of {args.repeat} runs")
    _print(reports)


def _rows(folder: Path, count: int) -> DatasetRef:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(count, len(FEATURES)))
    logit = matrix[:, 0] + matrix[:, 1] * matrix[:, 2] + np.sin(2 * matrix[:, 3]) - matrix[:, 4] ** 2 / 2
    times = (
        np.arange(count, dtype=np.int64) * 1_000_000
        + int(datetime(2013, 1, 1, tzinfo=timezone.utc).timestamp()) * 10**6
    )
    table = pa.table(
        {
            **dict(zip(FEATURES, matrix.T, strict=True)),
            "group": rng.choice(["a", "b", "c"], count).tolist(),
            "label": (rng.random(count) < 1 / (1 + np.exp(-logit))).astype("int64"),
            "event_timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
        }
    )
    pq.write_table(table, folder / "train.parquet")
    return tables.describe("train", folder / "train.parquet")


def _model(folder: Path, rows: DatasetRef, hidden: list[int], engine: str) -> ModelRef:
    params: dict[str, Any] = {"hidden": hidden, "epochs": 4}
    if engine == "sklearn":
        params = {"estimator": "sklearn.neural_network.MLPClassifier", "hidden_layer_sizes": hidden, "max_iter": 4}
    spec = TrainSpec("bench", rows, str(folder / "models"), engine=engine, params=params, exclude=("group",))
    model: ModelRef = run(spec, RunInfo()).model  # type: ignore[attr-defined]
    return model


def _measure(
    folder: Path, model: ModelRef, rows: DatasetRef, recipes: tuple[Recipe, ...], calls: int, number: int
) -> list[dict[str, Any]]:
    spec = OptimiseSpec(
        model, rows, str(folder / f"run{number}"), recipes=recipes, slices=("group",), batch_sizes=BATCHES,
        repeats=calls, resamples=100, policy=OptimisePolicy(batch_size=1),
    )  # fmt: skip
    result: Any = run(spec, RunInfo())
    found: list[dict[str, Any]] = json.loads(Path(result.report.uri).read_text())["candidates"]
    return found


def _print(reports: list[list[dict[str, Any]]]) -> None:
    def time(name: str, size: int) -> float:
        entries = [next(e for e in report if e["name"] == name) for report in reports]
        return median(e["latency"]["CPUExecutionProvider"][str(size)]["p50_ms"] for e in entries)

    print(
        f"{'candidate':26}{'KiB':>8}"
        + "".join(f"{f'ms x {s}':>11}{'':>9}" for s in BATCHES)
        + "     AUC  flips  verdict"
    )
    for entry in reports[-1]:
        if "latency" not in entry:
            print(f"{entry['name']:26} {entry['verdict']}: {entry['why']}")
            continue
        cells = ""
        for size in BATCHES:
            spent = time(entry["name"], size)
            cells += f"{spent:11.3f} ({time('original', size) / spent:4.2f} x)"
        auc, flips = entry["metrics"]["auc"]["value"], entry["parity"]["flip_share"]
        print(f"{entry['name']:26}{entry['bytes'] / 1024:8,.0f}{cells}  {auc:.4f} {flips:6.2%}  {entry['verdict']}")


if __name__ == "__main__":
    main()
