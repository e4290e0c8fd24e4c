from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def flights(tmp_path_factory):
    """Training rows of a day, as a dataset."""
    pytest.importorskip("pyarrow")
    from airflow_ml_provider.testing import packages

    return packages.dataset(tmp_path_factory.mktemp("rows") / "train.parquet", packages.rows(4000, seed=5), name="train")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, flights):
    """Train a model as a pipeline does; `trained(engine, **params)` gives its ref, the same one for the same engine."""
    pytest.importorskip("onnxruntime")
    known = {}

    def make(engine, **params):
        from airflow_ml_provider.provenance import RunInfo
        from airflow_ml_provider.stages import run
        from airflow_ml_provider.stages.train.spec import TrainSpec

        if engine not in known:
            pytest.importorskip(engine)
            out = str(tmp_path_factory.mktemp(engine))
            spec = TrainSpec(
                name="late", dataset=flights, output=out, engine=engine, exclude=("flight_id",), params=params
            )
            known[engine] = run(spec, RunInfo()).model
        return known[engine]

    return make


@pytest.fixture(scope="session")
def network(trained):
    """A network of PyTorch, wide enough that its layers are most of its bytes."""
    return trained("torch", epochs=2, hidden=[128, 64], batch_size=512)
