"""The messages of the Open Inference Protocol v2 over gRPC.

Names, types and numbers of the fields are those of https://github.com/kserve/open-inference-protocol
(specification/protocol/open_inference_grpc.proto). The classes are made of them when they are first needed, so there is
no generated code, which fits few versions of protobuf only. `parameters` are left out: the specification defines none,
and a reader skips fields that it does not know.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from airflow_ml_provider.exceptions import DataError, unknown_name

SERVICE = "inference.GRPCInferenceService"
INFER = f"/{SERVICE}/ModelInfer"
METADATA = f"/{SERVICE}/ModelMetadata"
TIMING, VERSION = "server-timing", "x-model-version"  # trailing metadata, as REST's headers

_TENSOR = ("string name 1", "string datatype 2", "repeated int64 shape 3")
_MODEL = ("string name 1", "string version 2")
_INFER = ("string model_name 1", "string model_version 2", "string id 3")
_FIELDS: Mapping[str, Sequence[str]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("bool live 1",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("bool ready 1",),
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": ("bool ready 1",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": (*_MODEL, "repeated string extensions 3"),
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": (
        "string name 1", "repeated string versions 2", "string platform 3",
        "repeated TensorMetadata inputs 4", "repeated TensorMetadata outputs 5",
    ),
    "TensorMetadata": _TENSOR,
    "ModelInferRequest": (
        *_INFER, "repeated Tensor inputs 5", "repeated RequestedOutput outputs 6",
        "repeated bytes raw_input_contents 7",
    ),
    "ModelInferResponse": (*_INFER, "repeated Tensor outputs 5", "repeated bytes raw_output_contents 6"),
    "Tensor": (*_TENSOR, "optional InferTensorContents contents 5"),
    "RequestedOutput": ("string name 1",),
    "InferTensorContents": (
        "repeated bool bool_contents 1", "repeated int32 int_contents 2", "repeated int64 int64_contents 3",
        "repeated uint32 uint_contents 4", "repeated uint64 uint64_contents 5", "repeated float fp32_contents 6",
        "repeated double fp64_contents 7", "repeated bytes bytes_contents 8",
    ),
}  # fmt: skip
_RAW: Mapping[str, str] = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip


@lru_cache(maxsize=1)
def classes() -> Mapping[str, Any]:
    """Return the classes of the messages by name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package="inference", syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for text in fields:
            *label, kind, field, number = text.split()
            found = message.field.add(name=field, number=int(number))
            found.label = found.LABEL_REPEATED if label == ["repeated"] else found.LABEL_OPTIONAL
            if kind in _FIELDS:
                found.type, found.type_name = found.TYPE_MESSAGE, f".inference.{kind}"
            else:
                found.type = getattr(found, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()  # of its own: others may have the protocol's names in the usual one
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in _FIELDS}


def parse(name: str, body: bytes) -> Any:
    """Return a message.

    Raises:
        DataError: the bytes are none.
    """
    from google.protobuf.message import DecodeError

    try:
        return classes()[name].FromString(body)
    except DecodeError as error:
        raise DataError(f"the body must be a {name}: {error}") from None


def pack(kind: str, /, **fields: Any) -> bytes:
    """Return the bytes of a message."""
    found: bytes = classes()[kind](**fields).SerializeToString()
    return found


def ask(model: str, version: str, request: Mapping[str, Any]) -> bytes:
    """Return the bytes of an inference request, its tensors in the raw form.

    Parameters:
        request: as the protocol's JSON has it; a number that is missing is NaN.

    Raises:
        DataError: its tensors hold what their datatypes do not.
    """
    inputs = [{key: one[key] for key in ("name", "datatype", "shape")} for one in request["inputs"]]
    raw = [_raw(one["datatype"], one["data"], one["name"]) for one in request["inputs"]]
    more = {"id": request["id"]} if request.get("id") else {}
    return pack(
        "ModelInferRequest", model_name=model, model_version=version, inputs=inputs, raw_input_contents=raw, **more
    )


def tensors(found: Sequence[Any], raw: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the tensors of a message as the protocol's JSON has them; `data` is an array for FP32, texts for BYTES.

    Parameters:
        found: the tensors.
        raw: their raw contents; empty takes those of each tensor.

    Raises:
        DataError: the contents are not those of the datatype.
    """
    if raw and len(raw) != len(found):
        raise DataError(f"raw contents must be given for each of {len(found)} tensors, got {len(raw)}")
    if raw and any(one.HasField("contents") for one in found):
        raise DataError("tensors must have either raw contents or contents of their own, got both")
    return [
        {
            "name": one.name, "datatype": one.datatype, "shape": list(one.shape),
            "data": _data(one, raw[at] if raw else None),
        }
        for at, one in enumerate(found)
    ]  # fmt: skip


def plain(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return tensors as they can be written as JSON: numbers that are not finite are null."""
    return [{**one, "data": [_or_null(value) for value in one["data"]]} for one in found]


def _or_null(value: Any) -> Any:
    return value if isinstance(value, str) or math.isfinite(value) else None


def told(metadata: Any) -> dict[str, str]:
    """Return metadata of a call by key."""
    return dict(iter(metadata or ()))  # as pairs: `keys` of grpcio's own class differ between versions


def _data(tensor: Any, raw: Any) -> Sequence[Any]:
    """Return the values of a tensor; of another datatype than FP32 and BYTES none."""
    if tensor.datatype == "BYTES":
        return _texts(tensor.contents.bytes_contents if raw is None else _pieces(raw, tensor.name), tensor.name)
    if tensor.datatype != "FP32":
        return []
    if raw is None:
        return array("f", tensor.contents.fp32_contents)
    if len(raw) % 4:
        raise DataError(f"raw contents of {tensor.name!r} must have 4 bytes for each FP32, got {len(raw)}")
    return array("f", raw)


def _pieces(raw: bytes, name: str) -> list[bytes]:
    """Return what stands after the length of each: four bytes, the lowest first."""
    found, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if at + 4 > len(raw) or end > len(raw):
            raise DataError(f"raw contents of {name!r} must be texts, each after its length, but end too early")
        found.append(raw[at + 4 : end])
        at = end
    return found


def _texts(pieces: Sequence[bytes], name: str) -> list[str]:
    try:
        return [piece.decode() for piece in pieces]
    except UnicodeDecodeError as error:
        raise DataError(f"{name!r} has a text that is not UTF-8: {error}") from None


def _raw(datatype: str, values: Sequence[Any], name: str) -> bytes:
    while values and isinstance(values[0], list):  # rows, which are the same in row-major order
        values = [value for row in values for value in row]
    if datatype == "BYTES":
        pieces = [(value or "").encode() for value in values]
        return b"".join(struct.pack("<I", len(piece)) + piece for piece in pieces)
    if datatype not in _RAW:
        raise DataError(str(unknown_name(f"datatype of {name!r}", datatype, [*_RAW, "BYTES"])))
    if datatype.startswith("FP"):
        values = [float("nan") if value is None else value for value in values]
    try:
        return struct.pack(f"<{len(values)}{_RAW[datatype]}", *values)
    except (struct.error, OverflowError) as error:
        raise DataError(f"{name!r} holds what is no {datatype}: {error}") from None
