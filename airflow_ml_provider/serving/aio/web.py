"""What the gateway and the model server share of HTTP: errors as JSON, and an end that loses no request."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Optional

from aiohttp import web

from airflow_ml_provider.exceptions import Conflict, DataError, MlError, SpecError, Unavailable
from airflow_ml_provider.serving import oip

if TYPE_CHECKING:
    import grpc.aio

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LAST_WORDS_S = 1.0
_STATUS = ((SpecError, 422), (DataError, 400), (Conflict, 409), (Unavailable, 503))


def json_response(body: bytes, status: int = 200, **headers: str) -> web.Response:
    """Return a JSON answer; `x_model_version="2"` becomes the header `x-model-version`."""
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(body=body, status=status, content_type="application/json", headers=found)


def status_of(error: BaseException) -> int:
    """Return the status that says whose fault an error is."""
    if isinstance(error, web.HTTPException):
        return error.status
    return next((status for cls, status in _STATUS if isinstance(error, cls)), 500)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as `{"error": …}` with the status that says whose fault it is."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge as error:
        limit = request.client_max_size
        response = json_response(oip.error(f"the body must have at most {limit} bytes"), error.status)
        response.force_close()  # the rest of the body is not read
        return response
    except web.HTTPException as error:
        return json_response(oip.error(error.text or error.reason), error.status)
    except MlError as error:
        return json_response(oip.error(error), status_of(error))
    except Exception as error:
        log.exception("%s %s", request.method, request.path)
        return json_response(oip.error(f"{type(error).__name__}: {error}"), 500)


class Draining:
    """Counts what is in flight, and says when a server may end.

    Attributes:
        started: whether the end has begun; not ready any more from then on.
        closed: whether nothing new is taken any more.
    """

    def __init__(self) -> None:
        self.started = self.closed = False
        self._in_flight = 0

    @contextmanager
    def flight(self) -> Iterator[None]:
        """Count a request as long as the block lasts."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count a request; once the end has begun, have its connection closed after the answer."""
        with self.flight():
            response = await handler(request)
        if self.started:
            response.force_close()
        return response

    async def wait(
        self, runner: web.AppRunner, linger_s: float, grace_s: float, rpc: Optional[grpc.aio.Server] = None
    ) -> None:
        """Begin the end and return when nothing is in flight.

        Parameters:
            linger_s: how long new connections are still taken, while others learn that this is not ready any more.
            grace_s: how long to wait for what is in flight then.
            rpc: ends when nothing is in flight; what still comes until then is UNAVAILABLE.
        """
        self.started = True
        await asyncio.sleep(linger_s)
        self.closed = True
        for site in runner.sites:
            await site.stop()
        deadline = asyncio.get_running_loop().time() + grace_s
        while self._in_flight and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if rpc is not None:
            await rpc.stop(_LAST_WORDS_S)


def application(draining: Draining, max_body: int, **options: Any) -> web.Application:
    """Return an application without routes that counts its requests and answers errors as JSON."""
    return web.Application(middlewares=[draining.middleware, errors_as_json], client_max_size=max_body, **options)


async def listen(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Serve an application and return its runner and the port, which 0 leaves to the system."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, runner.addresses[0][1]


def on_signal() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    event = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event
