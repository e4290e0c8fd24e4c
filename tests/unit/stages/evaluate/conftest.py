from __future__ import annotations

from datetime import timedelta

import pytest


@pytest.fixture
def package(tmp_path):
    """Make a model package with validation rows; `package(name, **options)`."""
    pytest.importorskip("onnx")
    pytest.importorskip("sklearn")
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    from airflow_ml_provider import models
    from airflow_ml_provider.testing import packages

    def make(name="late", *, validation=True, **options):
        folder = tmp_path / "models" / name
        ref = packages.package(folder, name, **options)
        if validation:
            rows = packages.rows(400, seed=7)
            scores = models.Scorer(folder).score(rows)
            body = {
                models.VALIDATION_TIME: rows["event_timestamp"],
                models.VALIDATION_LABEL: rows["label"],
                models.SAMPLE_SCORE: pa.array(scores, pa.float64()),
            }
            pq.write_table(pa.table(body), folder / models.VALIDATION)
        return ref

    return make


@pytest.fixture
def test_set(tmp_path):
    """Make a locked test set of the day after the training rows; `test_set(count, **options)`."""
    pytest.importorskip("pyarrow")

    from airflow_ml_provider.testing import packages

    def make(count=1500, *, days=1, name="test", change=None):
        rows = packages.rows(count, seed=3, start=packages.MIDNIGHT + timedelta(days=days))
        return packages.dataset(tmp_path / f"{name}.parquet", change(rows) if change else rows, name=name)

    return make
