"""The Open Inference Protocol v2 over gRPC, as the generator speaks it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional
from urllib.parse import urlsplit

from airflow_ml_provider.exceptions import DataError, Unavailable
from airflow_ml_provider.stages.deploy import messages
from airflow_ml_provider.stages.load_test import logic
from airflow_ml_provider.stages.load_test.generator import Outcome

if TYPE_CHECKING:
    import grpc.aio

_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN")
# As REST's connections: no proxy, answers of any size, and soon there again when the server was not.
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 100),
)


class RpcClient:
    """Asks one model; all requests share one connection.

    Parameters:
        url: of the server, `grpc://HOST:PORT`, or `grpcs://HOST:PORT` with TLS, whose certificate
            must be of an authority in the file `SSL_CERT_FILE`, or, without one, of those that come with gRPC.
        name: of the model.
        version: of the model; empty leaves it to the server.
        headers: sent with every request as metadata; `Host` is what the server is taken for.
    """

    refused = "status INVALID_ARGUMENT"
    """The outcome of a request that the model does not take."""

    def __init__(self, url: str, name: str, version: str, headers: Mapping[str, str]) -> None:
        self._url, self._name, self._version = urlsplit(url), name, version
        self._metadata = tuple((key.lower(), value) for key, value in headers.items() if key.lower() != "host")
        self._host = next((value for key, value in headers.items() if key.lower() == "host"), "")
        self._bodies: list[bytes] = []
        self.versions: set[str] = set()
        self._channel: grpc.aio.Channel

    async def __aenter__(self) -> RpcClient:
        import grpc.aio  # what travels is looked at by Pythons that lack it

        options = [*_OPTIONS, *([("grpc.default_authority", self._host)] if self._host else [])]
        if self._url.scheme == "grpcs":
            # By itself gRPC trusts only the authorities that it brings; the clients of REST heed this file, too.
            system = ssl.get_default_verify_paths().cafile
            trusted = grpc.ssl_channel_credentials(Path(system).read_bytes() if system else None)
            self._channel = grpc.aio.secure_channel(self._url.netloc, trusted, options)
        else:
            self._channel = grpc.aio.insecure_channel(self._url.netloc, options)
        self._failed = grpc.aio.AioRpcError
        self._infer = self._channel.unary_unary(messages.INFER)
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self._channel.close()

    async def inputs(self) -> list[dict[str, Any]]:
        """Return the model's inputs as its server describes them.

        Raises:
            DataError: it has no such model.
            Unavailable: it did not answer.
        """
        asked = messages.pack("ModelMetadataRequest", name=self._name, version=self._version)
        try:
            body = await self._channel.unary_unary(messages.METADATA)(asked, metadata=self._metadata)
        except self._failed as error:
            said = f"{self._url.geturl()}: {error.code().name} {error.details()}"
            raise (Unavailable(said) if error.code().name in _AWAY else DataError(said)) from None
        found = messages.parse("ModelMetadataResponse", body).inputs
        return [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in found]

    def prepare(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Encode the requests once, before the clock runs.

        Raises:
            DataError: one holds what its datatype does not.
        """
        self._bodies = [messages.ask(self._name, self._version, request) for request in requests]

    async def send(self, at: int) -> Outcome:
        """Send the request of an index."""
        call = self._infer(self._bodies[at], metadata=self._metadata)
        try:
            body = await call
        except self._failed as error:
            return f"status {error.code().name}", {}
        told = messages.told(await call.trailing_metadata())
        if not messages.parse("ModelInferResponse", body).outputs:
            return "no outputs", {}
        if version := told.get(messages.VERSION):
            self.versions.add(version)
        return "", logic.server_timing(told.get(messages.TIMING, ""))
