"""The gateway's users over REST."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import aiohttp
from aiohttp import web

from airflow_ml_provider.exceptions import Unavailable
from airflow_ml_provider.serving import oip
from airflow_ml_provider.serving.aio.proxy import Answer, Failed, Proxy
from airflow_ml_provider.serving.aio.replica import Replica
from airflow_ml_provider.serving.aio.web import json_response

_FORWARDED = ("Content-Type", oip.BINARY_HEADER)


@dataclass(frozen=True)
class RestRequest:
    """A request over REST; fulfils `proxy.Asked`."""

    session: aiohttp.ClientSession
    path: str
    body: bytes
    headers: Mapping[str, str]

    def header(self, name: str) -> Optional[str]:
        return self.headers.get(name)

    async def send(self, replica: Replica, timeout_s: float) -> Answer:
        headers = {name: self.headers[name] for name in _FORWARDED if name in self.headers}
        timeout, began = aiohttp.ClientTimeout(total=timeout_s), time.perf_counter()
        try:
            async with self.session.post(
                replica.url + self.path, data=self.body, headers=headers, timeout=timeout
            ) as response:
                found = await response.read()
                timing = response.headers.get("Server-Timing", "")
                return Answer(response.status, found, (time.perf_counter() - began) * 1000, timing)
        except asyncio.TimeoutError:
            raise Failed("timeout", f"version {replica.version!r} did not answer within {timeout_s} s") from None
        except (aiohttp.ClientError, OSError) as error:
            replica.lost()
            raise Failed("connection", f"version {replica.version!r} is not there: {error}") from None

    def request(self) -> Mapping[str, Any]:
        found: dict[str, Any] = json.loads(self.body, parse_constant=lambda _: None)  # NaN is not JSON
        return found

    def response(self, answer: Answer) -> Mapping[str, Any]:
        found: dict[str, Any] = json.loads(answer.body)
        return found


class RestUsers:
    """Answers users over REST.

    Parameters:
        proxy: knows who answers.
        session: HTTP client.
    """

    def __init__(self, proxy: Proxy, session: aiohttp.ClientSession) -> None:
        self._proxy, self._session = proxy, session
        self._path = f"/v2/models/{proxy.service}"

    async def infer(self, request: web.Request) -> web.Response:
        """Answer an inference request."""
        asked = RestRequest(self._session, f"{self._path}/infer", await request.read(), request.headers)
        try:
            version, answer = await self._proxy.infer(asked, request.match_info.get("version"))
        except Failed as failed:
            return json_response(oip.error(failed), failed.status)
        told = {"Server_Timing": answer.timing} if answer.timing else {}
        return json_response(answer.body, answer.status, x_model_version=version, **told)

    async def metadata(self, request: web.Request) -> web.Response:
        """Answer what the model looks like, from the stable version or the one that is named."""
        version = self._proxy.ready_version(request.match_info.get("version", ""))
        url = self._proxy.routes.replicas[version].url + self._path
        timeout = aiohttp.ClientTimeout(total=self._proxy.routes.wanted.timeout_s)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                return json_response(await response.read(), response.status, x_model_version=version)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise Unavailable(f"version {version!r} did not answer: {error}") from error
