"""A package as a server uses it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")

import numpy as np

from airflow_ml_provider import models
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.serving import model
from airflow_ml_provider.serving.oip import Request
from airflow_ml_provider.serving.spec import Version
from airflow_ml_provider.testing import packages


@pytest.fixture
def served(tmp_path: Path) -> Version:
    ref = packages.package(tmp_path / "package")
    return Version(ref.uri, ref.digest)


def test_together_as_alone(served: Version) -> None:
    scorer = model.load("late", served)
    table = packages.rows(9, seed=4)
    feeds = {name: models.read_input(table, name, kind, "late") for name, kind in scorer.manifest.inputs.items()}
    cuts = [slice(0, 1), slice(1, 6), slice(6, 9)]
    asked = [Request("x", {name: feed[cut] for name, feed in feeds.items()}, cut.stop - cut.start) for cut in cuts]
    together, alone = model.score(scorer, asked), [model.score(scorer, [one])[0] for one in asked]
    assert [len(scores) for scores in together] == [1, 5, 3]
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), atol=1e-7)
    np.testing.assert_allclose(np.concatenate(together), scorer.score(table), atol=1e-7)


def test_another_model_is_refused(served: Version) -> None:
    with pytest.raises(IntegrityError, match=r"model 'late' at .* has digest .* it was changed"):
        model.load("late", replace(served, digest="sha256:" + "0" * 64))


def test_a_changed_model_is_refused(served: Version) -> None:
    with open(Path(served.package) / models.ONNX, "ab") as file:
        file.write(b"\0")
    with pytest.raises(IntegrityError, match="it was changed"):
        model.load("late", served)


def test_no_model(served: Version, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no complete model package"):
        model.load("late", replace(served, package=str(tmp_path)))
