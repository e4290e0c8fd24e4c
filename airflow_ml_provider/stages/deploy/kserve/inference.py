"""Requests by the Open Inference Protocol (V2, REST), and which version answered them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Optional
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from airflow_ml_provider.exceptions import DataError, SpecError, Unavailable
from airflow_ml_provider.stages.deploy.kserve.manifest import component, deployment
from airflow_ml_provider.stages.deploy.kserve.predictor import VERSION
from airflow_ml_provider.stages.deploy.service import Observed

_REFUSED = (400, 413, 422)  # the server has read the request, and does not take it
_TYPES = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}


def request(rows: Mapping[str, Sequence[Any]], format: str = "onnx") -> dict[str, Any]:
    """Return the body of a request: one input per column, shape [N, 1].

    Parameters:
        rows: column to values.
        format: that of the model; one in ONNX gets numbers as float32, as this package's models want them.

    Raises:
        DataError: columns have different lengths, a value is missing or not of a type that can be sent.
    """
    if len({len(values) for values in rows.values()}) > 1:
        raise DataError(f"columns have different numbers of rows: { {k: len(v) for k, v in rows.items()} }")
    return {"inputs": [_input(name, list(values), format) for name, values in rows.items()]}


def post(
    url: str,
    address: str,
    name: str,
    body: Mapping[str, Any],
    timeout_s: float,
    further: Optional[Mapping[str, str]] = None,
) -> Mapping[str, Any]:
    """Return what a service answers to a request.

    Parameters:
        url: address of the service.
        address: where to send it instead; the service is then named in the header `Host`.
        name: name of the service, which is that of the model.
        body: the request.
        timeout_s: it fails after so many seconds.
        further: headers that go with it.

    Raises:
        DataError: the model does not take these rows.
        Unavailable: there is no answer, or none that says more than that something is wrong.
    """
    if not url:
        raise Unavailable(f"service {name!r} has no address yet")
    parts = urlsplit(url)
    base = f"{address.rstrip('/')}{parts.path}" if address else url
    headers = {"Content-Type": "application/json", "Host": parts.netloc, **(further or {})}
    data = json.dumps(body, allow_nan=False).encode()
    sent = Request(f"{base.rstrip('/')}/v2/models/{name}/infer", data, headers, method="POST")  # noqa: S310
    try:
        with urlopen(sent, timeout=timeout_s) as answer:  # noqa: S310
            found: Mapping[str, Any] = json.load(answer)
            return found
    except HTTPError as error:
        raise refusal(name, error.code, error.read().decode(errors="replace")) from error
    except (URLError, TimeoutError, OSError, ValueError) as error:
        raise Unavailable(f"service {name!r} does not answer: {error}") from error


def refusal(name: str, status: int, body: str) -> Exception:
    """Return the error for an answer that is none."""
    if status in _REFUSED:
        return DataError(f"service {name!r} does not take these rows: {status} {body[:500]}")
    return Unavailable(f"service {name!r} answers {status} {body[:500]}")


def outputs(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by output."""
    return {one["name"]: one["data"] for one in answer.get("outputs", ())}


def answered(answer: Mapping[str, Any], state: Observed, asked: str) -> str:
    """Return which version answered; empty when nobody knows."""
    said = str(answer.get("model_version") or "")
    if said in state.states:
        return said
    alone = [name for name, one in state.states.items() if one.percent == 100]
    return asked or (alone[0] if alone else "")


def deployed(name: str, made: Sequence[Mapping[str, Any]], version: str) -> str:
    """Return the name of the Service of one version."""
    found = [one for one in made if (one.get("annotations") or {}).get(VERSION) == version]
    if not found:
        raise SpecError(f"there is no version {version!r} of service {name!r} in the cluster")
    return deployment(name, found[0])


def tagged(found: Mapping[str, Any], revisions: Sequence[Mapping[str, Any]], version: str) -> str:
    """Return the address that Knative gives to one version, if it does."""
    of = {one["metadata"]["name"]: one["metadata"].get("annotations", {}).get(VERSION) for one in revisions}
    urls = [
        one["url"]
        for one in component(found).get("traffic", ())
        if of.get(one.get("revisionName")) == version and one.get("url")
    ]
    return str(urls[0]) if urls else ""


def _input(name: str, values: list[Any], format: str) -> dict[str, Any]:
    kinds = {type(value) for value in values}
    if kinds == {int, float}:
        kinds = {float}
    kind = next(iter(kinds)) if len(kinds) == 1 else None
    if kind not in _TYPES or (kind is float and not all(map(math.isfinite, values))):
        raise DataError(
            f"column {name!r} must have finite numbers, truth values or text, of one type and none missing, got "
            f"{', '.join(sorted(one.__name__ for one in kinds)) or 'no values'}"
        )
    datatype = "FP32" if format == "onnx" and kind is not str else _TYPES[kind]
    data = [float(value) for value in values] if datatype.startswith("FP") else values
    return {"name": name, "shape": [len(values), 1], "datatype": datatype, "data": data}
