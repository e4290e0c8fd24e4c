"""The gateway's users over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

import grpc
import grpc.aio

from airflow_ml_provider import __version__
from airflow_ml_provider.serving import oip
from airflow_ml_provider.serving.aio import rpc
from airflow_ml_provider.serving.aio.proxy import Answer, Failed, Proxy, Routes
from airflow_ml_provider.serving.aio.replica import Replica
from airflow_ml_provider.serving.aio.rpc import Context
from airflow_ml_provider.serving.aio.web import Draining
from airflow_ml_provider.stages.deploy import messages

T = TypeVar("T")

_CHANNEL = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # the latter from a server that has just stopped


class Channels:
    """A connection to each model server, made when it is first needed.

    Parameters:
        routes: the servers.
    """

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._open: dict[str, grpc.aio.Channel] = {}
        self._closing: set[asyncio.Future[Any]] = set()

    def of(self, replica: Replica) -> grpc.aio.Channel:
        """Return the connection to a server; after a restart it has another port."""
        if replica.grpc not in self._open:
            present = {one.grpc for one in self._routes.replicas.values()}
            for target in self._open.keys() - present:
                closing = asyncio.ensure_future(self._open.pop(target).close(self._routes.wanted.timeout_s))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            self._open[replica.grpc] = grpc.aio.insecure_channel(replica.grpc, options=_CHANNEL)
        return self._open[replica.grpc]

    async def close(self) -> None:
        """Close them all, at once."""
        await asyncio.gather(*(channel.close() for channel in self._open.values()))
        for closing in self._closing:
            closing.cancel()


@dataclass(frozen=True)
class RpcRequest:
    """A request over gRPC; fulfils `proxy.Asked`.

    Attributes:
        channels: connections to the servers.
        body: as it came.
        message: the same, read.
        metadata: what came with it.
    """

    channels: Channels
    body: bytes
    message: Any
    metadata: Mapping[str, str]

    def header(self, name: str) -> Optional[str]:
        return self.metadata.get(name.lower())

    async def send(self, replica: Replica, timeout_s: float) -> Answer:
        began = time.perf_counter()
        call = self.channels.of(replica).unary_unary(messages.INFER)(self.body, timeout=timeout_s)
        try:
            body, status = await call, 200
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Failed("timeout", f"version {replica.version!r} did not answer within {timeout_s} s") from None
            if error.code() in _GONE:
                replica.lost()
                raise Failed("connection", f"version {replica.version!r} is not there: {error.details()}") from None
            body, status = (error.details() or "").encode(), rpc.STATUSES.get(error.code(), 500)
        timing = messages.told(await call.trailing_metadata()).get(messages.TIMING, "")
        return Answer(status, body, (time.perf_counter() - began) * 1000, timing)

    def request(self) -> Mapping[str, Any]:
        found = oip.document(self.message)
        return {**found, "inputs": messages.plain(found["inputs"])}

    def response(self, answer: Answer) -> Mapping[str, Any]:
        found = messages.parse("ModelInferResponse", answer.body)
        outputs = messages.plain(messages.tensors(found.outputs, found.raw_output_contents))
        return {
            "model_name": found.model_name, "model_version": found.model_version, "id": found.id, "outputs": outputs
        }  # fmt: skip


class RpcUsers:
    """Answers users over gRPC.

    Parameters:
        proxy: knows who answers.
        draining: counts what is in flight.
    """

    def __init__(self, proxy: Proxy, draining: Draining) -> None:
        self._proxy, self._draining = proxy, draining
        self._channels = Channels(proxy.routes)
        self._under_way: set[asyncio.Future[Any]] = set()

    async def listen(self, host: str, port: int, max_body: int) -> tuple[grpc.aio.Server, int]:
        """Serve the methods of the protocol and return the server and its port."""
        methods = {
            "ServerLive": self._live, "ServerReady": self._server_ready, "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata, "ModelMetadata": self._model_metadata, "ModelInfer": self._infer,
        }  # fmt: skip
        return await rpc.listen(methods, self._draining, host, port, max_body)

    async def close(self) -> None:
        """Close the connections to the servers."""
        await self._channels.close()

    async def _infer(self, body: bytes, context: Context) -> bytes:
        message = messages.parse("ModelInferRequest", body)
        rpc.check("model", message.model_name, [self._proxy.service])
        asked = RpcRequest(self._channels, body, message, messages.told(context.invocation_metadata()))
        try:
            # Whoever asks may give up sooner; what the version did is counted all the same, as over REST.
            version, answer = await self._whole(self._proxy.infer(asked, message.model_version or None))
        except Failed as failed:
            await rpc.abort(context, failed.status, str(failed))
        told = ((messages.VERSION, version), *(((messages.TIMING, answer.timing),) if answer.timing else ()))
        if answer.status != 200:
            await rpc.abort(context, answer.status, answer.body.decode(), told)
        context.set_trailing_metadata(told)
        return answer.body

    async def _whole(self, work: Awaitable[T]) -> T:
        """Return what comes of some work, which goes on when this is cancelled."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen by whoever asked, if they are still there

    async def _live(self, body: bytes, context: Context) -> bytes:
        return messages.pack("ServerLiveResponse", live=True)

    async def _server_ready(self, body: bytes, context: Context) -> bytes:
        return messages.pack("ServerReadyResponse", ready=self._is_ready(""))

    async def _model_ready(self, body: bytes, context: Context) -> bytes:
        asked = messages.parse("ModelReadyRequest", body)
        rpc.check("model", asked.name, [self._proxy.service])
        return messages.pack("ModelReadyResponse", ready=self._is_ready(asked.version))

    def _is_ready(self, version: str) -> bool:
        return self._proxy.is_ready(version) and not self._draining.started

    async def _server_metadata(self, body: bytes, context: Context) -> bytes:
        return messages.pack("ServerMetadataResponse", name="airflow-ml-provider-gateway", version=__version__)

    async def _model_metadata(self, body: bytes, context: Context) -> bytes:
        asked = messages.parse("ModelMetadataRequest", body)
        rpc.check("model", asked.name, [self._proxy.service])
        replica = self._proxy.routes.replicas[self._proxy.ready_version(asked.version)]
        call = self._channels.of(replica).unary_unary(messages.METADATA)
        try:
            found: bytes = await call(body, timeout=self._proxy.routes.wanted.timeout_s)
        except grpc.aio.AioRpcError as error:
            await rpc.abort(context, 503, f"version {replica.version!r} did not answer: {error.details()}")
        return found
