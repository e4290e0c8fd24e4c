"""The Open Inference Protocol v2: requests to arrays, scores to responses, as JSON and as messages of gRPC.

Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md, inference_grpc.md).
Of its extensions there are none, so no binary tensors in REST either.
"""

from __future__ import annotations

import json
import math
import uuid
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from airflow_ml_provider.exceptions import DataError, unknown_name
from airflow_ml_provider.models import SCORE, InputType
from airflow_ml_provider.serving.spec import NanPolicy
from airflow_ml_provider.stages.deploy import messages

DATATYPES: Mapping[InputType, str] = {"float": "FP32", "string": "BYTES"}
BINARY_HEADER = "Inference-Header-Content-Length"
_KNOWN = ("name", "shape", "datatype", "data", "parameters")


@dataclass(frozen=True)
class Request:
    """A request that can be scored.

    Attributes:
        id: what the client calls it, or a new one.
        feeds: every input of the model as float32 or objects of text, of shape [N, 1].
        rows: N.
    """

    id: str
    feeds: Mapping[str, Any]
    rows: int


def metadata(name: str, version: str, inputs: Mapping[str, InputType]) -> dict[str, Any]:
    """Return the metadata of a model."""
    return {
        "name": name,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": key, "datatype": DATATYPES[kind], "shape": [-1, 1]} for key, kind in inputs.items()],
        "outputs": [{"name": SCORE, "datatype": "FP32", "shape": [-1]}],
    }


def parse(body: bytes) -> dict[str, Any]:
    """Return a JSON body as a mapping.

    Raises:
        DataError: it is not one.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body must be JSON: {error}") from None
    if not isinstance(data, dict):
        raise DataError(f"the body must be a JSON object, got {_short(data)}")
    return data


def decode(body: bytes, inputs: Mapping[str, InputType], nan: NanPolicy) -> Request:
    """Return the request of a JSON body for a model with `inputs`.

    Raises:
        DataError: an input is missing or unknown, or has a wrong type or shape; the message names it.
    """
    return read(parse(body), inputs, nan)


def document(message: Any) -> dict[str, Any]:
    """Return a `ModelInferRequest` as the protocol's JSON has it.

    Raises:
        DataError: the contents of its tensors are not those of their datatypes.
    """
    inputs = messages.tensors(message.inputs, message.raw_input_contents)
    outputs = {"outputs": [{"name": one.name} for one in message.outputs]} if message.outputs else {}
    return {"id": message.id or None, "inputs": inputs, **outputs}


def read(data: Mapping[str, Any], inputs: Mapping[str, InputType], nan: NanPolicy) -> Request:
    """Return the request of a mapping, as `decode` does."""
    found: dict[str, Any] = {}
    rows: Optional[int] = None
    tensors = data.get("inputs")
    if not isinstance(tensors, list):
        raise DataError(f"'inputs' must be a list of tensors, got {_short(tensors)}")
    for tensor in tensors:
        name = _name(tensor, inputs, found)
        found[name] = _tensor(tensor, name, inputs[name], nan)
        if rows not in (None, len(found[name])):
            raise DataError(f"inputs must have the same number of rows, got {rows} and {len(found[name])} of {name!r}")
        rows = len(found[name])
    if missing := [name for name in inputs if name not in found]:
        raise DataError(f"inputs {', '.join(map(repr, missing))} are missing; the model needs {', '.join(inputs)}")
    _check_outputs(data.get("outputs"))
    return Request(_id(data.get("id")), found, rows or 0)


def encode(name: str, version: str, request: Request, scores: Any) -> bytes:
    """Return the response to a request; a score that is no number is null."""
    values = scores.tolist()
    if not all(map(math.isfinite, values)):
        values = [value if math.isfinite(value) else None for value in values]
    output = {"name": SCORE, "shape": [len(values)], "datatype": "FP32", "data": values}
    body = {"model_name": name, "model_version": version, "id": request.id, "outputs": [output]}
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def encode_message(name: str, version: str, request: Request, scores: Any, *, raw: bool) -> bytes:
    """Return the `ModelInferResponse` to a request, with raw contents or typed ones."""
    output: dict[str, Any] = {"name": SCORE, "datatype": "FP32", "shape": [len(scores)]}
    answer = {"model_name": name, "model_version": version, "id": request.id, "outputs": [output]}
    if raw:
        answer["raw_output_contents"] = [scores.astype("<f4").tobytes()]
    else:
        output["contents"] = {"fp32_contents": scores.tolist()}
    return messages.pack("ModelInferResponse", **answer)


def scores(response: Mapping[str, Any]) -> list[Any]:
    """Return the values of the first output of floats in a response, flat; none without one."""
    for output in response.get("outputs", ()):
        if str(output.get("datatype", "")).startswith("FP"):
            values: list[Any] = _flat(output["data"])
            return values
    return []


def timing(**seconds: float) -> str:
    """Return the header `Server-Timing` (https://www.w3.org/TR/server-timing/): parts of a request in milliseconds.

    >>> timing(queue=0.0005, model=0.002)
    'queue;dur=0.500, model;dur=2.000'
    """
    return ", ".join(f"{part};dur={1000 * value:.3f}" for part, value in seconds.items())


def error(message: object) -> bytes:
    """Return the body of an answer that is an error."""
    return json.dumps({"error": str(message)}).encode()


def _name(tensor: Any, inputs: Mapping[str, InputType], found: Mapping[str, Any]) -> str:
    if not isinstance(tensor, dict):
        raise DataError(f"a tensor must be a JSON object, got {_short(tensor)}")
    name = tensor.get("name")
    if not isinstance(name, str):
        raise DataError(f"'name' of a tensor must be text, got {_short(name)}")
    if name not in inputs:
        raise DataError(str(unknown_name("input", name[:100], inputs)))
    if name in found:
        raise DataError(f"input {name!r} is given twice")
    for key in tensor:
        if key not in _KNOWN:
            raise DataError(str(unknown_name(f"key of input {name!r}", str(key)[:100], _KNOWN)))
    return name


def _tensor(tensor: Mapping[str, Any], name: str, kind: InputType, nan: NanPolicy) -> Any:
    wanted = DATATYPES[kind]
    if tensor.get("datatype") != wanted:
        raise DataError(f"datatype of input {name!r} must be {wanted}, got {_short(tensor.get('datatype'))}")
    shape: Any = tensor.get("shape")
    if not _is_column(shape):
        raise DataError(f"shape of input {name!r} must be [N, 1] with N >= 1, got {_short(shape)}")
    data = tensor.get("data")
    if not isinstance(data, (list, array)):
        raise DataError(f"'data' of input {name!r} must be a list, got {_short(data)}")
    values: Sequence[Any] = _flat(data)
    if len(values) != shape[0]:
        raise DataError(f"input {name!r} of shape {shape} must have {shape[0]} values, got {len(values)}")
    return _texts(values, name, nan) if kind == "string" else _numbers(values, name, nan)


def _is_column(shape: Any) -> bool:
    integers = isinstance(shape, list) and all(type(size) is int for size in shape)
    return integers and len(shape) == 2 and shape[0] >= 1 and shape[1] == 1


def _flat(data: Any) -> Any:
    """Return flat data as it is and rows of one value as their values; both are row-major."""
    if data and isinstance(data[0], list):
        return [value for row in data for value in (row if isinstance(row, list) else [row])]
    return data


def _numbers(values: Sequence[Any], name: str, nan: NanPolicy) -> Any:
    import numpy as np

    found = np.asarray(values, np.float32) if isinstance(values, array) else _converted(values, name)
    if nan == "reject" and not np.isfinite(found).all():
        at = int(np.flatnonzero(~np.isfinite(found))[0])
        raise DataError(f"input {name!r} must have finite numbers, got {_short(values[at])} in row {at}")
    return found.reshape(-1, 1)


def _converted(values: Sequence[Any], name: str) -> Any:
    import numpy as np

    for at, value in enumerate(values):
        if type(value) not in (float, int) and value is not None:
            raise DataError(f"input {name!r} must have numbers, got {_short(value)} in row {at}")
    try:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, as it is for ONNX Runtime
            return np.array(values, np.float64).astype(np.float32)  # None becomes NaN
    except OverflowError:
        raise DataError(f"input {name!r} has an integer that no FP32 can hold") from None


def _texts(values: Sequence[Any], name: str, nan: NanPolicy) -> Any:
    import numpy as np

    for at, value in enumerate(values):
        if type(value) is not str and (value is not None or nan == "reject"):
            raise DataError(f"input {name!r} must have texts, got {_short(value)} in row {at}")
    texts = [value or "" for value in values]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise DataError(f"input {name!r} has a text that is not Unicode: half of a surrogate pair") from None
    return np.array(texts, object).reshape(-1, 1)


def _check_outputs(outputs: Any) -> None:
    if outputs is None:
        return
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise DataError(f"'outputs' must be a list of JSON objects, got {_short(outputs)}")
    for output in outputs:
        if output.get("name") != SCORE:
            raise DataError(str(unknown_name("output", str(output.get("name"))[:100], [SCORE])))


def _id(given: Any) -> str:
    if given is None:
        return uuid.uuid4().hex
    if not isinstance(given, str):
        raise DataError(f"'id' must be text, got {_short(given)}")
    return given


def _short(value: object) -> str:
    """Return a JSON value as it stands in messages."""
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"a list of {len(value)}" if isinstance(value, list) else f"an object with {len(value)} keys"
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "…"
