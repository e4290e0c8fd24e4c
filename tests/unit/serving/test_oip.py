"""Requests to arrays, scores to answers; and every way in which a request can be wrong."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("numpy")

import numpy as np

from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.serving import oip
from airflow_ml_provider.stages.deploy import messages

INPUTS = {"distance": "float", "carrier": "string"}


def tensor(name: str, data: object, **changes: object) -> dict[str, object]:
    kind = "BYTES" if name == "carrier" else "FP32"
    rows = len(data) if isinstance(data, list) else 1
    return {"name": name, "shape": [rows, 1], "datatype": kind, "data": data, **changes}


def body(*tensors: object, **more: object) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


GOOD = (tensor("distance", [1.5, 2]), tensor("carrier", ["UA", "é"]))


def test_request() -> None:
    found = oip.decode(body(*GOOD, id="x", outputs=[{"name": "score"}]), INPUTS, "reject")
    assert (found.id, found.rows) == ("x", 2)
    assert found.feeds["distance"].dtype == np.float32
    assert found.feeds["distance"].tolist() == [[1.5], [2.0]]
    assert found.feeds["carrier"].tolist() == [["UA"], ["é"]]


def test_rows_of_one_value_are_the_same_as_flat_data() -> None:
    nested = tensor("distance", [[1.5], [2]]), tensor("carrier", [["UA"], ["é"]])
    flat, rows = (oip.decode(body(*tensors), INPUTS, "reject") for tensors in (GOOD, nested))
    assert all((flat.feeds[name] == rows.feeds[name]).all() for name in INPUTS)


def test_missing_values() -> None:
    text = body(tensor("distance", [None, math.nan, math.inf, 1e39]), tensor("carrier", [None, "", "UA", "B6"]))
    found = oip.decode(text, INPUTS, "accept")
    assert np.isnan(found.feeds["distance"][:2]).all()
    assert np.isinf(found.feeds["distance"][2:]).all()
    assert found.feeds["carrier"].reshape(-1).tolist() == ["", "", "UA", "B6"]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (tensor("distance", [None, 1]), "input 'distance' must have finite numbers, got null in row 0"),
        (tensor("distance", [1, math.nan]), "got NaN in row 1"),
        (tensor("distance", [1, -math.inf]), "got -Infinity in row 1"),
        (tensor("distance", [1, 1e39]), "got 1e\\+39 in row 1"),
        (tensor("carrier", ["UA", None]), "input 'carrier' must have texts, got null in row 1"),
    ],
)
def test_missing_values_are_refused_by_policy(bad, says: str) -> None:
    other = GOOD[1] if bad["name"] == "distance" else GOOD[0]
    with pytest.raises(DataError, match=says):
        oip.decode(body(bad, other), INPUTS, "reject")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "the body must be JSON"),
        (b"{", "the body must be JSON"),
        (b"\xff\xfe", "the body must be JSON"),
        (b"[" * 100_000, "the body must be JSON"),
        (b"[]", "the body must be a JSON object, got \\[\\]"),
        (b"{}", "'inputs' must be a list of tensors, got null"),
        (b'{"inputs": {}}', "'inputs' must be a list of tensors, got {}"),
        (body(), "inputs 'distance', 'carrier' are missing; the model needs distance, carrier"),
        (body(GOOD[0]), "inputs 'carrier' are missing"),
        (body("distance"), 'a tensor must be a JSON object, got "distance"'),
        (body({"name": 7}), "'name' of a tensor must be text, got 7"),
        (body(*GOOD, tensor("distanze", [1, 2])), "unknown input 'distanze'; did you mean 'distance'"),
        (body(*GOOD, GOOD[0]), "input 'distance' is given twice"),
        (body(tensor("distance", [1], dataa=[2])), "unknown key of input 'distance' 'dataa'; did you mean 'data'"),
        (body(tensor("distance", [1], datatype="FP64")), "datatype of input 'distance' must be FP32, got \"FP64\""),
        (body(tensor("carrier", ["x"], datatype=None)), "datatype of input 'carrier' must be BYTES, got null"),
        (body(tensor("distance", [1], shape=[1])), r"shape of input 'distance' must be \[N, 1\] .* got \[1\]"),
        (body(tensor("distance", [1], shape=[1, 2])), r"must be \[N, 1\]"),
        (body(tensor("distance", [], shape=[0, 1])), r"with N >= 1, got \[0, 1\]"),
        (body(tensor("distance", [1], shape=[True, 1])), r"must be \[N, 1\]"),
        (body(tensor("distance", [1], shape="1,1")), r"must be \[N, 1\]"),
        (body(tensor("distance", 1)), "'data' of input 'distance' must be a list, got 1"),
        (
            body(tensor("distance", [1, 2], shape=[3, 1])),
            r"input 'distance' of shape \[3, 1\] must have 3 values, got 2",
        ),
        (body(tensor("distance", [[1, 2]], shape=[1, 1])), "must have 1 values, got 2"),
        (body(tensor("distance", ["1.5"])), "input 'distance' must have numbers, got \"1.5\" in row 0"),
        (body(tensor("distance", [1, True])), "must have numbers, got true in row 1"),
        (body(tensor("distance", [[[1]]])), r"must have numbers, got \[1\] in row 0"),
        (body(tensor("distance", [10**400])), "has an integer that no FP32 can hold"),
        (body(tensor("carrier", [1])), "input 'carrier' must have texts, got 1 in row 0"),
        (body(tensor("carrier", ["\ud800"])), "half of a surrogate pair"),
        (body(tensor("distance", [1]), GOOD[1]), "inputs must have the same number of rows, got 1 and 2 of 'carrier'"),
        (body(*GOOD, outputs="score"), "'outputs' must be a list"),
        (body(*GOOD, outputs=[{"name": "label"}]), "unknown output 'label'"),
        (body(*GOOD, id=5), "'id' must be text, got 5"),
    ],
)
def test_wrong(text: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        oip.decode(text, INPUTS, "accept")


def test_answer() -> None:
    asked = oip.decode(body(*GOOD), INPUTS, "accept")
    found = json.loads(oip.encode("late", "3", asked, np.array([0.25, math.nan], np.float32)))
    assert found == {
        "model_name": "late",
        "model_version": "3",
        "id": asked.id,
        "outputs": [{"name": "score", "shape": [2], "datatype": "FP32", "data": [0.25, None]}],
    }
    assert oip.scores(found) == [0.25, None]


def test_scores_are_those_of_the_first_output_of_floats() -> None:
    outputs = [
        {"datatype": "BYTES", "data": ["a"]},
        {"datatype": "FP64", "data": [[0.5], [0.6]]},
        {"datatype": "FP32", "data": [1]},
    ]
    assert oip.scores({"outputs": outputs}) == [0.5, 0.6]
    assert oip.scores({"outputs": outputs[:1]}) == []


def test_metadata() -> None:
    found = oip.metadata("late", "3", INPUTS)
    assert found["inputs"][1] == {"name": "carrier", "datatype": "BYTES", "shape": [-1, 1]}
    assert found["outputs"] == [{"name": "score", "datatype": "FP32", "shape": [-1]}]


class TestMessages:
    """What gRPC carries means the same as JSON."""

    @pytest.fixture(autouse=True)
    def needs(self) -> None:
        pytest.importorskip("google.protobuf")

    def request(self, *inputs: dict[str, object], raw: tuple[bytes, ...] = (), **more: object) -> oip.Request:
        body = messages.pack("ModelInferRequest", inputs=inputs, raw_input_contents=raw, **more)
        return oip.read(oip.document(messages.parse("ModelInferRequest", body)), INPUTS, "reject")

    def tensor(self, name: str, rows: int, **contents: object) -> dict[str, object]:
        kind = "BYTES" if name == "carrier" else "FP32"
        return {"name": name, "datatype": kind, "shape": [rows, 1], **({"contents": contents} if contents else {})}

    def test_requests_are_the_same_in_all_forms(self) -> None:
        expected = oip.decode(body(*GOOD, id="x"), INPUTS, "reject")
        typed = self.request(
            self.tensor("distance", 2, fp32_contents=[1.5, 2]),
            self.tensor("carrier", 2, bytes_contents=[b"UA", "é".encode()]),
            id="x", outputs=[{"name": "score"}],
        )  # fmt: skip
        message = messages.parse("ModelInferRequest", messages.ask("late", "", json.loads(body(*GOOD, id="x"))))
        raw = oip.read(oip.document(message), INPUTS, "reject")
        for found in (typed, raw):
            assert (found.id, found.rows) == (expected.id, expected.rows)
            assert all((found.feeds[name] == expected.feeds[name]).all() for name in INPUTS)
            assert found.feeds["distance"].dtype == np.float32

    def test_an_id_is_made_where_there_is_none(self) -> None:
        one = self.tensor("distance", 1, fp32_contents=[1]), self.tensor("carrier", 1, bytes_contents=[b"UA"])
        assert len({self.request(*one).id, self.request(*one).id}) == 2

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"contents": {"fp32_contents": [math.nan]}}, "must have finite numbers, got NaN in row 0"),
            ({"contents": {"fp32_contents": [1, 2]}}, r"of shape \[1, 1\] must have 1 values, got 2"),
            ({"contents": {"int_contents": [1]}}, r"of shape \[1, 1\] must have 1 values, got 0"),
            ({"datatype": "FP64"}, "datatype of input 'distance' must be FP32, got \"FP64\""),
            ({"shape": [1]}, r"must be \[N, 1\] with N >= 1, got \[1\]"),
            ({"name": "distnace"}, "unknown input 'distnace'; did you mean 'distance'"),
        ],
    )
    def test_wrong_requests(self, change: dict[str, object], says: str) -> None:
        one = {**self.tensor("distance", 1, fp32_contents=[1]), **change}
        with pytest.raises(DataError, match=says):
            self.request(one, self.tensor("carrier", 1, bytes_contents=[b"UA"]))

    @pytest.mark.parametrize("raw", [True, False])
    def test_answer(self, raw: bool) -> None:
        scores = np.array([0.25, np.nan], np.float32)
        answer = messages.parse(
            "ModelInferResponse", oip.encode_message("late", "7", oip.Request("x", {}, 2), scores, raw=raw)
        )
        assert (answer.model_name, answer.model_version, answer.id) == ("late", "7", "x")
        assert bool(answer.raw_output_contents) == raw
        (output,) = messages.tensors(answer.outputs, answer.raw_output_contents)
        assert (output["name"], output["shape"]) == ("score", [2])
        assert messages.plain([output])[0]["data"] == [0.25, None]
