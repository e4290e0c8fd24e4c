"""The Open Inference Protocol v2 over REST, as the generator speaks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional
from urllib.parse import quote

from airflow_ml_provider.exceptions import DataError, Unavailable
from airflow_ml_provider.stages.load_test import logic
from airflow_ml_provider.stages.load_test.generator import Outcome

if TYPE_CHECKING:
    import aiohttp

_CONTENT = {"Content-Type": "application/json"}


class RestClient:
    """Asks one model; as many connections as requests are under way, kept open.

    Parameters:
        url: of the server.
        name: of the model.
        version: of the model; empty leaves it to the server.
        headers: sent with every request.
    """

    refused = "status 400"
    """The outcome of a request that the model does not take."""

    def __init__(self, url: str, name: str, version: str, headers: Mapping[str, str]) -> None:
        part = f"/versions/{quote(version, safe='')}" if version else ""
        self._model = f"{url.rstrip('/')}/v2/models/{quote(name, safe='')}{part}"
        self._headers = {**_CONTENT, **headers}
        self._bodies: list[bytes] = []
        self.versions: set[str] = set()
        self._session: aiohttp.ClientSession
        self._lost: tuple[type[Exception], ...] = (asyncio.TimeoutError, OSError)

    async def __aenter__(self) -> RestClient:
        import aiohttp  # what travels is looked at by Pythons that lack it

        self._lost += (aiohttp.ClientError,)
        no_limit = aiohttp.ClientTimeout(total=None)  # the generator has its own
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=no_limit)
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self._session.close()

    async def inputs(self) -> list[dict[str, Any]]:
        """Return the model's inputs as its server describes them.

        Raises:
            DataError: it has no such model.
            Unavailable: it did not answer.
        """
        try:
            async with self._session.get(self._model, headers=self._headers) as response:
                body = await response.read()
        except self._lost as error:
            raise Unavailable(f"GET {self._model}: {error}") from error
        if response.status != 200:
            said = f"GET {self._model}: {response.status} {body[:200].decode(errors='replace')}"
            raise Unavailable(said) if response.status >= 500 else DataError(said)
        found: list[dict[str, Any]] = json.loads(body)["inputs"]
        return found

    def prepare(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Encode the requests once, before the clock runs."""
        self._bodies = [json.dumps(request).encode() for request in requests]

    async def send(self, at: int) -> Outcome:
        """Send the request of an index."""
        try:
            async with self._session.post(
                f"{self._model}/infer", data=self._bodies[at], headers=self._headers
            ) as response:
                body = await response.read()
        except self._lost as error:
            return f"connection: {type(error).__name__}", {}
        if response.status != 200:
            return f"status {response.status}", {}
        if b'"outputs"' not in body:
            return "no outputs", {}
        if version := response.headers.get("x-model-version"):
            self.versions.add(version)
        return "", logic.server_timing(response.headers.get("Server-Timing", ""))
