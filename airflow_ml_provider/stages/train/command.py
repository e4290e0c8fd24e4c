"""A training script of the user's own: launched as the built-in engines are, its model packaged in the same way.

It finds what it needs in its environment:

    AIRFLOW_ML_TRAIN, AIRFLOW_ML_VALIDATION   Parquet files: the preprocessed columns (float32) and `label`
    AIRFLOW_ML_SNAPSHOTS                      folder that outlives it, for what it shall go on from when it is run again
    AIRFLOW_ML_MODEL                          file for the model: ONNX, matrix [N, F] to P(label = 1)
    AIRFLOW_ML_METRICS                        file for measurements: a JSON object of numbers; optional
    AIRFLOW_ML_PARAMS, AIRFLOW_ML_SEED        settings of the task (JSON), seed of everything random

and, with several ranks, what torchrun gives to each: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import DataError, SpecError, StageFailed
from airflow_ml_provider.stages.train import launch
from airflow_ml_provider.stages.train.run import Part, Run
from airflow_ml_provider.stages.train.spec import TrainSpec

log = logging.getLogger(__name__)

LABEL = "label"


def fit(run: Run, spec: TrainSpec, place: Path) -> bytes:
    """Run the user's script on this node and return the model that it leaves.

    Parameters:
        place: folder for snapshots, the model and the measurements; all nodes see it.

    Raises:
        SpecError: the script is not there, or leaves no model.
        DataError: its measurements are no JSON object of numbers.
        StageFailed: it failed; with its last lines.
        SystemExit: this node has done its part; the model is on the first one.
    """
    if spec.command[0] != "-m" and not Path(spec.command[0]).is_file():
        raise SpecError(f"there is no script {spec.command[0]} where the stage runs")
    model, metrics, kept = place / "model.onnx", place / "metrics.json", place / "snapshots"
    kept.mkdir(parents=True, exist_ok=True)
    meeting = launch.meeting(spec)
    first = meeting is None or meeting.node == 0
    for old in (model, metrics) if first else ():
        old.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="airflow-ml-command-") as name:
        folder = Path(name)
        settings = {
            "TRAIN": _written(run.train, folder / "train.parquet"),
            "VALIDATION": _written(run.validation, folder / "validation.parquet"),
            "SNAPSHOTS": kept, "MODEL": model, "METRICS": metrics,
            "PARAMS": json.dumps(codec.encode(spec.params)), "SEED": spec.seed,
        }  # fmt: skip
        env = {f"AIRFLOW_ML_{key}": str(value) for key, value in settings.items()}
        code, tail = launch.script(spec, meeting, [__name__, *spec.command], env)
    if code:
        lines = "\n".join(tail)
        raise StageFailed(f"{' '.join(spec.command)} ended with exit code {code}; its last lines:\n{lines}")
    if not first:
        raise SystemExit(0)
    for metric, value in _measurements(metrics).items():
        run.log(metric, value)
    if not model.is_file():
        raise SpecError(f"{' '.join(spec.command)} ended well, but wrote no model to $AIRFLOW_ML_MODEL")
    return model.read_bytes()


def _written(part: Part, path: Path) -> Path:
    """Write the matrix and the labels of some rows as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    matrix, labels = part.numpy()
    columns = {name: pa.array(matrix[:, i]) for i, name in enumerate(part.preprocessor.features)}
    if LABEL in columns:
        raise SpecError(f"a feature is called {LABEL!r}, as is the label in what the script reads: rename it")
    pq.write_table(pa.table({**columns, LABEL: pa.array(labels)}), path)
    return path


def _measurements(path: Path) -> Mapping[str, float]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"$AIRFLOW_ML_METRICS must hold a JSON object of numbers: {error}") from error


def main(argv: list[str]) -> None:
    """Be the script, `SCRIPT ARGUMENTS` or `-m MODULE ARGUMENTS`, as a process that ends with its launcher."""
    launch.end_with(int(os.environ[launch.LAUNCHER]))
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path[0] = str(Path(argv[0]).parent)
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
