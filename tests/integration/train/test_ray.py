"""Two ranks by real Ray Train: in a Python that has Ray, which `ML_PROVIDER_RAY_PYTHON` names, or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from airflow_ml_provider.exceptions import StageCrashed, StageFailed
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import Interpreter
from airflow_ml_provider.stages.train.spec import Function, Launch

PYTHON = os.environ.get("ML_PROVIDER_RAY_PYTHON", sys.executable)
INFO = RunInfo("flights", "train", "r1")
RAY = {"AIRFLOW_ML_RAY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
PARAMS = {"epochs": 1, "batch_size": 1024, "hidden": [8]}
FAILING = """
def fit(run):
    import torch
    from torch import distributed

    if run.rank == 1:
        raise ArithmeticError("rank one can go no further")
    distributed.all_reduce(torch.ones(1))
"""
# Rank 1 is killed once, after the snapshot at step 2.
DYING = """
def fit(run, marker: str, always: bool = False):
    import os
    import pathlib
    import signal
    import torch
    from torch import distributed

    net = torch.nn.Sequential(torch.nn.Linear(len(run.features), 1))
    found = run.resume()
    for step in range(found["step"] if found else 0, 4):
        distributed.all_reduce(torch.ones(1))
        run.snapshot(step + 1, model=net)
        if run.rank == 1 and step == 1 and (always or not pathlib.Path(marker).exists()):
            pathlib.Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return net
"""


@pytest.fixture(scope="module", autouse=True)
def _ray() -> None:
    for module in ("ray.train.torch", "torch"):
        if subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode:
            pytest.skip(f"{PYTHON} has no {module}; set ML_PROVIDER_RAY_PYTHON to a Python with ray[train] and torch")


def test_the_model_is_that_of_torchrun(spec, tmp_path):
    work = spec(engine="torch", params=PARAMS, launch=Launch(processes=2), output=str(tmp_path / "ray"))
    by_ray = Interpreter(PYTHON).call(work, INFO, RAY)
    by_torchrun = Interpreter(PYTHON).call(replace(work, output=str(tmp_path / "torchrun")), INFO, {})
    assert by_ray.model.digest == by_torchrun.model.digest
    assert not list((tmp_path / "ray").rglob(".ray-*"))


def test_the_error_of_a_rank_is_told(spec, tmp_path):
    work = spec(
        engine="function", params={}, function=Function("fit", FAILING), launch=Launch(processes=2),
        output=str(tmp_path / "models"),
    )  # fmt: skip
    with pytest.raises(StageFailed, match=r"(?s)^rank 1: ArithmeticError: .*raise Arithmetic"):
        Interpreter(PYTHON).call(work, INFO, RAY)


def test_a_killed_rank_starts_again_from_the_snapshot(spec, tmp_path):
    function = Function("fit", DYING, {"marker": str(tmp_path / "killed")})
    work = spec(
        engine="function", params={}, function=function, launch=Launch(processes=2, max_restarts=1),
        output=str(tmp_path / "models"),
    )  # fmt: skip
    assert Interpreter(PYTHON).call(work, INFO, RAY).resumed_from == 2


def test_a_rank_that_is_killed_too_often(spec, tmp_path):
    function = Function("fit", DYING, {"marker": str(tmp_path / "killed"), "always": True})
    work = spec(
        engine="function", params={}, function=function, launch=Launch(processes=2), output=str(tmp_path / "models")
    )
    with pytest.raises(StageCrashed, match="Ray Train with 2 workers ended without a result"):
        Interpreter(PYTHON).call(work, INFO, RAY)
