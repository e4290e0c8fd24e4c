"""How long a drift check of two tables takes, beside reading them and beside scipy on the same numbers.

    python benchmarks/drift.py --rows 1000000

Two tables of 25 columns (20 numbers of several shapes, 5 texts) are written, sketched, and compared by PSI, Jensen-
Shannon distance, KS, chi-square and Wasserstein. Medians of three runs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats
from scipy.spatial.distance import jensenshannon

from airflow_ml_provider.stages.monitor.logic import judge_column
from airflow_ml_provider.stages.monitor.sketch import Sketch, sketch_parquet
from airflow_ml_provider.stages.monitor.spec import DriftPolicy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        paths = [_write(Path(folder, f"{name}.parquet"), rows, seed) for seed, name in enumerate(("before", "now"))]
        kinds = {c: "string" if c.startswith("t") else "float" for c in pq.ParquetFile(paths[0]).schema_arrow.names}
        read = _median(lambda: [_read(path) for path in paths])
        sketch = _median(lambda: [sketch_parquet([path], kinds) for path in paths])
        before, now = (sketch_parquet([path], kinds) for path in paths)
        decide = _median(lambda: _decide(before, now))
        size = len(before.to_json())
        exact = _median(lambda: _scipy(paths))
    print(f"2 x {rows:,} rows x {len(kinds)} columns, medians of 3")
    print(f"reading alone            {read:8.3f} s")
    print(f"sketching both tables    {sketch:8.3f} s   {sketch / read:5.2f} x reading")
    print(f"measures and decision    {decide:8.3f} s")
    print(f"in all                   {sketch + decide:8.3f} s")
    print(f"scipy and numpy, exact   {exact:8.3f} s   {exact / (sketch + decide):5.1f} x ours")
    print(f"a stored reference       {size / 1024:8.0f} KiB")


def _write(path: Path, rows: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"n{i}": rng.normal(10 * i, 1 + i, rows) for i in range(10)}
    columns.update({f"l{i}": rng.lognormal(0, 3, rows) for i in range(5)})
    columns.update({f"i{i}": rng.integers(0, 24 * (i + 1), rows) for i in range(5)})
    values = np.array([f"value-{i}" for i in range(100)])
    columns.update({f"t{i}": pa.array(values[rng.zipf(1.5, rows) % 100]) for i in range(5)})
    pq.write_table(pa.table(columns), path, row_group_size=122_880)
    return path


def _read(path: Path) -> list[Any]:
    with pq.ParquetFile(path) as file:
        return [file.read_row_group(i) for i in range(file.num_row_groups)]


def _decide(before: Sketch, now: Sketch) -> None:
    for name, column in before.columns.items():
        judge_column(name, column, now.columns[name], DriftPolicy(), len(before.columns))


def _scipy(paths: list[Path]) -> None:
    """Take the same measures from the values themselves."""
    before, now = (pa.concat_tables(_read(path)) for path in paths)
    for name in before.column_names:
        if pa.types.is_string(before[name].type):
            counts = [dict(zip(*_values(table[name]), strict=True)) for table in (before, now)]
            keys = sorted({*counts[0], *counts[1]})
            table = np.array([[c.get(k, 0) for k in keys] for c in counts], float)
            stats.chi2_contingency(table)
        else:
            a, b = (table[name].to_numpy() for table in (before, now))
            stats.ks_2samp(a, b, method="asymp")
            stats.wasserstein_distance(a, b)
            edges = np.unique(np.quantile(a, np.linspace(0, 1, 11)))
            edges[0], edges[-1] = -np.inf, np.inf
            table = np.array([np.histogram(x, edges)[0] for x in (a, b)], float)
        p, q = np.maximum(table, 0.5) / table.sum(axis=1, keepdims=True)
        float(((q - p) * np.log(q / p)).sum())
        jensenshannon(p, q, base=2)


def _values(column: Any) -> tuple[list[str], list[int]]:
    counted = column.value_counts()
    return counted.field("values").to_pylist(), counted.field("counts").to_pylist()


def _median(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


if __name__ == "__main__":
    main()
