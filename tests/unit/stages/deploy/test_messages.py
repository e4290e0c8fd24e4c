"""The messages of gRPC, against bytes that others wrote, and every way in which contents can be wrong."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("google.protobuf")

import airflow_ml_provider
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.stages.deploy import messages

# What tritonclient 2.73.0 (protobuf 6.33) wrote, with parameters in requests and tensors, which are skipped here.
TYPED = (
    "0a046c6174651201371a0178220e0a087072696f72697479120228032a2a0a0864697374616e63651204465033321a02020122080a016b12"
    "031a01762a0a32080000fa430000c07f2a280a0763617272696572120542595445531a02020122080a016b12031a01762a08420255414202"
    "c3a932070a0573636f7265"
)
RAW = (
    "0a046c6174651a01782a140a0864697374616e63651204465033321a0202012a140a0763617272696572120542595445531a020201320"
    "70a0573636f72653a080000fa430000c03f3a0c02000000554102000000c3a9"
)
CONTENTS = "0a0101120affffffffffffffffff011a0afeffffffffffffffff012201032a010432040000c03f3a080000000000000440420162"
METADATA = (
    "0a046c6174651201371a017022160a01611204465033321a0bffffffffffffffffff01012a160a0162120542595445531a0affffffffffff"
    "ffffff01"
)
ANSWER = "0a046c6174651201371a01782a100a0573636f72651204465033321a010132040000803f"


def tensors(body: bytes) -> list[dict[str, object]]:
    found = messages.parse("ModelInferRequest", body)
    return messages.tensors(found.inputs, found.raw_input_contents)


def test_requests_of_others_are_read() -> None:
    found = messages.parse("ModelInferRequest", bytes.fromhex(TYPED))
    assert (found.model_name, found.model_version, found.id) == ("late", "7", "x")
    assert [one.name for one in found.outputs] == ["score"]
    distance, carrier = tensors(bytes.fromhex(TYPED))
    assert (distance["name"], distance["datatype"], distance["shape"]) == ("distance", "FP32", [2, 1])
    assert distance["data"][0] == 500
    assert math.isnan(distance["data"][1])
    assert carrier["data"] == ["UA", "é"]
    assert messages.plain([distance])[0]["data"] == [500, None]


def test_requests_are_those_that_others_write() -> None:
    inputs = [
        {"name": "distance", "datatype": "FP32", "shape": [2, 1], "data": [[500], [1.5]]},
        {"name": "carrier", "datatype": "BYTES", "shape": [2, 1], "data": ["UA", "é"]},
    ]
    body = messages.ask("late", "", {"id": "x", "inputs": inputs})
    assert body == bytes.fromhex(RAW).replace(bytes.fromhex("32070a0573636f7265"), b"")  # without requested outputs
    assert [list(one["data"]) for one in tensors(body)] == [[500, 1.5], ["UA", "é"]]


def test_all_fields_have_their_numbers() -> None:
    contents = {
        "bool_contents": [True], "int_contents": [-1], "int64_contents": [-2], "uint_contents": [3],
        "uint64_contents": [4], "fp32_contents": [1.5], "fp64_contents": [2.5], "bytes_contents": [b"b"],
    }  # fmt: skip
    assert messages.pack("InferTensorContents", **contents).hex() == CONTENTS
    inputs = [{"name": "a", "datatype": "FP32", "shape": [-1, 1]}]
    outputs = [{"name": "b", "datatype": "BYTES", "shape": [-1]}]
    metadata = {"name": "late", "versions": ["7"], "platform": "p", "inputs": inputs, "outputs": outputs}
    assert messages.pack("ModelMetadataResponse", **metadata).hex() == METADATA
    answer = {"model_name": "late", "model_version": "7", "id": "x", "raw_output_contents": [b"\0\0\x80?"]}
    outputs = [{"name": "score", "datatype": "FP32", "shape": [1]}]
    assert messages.pack("ModelInferResponse", outputs=outputs, **answer).hex() == ANSWER
    server = {"name": "n", "version": "v", "extensions": ["e"]}
    assert messages.pack("ServerMetadataResponse", **server).hex() == "0a016e1201761a0165"
    assert messages.pack("ModelReadyRequest", name="a", version="b").hex() == "0a0161120162"
    for name in ("ServerLive", "ServerReady", "ModelReady"):
        assert messages.pack(f"{name}Response", **{"live" if name == "ServerLive" else "ready": True}) == b"\x08\x01"


def test_every_datatype_has_raw_contents() -> None:
    def raw(datatype: str, data: list[object]) -> bytes:
        one = {"name": "a", "datatype": datatype, "shape": [len(data)], "data": data}
        return bytes(
            messages.parse("ModelInferRequest", messages.ask("m", "", {"inputs": [one]})).raw_input_contents[0]
        )

    assert raw("BOOL", [True, False]) == b"\1\0"
    assert raw("INT64", [-2]) == struct.pack("<q", -2)
    assert raw("UINT8", [255]) == b"\xff"
    assert raw("FP16", [1.5]) == b"\x00\x3e"
    assert math.isnan(struct.unpack("<d", raw("FP64", [None]))[0])
    assert raw("BYTES", ["a", ""]) == b"\1\0\0\0a\0\0\0\0"
    with pytest.raises(DataError, match="'a' holds what is no UINT8"):
        raw("UINT8", [256])
    with pytest.raises(DataError, match="'a' holds what is no INT32"):
        raw("INT32", [None])
    with pytest.raises(DataError, match="unknown datatype of 'a' 'FP23'; did you mean 'FP32'"):
        raw("FP23", [1])


def one(datatype: str = "FP32", **contents: object) -> dict[str, object]:
    return {"name": "a", "datatype": datatype, "shape": [1, 1], **({"contents": contents} if contents else {})}


@pytest.mark.parametrize(
    ("inputs", "raw", "says"),
    [
        ([one(), one()], [b"1234"], "raw contents must be given for each of 2 tensors, got 1"),
        ([one(fp32_contents=[1])], [b"1234"], "either raw contents or contents of their own, got both"),
        ([one()], [b"12345"], "raw contents of 'a' must have 4 bytes for each FP32, got 5"),
        ([one("BYTES")], [b"\2\0\0\0a"], "texts, each after its length, but end too early"),
        ([one("BYTES")], [b"\2\0"], "texts, each after its length, but end too early"),
        ([one("BYTES")], [b"\1\0\0\0\xff"], "'a' has a text that is not UTF-8"),
        ([one("BYTES", bytes_contents=[b"\xff"])], [], "'a' has a text that is not UTF-8"),
    ],
)
def test_wrong_contents(inputs: list[dict[str, object]], raw: list[bytes], says: str) -> None:
    body = messages.pack("ModelInferRequest", inputs=inputs, raw_input_contents=raw)
    with pytest.raises(DataError, match=says):
        tensors(body)


def test_what_is_no_message() -> None:
    with pytest.raises(DataError, match="the body must be a ModelInferRequest"):
        messages.parse("ModelInferRequest", b"\xff")


def test_another_library_with_the_same_names() -> None:
    """Such as KServe's and Triton's clients, in the same process, before or after."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from google.protobuf import descriptor_pb2, descriptor_pool
from airflow_ml_provider.stages.deploy import messages
file = descriptor_pb2.FileDescriptorProto(name="grpc_service.proto", package="inference", syntax="proto3")
for name in ("ModelInferRequest", "ServerLiveRequest"):
    file.message_type.add(name=name)
if sys.argv[2] == "after":
    messages.classes()
descriptor_pool.Default().Add(file)
descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
assert messages.parse("ModelInferRequest", messages.pack("ModelInferRequest", id="x")).id == "x"
"""
    root = str(Path(airflow_ml_provider.__file__).parents[1])
    for when in ("before", "after"):
        subprocess.run([sys.executable, "-c", code, root, when], check=True)
