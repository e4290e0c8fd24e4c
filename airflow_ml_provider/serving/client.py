"""A small client of a gateway, for operators: the standard library only, one call per question."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote, urlsplit

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import Conflict, DataError, SpecError, Unavailable
from airflow_ml_provider.serving import folder as folders
from airflow_ml_provider.serving.folder import Address
from airflow_ml_provider.serving.spec import ServiceStatus, Wanted


@dataclass(frozen=True)
class Prediction:
    """What a service answered.

    Attributes:
        scores: one per row.
        version: the version that answered.
        id: of the request.
    """

    scores: tuple[Optional[float], ...]
    version: str
    id: str


class Client:
    """Talks to the gateway of a service on this machine; finds it anew for every call, so it may be restarted.

    Parameters:
        root: folder with one folder per service.
        service: name of the service.
        timeout_s: how long one call may take.
    """

    def __init__(self, root: Path, service: str, *, timeout_s: float = 30.0) -> None:
        self.service = service
        self._folder, self._timeout_s = folders.place(root, service), timeout_s

    def wanted(self) -> Wanted:
        """Return the wanted state."""
        found: Wanted = codec.decode(Wanted, self._admin("GET", "wanted"))
        return found

    def apply(self, wanted: Wanted) -> Wanted:
        """Have a state wanted and return it with its new generation.

        Parameters:
            wanted: its `generation` is the one that it was made from.

        Raises:
            Conflict: somebody else changed the wanted state meanwhile.
            SpecError: it cannot follow the present one.
        """
        found: Wanted = codec.decode(Wanted, self._admin("PUT", "wanted", codec.encode(wanted)))
        return found

    def update(self, change: Callable[[Wanted], Wanted], *, tries: int = 5) -> Wanted:
        """Apply what `change` makes of the wanted state, again when somebody else was faster.

        Parameters:
            change: takes the present state and returns the next one.
            tries: how often.

        Raises:
            Conflict: somebody else was faster every time.
        """
        while True:
            tries -= 1
            present = self.wanted()
            try:
                return self.apply(replace(change(present), generation=present.generation))
            except Conflict:
                if tries <= 0:
                    raise

    def status(self) -> ServiceStatus:
        """Return what has become of the wanted state."""
        found: ServiceStatus = codec.decode(ServiceStatus, self._admin("GET", "status"))
        return found

    def stats(self) -> dict[str, Any]:
        """Return the counters, as `docs/serving.md` describes them."""
        return self._admin("GET", "stats")

    def predict(
        self, inputs: Mapping[str, Sequence[Any]], *, sticky_key: str = "", version: str = "", request_id: str = ""
    ) -> Prediction:
        """Return the scores of some rows.

        Parameters:
            inputs: column to values; texts or numbers, where none is missing.
            sticky_key: requests with the same key go to the same version.
            version: ask this version, whatever its share; by default the gateway chooses.
            request_id: comes back as the prediction's `id`; empty takes a new one.

        Raises:
            DataError: the model does not take these inputs.
            Unavailable: nobody answered.
        """
        body: dict[str, Any] = {"inputs": [_tensor(name, values) for name, values in inputs.items()]}
        if request_id:
            body["id"] = request_id
        headers = {"x-sticky-key": sticky_key} if sticky_key else {}
        path = f"/v2/models/{self.service}" + (f"/versions/{quote(version, safe='')}" if version else "") + "/infer"
        found, answered = _call(self._address().url, "POST", path, body, headers, self._timeout_s)
        return Prediction(tuple(found["outputs"][0]["data"]), answered.get("x-model-version", ""), found["id"])

    def _admin(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        address = self._address()
        headers = {"Authorization": f"Bearer {address.token}"}
        return _call(address.admin, method, f"/admin/{path}", body, headers, self._timeout_s)[0]

    def _address(self) -> Address:
        address = folders.read_address(self._folder)
        if address is None or not folders.alive(address):
            raise Unavailable(f"no gateway of service {self.service!r} runs in {self._folder}; start it")
        return address


def _tensor(name: str, values: Sequence[Any]) -> dict[str, Any]:
    texts = any(isinstance(value, str) for value in values)
    data = [value if texts or value is None else float(value) for value in values]
    return {"name": name, "datatype": "BYTES" if texts else "FP32", "shape": [len(data), 1], "data": data}


def _call(
    url: str, method: str, path: str, body: Any, headers: Mapping[str, str], timeout_s: float
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Return the JSON answer of a server and its headers, in lower case."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout_s)
    try:
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{method} {url}{path}: {type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if response.status >= 400:
        raise _error(response.status, f"{method} {url}{path}: {response.status} {_message(answer)}")
    return json.loads(answer), {name.lower(): value for name, value in response.getheaders()}


def _message(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return answer[:200].decode(errors="replace")


def _error(status: int, message: str) -> Exception:
    if status in (409, 412):
        return Conflict(message)
    if status in (400, 413):
        return DataError(message)
    return Unavailable(message) if status >= 500 or status == 401 else SpecError(message)
