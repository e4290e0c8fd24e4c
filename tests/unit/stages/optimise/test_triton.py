"""The model repository, read by Triton's own definition of its configuration.

`model_config.binpb` is that definition as tritonclient 2.73.0 compiles it in (its `FileDescriptorProto`; BSD-3-Clause,
NVIDIA), since tritonclient cannot be installed beside the other tools: it wants protobuf below 7.
"""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("google.protobuf")

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from airflow_ml_provider import models
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.stages.optimise import triton
from airflow_ml_provider.stages.optimise.spec import Instances, TritonSettings
from airflow_ml_provider.testing import packages

DEFINITION = Path(__file__).parent / "model_config.binpb"


@pytest.fixture(scope="module")
def kinds():
    """The messages of the definition by name."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(DEFINITION.read_bytes())
    file = pool.FindFileByName(descriptor_pb2.FileDescriptorProto.FromString(DEFINITION.read_bytes()).name)
    return {name: message_factory.GetMessageClass(kind) for name, kind in file.message_types_by_name.items()}


@pytest.fixture
def read(kinds):
    return lambda folder: text_format.Parse((folder / triton.CONFIG).read_text(), kinds["ModelConfig"]())


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "packages" / "late"
    packages.package(folder)
    return folder


def kind_name(config, field, value):
    return type(config).DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[value].name


def test_the_definition_is_that_of_tritonclient():
    python = os.environ.get("ML_PROVIDER_CLIENTS_PYTHON", "")
    if not python:
        pytest.skip("ML_PROVIDER_CLIENTS_PYTHON names no Python with tritonclient[grpc]")
    code = "from tritonclient.grpc import model_config_pb2 as theirs; print(theirs.DESCRIPTOR.serialized_pb.hex())"
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    assert bytes.fromhex(found.stdout) == DEFINITION.read_bytes()


class TestModel:
    def test_tensors_are_those_of_the_graph(self, package, tmp_path, read):
        folder = triton.write_model(tmp_path / "repository", package)
        assert folder == tmp_path / "repository" / "late"
        config = read(folder)
        assert (config.name, config.backend, config.max_batch_size) == ("late", "onnxruntime", 1024)
        inputs = {i.name: (kind_name(i, "data_type", i.data_type), list(i.dims)) for i in config.input}
        assert inputs == {"distance": ("TYPE_FP32", [1]), "hour": ("TYPE_FP32", [1]), "carrier": ("TYPE_STRING", [1])}
        assert [(o.name, list(o.dims)) for o in config.output] == [("score", [1])]
        assert (folder / "1" / "model.onnx").read_bytes() == (package / models.ONNX).read_bytes()

    def test_batching_instances_threads_and_version(self, package, tmp_path, read):
        settings = TritonSettings(
            version=7, max_batch_size=64, preferred_batch_sizes=(16, 32), queue_delay_us=500, threads=2,
            instances=(Instances(2, "cpu"), Instances(1, "gpu", (0, 1))),
        )  # fmt: skip
        config = read(triton.write_model(tmp_path, package, "other", settings))
        assert config.name == "other"
        assert list(config.dynamic_batching.preferred_batch_size) == [16, 32]
        assert config.dynamic_batching.max_queue_delay_microseconds == 500
        groups = [(kind_name(g, "kind", g.kind), g.count, list(g.gpus)) for g in config.instance_group]
        assert groups == [("KIND_CPU", 2, []), ("KIND_GPU", 1, [0, 1])]
        assert config.parameters["intra_op_thread_count"].string_value == "2"
        assert (tmp_path / "other" / "7" / "model.onnx").exists()

    def test_without_batching(self, package, tmp_path, read):
        config = read(triton.write_model(tmp_path, package, settings=TritonSettings(dynamic_batching=False)))
        assert not config.HasField("dynamic_batching")
        assert read(triton.write_model(tmp_path, package)).HasField("dynamic_batching")  # by default, even if empty

    def test_it_warms_up_with_a_row_of_the_sample(self, package, tmp_path, read):
        folder = triton.write_model(tmp_path, package, settings=TritonSettings(warm_up=(1, 64)))
        config = read(folder)
        assert [(w.name, w.batch_size) for w in config.model_warmup] == [("1 rows", 1), ("64 rows", 64)]
        files = {column: one.input_data_file for column, one in config.model_warmup[0].inputs.items()}
        raw = {column: (folder / "warmup" / name).read_bytes() for column, name in files.items()}
        import pyarrow.parquet as pq

        row = pq.read_table(package / models.SAMPLE).slice(0, 1).to_pylist()[0]
        assert struct.unpack("<f", raw["distance"]) == (row["distance"],)
        (length,) = struct.unpack("<I", raw["carrier"][:4])
        assert (raw["carrier"][4:].decode(), length) == (row["carrier"], 2)

    @pytest.mark.parametrize(
        ("name", "kind", "where"),
        [("tensorrt", "gpu", "gpu_execution_accelerator"), ("openvino", "cpu", "cpu_execution_accelerator")],
    )
    def test_accelerators(self, package, tmp_path, read, name, kind, where):
        settings = TritonSettings(
            instances=(Instances(1, kind),), accelerator=name, accelerator_parameters={"precision_mode": "FP16"}
        )
        found = getattr(
            read(triton.write_model(tmp_path, package, settings=settings)).optimization.execution_accelerators, where
        )
        assert [(a.name, dict(a.parameters)) for a in found] == [(name, {"precision_mode": "FP16"})]

    def test_what_was_there_is_replaced_as_a_whole(self, package, tmp_path):
        triton.write_model(tmp_path, package, settings=TritonSettings(version=1))
        folder = triton.write_model(tmp_path, package, settings=TritonSettings(version=2, warm_up=()))
        assert sorted(p.name for p in folder.iterdir()) == ["2", "config.pbtxt"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["late", "packages"]

    def test_a_package_without_a_sample_cannot_warm_up(self, package, tmp_path):
        (package / models.SAMPLE).unlink()
        with pytest.raises(DataError, match="has no sample to warm up with"):
            triton.write_model(tmp_path, package)


class TestText:
    @pytest.mark.parametrize("value", ['a "b"', "back\\slash", "späte Flüge", "two\nlines", ""])
    def test_any_text_survives(self, kinds, value):
        found = text_format.Parse(triton.text({"name": value}), kinds["ModelConfig"]())
        assert found.name == value

    def test_an_unknown_field_is_what_the_definition_catches(self, kinds):
        with pytest.raises(text_format.ParseError, match="no field named"):
            text_format.Parse(triton.text({"max_batch": 3}), kinds["ModelConfig"]())


class TestEnsemble:
    @pytest.fixture
    def members(self, tmp_path, package):
        packages.package(tmp_path / "packages" / "short", features=("hour", "carrier"), seed=3)
        return {"late_a": package, "late_b": tmp_path / "packages" / "short"}

    def test_members_and_blend_are_steps(self, members, tmp_path, read):
        root = tmp_path / "repository"
        config = read(triton.write_ensemble(root, "late", members))
        assert (config.platform, config.max_batch_size) == ("ensemble", 1024)
        assert not config.instance_group
        assert [i.name for i in config.input] == ["distance", "hour", "carrier"]
        steps = {s.model_name: (dict(s.input_map), dict(s.output_map)) for s in config.ensemble_scheduling.step}
        assert steps["late_b"] == ({"hour": "hour", "carrier": "carrier"}, {"score": "late_b_score"})
        assert steps["late_blend"][0] == {"late_a_score": "late_a_score", "late_b_score": "late_b_score"}
        assert sorted(p.name for p in root.iterdir()) == ["late", "late_a", "late_b", "late_blend"]
        assert list((root / "late" / "1").iterdir()) == []  # Triton asks for the folder
        assert {read(root / name).name for name in steps} == set(steps)

    def test_the_blend_is_the_weighted_mean(self, members, tmp_path):
        import numpy as np
        import onnxruntime as ort

        triton.write_ensemble(tmp_path / "r", "late", members, weights={"late_a": 3, "late_b": 1})
        rows = packages.rows(20)
        scores = {f"{n}_score": models.Scorer(p).score(rows).reshape(-1, 1) for n, p in members.items()}
        graph = (tmp_path / "r" / "late_blend" / "1" / "model.onnx").read_bytes()
        found = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(["score"], scores)[0]
        assert np.allclose(found, 0.75 * scores["late_a_score"] + 0.25 * scores["late_b_score"])

    def test_weights_and_members_are_checked(self, members, tmp_path):
        with pytest.raises(SpecError, match="members of an ensemble must be at least two"):
            triton.write_ensemble(tmp_path, "late", {"a": members["late_a"]})
        with pytest.raises(SpecError, match="a positive number for each of late_a, late_b"):
            triton.write_ensemble(tmp_path, "late", members, weights={"late_a": 1})

    def test_steps_are_a_directed_acyclic_graph(self):
        a, b = triton.step("a", {"x": "x", "y": "b"}, {"o": "a"}), triton.step("b", {"x": "a"}, {"o": "b"})
        end = triton.step("c", {"x": "x"}, {"o": "score"})
        triton.check_steps("e", ["x"], [triton.step("d", {"x": "p"}, {"o": "score"}), triton.step("p", {}, {"o": "p"})])
        with pytest.raises(SpecError, match="never has a, b: they wait for each other"):
            triton.check_steps("e", ["x"], [a, b, end])
        with pytest.raises(SpecError, match="never has z: no step makes them"):
            triton.check_steps("e", ["x"], [triton.step("a", {"x": "z"}, {"o": "score"})])
        with pytest.raises(SpecError, match="tensor 'score' is made twice"):
            triton.check_steps("e", ["x"], [end, triton.step("d", {"x": "x"}, {"o": "score"})])
        with pytest.raises(SpecError, match="no step makes 'score'; there are other"):
            triton.check_steps("e", ["x"], [triton.step("d", {"x": "x"}, {"o": "other"})])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preferred_batch_sizes": (2048,)}, r"preferred_batch_sizes must be in \[1, 1024\], the largest batch"),
        ({"instances": ()}, "instances must be at least one group"),
        ({"accelerator": "tensorrt"}, "used with instances of kind gpu or auto"),
        ({"accelerator_parameters": {"a": "b"}}, "given with an accelerator"),
        ({"queue_delay_us": -1}, "queue_delay_us must be at least 0"),
    ],
)
def test_settings_are_checked(changes, says):
    with pytest.raises(SpecError, match=says):
        TritonSettings(**changes)


def test_names_are_names_of_folders(package, tmp_path):
    with pytest.raises(SpecError, match="the name of a folder"):
        triton.write_model(tmp_path, package, "../late")
