"""The benchmarks still run: each once, at a small size. Their figures say nothing here."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = {
    "airflow_cost": ("--repeat", "1"),
    "asof_join": ("--rows", "20000", "--labels", "2000", "--densities", "10", "--repeat", "1"),
    "drift": ("--rows", "20000"),
    "load_test": ("--rates", "50", "--seconds", "0.5"),
    "optimise": ("--rows", "1000", "--hidden", "32", "--calls", "2", "--repeat", "1"),
    "score": ("--rows", "20000", "--repeat", "1"),
    "serving": ("--requests", "20", "--seconds", "0.2", "--clients", "4"),
    "slices": ("--rows", "20000", "--resamples", "20"),
    "trainer": ("--width", "16", "--rows", "8", "--every", "10", "--repeat", "1"),
}
NEEDS = {
    "airflow_cost": ("airflow",),
    "asof_join": ("duckdb", "feast", "ibis"),
    "drift": ("scipy",),
    "load_test": ("aiohttp",),
    "optimise": ("onnx", "onnxruntime", "skl2onnx"),
    "score": ("lightgbm", "mlflow", "onnxmltools", "pandas"),
    "serving": ("aiohttp", "lightgbm", "onnxmltools", "prometheus_client"),
    "slices": ("sklearn",),
    "trainer": ("torch", "safetensors"),
}


def test_all_benchmarks_are_here() -> None:
    elsewhere = {"pods"}  # where the cluster is: integration/pods/test_pods.py
    # They take minutes; system/test_pods.py and integration/{serving,deploy} have what they are about.
    by_hand = {"canary", "deferred", "rollouts"}
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == set(SMALL) | elsewhere | by_hand


@pytest.mark.parametrize("name", SMALL)
def test_runs(name: str) -> None:
    if missing := [module for module in NEEDS[name] if find_spec(module) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    command = [sys.executable, BENCHMARKS / f"{name}.py", *SMALL[name]]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
