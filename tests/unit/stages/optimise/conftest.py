from __future__ import annotations

import warnings

import pytest


@pytest.fixture(scope="session")
def flights(tmp_path_factory):
    """Training rows of a day, as a dataset."""
    pytest.importorskip("pyarrow")
    from airflow_ml_provider.testing import packages

    rows = packages.rows(4000, seed=5)
    return packages.dataset(tmp_path_factory.mktemp("rows") / "train.parquet", rows, name="train")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, flights):
    """Train a model as a pipeline does: `trained(engine, **params)` gives its ref."""
    pytest.importorskip("onnxruntime")

    def make(engine, **params):
        pytest.importorskip(engine)
        from airflow_ml_provider.provenance import RunInfo
        from airflow_ml_provider.stages import run
        from airflow_ml_provider.stages.train.spec import TrainSpec

        spec = TrainSpec(
            name="late", dataset=flights, output=str(tmp_path_factory.mktemp(engine)), engine=engine,
            exclude=("flight_id",), params=params,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a training that is too short on purpose
            return run(spec, RunInfo()).model

    return make


@pytest.fixture(scope="session")
def network(trained):
    """A perceptron, wide enough that its layers are most of its bytes."""
    pytest.importorskip("skl2onnx")
    estimator = "sklearn.neural_network.MLPClassifier"
    return trained("sklearn", estimator=estimator, hidden_layer_sizes=[256, 128], max_iter=5)


@pytest.fixture(scope="session")
def trees(trained):
    pytest.importorskip("onnxmltools")
    return trained("lightgbm", n_estimators=20)
