"""The server of one model version: a model package behind the Open Inference Protocol v2.

    python -m airflow_ml_provider.serving.aio.server --package DIR --digest sha256:… --name churn --port 8080

It prints its port as soon as it listens, and with `--grpc-port` that of gRPC. It is ready once the digest is verified
and the model has scored a warm-up, and no longer ready as soon as it is told to end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Optional

import prometheus_client as prometheus
from aiohttp import web

from airflow_ml_provider.exceptions import DataError, MlError
from airflow_ml_provider.runtime.__main__ import die_with
from airflow_ml_provider.runtime.protocol import EXIT_RETRYABLE, EXIT_TERMINAL
from airflow_ml_provider.serving import oip
from airflow_ml_provider.serving.aio.inference import SERVER, Inference
from airflow_ml_provider.serving.aio.web import application, json_response, listen, on_signal
from airflow_ml_provider.serving.spec import Version

log = logging.getLogger(__name__)


class RestSide:
    """A model over HTTP."""

    def __init__(self, model: Inference) -> None:
        self._model = model

    def application(self) -> web.Application:
        """Return the routes of the protocol."""
        app = application(self._model.draining, self._model.max_body)
        base = f"/v2/models/{self._model.name}"
        app.router.add_get("/v2", self._server_metadata)
        app.router.add_get("/v2/health/live", self._live)
        app.router.add_get("/v2/health/ready", self._server_ready)
        app.router.add_get("/metrics", self._metrics)
        for path in (base, f"{base}/versions/{self._model.version}"):
            app.router.add_get(path, self._model_metadata)
            app.router.add_get(f"{path}/ready", self._model_ready)
            app.router.add_post(f"{path}/infer", self._infer)
        return app

    async def _infer(self, request: web.Request) -> web.Response:
        with self._model.counted():
            if oip.BINARY_HEADER in request.headers:
                raise DataError(f"tensors must be JSON: this server has no binary extension ({oip.BINARY_HEADER})")
            body = await request.read()
            answer, timing = await self._model.answer(
                partial(oip.decode, body), partial(oip.encode, self._model.name, self._model.version)
            )
            return json_response(answer, Server_Timing=timing)

    async def _server_metadata(self, request: web.Request) -> web.Response:
        return web.json_response({**SERVER, "extensions": []})

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _server_ready(self, request: web.Request) -> web.Response:
        ready = self._model.ready
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _model_ready(self, request: web.Request) -> web.Response:
        ready = self._model.ready
        return web.json_response({"name": self._model.name, "ready": ready}, status=200 if ready else 503)

    async def _model_metadata(self, request: web.Request) -> web.Response:
        return web.json_response(self._model.metadata())

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._model.measured(), headers={"Content-Type": prometheus.CONTENT_TYPE_LATEST})


async def serve(
    model: Inference,
    host: str,
    port: int,
    grpc_port: Optional[int] = None,
    *,
    linger_s: float,
    grace_s: float,
    owned: bool,
) -> int:
    """Serve until SIGTERM and return the exit code.

    Parameters:
        grpc_port: for gRPC beside REST; none serves REST alone.
        linger_s: how long new requests are still answered after SIGTERM, while others learn that it is not ready.
        grace_s: how long to wait for what is in flight then.
        owned: end, too, when standard input does: whoever started it is gone.
    """
    stopping = on_signal()
    runner, port = await listen(RestSide(model).application(), host, port)
    rpc, ports = None, {"port": port}
    if grpc_port is not None:
        from airflow_ml_provider.serving.aio.server_rpc import RpcSide

        rpc, ports["grpc"] = await RpcSide(model).listen(host, grpc_port)
    print(json.dumps(ports), flush=True)  # noqa: T201 - the gateway reads it
    if owned:
        threading.Thread(target=_until_end_of_input, daemon=True).start()
    loading = asyncio.create_task(model.load())
    ended = asyncio.create_task(stopping.wait())
    await asyncio.wait([loading, ended], return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and (error := loading.exception()):
        log.error(
            "model %r version %r cannot be served: %s: %s", model.name, model.version, type(error).__name__, error
        )
        await runner.cleanup()
        ended.cancel()
        return _verdict(error)
    await ended
    await model.draining.wait(runner, linger_s, grace_s, rpc)
    await runner.cleanup()
    await model.close()
    return 0


def _until_end_of_input() -> None:
    """End the process with its owner where the kernel does not see to that."""
    while os.read(0, 4096):
        pass
    os._exit(EXIT_RETRYABLE)


def _verdict(error: BaseException) -> int:
    """Return the exit code that says whether starting again can help."""
    terminal = isinstance(error, (MlError, ImportError)) and getattr(error, "verdict", "terminal") == "terminal"
    return EXIT_TERMINAL if terminal else EXIT_RETRYABLE


def arguments(name: str, version: str, served: Version) -> list[str]:
    """Return the arguments that start the server of a version."""
    found = [f"--name={name}", f"--version={version}"]
    return found + [f"--{field.replace('_', '-')}={getattr(served, field)}" for field in _SERVED]


_SERVED = tuple(f.name for f in fields(Version) if f.name not in ("percent", "mirror", "python"))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Serve one model version."""
    parser = argparse.ArgumentParser(prog="python -m airflow_ml_provider.serving.aio.server", description=main.__doc__)
    parser.add_argument("--name", required=True, help="what the model is called in URLs")
    parser.add_argument("--version", default="1")
    parser.add_argument("--package", required=True, help="folder of the model package")
    parser.add_argument("--digest", required=True, help="digest of the package")
    parser.add_argument("--max-batch", type=int, default=Version.max_batch)
    parser.add_argument("--max-delay-ms", type=float, default=Version.max_delay_ms)
    parser.add_argument("--nan", default=Version.nan, choices=("accept", "reject"))
    parser.add_argument("--threads", type=int, default=Version.threads)
    parser.add_argument("--max-body-mib", type=float, default=Version.max_body_mib)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--grpc-port", type=int, help="serve gRPC, too; 0 takes a free one")
    parser.add_argument("--linger-s", type=float, default=0.5)
    parser.add_argument("--grace-s", type=float, default=30.0)
    parser.add_argument("--parent", type=int, help="end when the process with this id ends")
    args = parser.parse_args(argv)
    if args.parent:
        die_with(args.parent)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s\t%(name)s\t%(message)s")
    served = Version(**{name: getattr(args, name) for name in _SERVED})
    work = serve(
        Inference(args.name, args.version, served), args.host, args.port, args.grpc_port,
        linger_s=args.linger_s, grace_s=args.grace_s, owned=bool(args.parent),
    )  # fmt: skip
    return asyncio.run(work)


if __name__ == "__main__":
    sys.exit(main())
