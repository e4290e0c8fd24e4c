"""The two sides of a gateway over HTTP: users, and the one who rolls out."""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import TYPE_CHECKING, Optional

import prometheus_client as prometheus
from aiohttp import web

from airflow_ml_provider import __version__, codec
from airflow_ml_provider.serving import oip
from airflow_ml_provider.serving.aio import metrics
from airflow_ml_provider.serving.aio.web import Draining, Handler, application, json_response
from airflow_ml_provider.serving.spec import Wanted

if TYPE_CHECKING:
    from airflow_ml_provider.serving.aio.gateway import Gateway

_ADMIN_BODY = 2**20


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
        found = gateway.proxy.is_ready(request.match_info.get("version", "")) and not gateway.draining.started
        return web.json_response({"name": gateway.service, "ready": found}, status=200 if found else 503)

    async def measured(request: web.Request) -> web.Response:
        headers = {"Content-Type": prometheus.CONTENT_TYPE_LATEST}
        return web.Response(body=prometheus.generate_latest(registry), headers=headers)

    app.router.add_get("/v2", server)
    app.router.add_get("/v2/health/live", live)
    app.router.add_get("/v2/health/ready", ready)
    app.router.add_get("/metrics", measured)
    for path in (f"/v2/models/{gateway.service}", f"/v2/models/{gateway.service}/versions/{{version}}"):
        app.router.add_post(f"{path}/infer", gateway.rest.infer)
        app.router.add_get(path, gateway.rest.metadata)
        app.router.add_get(f"{path}/ready", model_ready)
    return app


def admin_side(gateway: Gateway) -> web.Application:
    """Return the routes of the one who rolls out; all of them want the token."""

    @web.middleware
    async def with_token(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(errors="surrogateescape"), f"Bearer {gateway.token}".encode()):
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
        raise web.HTTPPreconditionFailed(text=f"generation is {generation} by now, not {given}")
    return replace(wanted, generation=generation)
