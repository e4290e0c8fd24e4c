"""The gateway: owns the servers of a service, splits its traffic over them, and is told what is wanted."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, TypeVar
from urllib.parse import urlsplit

import aiohttp

from airflow_ml_provider.serving import folder as folders
from airflow_ml_provider.serving.aio import routes
from airflow_ml_provider.serving.aio.gateway_rest import RestUsers
from airflow_ml_provider.serving.aio.predictions import PredictionLog
from airflow_ml_provider.serving.aio.proxy import Proxy, Routes
from airflow_ml_provider.serving.aio.replica import Replica
from airflow_ml_provider.serving.aio.web import Draining, listen, on_signal
from airflow_ml_provider.serving.folder import Address
from airflow_ml_provider.serving.spec import ServiceStatus, Status, Version, Wanted
from airflow_ml_provider.serving.split import Split
from airflow_ml_provider.serving.state import Store
from airflow_ml_provider.serving.stats import LATENCY_BOUNDS_MS, VersionStats, count_scores_anew

log = logging.getLogger(__name__)

T = TypeVar("T")

_LINGER_S, _GRACE_S = 0.5, 30.0


class Gateway:
    """One service: its wanted state, its servers, its traffic.

    Parameters:
        service: name of the service, which is what the model is called in URLs.
        folder: what it keeps.
        session: HTTP client.
        grpc: whether its servers speak gRPC, too.
    """

    def __init__(self, service: str, folder: Path, session: aiohttp.ClientSession, *, grpc: bool = False) -> None:
        self.service, self._folder, self._session, self._grpc = service, folder, session, grpc
        self.token = secrets.token_urlsafe(24)
        self.draining = Draining()
        self.predictions = PredictionLog(folder / folders.PREDICTIONS)
        self._store = Store(folder)
        self._package = folders.put_package(folder)
        self._routes = Routes()
        self.proxy = Proxy(service, self._routes, self.predictions)
        self.rest = RestUsers(self.proxy, session)
        self._started = time.time()
        self._ending: set[asyncio.Task[None]] = set()
        self._answered: dict[str, int] = {}  # live requests per version when the generation began
        self._observed: dict[str, int] = {}
        self._follow()

    @property
    def wanted(self) -> Wanted:
        return self._routes.wanted

    @property
    def ready(self) -> bool:
        stable = self._routes.replicas.get(self._routes.wanted.stable)
        return stable is not None and stable.ready and not self.draining.started

    def apply(self, wanted: Wanted) -> Wanted:
        """Keep a wanted state, follow it and return its new generation.

        Raises:
            Conflict: it was made from another generation than the present one.
            SpecError: it cannot follow the present one.
        """
        kept = self._store.replace(wanted)
        self._follow()
        log.info("generation %d: %s", kept.generation, {name: v.percent for name, v in kept.versions.items()})
        return kept

    def status(self) -> ServiceStatus:
        """Return what has become of the wanted state."""
        self._observe()
        wanted, replicas = self._routes.wanted, self._routes.replicas
        now = {name: stats.live.requests - self._answered.get(name, 0) for name, stats in self._routes.stats.items()}
        total = sum(now.values())
        versions = {
            name: Status(
                state=replica.state,
                ready=replica.ready,
                pid=replica.pid,
                restarts=replica.restarts,
                reason=replica.reason,
                observed_generation=self._observed.get(name, 0),
                percent=wanted.versions[name].percent,
                actual_percent=round(100 * now[name] / total, 4) if total else None,
            )
            for name, replica in replicas.items()
        }
        return ServiceStatus(self.service, wanted.generation, os.getpid(), self.ready, versions, wanted.rollout)

    def stats(self) -> dict[str, Any]:
        """Return the counters."""
        return {
            "service": self.service,
            "generation": self._routes.wanted.generation,
            "started": self._started,
            "latency_bounds_ms": LATENCY_BOUNDS_MS,
            "versions": self._routes.stats,
            "predictions_dropped": self.predictions.dropped,
        }

    async def close(self) -> None:
        """End all servers."""
        await self.proxy.close()
        await asyncio.gather(*(replica.stop() for replica in self._routes.replicas.values()), *self._ending)
        await self.predictions.close()

    def _follow(self) -> None:
        """Start what is missing, end what is no longer wanted, and split the traffic anew, all in one step."""
        now, wanted = self._routes, self._store.wanted
        for name in [name for name in now.replicas if name not in wanted.versions]:
            task = asyncio.create_task(now.replicas.pop(name).stop())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            del now.stats[name]
            self._observed.pop(name, None)
        for name, version in wanted.versions.items():
            if name not in now.replicas:
                now.replicas[name] = self._replica(name, version)
                now.stats[name] = VersionStats.empty(wanted.score_edges)
        count_scores_anew(now.stats.values(), wanted.score_edges)
        now.wanted, now.split = wanted, Split.of(wanted)
        self.predictions.begin_anew()
        self._answered = {name: stats.live.requests for name, stats in now.stats.items()}
        self._observe()

    def _observe(self) -> None:
        for name, replica in self._routes.replicas.items():
            if replica.ready:
                self._observed[name] = self._routes.wanted.generation

    def _replica(self, name: str, version: Version) -> Replica:
        from airflow_ml_provider.serving.aio.server import arguments

        command = [version.python or sys.executable, "-m", "airflow_ml_provider.serving.aio.server"]
        command += [*arguments(self.service, name, version), f"--parent={os.getpid()}"]
        command += ["--grpc-port=0"] if self._grpc else []
        return Replica(
            name, command, env=folders.environment(self._package), cwd=str(self._folder), session=self._session
        )


@dataclass(frozen=True)
class Ports:
    """Where users reach a gateway.

    Attributes:
        host: address to listen at.
        rest: port; 0 takes the one it had last, or a free one.
        grpc: likewise for gRPC; none serves REST alone.
    """

    host: str
    rest: int = 0
    grpc: Optional[int] = None


async def run(service: str, folder: Path, ports: Ports, *, max_body_mib: float, started: Callable[[], None]) -> int:
    """Run the gateway of a folder until SIGTERM.

    Parameters:
        started: is called once it listens.
    """
    stopping, max_body = on_signal(), int(max_body_mib * 2**20)
    last, host = folders.read_address(folder), _reachable(ports.host)
    urls = (last.url, last.grpc) if last else ("", "")
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        gateway = Gateway(service, folder, session, grpc=ports.grpc is not None)
        app = routes.users_side(gateway, max_body)
        users, port = await _again(lambda port: listen(app, ports.host, port), ports.rest, urls[0])
        rpc, grpc = None, ""
        if ports.grpc is not None:
            from airflow_ml_provider.serving.aio.gateway_rpc import RpcUsers

            side = RpcUsers(gateway.proxy, gateway.draining)
            stack.push_async_callback(side.close)
            rpc, grpc_port = await _again(lambda port: side.listen(ports.host, port, max_body), ports.grpc, urls[1])
            grpc = f"grpc://{host}:{grpc_port}"
        admin, admin_port = await listen(routes.admin_side(gateway), "127.0.0.1", 0)
        url, own = f"http://{host}:{port}", f"http://127.0.0.1:{admin_port}"
        pid = os.getpid()
        folders.write_address(folder, Address(service, pid, folders.process_start(pid), url, own, gateway.token, grpc))
        log.info("service %s at %s %s", service, url, grpc)
        started()
        await stopping.wait()
        await gateway.draining.wait(users, _LINGER_S, _GRACE_S, rpc)
        await users.cleanup()
        await gateway.close()
        await admin.cleanup()
    return 0


async def _again(start: Callable[[int], Awaitable[T]], port: int, last: str) -> T:
    """Return what listens at a port; 0 tries the port of the last address first."""
    if not port and last:
        try:
            return await start(urlsplit(last).port or 0)
        except OSError:
            log.warning("port of %s is taken meanwhile", last)
    return await start(port)


def _reachable(host: str) -> str:
    """Return a host under which a socket that is bound to `host` can be reached from here."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - a comparison
