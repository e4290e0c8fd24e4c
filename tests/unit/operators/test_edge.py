"""The operator of releases: its key reaches the stage and nothing else."""

from __future__ import annotations

import json

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from airflow_ml_provider import codec, models
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.edge import EdgeExportOperator, OtaReleaseOperator
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.edge import release, sign
from airflow_ml_provider.stages.edge.spec import ExportPolicy
from airflow_ml_provider.stages.evaluate.spec import OperatingPoint
from airflow_ml_provider.testing.context import context

DAY = Interval.from_key("2013-01-05")
MODEL = ModelRef("late", "/models/late", "sha256:m")


def operator(folder, **settings):
    model = ModelRef("late", str(folder / "package"), "sha256:one", version="7")
    return OtaReleaseOperator(task_id="release", model=model, target=str(folder / "releases"), **settings)


def test_it_publishes(tmp_path, monkeypatch):
    made = Ed25519PrivateKey.generate()
    key = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    monkeypatch.setenv("AIRFLOW_CONN_EDGE_SIGNING", json.dumps({"conn_type": "generic", "password": key}))
    monkeypatch.setattr(models, "verify", lambda folder, ref: folder)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "model.onnx").write_text("one")
    value = operator(tmp_path, percent="25").execute(context(DAY))
    found = release.current(tmp_path / "releases", sign.public_key(key))
    assert (found.percent, found.target.version, found.sequence) == (25.0, "7", 1)
    assert value["release"]["digest"].startswith("sha256:")
    secret = key.splitlines()[1]
    assert secret not in json.dumps(value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and secret in p.read_text(errors="replace")]


def test_no_key(tmp_path):
    with pytest.raises(AirflowFailException, match="connection 'edge_signing' is not defined"):
        operator(tmp_path).execute(context(DAY))


class TestExport:
    def operator(self, **changes):
        return EdgeExportOperator(task_id="export", **{"model": MODEL, "format": "ort", "output": "/out", **changes})

    def test_refs_and_settings_as_they_come_from_xcom_and_templates(self):
        rows = {"kind": "dataset", "name": "train", "uri": "/train.parquet", "digest": "sha256:t"}
        spec = self.operator(
            model={"status": "ok", "model": codec.encode(MODEL)}, format="coreml", dataset=rows, batch_size="8",
            precision="float16", policy={"unmeasured": "allow", "max_difference": 0.01}, slices="carrier",
            operating_point={"by": "share", "value": 0.2},
        ).build_spec(DAY, {})  # fmt: skip
        assert (spec.model, spec.dataset.name, spec.batch_size, spec.slices) == (MODEL, "train", 8, ("carrier",))
        assert spec.policy == ExportPolicy(unmeasured="allow", max_difference=0.01)
        assert spec.operating_point == OperatingPoint("share", 0.2)
        assert self.operator().build_spec(DAY, {}).policy == ExportPolicy()

    @pytest.mark.parametrize(
        "changes", [{"format": "onnx"}, {"policy": {"unmeasured": "hope"}}, {"policy": {"max": 1}}]
    )
    def test_bad_values_fail_at_parse_time(self, changes):
        with pytest.raises(SpecError):
            self.operator(**changes)

    def test_templates_wait(self):
        assert self.operator(format="{{ params.format }}", policy={"max_difference": "{{ params.most }}"})

    def test_it_exports_what_a_release_takes(self, tmp_path):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("sklearn")
        pytest.importorskip("flatbuffers")
        from airflow_ml_provider.testing import packages

        ref = packages.package(tmp_path / "late")
        ctx = context(DAY)
        value = self.operator(model=ref, output=str(tmp_path / "out"), repeats=2).execute(ctx)
        assert (value["status"], value["file"], value["edge_runtime"]) == ("ok", "model.ort", "onnxruntime")
        assert value["parent"]["digest"] == ref.digest != ctx["ti"].xcoms["model"]["digest"]
        assert ctx["ti"].xcoms["report"]["passed"] is True

    def test_what_cannot_be_compared_fails_the_task_without_another_try(self, tmp_path):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("sklearn")
        pytest.importorskip("flatbuffers")
        from airflow_ml_provider.testing import packages

        ref = packages.package(tmp_path / "late")
        (tmp_path / "late" / models.SAMPLE).unlink()
        with pytest.raises(AirflowFailException, match="give `dataset`"):
            self.operator(model=ref, output=str(tmp_path / "out")).execute(context(DAY))
