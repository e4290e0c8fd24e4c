"""What the gateway and the model server share of gRPC: listening, and errors as codes. Needs grpcio and protobuf."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio
from aiohttp import web

from airflow_ml_provider.exceptions import MlError, unknown_name
from airflow_ml_provider.serving.aio.web import Draining, status_of
from airflow_ml_provider.stages.deploy import messages

log = logging.getLogger(__name__)

Context = Any  # grpc.aio.ServicerContext
Method = Callable[[bytes, Context], Awaitable[bytes]]

CODES: Mapping[int, grpc.StatusCode] = {
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""The codes of the statuses with which REST says the same; 502 is UNAVAILABLE, too, and all others INTERNAL."""
STATUSES: Mapping[grpc.StatusCode, int] = {code: status for status, code in CODES.items()}


async def listen(
    methods: Mapping[str, Method], draining: Draining, host: str, port: int, max_body: int
) -> tuple[grpc.aio.Server, int]:
    """Serve methods of the protocol and return the server and its port, which 0 leaves to the system.

    Parameters:
        methods: by name; from the bytes of a request to those of an answer.
        draining: counts what is in flight.
        max_body: larger messages are answered RESOURCE_EXHAUSTED.

    Raises:
        OSError: the port is taken.
    """
    options = [("grpc.max_receive_message_length", max_body), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=[*options, ("grpc.so_reuseport", 0)])
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(_guarded(method, draining)) for name, method in methods.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(messages.SERVICE, handlers),))
    try:
        port = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(str(error)) from error
    await server.start()
    return server, port


async def abort(context: Context, status: int, why: str, trailing: tuple[tuple[str, str], ...] = ()) -> NoReturn:
    """Answer with the code of a status."""
    code = grpc.StatusCode.UNAVAILABLE if status == 502 else CODES.get(status, grpc.StatusCode.INTERNAL)
    await context.abort(code, why, trailing)
    raise AssertionError("abort raises")


def check(what: str, name: str, known: Collection[str]) -> None:
    """Raise `HTTPNotFound` for a name that is unknown."""
    if name not in known:
        raise web.HTTPNotFound(text=str(unknown_name(what, name[:63], known)))


def _guarded(method: Method, draining: Draining) -> Method:
    async def answer(body: bytes, context: Context) -> bytes:
        if draining.closed:
            await abort(context, 503, "the server is ending")
        with draining.flight():
            try:
                return await method(body, context)
            except (MlError, web.HTTPException) as error:
                await abort(context, status_of(error), getattr(error, "text", "") or str(error))
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                log.exception("gRPC")
                await abort(context, 500, f"{type(error).__name__}: {error}")

    return answer
