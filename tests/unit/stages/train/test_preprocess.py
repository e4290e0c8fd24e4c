from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.models import read_input
from airflow_ml_provider.stages.train import export, preprocess
from airflow_ml_provider.stages.train.preprocess import Category, Preprocessor

KINDS = {"x": "float", "carrier": "string"}
ENCODINGS = ("ordinal", "one_hot", "indexed")


def rows(carriers, x):
    return pa.table({"x": pa.array(x, pa.float64()), "carrier": pa.array(carriers, pa.string())})


def train():
    """Return 120 rows: UA late in 45 of 60, AA in 10 of 50, ZZ in 5 of 5 (rare), missing in 0 of 5 (rare)."""
    carriers = ["UA"] * 60 + ["AA"] * 50 + ["ZZ"] * 5 + [None] * 5
    labels = np.array([1] * 45 + [0] * 15 + [1] * 10 + [0] * 40 + [1] * 5 + [0] * 5, np.float32)
    return rows(carriers, [float(i % 10) if i % 4 else None for i in range(120)]), labels


def identity(features):
    """Return an ONNX model that gives the sum of the matrix's columns."""
    nodes = [helper.make_node("ReduceSum", ["X", "axes"], ["sum"], keepdims=1)]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    body = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", features])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N", 1])],
        [axes],
    )  # fmt: skip
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def through_onnx(pre, table):
    """Return the matrix as the exported front of the graph computes it."""
    front = export._front(pre)
    imports = [helper.make_opsetid("", 9), helper.make_opsetid("ai.onnx.ml", 3)]
    session = ort.InferenceSession(helper.make_model(front, opset_imports=imports, ir_version=8).SerializeToString())
    feeds = {name: read_input(table, name, kind, "m") for name, kind in pre.inputs.items()}
    return session.run([export.MATRIX], feeds)[0]


class TestCategory:
    def test_codes_are_ranks_of_the_label_rate(self):
        (category,) = preprocess.fit(*train(), KINDS, "ordinal").categories
        # Rates drawn to 60/120 by 20 rows: AA (10+10)/70 = .29, rare ones (5+10)/30 = .5, UA (45+10)/80 = .69
        assert category == Category("carrier", ("AA", "UA"), unknown=1)
        assert category.codes == {"AA": 0, "UA": 2}
        assert category.titles == ["AA", "*", "UA"]

    def test_unknown_rare_and_missing_share_a_code(self):
        pre = preprocess.fit(*train(), KINDS, "ordinal")
        matrix = pre.matrix(rows(["AA", "UA", "ZZ", None, "", "new"], [0.0] * 6))
        assert matrix[:, 1].tolist() == [0, 2, 1, 1, 1, 1]

    def test_missing_is_a_category_where_it_is_frequent(self):
        labels = np.array([0, 1] * 20, np.float32)
        pre = preprocess.fit(rows([None, "AA"] * 20, [0.0] * 40), labels, KINDS, "ordinal")
        assert pre.categories[0].values == ("", "AA")

    def test_only_the_most_frequent_are_known(self):
        carriers = [f"c{i:03}" for i in range(300) for _ in range(10 + (i % 2))]
        labels = np.resize(np.array([0, 1], np.float32), len(carriers))
        (category,) = preprocess.fit(rows(carriers, [0.0] * len(carriers)), labels, KINDS, "ordinal").categories
        assert len(category.values) == 255
        assert sum(int(name[1:]) % 2 for name in category.values) == 150  # those with 11 rows come first

    def test_no_known_text_at_all(self):
        labels = np.array([0, 1, 0, 1], np.float32)
        for encoding in ENCODINGS:
            pre = preprocess.fit(rows(["a", "b", "c", "d"], [1.0, 2, 3, 4]), labels, KINDS, encoding)
            assert pre.categories[0].values == ()
            table = rows(["a", None], [1.0, None])
            np.testing.assert_array_equal(through_onnx(pre, table), pre.matrix(table))


class TestNumber:
    def test_median_and_standard_score(self):
        table = rows(["a"] * 5, [1.0, 2.0, 9.0, None, 4.0])  # median of the present: 3
        (number,) = preprocess.fit(table, np.zeros(5), {"x": "float"}, "one_hot").numbers
        filled = np.array([1, 2, 9, 3, 4])
        assert number.fill == 3.0
        assert number.offset == pytest.approx(filled.mean())
        assert number.scale == pytest.approx(1 / filled.std())

    def test_missing_stays_missing_only_where_that_was_seen(self):
        table = pa.table({"x": [1.0, None, 3.0], "y": [1.0, 2.0, 3.0]})
        pre = preprocess.fit(table, np.zeros(3), {"x": "float", "y": "float"}, "ordinal", keep_missing=True)
        matrix = pre.matrix(pa.table({"x": [None], "y": [None]}))
        assert np.isnan(matrix[0, 0])
        assert matrix[0, 1] == 2.0

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_columns_without_spread_or_values(self, encoding):
        table = pa.table({"x": [7.0, 7.0], "y": pa.array([None, None], pa.float64())})
        pre = preprocess.fit(table, np.zeros(2), {"x": "float", "y": "float"}, encoding)
        assert np.isfinite(pre.matrix(table)).all()

    def test_infinite_values(self):
        with pytest.raises(DataError, match="column 'x' has 2 infinite values"):
            preprocess.fit(rows(["a"] * 3, [1.0, float("inf"), 1e300]), np.zeros(3), KINDS, "ordinal")


class TestExport:
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_onnx_gives_the_very_same_matrix(self, encoding):
        table, labels = train()
        pre = preprocess.fit(table, labels, KINDS, encoding)
        unseen = rows(["AA", "ZZ", None, "ü", "UA"], [None, -1e6, 3.7, 0.0, 1e-3])
        for part in (table, unseen, unseen.slice(1, 1)):
            np.testing.assert_array_equal(through_onnx(pre, part), pre.matrix(part))

    @given(
        numbers=st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6, width=32)), min_size=30, max_size=60),
        texts=st.lists(st.sampled_from(["a", "b", "", "ü x", "a,b"]), min_size=30, max_size=30),
        encoding=st.sampled_from(ENCODINGS),
    )
    @settings(max_examples=25, deadline=None)
    def test_any_rows(self, numbers, texts, encoding):
        table = rows(texts, numbers[:30])
        pre = preprocess.fit(table, np.resize([0.0, 1.0, 1.0], 30), KINDS, encoding, keep_missing=encoding == "ordinal")
        np.testing.assert_array_equal(through_onnx(pre, table), pre.matrix(table))

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_json_round_trip(self, encoding):
        pre = preprocess.fit(*train(), KINDS, encoding)
        assert codec.decode(Preprocessor, codec.encode(pre)) == pre

    def test_feature_names(self):
        pre = preprocess.fit(*train(), KINDS, "one_hot")
        assert pre.features == ("x", "carrier=AA", "carrier=*", "carrier=UA")
        assert preprocess.fit(*train(), KINDS, "indexed").features == ("x", "carrier")

    def test_joined_graph_takes_raw_columns(self):
        table, labels = train()
        pre = preprocess.fit(table, labels, KINDS, "one_hot")
        graph = export.serving_graph(pre, identity(len(pre.features)), "late")
        assert export.check(graph, pre, table, pre.matrix(table).sum(axis=1)) < 1e-5
        session = ort.InferenceSession(graph)
        assert {i.name: (i.type, i.shape) for i in session.get_inputs()} == {
            "x": ("tensor(float)", ["N", 1]),
            "carrier": ("tensor(string)", ["N", 1]),
        }
        assert [(o.name, o.shape) for o in session.get_outputs()] == [("score", ["N", 1])]

    def test_wrong_conversion_is_noticed(self):
        table, labels = train()
        pre = preprocess.fit(table, labels, KINDS, "one_hot")
        graph = export.serving_graph(pre, identity(len(pre.features)), "late")
        native = pre.matrix(table).sum(axis=1)
        native[17] += 0.02
        with pytest.raises(DataError, match=r"differs from the model by up to 0\.02 in the score"):
            export.check(graph, pre, table, native)

    def test_notes_of_the_converter_leave_no_trace(self):
        pre = preprocess.fit(*train(), KINDS, "ordinal")
        plain, noted = identity(2), identity(2)
        noted.doc_string = noted.graph.doc_string = "made on this machine"
        noted.graph.name = "f3c1"
        noted.graph.node[0].doc_string = "/home/me/model.py"
        noted.graph.node[0].metadata_props.add(key="stack", value="/home/me/model.py")
        noted.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "s77"
        noted.metadata_props.add(key="at", value="2013-01-01")
        noted.producer_version = "9"
        assert export.serving_graph(pre, noted, "m") == export.serving_graph(pre, plain, "m")

    def test_graphs_that_cannot_be_served(self):
        pre = preprocess.fit(*train(), KINDS, "ordinal")
        two = identity(2)
        two.graph.input.append(helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", 2]))
        foreign = identity(2)
        foreign.graph.node[0].domain = "com.example"
        foreign.opset_import.add(domain="com.example", version=1)
        outside = identity(2)
        outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
        old = identity(2)
        old.opset_import[0].version = 7
        for model, message in (
            (two, "the model must have one input, the float32 matrix"),
            (foreign, r"operators of \['com.example'\]"),
            (outside, "weights lie in another file"),
            (old, "opset must be at least 9, got 7"),
        ):
            with pytest.raises(SpecError, match=message):
                export.serving_graph(pre, model, "m")
