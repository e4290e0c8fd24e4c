"""The server of one model version: a model package behind the Open Inference Protocol v2.

    python -m airflow_ml_provider.serving.aio.server --package DIR --digest sha256:… --name churn --port 8080

It prints its port as soon as it listens. It is ready once the digest is verified and the model has scored a warm-up,
and no longer ready as soon as it is told to end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Optional

import prometheus_client as prometheus
from aiohttp import web

from airflow_ml_provider import __version__, models
from airflow_ml_provider.exceptions import DataError, MlError, Unavailable
from airflow_ml_provider.runtime.__main__ import die_with
from airflow_ml_provider.runtime.protocol import EXIT_RETRYABLE, EXIT_TERMINAL
from airflow_ml_provider.serving import model, oip
from airflow_ml_provider.serving.aio.web import Draining, application, json_response, listen, on_signal
from airflow_ml_provider.serving.batching import Batcher
from airflow_ml_provider.serving.spec import Version
from airflow_ml_provider.serving.stats import LATENCY_BOUNDS_MS

log = logging.getLogger(__name__)


class Metrics:
    """What Prometheus learns from a server."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "ml_server_requests", "Inference requests by status", ["status"], registry=self.registry
        )
        self.latency = prometheus.Histogram(
            "ml_server_latency_seconds", "From the request to its answer", registry=self.registry,
            buckets=[bound / 1000 for bound in LATENCY_BOUNDS_MS],
        )  # fmt: skip
        self.batch_rows = prometheus.Histogram(
            "ml_server_batch_rows", "Rows scored in one call", registry=self.registry,
            buckets=[2**i for i in range(13)],
        )  # fmt: skip
        self.ready = prometheus.Gauge("ml_server_ready", "1 when ready", registry=self.registry)


class ModelServer:
    """The HTTP side of one model.

    Parameters:
        name: what the model is called in URLs.
        version: its version, likewise.
        served: the package and how it is served.
    """

    def __init__(self, name: str, version: str, served: Version) -> None:
        self.name, self.version, self.served = name, version, served
        self.metrics, self.draining = Metrics(), Draining()
        self._scorer: Optional[models.Scorer] = None
        self._batcher: Optional[Batcher[oip.Request]] = None

    @property
    def ready(self) -> bool:
        return self._batcher is not None and not self.draining.started

    async def load(self) -> None:
        """Verify the package, open the model and score a first row.

        Raises:
            DataError: there is no complete package.
            IntegrityError: it is not the one that was asked for.
        """
        self._scorer = await asyncio.get_running_loop().run_in_executor(None, model.load, self.name, self.served)
        self._batcher = Batcher(
            partial(model.score, self._scorer),
            max_rows=self.served.max_batch,
            max_delay_ms=self.served.max_delay_ms,
            seen=self.metrics.batch_rows.observe,
        )

    def application(self) -> web.Application:
        """Return the routes of the protocol."""
        app = application(self.draining, int(self.served.max_body_mib * 2**20))
        base = f"/v2/models/{self.name}"
        app.router.add_get("/v2", self._server_metadata)
        app.router.add_get("/v2/health/live", self._live)
        app.router.add_get("/v2/health/ready", self._server_ready)
        app.router.add_get("/metrics", self._metrics)
        for path in (base, f"{base}/versions/{self.version}"):
            app.router.add_get(path, self._model_metadata)
            app.router.add_get(f"{path}/ready", self._model_ready)
            app.router.add_post(f"{path}/infer", self._infer)
        return app

    async def _infer(self, request: web.Request) -> web.Response:
        began, status = time.perf_counter(), 500
        try:
            response = await self._answer(request)
            status = response.status
            return response
        except (DataError, web.HTTPRequestEntityTooLarge) as error:
            status = getattr(error, "status", 400)
            raise
        except Unavailable:
            status = 503
            raise
        finally:
            self.metrics.requests.labels(status).inc()
            self.metrics.latency.observe(time.perf_counter() - began)

    async def _answer(self, request: web.Request) -> web.Response:
        if self._scorer is None or self._batcher is None:
            raise Unavailable(f"model {self.name!r} is loading")
        if oip.BINARY_HEADER in request.headers:
            raise DataError(f"tensors must be JSON: this server has no binary extension ({oip.BINARY_HEADER})")
        body = await request.read()
        began = time.perf_counter()
        asked = oip.decode(body, self._scorer.manifest.inputs, self.served.nan)
        decoded = time.perf_counter()
        scores, model_s = await self._batcher.timed(asked, asked.rows)
        scored = time.perf_counter()
        answer = oip.encode(self.name, self.version, asked, scores)
        queue_s = scored - decoded - model_s  # waiting for the batch before, and for others of its own
        timing = oip.timing(pre=decoded - began, queue=queue_s, model=model_s, post=time.perf_counter() - scored)
        return json_response(answer, Server_Timing=timing)

    async def _server_metadata(self, request: web.Request) -> web.Response:
        return web.json_response({"name": "airflow-ml-provider", "version": __version__, "extensions": []})

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _server_ready(self, request: web.Request) -> web.Response:
        return web.json_response({"ready": self.ready}, status=200 if self.ready else 503)

    async def _model_ready(self, request: web.Request) -> web.Response:
        return web.json_response({"name": self.name, "ready": self.ready}, status=200 if self.ready else 503)

    async def _model_metadata(self, request: web.Request) -> web.Response:
        if self._scorer is None:
            raise Unavailable(f"model {self.name!r} is loading")
        return web.json_response(oip.metadata(self.name, self.version, self._scorer.manifest.inputs))

    async def _metrics(self, request: web.Request) -> web.Response:
        self.metrics.ready.set(self.ready)
        return web.Response(
            body=prometheus.generate_latest(self.metrics.registry),
            headers={"Content-Type": prometheus.CONTENT_TYPE_LATEST},
        )

    async def close(self) -> None:
        """Answer what is still queued."""
        if self._batcher:
            await self._batcher.close()


async def serve(server: ModelServer, host: str, port: int, *, linger_s: float, grace_s: float, owned: bool) -> int:
    """Serve until SIGTERM and return the exit code.

    Parameters:
        linger_s: how long new requests are still answered after SIGTERM, while others learn that it is not ready.
        grace_s: how long to wait for what is in flight then.
        owned: end, too, when standard input does: whoever started it is gone.
    """
    stopping = on_signal()
    runner, port = await listen(server.application(), host, port)
    print(json.dumps({"port": port}), flush=True)  # noqa: T201 - the gateway reads it
    if owned:
        threading.Thread(target=_until_end_of_input, daemon=True).start()
    loading = asyncio.create_task(server.load())
    ended = asyncio.create_task(stopping.wait())
    await asyncio.wait([loading, ended], return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and (error := loading.exception()):
        log.error(
            "model %r version %r cannot be served: %s: %s", server.name, server.version, type(error).__name__, error
        )
        await runner.cleanup()
        ended.cancel()
        return _verdict(error)
    await ended
    await server.draining.wait(runner, linger_s, grace_s)
    await runner.cleanup()
    await server.close()
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
    parser.add_argument("--linger-s", type=float, default=0.5)
    parser.add_argument("--grace-s", type=float, default=30.0)
    parser.add_argument("--parent", type=int, help="end when the process with this id ends")
    args = parser.parse_args(argv)
    if args.parent:
        die_with(args.parent)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s\t%(name)s\t%(message)s")
    served = Version(**{name: getattr(args, name) for name in _SERVED})
    server = ModelServer(args.name, args.version, served)
    return asyncio.run(
        serve(server, args.host, args.port, linger_s=args.linger_s, grace_s=args.grace_s, owned=bool(args.parent))
    )


if __name__ == "__main__":
    sys.exit(main())
