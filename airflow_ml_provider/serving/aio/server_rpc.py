"""The model server's side of gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import grpc.aio

from airflow_ml_provider.models import InputType
from airflow_ml_provider.serving import oip
from airflow_ml_provider.serving.aio import rpc
from airflow_ml_provider.serving.aio.inference import SERVER, Inference
from airflow_ml_provider.serving.aio.rpc import Context
from airflow_ml_provider.serving.spec import NanPolicy
from airflow_ml_provider.stages.deploy import messages


class RpcSide:
    """A model over gRPC."""

    def __init__(self, model: Inference) -> None:
        self._model = model

    async def listen(self, host: str, port: int) -> tuple[grpc.aio.Server, int]:
        """Serve the methods of the protocol and return the server and its port."""
        methods = {
            "ServerLive": self._live, "ServerReady": self._server_ready, "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata, "ModelMetadata": self._model_metadata, "ModelInfer": self._infer,
        }  # fmt: skip
        return await rpc.listen(methods, self._model.draining, host, port, self._model.max_body)

    async def _infer(self, body: bytes, context: Context) -> bytes:
        with self._model.counted():
            message = messages.parse("ModelInferRequest", body)
            self._check(message.model_name, message.model_version)

            def read(inputs: Mapping[str, InputType], nan: NanPolicy) -> oip.Request:
                return oip.read(oip.document(message), inputs, nan)

            raw = bool(message.raw_input_contents)
            write = partial(oip.encode_message, self._model.name, self._model.version, raw=raw)
            answer, timing = await self._model.answer(read, write)
            context.set_trailing_metadata(((messages.TIMING, timing),))
            return answer

    async def _live(self, body: bytes, context: Context) -> bytes:
        return messages.pack("ServerLiveResponse", live=True)

    async def _server_ready(self, body: bytes, context: Context) -> bytes:
        return messages.pack("ServerReadyResponse", ready=self._model.ready)

    async def _model_ready(self, body: bytes, context: Context) -> bytes:
        asked = messages.parse("ModelReadyRequest", body)
        self._check(asked.name, asked.version)
        return messages.pack("ModelReadyResponse", ready=self._model.ready)

    async def _server_metadata(self, body: bytes, context: Context) -> bytes:
        return messages.pack("ServerMetadataResponse", **SERVER)

    async def _model_metadata(self, body: bytes, context: Context) -> bytes:
        asked = messages.parse("ModelMetadataRequest", body)
        self._check(asked.name, asked.version)
        return messages.pack("ModelMetadataResponse", **self._model.metadata())

    def _check(self, name: str, version: str) -> None:
        """Raise `HTTPNotFound` for another model, or another version of it."""
        rpc.check("model", name, [self._model.name])
        rpc.check("version", version or self._model.version, [self._model.version])
