"""One model in its server, whatever the protocol: loaded, asked, counted, and ended without losing a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Optional

import prometheus_client as prometheus

from airflow_ml_provider import __version__, models
from airflow_ml_provider.exceptions import Unavailable
from airflow_ml_provider.models import InputType
from airflow_ml_provider.serving import model, oip
from airflow_ml_provider.serving.aio.web import Draining, status_of
from airflow_ml_provider.serving.batching import Batcher
from airflow_ml_provider.serving.spec import NanPolicy, Version
from airflow_ml_provider.serving.stats import LATENCY_BOUNDS_MS

_GONE = 499  # whoever asked over gRPC does not wait any more; the number is that of nginx
SERVER = {"name": "airflow-ml-provider", "version": __version__}
Read = Callable[[Mapping[str, InputType], NanPolicy], oip.Request]
Write = Callable[[oip.Request, Any], bytes]


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


class Inference:
    """One model.

    Parameters:
        name: what the model is called in requests.
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

    @property
    def max_body(self) -> int:
        """Bytes of a request at most."""
        return int(self.served.max_body_mib * 2**20)

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

    def metadata(self) -> dict[str, Any]:
        """Return what the model looks like.

        Raises:
            Unavailable: it is loading.
        """
        if self._scorer is None:
            raise Unavailable(f"model {self.name!r} is loading")
        return oip.metadata(self.name, self.version, self._scorer.manifest.inputs)

    async def answer(self, read: Read, write: Write) -> tuple[bytes, str]:
        """Return the answer to a request, and where the time went, as the header `Server-Timing` says it.

        Parameters:
            read: makes a request of a body, for the model's inputs.
            write: makes a body of a request and its scores.

        Raises:
            DataError: the request is not for this model.
            Unavailable: it is loading.
        """
        if self._scorer is None or self._batcher is None:
            raise Unavailable(f"model {self.name!r} is loading")
        began = time.perf_counter()
        asked = read(self._scorer.manifest.inputs, self.served.nan)
        decoded = time.perf_counter()
        scores, model_s = await self._batcher.timed(asked, asked.rows)
        scored = time.perf_counter()
        body = write(asked, scores)
        queue_s = scored - decoded - model_s  # waiting for the batch before, and for others of its own
        return body, oip.timing(pre=decoded - began, queue=queue_s, model=model_s, post=time.perf_counter() - scored)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request by its status, and measure it."""
        began, status = time.perf_counter(), 500
        try:
            yield
            status = 200
        except asyncio.CancelledError:
            status = _GONE
            raise
        except Exception as error:
            status = status_of(error)
            raise
        finally:
            self.metrics.requests.labels(status).inc()
            self.metrics.latency.observe(time.perf_counter() - began)

    def measured(self) -> bytes:
        """Return what Prometheus reads."""
        self.metrics.ready.set(self.ready)
        return prometheus.generate_latest(self.metrics.registry)

    async def close(self) -> None:
        """Answer what is still queued."""
        if self._batcher:
            await self._batcher.close()
