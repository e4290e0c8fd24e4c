"""One request in, one answer out, from the version that the split says, whatever the protocol."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

from aiohttp import web

from airflow_ml_provider.exceptions import DataError, Unavailable, unknown_name
from airflow_ml_provider.serving import oip
from airflow_ml_provider.serving.agreement import agree
from airflow_ml_provider.serving.aio.predictions import Key, PredictionLog
from airflow_ml_provider.serving.aio.replica import Replica
from airflow_ml_provider.serving.spec import Wanted
from airflow_ml_provider.serving.split import Split
from airflow_ml_provider.serving.stats import Fault, Traffic, VersionStats

log = logging.getLogger(__name__)

STICKY_KEY = "x-sticky-key"
MIRRORS = 64  # copies under way at a time, over all versions


@dataclass(frozen=True)
class Answer:
    """What a model server answered, and where it says that the time went (the header `Server-Timing`).

    Attributes:
        status: that of REST; gRPC's codes are translated, so that both count alike.
        body: as it came; of an error of gRPC its message.
    """

    status: int
    body: bytes
    milliseconds: float
    timing: str = ""


class Failed(Exception):
    """A model server did not answer."""

    def __init__(self, fault: Fault, why: str) -> None:
        super().__init__(why)
        self.fault = fault

    @property
    def status(self) -> int:
        return 504 if self.fault == "timeout" else 502


class Asked(Protocol):
    """An inference request in the form in which it came."""

    def header(self, name: str) -> Optional[str]:
        """Return what the request carries under a name."""
        ...

    async def send(self, replica: Replica, timeout_s: float) -> Answer:
        """Return the answer of a server.

        Raises:
            Failed: there is none.
        """
        ...

    def request(self) -> Mapping[str, Any]:
        """Return the request as the protocol's JSON has it."""
        ...

    def response(self, answer: Answer) -> Mapping[str, Any]:
        """Return an answer likewise.

        Raises:
            ValueError, DataError: it is none.
        """
        ...


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
        service: name of the service, which is what the model is called in requests.
        routes: where requests go; the gateway replaces its content.
        predictions: where a sample of the answers goes.
        draw: gives numbers in [0, 1).
    """

    def __init__(
        self,
        service: str,
        routes: Routes,
        predictions: PredictionLog,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.service, self.routes, self._draw = service, routes, draw
        self._predictions = predictions
        self._mirrors: set[asyncio.Task[None]] = set()

    async def infer(self, asked: Asked, named: Optional[str] = None) -> tuple[str, Answer]:
        """Return who answers a user's request, and what.

        Parameters:
            named: ask this version, whatever its share.

        Raises:
            Failed: there is no answer.
            HTTPNotFound: there is no such version.
            Unavailable: the version does not take requests now.
        """
        if named is not None:
            return named, await self._ask(self.ready_version(named), "direct", asked)
        version, answer = await self._live(*self._choose(asked), asked)
        asyncio.get_running_loop().call_soon(self._mirror, version, answer, asked)
        return version, answer

    def is_ready(self, version: str = "") -> bool:
        """Return whether a version takes requests, by default the stable one."""
        replica = self.routes.replicas.get(version or self.routes.wanted.stable)
        return replica is not None and replica.ready

    async def close(self) -> None:
        """Forget the copies that are under way."""
        for task in self._mirrors:
            task.cancel()

    def _choose(self, asked: Asked) -> tuple[str, Key]:
        """Return the version of a request, and by which key it has it, where that is to be logged."""
        split = self.routes.split
        key = asked.header(split.sticky.header if split.sticky else STICKY_KEY)
        if key is None:
            return split.choose(self._draw() * 100), None
        chosen = split.of_key(self.service, key)
        return chosen, (key, chosen) if split.sticky else None

    def ready_version(self, version: str = "") -> str:
        """Return a version that takes requests, by default the stable one.

        Raises:
            HTTPNotFound: there is no such version.
            Unavailable: it is wanted, but does not take any now.
        """
        routes = self.routes
        if not routes.wanted.versions:
            raise Unavailable(f"service {self.service!r} has no versions")
        version = version or routes.wanted.stable
        if version not in routes.replicas:
            raise web.HTTPNotFound(text=str(unknown_name("version", version[:63], routes.replicas)))
        if not routes.replicas[version].ready:
            raise Unavailable(f"version {version!r} of service {self.service!r} is {routes.replicas[version].state}")
        return version

    async def _live(self, chosen: str, sticky: Key, asked: Asked) -> tuple[str, Answer]:
        """Return who answered and what: the chosen version, or the stable one when that cannot."""
        if chosen != self.routes.wanted.stable:
            if self.routes.replicas[chosen].ready:
                try:
                    return chosen, await self._ask(chosen, "live", asked, sticky)
                except Failed as failed:  # inference changes nothing, so asking again is safe
                    if failed.fault != "connection":
                        raise
            if chosen in self.routes.stats:  # it may have gone meanwhile
                self.routes.stats[chosen].fallbacks += 1
        stable = self.ready_version()
        return stable, await self._ask(stable, "live", asked, sticky)

    async def _ask(self, version: str, traffic: Traffic, asked: Asked, sticky: Key = None) -> Answer:
        """Return the answer of one version, and count it.

        Raises:
            Failed: there is none.
        """
        stats = self.routes.stats[version].of(traffic)
        try:
            answer = await asked.send(self.routes.replicas[version], self.routes.wanted.timeout_s)
            if answer.status == 503:  # it has begun to end, and has not looked at the request
                raise Failed("connection", f"version {version!r} is not ready")
        except Failed as failed:
            stats.failed(failed.fault)
            raise
        asyncio.get_running_loop().call_soon(self._count, version, traffic, asked, answer, sticky)
        return answer

    def _count(self, version: str, traffic: Traffic, asked: Asked, answer: Answer, sticky: Key) -> None:
        """Count an answer; done when the user has it."""
        stats = self.routes.stats.get(version)
        if stats is None:  # no longer wanted
            return
        response: Mapping[str, Any] = {}
        scores: list[Any] = []
        if answer.status == 200:
            try:
                response = asked.response(answer)
                scores = oip.scores(response)
            except (ValueError, KeyError, TypeError, AttributeError, DataError):
                log.warning("version %s: the answer is not of the protocol", version)
        stats.of(traffic).answered(answer.status, answer.milliseconds, scores)
        percent = self.routes.wanted.log_percent
        sampled = percent and self._draw() * 100 < percent
        if answer.status == 200 and (sampled or self._predictions.is_new(sticky)):
            self._predictions.add(version, traffic, asked.request(), response, answer.milliseconds, sticky)

    def _mirror(self, answered: str, users: Answer, asked: Asked) -> None:
        """Send copies to those who get one."""
        for version in self.routes.split.copies(answered, self._draw() * 100):
            if len(self._mirrors) >= MIRRORS:
                self.routes.stats[version].mirror_dropped += 1
            elif self.routes.replicas[version].ready:
                task = asyncio.create_task(self._copy(version, answered, users, asked))
                self._mirrors.add(task)
                task.add_done_callback(self._mirrors.discard)

    async def _copy(self, version: str, answered: str, users: Answer, asked: Asked) -> None:
        if version not in self.routes.replicas:
            return
        try:
            copy = await self._ask(version, "mirror", asked)
            await self._compare(version, asked, copy, answered, users)
        except (Failed, ValueError, DataError) as error:
            log.info("copy: %s", error)

    async def _compare(self, version: str, asked: Asked, copy: Answer, answered: str, users: Answer) -> None:
        """Count whether a copy was answered as the user was. Failures count elsewhere, bad requests tell nothing."""
        if users.status != 200 or copy.status >= 500:
            return
        agreed = copy.status == 200
        if agreed:  # in a thread: a large answer would hold up all users
            tolerance = self.routes.wanted.tolerance
            agreed = await asyncio.get_running_loop().run_in_executor(None, _agree, asked, users, copy, tolerance)
        stats = self.routes.stats.get(version)
        if stats is None:  # no longer wanted
            return
        stats.compared += 1
        stats.agreed += agreed
        if not agreed and self._predictions.wants_example():
            response = asked.response(copy) if copy.status == 200 else {"error": copy.body.decode(errors="replace")}
            own = answered, asked.response(users)
            self._predictions.add(version, "mirror", asked.request(), response, copy.milliseconds, users=own)


def _agree(asked: Asked, users: Answer, copy: Answer, tolerance: float) -> bool:
    return agree(asked.response(users), asked.response(copy), tolerance)
