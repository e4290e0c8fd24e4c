"""The gateway: owns the servers of a service, splits its traffic over them, and is told what is wanted."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

import aiohttp
import prometheus_client as prometheus
from aiohttp import web

from airflow_ml_provider import __version__, codec
from airflow_ml_provider.serving import folder as folders
from airflow_ml_provider.serving import oip
from airflow_ml_provider.serving.aio import metrics
from airflow_ml_provider.serving.aio.predictions import PredictionLog
from airflow_ml_provider.serving.aio.proxy import Proxy, Routes
from airflow_ml_provider.serving.aio.replica import Replica
from airflow_ml_provider.serving.aio.web import Draining, Handler, application, json_response, listen, on_signal
from airflow_ml_provider.serving.folder import Address
from airflow_ml_provider.serving.spec import ServiceStatus, Status, Version, Wanted
from airflow_ml_provider.serving.split import Split
from airflow_ml_provider.serving.state import Store
from airflow_ml_provider.serving.stats import LATENCY_BOUNDS_MS, VersionStats, count_scores_anew

log = logging.getLogger(__name__)

_ADMIN_BODY, _LINGER_S, _GRACE_S = 2**20, 0.5, 30.0


class Gateway:
    """One service: its wanted state, its servers, its traffic.

    Parameters:
        service: name of the service, which is what the model is called in URLs.
        folder: what it keeps.
        session: HTTP client.
    """

    def __init__(self, service: str, folder: Path, session: aiohttp.ClientSession) -> None:
        self.service, self._folder, self._session = service, folder, session
        self.token = secrets.token_urlsafe(24)
        self.draining = Draining()
        self.predictions = PredictionLog(folder / folders.PREDICTIONS)
        self._store = Store(folder)
        self._package = folders.put_package(folder)
        self._routes = Routes()
        self.proxy = Proxy(service, self._routes, session, self.predictions)
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
        routes, wanted = self._routes, self._store.wanted
        for name in [name for name in routes.replicas if name not in wanted.versions]:
            task = asyncio.create_task(routes.replicas.pop(name).stop())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            del routes.stats[name]
            self._observed.pop(name, None)
        for name, version in wanted.versions.items():
            if name not in routes.replicas:
                routes.replicas[name] = self._replica(name, version)
                routes.stats[name] = VersionStats.empty(wanted.score_edges)
        count_scores_anew(routes.stats.values(), wanted.score_edges)
        routes.wanted, routes.split = wanted, Split.of(wanted)
        self._answered = {name: stats.live.requests for name, stats in routes.stats.items()}
        self._observe()

    def _observe(self) -> None:
        for name, replica in self._routes.replicas.items():
            if replica.ready:
                self._observed[name] = self._routes.wanted.generation

    def _replica(self, name: str, version: Version) -> Replica:
        from airflow_ml_provider.serving.aio.server import arguments

        command = [version.python or sys.executable, "-m", "airflow_ml_provider.serving.aio.server"]
        command += [*arguments(self.service, name, version), f"--parent={os.getpid()}"]
        return Replica(
            name, command, env=folders.environment(self._package), cwd=str(self._folder), session=self._session
        )


def users_side(gateway: Gateway, max_body: int) -> web.Application:
    """Return the routes of the protocol."""
    app = application(gateway.draining, max_body)
    registry = metrics.registry(gateway.service, gateway.proxy.routes)

    async def server(request: web.Request) -> web.Response:
        return web.json_response({"name": "airflow-ml-provider-gateway", "version": __version__, "extensions": []})

    async def live(request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def ready(request: web.Request) -> web.Response:
        return web.json_response({"ready": gateway.ready}, status=200 if gateway.ready else 503)

    async def model_ready(request: web.Request) -> web.Response:
        found = gateway.proxy.is_ready(request.match_info.get("version")) and not gateway.draining.started
        return web.json_response({"name": gateway.service, "ready": found}, status=200 if found else 503)

    async def measured(request: web.Request) -> web.Response:
        headers = {"Content-Type": prometheus.CONTENT_TYPE_LATEST}
        return web.Response(body=prometheus.generate_latest(registry), headers=headers)

    app.router.add_get("/v2", server)
    app.router.add_get("/v2/health/live", live)
    app.router.add_get("/v2/health/ready", ready)
    app.router.add_get("/metrics", measured)
    for path in (f"/v2/models/{gateway.service}", f"/v2/models/{gateway.service}/versions/{{version}}"):
        app.router.add_post(f"{path}/infer", gateway.proxy.infer)
        app.router.add_get(path, gateway.proxy.metadata)
        app.router.add_get(f"{path}/ready", model_ready)
    return app


def admin_side(gateway: Gateway) -> web.Application:
    """Return the routes of the one who rolls out; all of them want the token."""

    @web.middleware
    async def with_token(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {gateway.token}".encode()):
            return json_response(oip.error("the token of gateway.json is missing or wrong"), 401)
        return await handler(request)

    async def get_wanted(request: web.Request) -> web.Response:
        return _wanted(gateway.wanted)

    async def put_wanted(request: web.Request) -> web.Response:
        wanted = codec.decode(Wanted, oip.parse(await request.read()))
        return _wanted(gateway.apply(_matched(wanted, request.headers.get("If-Match"), gateway.wanted.generation)))

    async def get_status(request: web.Request) -> web.Response:
        return web.json_response(codec.encode(gateway.status()))

    async def get_stats(request: web.Request) -> web.Response:
        return web.json_response(codec.encode(gateway.stats()))

    app = application(Draining(), _ADMIN_BODY)
    app.middlewares.insert(0, with_token)
    app.router.add_get("/admin/wanted", get_wanted)
    app.router.add_put("/admin/wanted", put_wanted)
    app.router.add_get("/admin/status", get_status)
    app.router.add_get("/admin/stats", get_stats)
    return app


def _wanted(wanted: Wanted) -> web.Response:
    return web.json_response(codec.encode(wanted), headers={"ETag": f'"{wanted.generation}"'})


def _matched(wanted: Wanted, given: Optional[str], generation: int) -> Wanted:
    """Return `wanted` as made from the generation of the header `If-Match`, if there is one."""
    if given is None:
        return wanted
    if given.strip('"') != str(generation):
        raise web.HTTPPreconditionFailed(reason=f"generation is {generation} by now, not {given}")
    return replace(wanted, generation=generation)


async def run(
    service: str, folder: Path, host: str, port: int, *, max_body_mib: float, started: Callable[[], None]
) -> int:
    """Run the gateway of a folder until SIGTERM.

    Parameters:
        port: 0 takes the one it had last, or a free one.
        started: is called once it listens.
    """
    stopping = on_signal()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        gateway = Gateway(service, folder, session)
        users, port = await _listen(users_side(gateway, int(max_body_mib * 2**20)), host, port, folder)
        admin, admin_port = await listen(admin_side(gateway), "127.0.0.1", 0)
        url, own = f"http://{_reachable(host)}:{port}", f"http://127.0.0.1:{admin_port}"
        pid = os.getpid()
        folders.write_address(folder, Address(service, pid, folders.process_start(pid), url, own, gateway.token))
        log.info("service %s at %s", service, url)
        started()
        await stopping.wait()
        await gateway.draining.wait(_LINGER_S, _GRACE_S)
        await users.cleanup()
        await gateway.close()
        await admin.cleanup()
    return 0


async def _listen(app: web.Application, host: str, port: int, folder: Path) -> tuple[web.AppRunner, int]:
    last = folders.read_address(folder)
    if not port and last:
        try:
            return await listen(app, host, urlsplit(last.url).port or 0)
        except OSError:
            log.warning("port of %s is taken meanwhile", last.url)
    return await listen(app, host, port)


def _reachable(host: str) -> str:
    """Return a host under which a socket that is bound to `host` can be reached from here."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - a comparison
