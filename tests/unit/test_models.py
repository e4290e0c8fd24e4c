from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider import models, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, SpecError
from airflow_ml_provider.models import Manifest, Scorer
from airflow_ml_provider.refs import DatasetRef

ROWS = DatasetRef(name="rows", uri="/rows.parquet", digest="sha256:r")
MANIFEST = Manifest(
    name="late",
    engine="lightgbm",
    inputs={"hour": "float", "carrier": "string", "distance": "float"},
    label="label",
    training=ROWS,
    trained_until=datetime(2013, 1, 5, tzinfo=timezone.utc),
)


def graph(*, external: bool = False, output: str = "score") -> bytes:
    """Return a graph of hour, distance and carrier: score = (hour + distance) * weight + (carrier == "UA")."""
    from onnx import TensorProto, helper

    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1, 1], [0.5])
    if external:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="weight.bin")
    nodes = [
        helper.make_node("Add", ["hour", "distance"], ["sum"]),
        helper.make_node("Mul", ["sum", "weight"], ["scaled"]),
        helper.make_node(
            "LabelEncoder", ["carrier"], ["code"], domain="ai.onnx.ml",
            keys_strings=["UA"], values_floats=[1.0], default_float=0.0,
        ),
        helper.make_node("Add", ["scaled", "code"], [output]),
    ]  # fmt: skip
    kinds = {"hour": TensorProto.FLOAT, "distance": TensorProto.FLOAT, "carrier": TensorProto.STRING}
    inputs = [helper.make_tensor_value_info(name, kind, ["N", 1]) for name, kind in kinds.items()]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 1])]
    body = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(body, opset_imports=imports, ir_version=8).SerializeToString()


def package(folder: Path, manifest: Manifest = MANIFEST, body: bytes | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / models.ONNX).write_bytes(graph() if body is None else body)
    models.write_manifest(folder, manifest)
    return folder


class TestManifest:
    def test_round_trip_keeps_the_order_of_the_inputs(self, tmp_path):
        found = models.read_manifest(package(tmp_path))
        assert found == MANIFEST
        assert list(found.inputs) == ["hour", "carrier", "distance"]

    def test_writing_twice_gives_the_same_bytes(self, tmp_path):
        first = (package(tmp_path) / models.MANIFEST).read_bytes()
        assert (package(tmp_path) / models.MANIFEST).read_bytes() == first

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "late"}', '{"nmae": 1}'])
    def test_no_complete_package(self, tmp_path, text):
        (tmp_path / models.MANIFEST).write_text(text)
        with pytest.raises(DataError, match="holds no complete model package"):
            models.read_manifest(tmp_path)

    def test_missing_package(self, tmp_path):
        with pytest.raises(DataError, match="holds no complete model package"):
            models.describe(tmp_path)

    def test_package_without_a_graph(self, tmp_path):
        (package(tmp_path) / models.ONNX).unlink()
        with pytest.raises(DataError, match=r"holds no complete model package.*model\.onnx"):
            models.describe(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"threshold": 50.0}, r"threshold must be in \[0, 1\], got 50.0; give a fraction, not percent"),
            ({"inputs": {}}, "inputs of a model must be at least one column"),
        ],
    )
    def test_bad_values(self, changes, message):
        with pytest.raises(SpecError, match=message):
            replace(MANIFEST, **changes)


class TestDigest:
    def test_covers_what_serves(self, tmp_path):
        digest = models.package_digest(package(tmp_path))
        assert models.package_digest(package(tmp_path, replace(MANIFEST, metrics={"auc": 0.7}))) == digest
        for change in ({"threshold": 0.3}, {"segment": {"origin": "EWR"}}):
            assert models.package_digest(package(tmp_path, replace(MANIFEST, **change))) != digest
        assert models.package_digest(package(tmp_path, body=graph() + b"\x5a\x00")) != digest

    def test_covers_further_files_and_only_those_in_the_folder(self, tmp_path):
        other = replace(MANIFEST, files={"model.ort": "sha256:0"})
        with pytest.raises(DataError, match="no complete model package"):
            models.package_digest(package(tmp_path, other))
        digests = {models.package_digest(package(tmp_path))}
        for text in ("one", "two"):
            (tmp_path / "model.ort").write_text(text)
            digests.add(models.package_digest(package(tmp_path, other)))
        assert len(digests) == 3
        for name in ("../secret", "..", ""):
            with pytest.raises(SpecError, match="names of files in its folder"):
                replace(MANIFEST, files={name: "sha256:0"})

    def test_order_of_inputs_is_not_part_of_it(self, tmp_path):
        other = replace(MANIFEST, inputs=dict(reversed(MANIFEST.inputs.items())))
        assert models.package_digest(package(tmp_path / "a")) == models.package_digest(package(tmp_path / "b", other))

    def test_tampered_package_is_refused(self, tmp_path):
        ref = models.describe(package(tmp_path))
        assert models.verify(tmp_path, ref) == tmp_path
        package(tmp_path, replace(MANIFEST, threshold=0.01))
        with pytest.raises(IntegrityError, match=f"has digest sha256:.*, not {ref.digest}: it was changed"):
            models.verify(tmp_path, ref)


class TestScorer:
    def table(self):
        return pa.table({"carrier": ["UA", "AA", None], "hour": [1, 2, 3], "distance": [1.0, None, 5.0], "x": [0] * 3})

    def test_scores_by_hand(self, tmp_path):
        scores = Scorer(package(tmp_path)).score(self.table())
        assert scores.dtype == np.float32
        assert scores.tolist()[::2] == [2.0, 4.0]  # (1+1)/2 + 1, (3+5)/2 + 0
        assert np.isnan(scores[1])  # a missing number is NaN

    def test_batches_and_slices_score_alike(self, tmp_path):
        scorer = Scorer(package(tmp_path))
        whole = pa.concat_tables([self.table()] * 3)
        batch = whole.combine_chunks().to_batches()[0]
        expected = scorer.score(whole)
        np.testing.assert_array_equal(scorer.score(batch), expected)
        np.testing.assert_array_equal(scorer.score(whole.slice(2, 4)), expected[2:6])
        np.testing.assert_array_equal(scorer.score(batch.slice(2, 4)), expected[2:6])

    def test_no_rows(self, tmp_path):
        scores = Scorer(package(tmp_path)).score(self.table().slice(0, 0))
        assert (scores.shape, scores.dtype) == ((0,), np.float32)

    def test_missing_column(self, tmp_path):
        with pytest.raises(DataError, match="model 'late' needs column 'hour'; the data has carrier, distance, x"):
            Scorer(package(tmp_path)).score(self.table().drop_columns(["hour"]))

    def test_garbage_in_a_number_column(self, tmp_path):
        table = self.table().set_column(1, "hour", pa.array(["1", "two", "3"]))
        with pytest.raises(DataError, match=r"column 'hour' of type string cannot be read as float: .*two"):
            Scorer(package(tmp_path)).score(table)

    def test_damaged_graph(self, tmp_path):
        with pytest.raises(IntegrityError, match="model 'late': ONNX Runtime cannot open its graph"):
            Scorer(package(tmp_path, body=graph()[:-40]))

    def test_weights_in_another_file_are_refused(self, tmp_path):
        """The digest covers model.onnx alone."""
        (tmp_path / "weight.bin").write_bytes(np.float32([0.5]).tobytes())
        with pytest.raises(IntegrityError, match="ONNX Runtime cannot open its graph"):
            Scorer(package(tmp_path, body=graph(external=True)))

    def test_graph_that_is_not_what_the_manifest_says(self, tmp_path):
        manifest = replace(MANIFEST, inputs={**MANIFEST.inputs, "hour": "string"})
        with pytest.raises(IntegrityError, match=r"the manifest names inputs .* the graph has inputs"):
            Scorer(package(tmp_path / "type", manifest))
        with pytest.raises(IntegrityError, match=r"outputs \['label'\]"):
            Scorer(package(tmp_path / "output", body=graph(output="label")))

    def test_absent_providers_are_left_out(self, tmp_path):
        scorer = Scorer(package(tmp_path), providers=("NoSuchExecutionProvider",))
        assert scorer.score(self.table())[0] == 2.0


class TestReadInput:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (pa.array([1, None, 3], pa.int64()), [1, None, 3]),
            (pa.array([True, False, None]), [1, 0, None]),
            (pa.array([1.5, float("nan"), None], pa.float32()), [1.5, None, None]),
            (pa.array([None, None, None], pa.null()), [None] * 3),
            (pa.array(["1", "2.5", None]), [1, 2.5, None]),
            (pa.array([1e300, -1e300, 0.1]), [np.inf, -np.inf, np.float32(0.1)]),
        ],
    )
    def test_numbers(self, values, expected):
        found = models.read_input(pa.table({"x": values}), "x", "float", "m")
        assert (found.dtype, found.shape) == (np.float32, (3, 1))
        wanted = np.array([np.nan if v is None else v for v in expected], np.float32)
        np.testing.assert_array_equal(found[:, 0], wanted)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (pa.array(["a", None, "", "ü"]), ["a", "", "", "ü"]),
            (pa.array(["a", None, "b", "a"]).dictionary_encode(), ["a", "", "b", "a"]),
            (pa.array([1, 2, None, 4]), ["1", "2", "", "4"]),
            (pa.array([None] * 4, pa.null()), [""] * 4),
        ],
    )
    def test_texts(self, values, expected):
        found = models.read_input(pa.table({"x": values}), "x", "string", "m")
        assert (found.dtype, found.shape) == (np.dtype(object), (4, 1))
        assert found[:, 0].tolist() == expected

    @given(
        values=st.lists(st.one_of(st.none(), st.floats(width=32), st.integers(-(2**24), 2**24).map(float)), min_size=1),
        cut=st.integers(0, 10),
    )
    @settings(max_examples=50, deadline=None)
    def test_numbers_are_read_exactly_from_any_slice(self, values, cut):
        table = pa.table(
            {"x": pa.chunked_array([pa.array(values[:cut], pa.float64()), pa.array(values[cut:], pa.float64())])}
        )
        cut = min(cut, len(values) - 1)
        found = models.read_input(table.slice(cut), "x", "float", "m")[:, 0]
        wanted = np.array([np.nan if v is None else v for v in values[cut:]], np.float32)
        np.testing.assert_array_equal(found, wanted)

    def test_dates_are_no_numbers(self):
        table = pa.table({"x": pa.array([datetime(2013, 1, 1, tzinfo=timezone.utc)])})
        with pytest.raises(DataError, match=r"column 'x' of type timestamp.* cannot be read as float"):
            models.read_input(table, "x", "float", "m")


class TestSegment:
    TABLE = pa.table({"origin": ["EWR", "JFK", None, "EWR"], "month": [1, 1, 1, 2]})

    @pytest.mark.parametrize(
        ("segment", "expected"),
        [
            ({}, [True] * 4),
            ({"origin": "EWR"}, [True, False, False, True]),
            ({"origin": "EWR", "month": "1"}, [True, False, False, False]),
            ({"origin": ""}, [False] * 4),  # missing is no value
        ],
    )
    def test_mask(self, segment, expected):
        assert models.segment_mask(self.TABLE, segment).to_pylist() == expected
        batch = self.TABLE.to_batches()[0]
        assert models.segment_mask(batch.slice(1), segment).to_pylist() == expected[1:]

    def test_no_rows(self):
        assert models.segment_mask(self.TABLE.slice(0, 0), {"origin": "EWR"}).to_pylist() == []

    def test_missing_column(self):
        with pytest.raises(DataError, match="segment column 'dest' is missing; there are origin, month"):
            models.segment_mask(self.TABLE, {"dest": "IAH"})


def test_scoring_does_not_import_pandas(tmp_path):
    import pyarrow.parquet as pq

    package(tmp_path)
    pq.write_table(
        pa.table({"carrier": ["UA", None], "hour": [1, None], "distance": [0.5, 1.0]}), tmp_path / "x.parquet"
    )
    code = (
        "import sys, pyarrow.parquet as pq; from pathlib import Path; from airflow_ml_provider import models\n"
        "folder = Path(sys.argv[1]); table = pq.ParquetFile(folder / 'x.parquet').read()\n"
        "models.Scorer(folder).score(table); models.segment_mask(table, {'carrier': 'UA'})\n"
        "assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_manifest_is_readable_json(tmp_path):
    data = json.loads((package(tmp_path) / models.MANIFEST).read_text())
    assert data["trained_until"] == "2013-01-05T00:00:00+00:00"
    assert tables.file_digest(tmp_path / models.ONNX).startswith("sha256:")
