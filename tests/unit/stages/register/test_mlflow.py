"""Registration on a real MLflow database."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from airflow_ml_provider import models, stages, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, SpecError
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.stages.register.spec import RegisterSpec
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.contracts import assert_idempotent
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
    pytest.mark.usefixtures("tracking_uri"),
]
INFO = RunInfo(dag_id="d", task_id="register", run_id="r")


def test_a_version_with_signature_provenance_and_alias(tmp_path):
    ref = packages.package(tmp_path / "p")
    test = packages.dataset(tmp_path / "test.parquet", packages.rows(400, seed=9))
    evaluation = packages.evaluation(tmp_path / "e.json", ref, test)
    result = stages.run(RegisterSpec(ref, evaluation, tags={"team": "ops"}), INFO)
    assert result.status == "ok"
    assert result.model == replace(ref, version="1", run_id=result.model.run_id)
    registry = Registry.from_env()
    tags = registry.tags("late", "1")
    assert tags["team"] == "ops"
    assert tags["airflow_ml.evaluation"] == evaluation.digest
    assert tags["airflow_ml.parity"] == result.parity.digest
    assert registry.alias("late", "candidate") == "1"
    with registry._client() as client:
        version = client.get_model_version("late", "1")
        files = {Path(f.path).name for f in client.list_artifacts(version.run_id, tags["airflow_ml.artifact_path"])}
    assert version.description.startswith("P(label = 1) by sklearn")
    assert files == {"MLmodel", "model.json", "model.onnx", "parity.json", "sample.parquet"}


def test_mlflow_itself_reads_the_signature_and_opens_the_model(tmp_path):
    import mlflow.onnx
    from mlflow.models import Model

    stages.run(RegisterSpec(packages.package(tmp_path / "p")), INFO)
    signature = Model.load(str(tmp_path / "p")).signature
    assert signature.inputs.input_names() == ["distance", "hour", "carrier"]
    assert signature.outputs.input_names() == ["score"]
    graph = mlflow.onnx.load_model(str(tmp_path / "p"))
    assert [node.name for node in graph.graph.input] == ["distance", "hour", "carrier"]


def test_running_twice_makes_one_version(tmp_path):
    ref = packages.package(tmp_path / "p")
    first, second = assert_idempotent(RegisterSpec(ref), INFO, roots=[tmp_path / "p"])
    assert first.model == second.model
    assert len(Registry.from_env().versions("late")) == 1


def test_an_export_that_scores_differently_is_refused_and_not_registered(tmp_path):
    packages.package(tmp_path / "p")
    packages.package(tmp_path / "q", seed=5, skill=-1.0)
    shutil.copy(tmp_path / "q" / models.ONNX, tmp_path / "p" / models.ONNX)
    ref = models.describe(tmp_path / "p")
    result = stages.run(RegisterSpec(ref), INFO)
    assert result.status == "refused"
    assert "at most 0.0001 is allowed" in result.reason
    assert "would be decided differently at 0.5" in result.reason
    assert result.model is None
    assert result.parity.passed is False
    assert json.loads(Path(result.parity.uri).read_text())["flips"] > 50
    assert Registry.from_env().versions("late") == []
    assert Registry.from_env().models() == []


def test_another_registered_name(tmp_path):
    result = stages.run(RegisterSpec(packages.package(tmp_path / "p"), name="late_ewr"), INFO)
    assert result.model.name == "late_ewr"
    assert Registry.from_env().models() == ["late_ewr"]


def test_a_changed_package_is_an_integrity_error(tmp_path):
    ref = packages.package(tmp_path / "p")
    manifest = models.read_manifest(tmp_path / "p")
    models.write_manifest(tmp_path / "p", replace(manifest, threshold=0.01))
    with pytest.raises(IntegrityError, match="it was changed"):
        stages.run(RegisterSpec(ref), INFO)


def test_a_package_that_is_gone_says_what_to_do(tmp_path):
    ref = packages.package(tmp_path / "p")
    shutil.rmtree(tmp_path / "p")
    with pytest.raises(DataError, match=r"holds no complete model package.*train the model again"):
        stages.run(RegisterSpec(ref), INFO)


def test_a_package_without_a_sample_cannot_be_proven(tmp_path):
    ref = packages.package(tmp_path / "p")
    (tmp_path / "p" / models.SAMPLE).unlink()
    with pytest.raises(DataError, match=r"parity cannot be checked: .*sample\.parquet.*train the model again"):
        stages.run(RegisterSpec(ref), INFO)


def test_weights_outside_of_the_graph_are_an_integrity_error(tmp_path):
    import onnx

    packages.package(tmp_path / "p")
    graph = onnx.load(tmp_path / "p" / models.ONNX)
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save_model(
        graph, tmp_path / "p" / models.ONNX, save_as_external_data=True, size_threshold=0, location="weights.bin"
    )
    with pytest.raises(IntegrityError):
        stages.run(RegisterSpec(models.describe(tmp_path / "p")), INFO)


def test_the_report_is_proven_by_its_digest(tmp_path):
    result = stages.run(RegisterSpec(packages.package(tmp_path / "p")), INFO)
    assert tables.file_digest(Path(result.parity.uri)) == result.parity.digest
    body = json.loads(Path(result.parity.uri).read_text())
    assert body["model"]["digest"] == result.model.digest
    assert body["rows"] == 200
    assert 0 < body["max_difference"] < 1e-4


def test_it_is_used_at_the_operating_point_that_was_measured(tmp_path):
    ref = packages.package(tmp_path / "p")
    test = packages.dataset(tmp_path / "test.parquet", packages.rows(400, seed=9))
    point = {"by": "share", "value": 0.2, "threshold": 0.71}
    evaluation = packages.evaluation(tmp_path / "e.json", ref, test, operating_point=point)
    result = stages.run(RegisterSpec(ref, evaluation), INFO)
    assert Registry.from_env().threshold(result.model) == 0.71
    assert json.loads(Path(result.parity.uri).read_text())["threshold"] == 0.71
    alone = stages.run(RegisterSpec(ref), replace(INFO, run_id="other"))
    assert Registry.from_env().threshold(alone.model) == 0.5


def test_an_evaluation_of_another_model_is_an_integrity_error(tmp_path):
    test = packages.dataset(tmp_path / "test.parquet", packages.rows(400, seed=9))
    evaluation = packages.evaluation(tmp_path / "e.json", packages.package(tmp_path / "q", seed=1), test)
    with pytest.raises(IntegrityError, match="evaluation report is about model sha256:"):
        stages.run(RegisterSpec(packages.package(tmp_path / "p"), evaluation), INFO)
    Path(evaluation.uri).write_text("{}")
    with pytest.raises(IntegrityError, match="it was changed"):
        stages.run(RegisterSpec(packages.package(tmp_path / "p"), evaluation), INFO)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_flips": 5.0}, "max_flips must be in [0, 1], got 5.0; give a fraction, not percent"),
        ({"max_difference": -1.0}, "max_difference must be at least 0, got -1.0"),
    ],
)
def test_bad_values(tmp_path, values, message):
    with pytest.raises(SpecError) as caught:
        RegisterSpec(packages.package(tmp_path / "p"), **values)
    assert str(caught.value) == message
