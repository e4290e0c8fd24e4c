"""The users' side of a gateway: one request in, one answer out, from the version that the split says."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import aiohttp
from aiohttp import web

from airflow_ml_provider.exceptions import DataError, Unavailable, unknown_name
from airflow_ml_provider.serving import oip
from airflow_ml_provider.serving.agreement import agree
from airflow_ml_provider.serving.aio.predictions import Key, PredictionLog
from airflow_ml_provider.serving.aio.replica import Replica
from airflow_ml_provider.serving.aio.web import json_response
from airflow_ml_provider.serving.spec import Wanted
from airflow_ml_provider.serving.split import Split
from airflow_ml_provider.serving.stats import Fault, Traffic, VersionStats

log = logging.getLogger(__name__)

STICKY_KEY = "x-sticky-key"
MIRRORS = 64  # copies under way at a time, over all versions
_FORWARDED = ("Content-Type", oip.BINARY_HEADER)


@dataclass(frozen=True)
class Answer:
    """What a model server answered, and where it says that the time went (the header `Server-Timing`)."""

    status: int
    body: bytes
    milliseconds: float
    timing: str = ""


class Failed(Exception):
    """A model server did not answer."""

    def __init__(self, fault: Fault, why: str) -> None:
        super().__init__(why)
        self.fault = fault


@dataclass
class Routes:
    """Where requests go at the moment.

    Attributes:
        wanted: the state that says so.
        split: likewise, ready for use.
        replicas: the servers by version.
        stats: the counters by version.
    """

    wanted: Wanted = field(default_factory=Wanted)
    split: Split = field(default_factory=lambda: Split((), ""))
    replicas: dict[str, Replica] = field(default_factory=dict)
    stats: dict[str, VersionStats] = field(default_factory=dict)


class Proxy:
    """Passes inference requests on.

    Parameters:
        service: name of the service, which is what the model is called in URLs.
        routes: where requests go; the gateway replaces its content.
        session: HTTP client.
        predictions: where a sample of the answers goes.
        draw: gives numbers in [0, 1).
    """

    def __init__(
        self,
        service: str,
        routes: Routes,
        session: aiohttp.ClientSession,
        predictions: PredictionLog,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._service, self.routes, self._session, self._draw = service, routes, session, draw
        self._predictions = predictions
        self._mirrors: set[asyncio.Task[None]] = set()

    async def infer(self, request: web.Request) -> web.Response:
        """Answer a user's request."""
        body, headers = await request.read(), _forwarded(request.headers)
        named = request.match_info.get("version")
        try:
            if named is not None:
                version, answer = named, await self._ask(self._ready(named), "direct", body, headers)
            else:
                version, answer = await self._live(*self._choose(request), body, headers)
                asyncio.get_running_loop().call_soon(self._mirror, version, answer, body, headers)
        except Failed as failed:
            return json_response(oip.error(failed), 504 if failed.fault == "timeout" else 502)
        told = {"Server_Timing": answer.timing} if answer.timing else {}
        return json_response(answer.body, answer.status, x_model_version=version, **told)

    async def metadata(self, request: web.Request) -> web.Response:
        """Answer what the model looks like, from the stable version or the one that is named."""
        version = self._ready(request.match_info.get("version") or self.routes.wanted.stable)
        url = f"{self.routes.replicas[version].url}/v2/models/{self._service}"
        try:
            async with self._session.get(url, timeout=self._timeout()) as response:
                return json_response(await response.read(), response.status, x_model_version=version)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise Unavailable(f"version {version!r} did not answer: {error}") from error

    def is_ready(self, version: Optional[str] = None) -> bool:
        """Return whether a version takes requests, by default the stable one."""
        replica = self.routes.replicas.get(version or self.routes.wanted.stable)
        return replica is not None and replica.ready

    async def close(self) -> None:
        """Forget the copies that are under way."""
        for task in self._mirrors:
            task.cancel()

    def _choose(self, request: web.Request) -> tuple[str, Key]:
        """Return the version of a request, and by which key it has it, where that is to be logged."""
        split = self.routes.split
        key = request.headers.get(split.sticky.header if split.sticky else STICKY_KEY)
        if key is None:
            return split.choose(self._draw() * 100), None
        chosen = split.of_key(self._service, key)
        return chosen, (key, chosen) if split.sticky else None

    def _ready(self, version: str) -> str:
        """Return a version that takes requests.

        Raises:
            Unavailable: it is wanted, but does not take any now.
        """
        routes = self.routes
        if not routes.wanted.versions:
            raise Unavailable(f"service {self._service!r} has no versions")
        if version not in routes.replicas:
            raise web.HTTPNotFound(text=str(unknown_name("version", version[:63], routes.replicas)))
        if not routes.replicas[version].ready:
            raise Unavailable(f"version {version!r} of service {self._service!r} is {routes.replicas[version].state}")
        return version

    async def _live(self, chosen: str, sticky: Key, body: bytes, headers: Mapping[str, str]) -> tuple[str, Answer]:
        """Return who answered and what: the chosen version, or the stable one when that cannot."""
        if chosen != self.routes.wanted.stable:
            if self.routes.replicas[chosen].ready:
                try:
                    return chosen, await self._ask(chosen, "live", body, headers, sticky)
                except Failed as failed:  # inference changes nothing, so asking again is safe
                    if failed.fault != "connection":
                        raise
            if chosen in self.routes.stats:  # it may have gone meanwhile
                self.routes.stats[chosen].fallbacks += 1
        stable = self._ready(self.routes.wanted.stable)
        return stable, await self._ask(stable, "live", body, headers, sticky)

    async def _ask(
        self, version: str, traffic: Traffic, body: bytes, headers: Mapping[str, str], sticky: Key = None
    ) -> Answer:
        """Return the answer of one version, and count it.

        Raises:
            Failed: there is none.
        """
        stats = self.routes.stats[version].of(traffic)
        try:
            answer = await self._post(self.routes.replicas[version], body, headers)
        except Failed as failed:
            stats.failed(failed.fault)
            raise
        asyncio.get_running_loop().call_soon(self._count, version, traffic, body, answer, sticky)
        return answer

    def _timeout(self) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=self.routes.wanted.timeout_s)

    async def _post(self, replica: Replica, body: bytes, headers: Mapping[str, str]) -> Answer:
        url, began = f"{replica.url}/v2/models/{self._service}/infer", time.perf_counter()
        try:
            async with self._session.post(url, data=body, headers=headers, timeout=self._timeout()) as response:
                found = await response.read()
                timing = response.headers.get("Server-Timing", "")
                answer = Answer(response.status, found, (time.perf_counter() - began) * 1000, timing)
        except asyncio.TimeoutError:
            why = f"version {replica.version!r} did not answer within {self.routes.wanted.timeout_s} s"
            raise Failed("timeout", why) from None
        except (aiohttp.ClientError, OSError) as error:
            replica.lost()
            raise Failed("connection", f"version {replica.version!r} is not there: {error}") from None
        if answer.status == 503:  # it has begun to end, and has not looked at the request
            raise Failed("connection", f"version {replica.version!r} is not ready")
        return answer

    def _count(self, version: str, traffic: Traffic, body: bytes, answer: Answer, sticky: Key) -> None:
        """Count an answer; done when the user has it."""
        stats = self.routes.stats.get(version)
        if stats is None:  # no longer wanted
            return
        scores: list[Any] = []
        if answer.status == 200:
            try:
                scores = oip.scores(json.loads(answer.body))
            except (ValueError, KeyError, TypeError, AttributeError):
                log.warning("version %s: the answer is not of the protocol", version)
        stats.of(traffic).answered(answer.status, answer.milliseconds, scores)
        percent = self.routes.wanted.log_percent
        sampled = percent and self._draw() * 100 < percent
        if answer.status == 200 and (sampled or self._predictions.is_new(sticky)):
            self._predictions.add(version, traffic, body, answer.body, answer.milliseconds, sticky)

    def _mirror(self, answered: str, users: Answer, body: bytes, headers: Mapping[str, str]) -> None:
        """Send copies to those who get one."""
        for version in self.routes.split.copies(answered, self._draw() * 100):
            if len(self._mirrors) >= MIRRORS:
                self.routes.stats[version].mirror_dropped += 1
            elif self.routes.replicas[version].ready:
                task = asyncio.create_task(self._copy(version, answered, users, body, headers))
                self._mirrors.add(task)
                task.add_done_callback(self._mirrors.discard)

    async def _copy(self, version: str, answered: str, users: Answer, body: bytes, headers: Mapping[str, str]) -> None:
        if version not in self.routes.replicas:
            return
        try:
            copy = await self._ask(version, "mirror", body, headers)
            await self._compare(version, body, copy, answered, users)
        except (Failed, DataError) as error:
            log.info("copy: %s", error)

    async def _compare(self, version: str, body: bytes, copy: Answer, answered: str, users: Answer) -> None:
        """Count whether a copy was answered as the user was. Failures count elsewhere, bad requests tell nothing."""
        if users.status != 200 or copy.status >= 500:
            return
        agreed = copy.status == 200
        if agreed:  # in a thread: a large answer would hold up all users
            both = users.body, copy.body, self.routes.wanted.tolerance
            agreed = await asyncio.get_running_loop().run_in_executor(None, _agree, *both)
        stats = self.routes.stats.get(version)
        if stats is None:  # no longer wanted
            return
        stats.compared += 1
        stats.agreed += agreed
        if not agreed:
            self._predictions.add_example(version, body, copy.body, copy.milliseconds, (answered, users.body))


def _agree(users: bytes, copy: bytes, tolerance: float) -> bool:
    return agree(oip.parse(users), oip.parse(copy), tolerance)


def _forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in _FORWARDED if name in headers}
