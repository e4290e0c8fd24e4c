"""Exports for devices: real converters, and the runtimes of the devices as far as this machine has them."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")
pytest.importorskip("pyarrow")

import numpy as np
import pyarrow as pa

from airflow_ml_provider import codec, models, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, MissingLibrary, SpecError
from airflow_ml_provider.provenance import PARENT, RunInfo
from airflow_ml_provider.registry.packages import uploads
from airflow_ml_provider.stages import run
from airflow_ml_provider.stages.edge import export_inputs, export_measure, export_ort
from airflow_ml_provider.stages.edge.spec import FILES, EdgeExportSpec, ExportPolicy
from airflow_ml_provider.stages.gate import reports
from airflow_ml_provider.stages.optimise.onnx import quiet
from airflow_ml_provider.stages.train.preprocess import Category, Number, Preprocessor
from airflow_ml_provider.testing import packages

INFO = RunInfo()
FORMATS = {"executorch": "executorch", "litert": "litert_torch", "coreml": "coremltools"}
PRE = Preprocessor(
    "indexed",
    (Number("distance", 1000.0, 1500.0, 0.001), Number("hour", 14.0, 14.0, 0.125)),
    (Category("carrier", ("AA", "B6", "UA"), 1),),
)


def needs(form: str) -> None:
    for module in ("torch", "safetensors", FORMATS[form]):
        pytest.importorskip(module, reason=f"no {module} here; ./dev-airflow/edge has all converters")


def perceptron(folder: Path):
    """Write weights of engine `torch` that compute what the package's graph does: a network without hidden layers."""
    import onnx
    from onnx import numpy_helper
    from safetensors.numpy import save

    graph = onnx.load(folder / models.ONNX).graph
    found = {w.name: float(numpy_helper.to_array(w)[0]) for w in graph.initializer}
    encoder = next(node for node in graph.node if node.op_type == "LabelEncoder")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in encoder.attribute}
    effects = dict(zip((k.decode() for k in attributes["keys_strings"]), attributes["values_floats"], strict=True))
    weights = [found[f"{column.name}_weight"] for column in PRE.numbers]
    bias = found["bias"] + sum(w * column.offset for w, column in zip(weights, PRE.numbers, strict=True))
    scaled = [w / column.scale for w, column in zip(weights, PRE.numbers, strict=True)]
    table = [[effects.get(title, 0.0), 7.0] for title in PRE.categories[0].titles]  # the second one counts nothing
    state = {
        "embeddings.0.weight": np.array(table, np.float32),
        "layers.0.weight": np.array([[*scaled, 1.0, 0.0]], np.float32),
        "layers.0.bias": np.array([bias], np.float32),
    }
    (folder / "model.safetensors").write_bytes(save(state))
    (folder / "model.config.json").write_text(json.dumps({"numbers": 2, "sizes": [4], "hidden": [], "dropout": 0.0}))
    (folder / models.PREPROCESS).write_text(json.dumps(codec.encode(PRE)))


@pytest.fixture
def model(tmp_path):
    return packages.package(tmp_path / "model")


@pytest.fixture
def network(model):
    perceptron(Path(model.uri))
    return model


def spec(model, form, folder, **changes):
    return EdgeExportSpec(model=model, format=form, output=str(folder / "out"), **{"repeats": 3, **changes})


def report(result):
    return json.loads(Path(result.report.uri).read_text())


class TestOrt:
    def test_the_file_scores_as_the_model_and_says_what_a_reduced_build_needs(self, model, tmp_path):
        result = run(spec(model, "ort", tmp_path), INFO)
        body = report(result)
        assert (result.status, result.report.passed, body["parity"]) == ("ok", True, "equal")
        assert (body["rows"], body["flips"]) == (200, 0)
        assert body["max_difference"] < 1e-6
        assert "ai.onnx.ml;2;LabelEncoder" in body["converter"]["operators"]
        assert body["signature"]["inputs"][2]["type"] == "string"
        assert set(body["latency"]) == {"parent", "ort"}
        file = Path(result.model.uri) / "model.ort"
        assert file.read_bytes()[4:8] == b"ORTM"  # the identifier of the format's FlatBuffers
        assert (result.file, result.edge_runtime, body["file"]["digest"]) == (
            "model.ort", "onnxruntime", tables.file_digest(file),
        )  # fmt: skip

    def test_it_is_a_child_of_the_model_and_its_digest_covers_the_file(self, model, tmp_path):
        made = run(spec(model, "ort", tmp_path), INFO).model
        folder = Path(made.uri)
        assert models.verify(folder, made) == folder
        assert made.digest != model.digest
        manifest = models.read_manifest(folder)
        assert manifest.provenance.data[PARENT] == model.digest
        assert models.Scorer(folder).manifest.inputs == models.Scorer(Path(model.uri)).manifest.inputs
        assert {"model.ort", "model.required_operators_and_types.config"} <= {path.name for path in uploads(folder)}
        (folder / "model.ort").write_bytes(b"another")
        with pytest.raises(IntegrityError, match="it was changed"):
            models.verify(folder, made)

    def test_the_gate_takes_its_report_as_that_of_the_child(self, model, tmp_path):
        result = run(spec(model, "ort", tmp_path), INFO)
        assert reports.read(result.report, result.model, "parity report")["passed"] is True
        with pytest.raises(IntegrityError, match="about model"):
            reports.read(result.report, model, "parity report")

    def test_on_labelled_rows_every_slice_is_judged(self, model, tmp_path):
        rows = packages.dataset(tmp_path / "rows.parquet", packages.rows(900, seed=2))
        result = run(spec(model, "ort", tmp_path, dataset=rows, slices=("carrier",), resamples=100), INFO)
        body = report(result)
        assert set(body["accuracy"]["slice_losses"]) == {"carrier=AA", "carrier=B6", "carrier=UA"}
        assert body["accuracy"]["metrics"]["auc"]["value"] == pytest.approx(body["parent_metrics"]["auc"]["value"])
        assert models.read_manifest(Path(result.model.uri)).provenance.data["rows"] == rows.digest

    def test_the_same_again_finds_what_is_finished_and_makes_again_what_was_changed(self, model, tmp_path):
        """Also the next day: other bytes of the same model would be another release for all devices."""
        first = run(spec(model, "ort", tmp_path), INFO)
        at = Path(first.report.uri).stat().st_mtime_ns
        assert run(spec(model, "ort", tmp_path), RunInfo(run_id="tomorrow")) == first
        assert Path(first.report.uri).stat().st_mtime_ns == at
        (Path(first.model.uri) / "model.ort").write_bytes(b"another")
        again = run(spec(model, "ort", tmp_path), INFO)
        assert models.verify(Path(again.model.uri), again.model)

    def test_from_export_to_a_device(self, model, tmp_path, monkeypatch):
        """What a device gets over the air scores its rows as the model does."""
        pytest.importorskip("cryptography")
        from datetime import datetime, timezone

        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        from airflow_ml_provider.stages.edge import sign
        from airflow_ml_provider.stages.edge.client import Client
        from airflow_ml_provider.stages.edge.spec import KEY, OtaSpec

        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        monkeypatch.setenv(KEY, private)
        made = run(spec(model, "ort", tmp_path), INFO)
        target = tmp_path / "releases"
        run(OtaSpec(made.model, str(target), file=made.file, runtime=made.edge_runtime, minimum="1.20"), INFO)
        table = packages.rows(50, seed=9)

        def works(path: Path) -> bool:
            return bool(np.isfinite(export_ort.load(path).score(table)).all())

        device = Client(
            target.as_uri(), tmp_path / "device", name=model.name, device="a", keys=[sign.public_key(private)],
            healthy=works, runtime="onnxruntime", version="1.32", now=lambda: datetime.now(timezone.utc),
        )  # fmt: skip
        assert device.update()
        scores = export_ort.load(device.current).score(table)
        assert scores == pytest.approx(models.Scorer(Path(model.uri)).score(table), abs=1e-6)


class TestNetworks:
    @pytest.mark.parametrize(("form", "batch_size"), [("executorch", 64), ("litert", 1)])
    def test_the_file_scores_as_the_model_by_what_it_says_itself(self, form, batch_size, network, tmp_path):
        needs(form)
        result = run(spec(network, form, tmp_path, batch_size=batch_size), INFO)
        body = report(result)
        assert (result.status, result.report.passed, body["parity"]) == ("ok", True, "equal"), result.reason
        assert (body["rows"], body["flips"]) == (200, 0)
        assert body["max_difference"] < 1e-5
        assert body["signature"]["inputs"][0]["shape"] == [batch_size, 3]
        assert body["converter"]["operators"]
        if form == "executorch":
            assert body["converter"]["delegates"] == ["XnnpackBackend"]

    def test_other_weights_are_refused(self, network, tmp_path):
        needs("executorch")
        from safetensors.numpy import load, save

        path = Path(network.uri) / "model.safetensors"
        state = load(path.read_bytes())
        state["layers.0.bias"] = state["layers.0.bias"] + np.float32(0.5)
        path.write_bytes(save(state))
        result = run(spec(network, "executorch", tmp_path), INFO)
        assert (result.status, result.model, result.report.passed) == ("refused", None, False)
        assert "the scores differ by up to" in result.reason
        assert report(result)["parity"] == "different"
        assert not list(tmp_path.rglob("*.pte"))

    @pytest.mark.skipif("sys.platform == 'darwin'", reason="Core ML runs models here")
    def test_core_ml_is_not_measured_and_never_called_equal(self, network, tmp_path):
        needs("coreml")
        refused = run(spec(network, "coreml", tmp_path), INFO)
        assert (refused.status, refused.model, refused.report.passed) == ("refused", None, None)
        assert refused.reason.startswith("parity: not measured: Core ML runs models on macOS only")
        result = run(spec(network, "coreml", tmp_path, policy=ExportPolicy(unmeasured="allow")), INFO)
        body = report(result)
        assert (result.status, result.report.passed, body["parity"]) == ("ok", None, "not measured")
        assert "not known to be equal" in result.reason
        assert body["converter"]["interface"] == [
            {"name": "columns", "shape": [1, 3], "type": "FLOAT32"},
            {"name": "score", "shape": [1, 1], "type": "FLOAT32"},
        ]
        assert bool(reports.read(result.report, result.model, "parity report")["passed"]) is False
        with zipfile.ZipFile(Path(result.model.uri) / result.file) as archive:
            assert "model.mlpackage/Manifest.json" in archive.namelist()

    def test_core_ml_checks_names_and_shapes(self, network, tmp_path):
        needs("coreml")
        from airflow_ml_provider.stages.edge import export_coreml

        asked = spec(network, "coreml", tmp_path)
        told = export_inputs.signature(Path(network.uri), 2, 0.5)  # for two rows, the program is for one
        with pytest.raises(DataError, match="it should have"), quiet():
            export_coreml.convert(asked, Path(network.uri), tmp_path / "a.zip", told)

    def test_a_module_of_ones_own(self, network, tmp_path, monkeypatch):
        """The weights come from the package, the layers from the function that the DAG names."""
        torch = pytest.importorskip("torch")
        pytest.importorskip("safetensors")
        from airflow_ml_provider.stages.edge import export_torch
        from airflow_ml_provider.stages.train import torch as engine

        parent = Path(network.uri)
        (parent / "model.config.json").write_text('{"class": "Own"}')
        with pytest.raises(DataError, match="give `network`"):
            export_torch.module(parent)
        (tmp_path / "own_layers.py").write_text(
            "from airflow_ml_provider.stages.train import torch as engine\n"
            "def make():\n    return engine.network(2, (4,), (), 0.0)\n"
            "def wrong():\n    return engine.network(2, (5,), (), 0.0)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        table = packages.rows(20, seed=3)
        rows = torch.from_numpy(export_inputs.feeds(export_inputs.signature(parent, 1, 0.5), table)["columns"])
        found = export_torch.module(parent, "own_layers:make")(rows).detach().numpy().reshape(-1)
        assert found == pytest.approx(models.Scorer(parent).score(table), abs=1e-5)
        with pytest.raises(DataError, match="not those of this module"):
            export_torch.module(parent, "own_layers:wrong")
        with pytest.raises(SpecError, match="cannot be had"):
            export_torch.module(parent, "own_layers:nothing")
        assert engine.CONFIG == "model.config.json"

    @pytest.mark.parametrize("encoding", ["indexed", "one_hot", "ordinal"])
    def test_numbers_and_codes_become_what_training_made_of_them(self, encoding):
        """Missing numbers, unknown and missing texts, too."""
        torch = pytest.importorskip("torch")
        from airflow_ml_provider.stages.edge.export_torch import _whole

        pre = replace(PRE, encoding=encoding)
        table = pa.table(
            {"distance": [100.0, None, 2000.0], "hour": [5.0, 7.0, None], "carrier": ["AA", "ZZ", None]}
        )  # fmt: skip
        width = len(pre.features)
        weights = torch.arange(1, width + 1, dtype=torch.float32) / 10
        whole = _whole(lambda rows: rows @ weights, pre)
        columns = [{"name": c.name} for c in pre.numbers]
        columns += [{"name": c.name, "codes": c.codes, "unknown": c.unknown} for c in pre.categories]
        told = {"model": "late", "inputs": [{"name": "columns", "type": "float32", "columns": columns}]}
        given = torch.from_numpy(export_inputs.feeds(told, table)["columns"])
        assert torch.isnan(given).sum() == 2
        want = torch.sigmoid(torch.from_numpy(pre.matrix(table)) @ weights)
        assert torch.allclose(whole(given).reshape(-1), want, atol=1e-6)


class TestRefusals:
    def test_a_model_without_a_network(self, model, tmp_path):
        needs("executorch")
        (Path(model.uri) / models.PREPROCESS).write_text(json.dumps(codec.encode(PRE)))
        with pytest.raises(DataError, match=r"only networks of PyTorch .* take format 'ort'"):
            run(spec(model, "executorch", tmp_path), INFO)

    def test_another_model_at_the_address(self, model, tmp_path):
        with pytest.raises(IntegrityError):
            run(spec(replace(model, digest="sha256:other"), "ort", tmp_path), INFO)

    def test_a_graph_that_no_runtime_knows(self, model, tmp_path):
        import onnx

        path = Path(model.uri) / models.ONNX
        graph = onnx.load(path)
        graph.graph.node[0].op_type = "NoSuchOperator"
        path.write_bytes(graph.SerializeToString())
        with pytest.raises(DataError, match="cannot be converted to ort: "):
            run(spec(models.describe(Path(model.uri)), "ort", tmp_path), INFO)

    def test_a_converter_that_is_not_there(self, model, tmp_path, monkeypatch):
        from importlib import util

        monkeypatch.setattr(util, "find_spec", lambda name: None if name == "litert_torch" else object())
        with pytest.raises(MissingLibrary, match=r"-m pip install 'litert-torch'"):
            run(spec(model, "litert", tmp_path), INFO)

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"form": "onnx"}, "format must be one of ort, executorch, litert, coreml"),
            ({"precision": "float16"}, "is for format 'coreml'"),
            ({"network": "a:b"}, "for a format other than ort"),
            ({"form": "litert", "network": "a.b"}, "package.module:function"),
            ({"slices": ("carrier",)}, "give `dataset`"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"resamples": 5}, "resamples must be at least 100"),
        ],
    )
    def test_bad_values(self, changes, why, tmp_path):
        form = changes.pop("form", "ort")
        with pytest.raises(SpecError, match=why):
            spec(models.ModelRef("late", "/m", "sha256:0"), form, tmp_path, **changes)

    def test_a_policy_must_make_sense(self):
        with pytest.raises(SpecError, match="max_difference must be at least 0"):
            ExportPolicy(max_difference=-1)
        with pytest.raises(SpecError, match="max_flips must be in"):
            ExportPolicy(max_flips=5)


class TestJudge:
    equal = {"passed": True, "reason": "", "rows": 9, "max_difference": 0.0, "flips": 0}  # noqa: RUF012

    def test_equal(self):
        assert export_measure.judge(ExportPolicy(), self.equal)["passed"] is True

    @pytest.mark.parametrize(
        ("accuracy", "why"),
        [
            ({"finite": False}, "not probabilities"),
            ({"loss": {"value": 0.0, "bound": 0.1}}, "may lose up to 0.1 of auc"),
            ({"loss": {"value": 0.0, "bound": 0.0}, "slice_losses": {"carrier=UA": 0.2}}, "in carrier=UA"),
        ],
    )
    def test_near_scores_that_cost_too_much(self, accuracy, why):
        accuracy = {"finite": True, "metrics": {"auc": {"value": 0.9}}, **accuracy}
        found = export_measure.judge(ExportPolicy(), {**self.equal, "accuracy": accuracy})
        assert (found["parity"], found["passed"], found["kept"]) == ("equal", False, False)
        assert why in found["reason"]

    @pytest.mark.parametrize(("policy", "kept"), [("refuse", False), ("allow", True)])
    def test_what_was_not_measured_has_no_verdict(self, policy, kept):
        found = export_measure.judge(ExportPolicy(unmeasured=policy), {"unmeasured": "no such machine"})
        assert (found["parity"], found["passed"], found["kept"]) == ("not measured", None, kept)
        assert "equal" not in found["reason"].replace("not known to be equal", "")


def test_every_format_has_a_file_and_a_converter():
    import importlib

    for form in FILES:
        module = importlib.import_module(f"airflow_ml_provider.stages.edge.export_{form}")
        assert callable(module.convert)
        assert callable(module.load)
