"""Vertex AI for tests: a project in memory behind the clients of the Google provider's hooks.

Every request is made a message of Google's own types first, which refuses what they do not know, and every answer is
one. What Vertex AI does was read in its public reference.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from google.api import httpbody_pb2
from google.api_core import exceptions as google
from google.cloud.aiplatform_v1 import types
from google.cloud.monitoring_v3 import types as monitoring
from google.longrunning import operations_pb2
from google.rpc import status_pb2

_HOOKS = "airflow.providers.google.cloud.hooks"


class GoogleProject:
    """A project of Google Cloud in this process; it is the clients of Endpoints, Models, predictions and monitoring.

    Parameters:
        slow: looks at an operation until it is done.
        seed: of who answers.
    """

    def __init__(self, *, slow: int = 0, seed: int = 0) -> None:
        self.slow = slow
        self.broken: set[str] = set()
        """Names of versions that do not start."""
        self.endpoints: dict[str, types.Endpoint] = {}
        self.models: dict[str, types.Model] = {}
        self.blobs: dict[str, tuple[bytes, int]] = {}
        self._operations: dict[str, tuple[int, Callable[[], None], operations_pb2.Operation]] = {}
        self._responses: dict[tuple[str, str, str], int] = {}
        self._random, self._numbers = random.Random(seed), itertools.count(1)  # noqa: S311 - requests of a test

    def serve(self, name: str, requests: int, errors: Mapping[str, int] | None = None) -> None:
        """Tell Cloud Monitoring of so many requests, shared out by the split; `errors` are those of versions."""
        for one in self._endpoint(name).deployed_models:
            count = requests * self._endpoint(name).traffic_split.get(one.id, 0) // 100
            bad = min((errors or {}).get(one.display_name, 0), count)
            for code, number in (("200", count - bad), ("503", bad)):
                key = (name, one.id, code)
                self._responses[key] = self._responses.get(key, 0) + number

    def create_endpoint(self, request: Any) -> Any:
        asked = types.CreateEndpointRequest(request)
        name = f"{asked.parent}/endpoints/{asked.endpoint_id}"
        self._new(name, self.endpoints)
        made = types.Endpoint(asked.endpoint, name=name, etag=self._etag())
        return self._operation(name, lambda: self.endpoints.update({name: made}))

    def get_endpoint(self, request: Any) -> types.Endpoint:
        return types.Endpoint(self._found(types.GetEndpointRequest(request).name, self.endpoints))

    def update_endpoint(self, request: Any) -> types.Endpoint:
        asked = types.UpdateEndpointRequest(request)
        found = self._found(asked.endpoint.name, self.endpoints)
        if list(asked.update_mask.paths) != ["traffic_split"]:
            raise google.InvalidArgument(f"this double changes no {asked.update_mask.paths}")
        if asked.endpoint.etag not in ("", found.etag):
            raise google.Aborted("the etag is not that of the Endpoint")
        self._check_split(found, dict(asked.endpoint.traffic_split))
        found.traffic_split, found.etag = asked.endpoint.traffic_split, self._etag()
        return types.Endpoint(found)

    def delete_endpoint(self, request: Any) -> Any:
        name = types.DeleteEndpointRequest(request).name
        if self._found(name, self.endpoints).deployed_models:
            raise google.FailedPrecondition("the Endpoint has deployed Models")
        return self._operation(name, lambda: self.endpoints.pop(name))

    def deploy_model(self, request: Any) -> Any:
        asked = types.DeployModelRequest(request)
        found, made = self._found(asked.endpoint, self.endpoints), asked.deployed_model
        self._found(made.model, self.models)
        if not (made.id.isdigit() and len(made.id) <= 10):
            raise google.InvalidArgument(f"id {made.id!r} is not of 1 to 10 digits")
        if made.id in [one.id for one in found.deployed_models]:
            raise google.AlreadyExists(made.id)
        ill = "the server did not pass its health check" if made.display_name in self.broken else ""
        return self._operation(asked.endpoint, lambda: found.deployed_models.append(made), ill)

    def undeploy_model(self, request: Any) -> Any:
        asked = types.UndeployModelRequest(request)
        found = self._found(asked.endpoint, self.endpoints)
        if len(found.deployed_models) > 1 and found.traffic_split.get(asked.deployed_model_id):
            raise google.InvalidArgument("a Model with traffic cannot be undeployed while others are there")

        def take_effect() -> None:
            found.deployed_models = [one for one in found.deployed_models if one.id != asked.deployed_model_id]
            found.traffic_split.pop(asked.deployed_model_id, None)

        return self._operation(asked.endpoint, take_effect)

    def upload_model(self, request: Any) -> Any:
        asked = types.UploadModelRequest(request)
        name = f"{asked.parent}/models/{asked.model_id}"
        self._new(name, self.models)
        return self._operation(name, lambda: self.models.update({name: types.Model(asked.model, name=name)}))

    def get_model(self, request: Any) -> types.Model:
        return self._found(types.GetModelRequest(request).name, self.models)

    def list_models(self, request: Any) -> list[types.Model]:
        label, _, value = types.ListModelsRequest(request).filter.removeprefix("labels.").partition("=")
        return [one for one in self.models.values() if one.labels.get(label) == json.loads(value)]

    def delete_model(self, request: Any) -> Any:
        name = types.DeleteModelRequest(request).name
        self._found(name, self.models)
        if any(one.model == name for found in self.endpoints.values() for one in found.deployed_models):
            raise google.FailedPrecondition("the Model is deployed")
        return self._operation(name, lambda: self.models.pop(name))

    def get_operation(self, request: Any) -> operations_pb2.Operation:
        """Return how far an operation is; each time it is one step further."""
        name = operations_pb2.GetOperationRequest(**request).name
        if name not in self._operations:
            raise google.NotFound(name)
        left, take_effect, told = self._operations[name]
        if not told.done and left:
            self._operations[name] = left - 1, take_effect, told
        elif not told.done:
            told.done = True
            if not told.HasField("error"):
                take_effect()
        shown = operations_pb2.Operation()
        shown.CopyFrom(told)
        if not told.done:
            shown.ClearField("error")
        return shown

    def raw_predict(self, request: Any, timeout: float) -> httpbody_pb2.HttpBody:
        """Answer as one of the Models, by the Open Inference Protocol; rows with a column `bad` are refused."""
        asked = types.RawPredictRequest(request)
        found = self._found(asked.endpoint, self.endpoints)
        rows = json.loads(asked.http_body.data)["inputs"]
        if any(one["name"] == "bad" for one in rows):
            raise google.InvalidArgument("unexpected input 'bad'")
        ids = list(found.traffic_split)
        chosen = self._random.choices(ids, [found.traffic_split[one] for one in ids])[0]
        version = next(one.display_name for one in found.deployed_models if one.id == chosen)
        count = rows[0]["shape"][0]
        score = {"name": "score", "shape": [count], "datatype": "FP32", "data": [0.5] * count}
        body = json.dumps({"model_version": version, "outputs": [score]}).encode()
        return httpbody_pb2.HttpBody(content_type="application/json", data=body)

    def list_time_series(self, request: Any) -> list[monitoring.TimeSeries]:
        asked = monitoring.ListTimeSeriesRequest(request)
        found = []
        for (name, one, code), count in self._responses.items():
            if f'endpoint_id="{name}"' in asked.filter:
                labels = {"deployed_model_id": one, "response_code": code}
                point = {"value": {"int64_value": count}, "interval": asked.interval}
                found.append(monitoring.TimeSeries(metric={"labels": labels}, points=[point]))
        return found

    def bucket(self, name: str) -> Any:
        """Return a bucket of Cloud Storage."""
        return SimpleNamespace(blob=lambda key: _Blob(self, f"{name}/{key}"))

    def _endpoint(self, name: str) -> types.Endpoint:
        return next(found for path, found in self.endpoints.items() if path.endswith(f"/endpoints/{name}"))

    def _check_split(self, found: types.Endpoint, split: Mapping[str, int]) -> None:
        if sum(split.values()) != 100:
            raise google.InvalidArgument(f"the traffic split must add up to 100, got {split}")
        if unknown := set(split) - {one.id for one in found.deployed_models}:
            raise google.InvalidArgument(f"not deployed: {unknown}")

    def _operation(self, of: str, take_effect: Callable[[], Any], error: str = "") -> Any:
        told = operations_pb2.Operation(name=f"{of}/operations/{next(self._numbers)}")
        if error:
            told.error.CopyFrom(status_pb2.Status(code=9, message=error))
        self._operations[told.name] = self.slow, take_effect, told
        if not self.slow and not error:
            self.get_operation({"name": told.name})

        def result(timeout: float) -> None:
            while not self.get_operation({"name": told.name}).done:
                pass

        return SimpleNamespace(operation=told, result=result)

    def _etag(self) -> str:
        return f"etag-{next(self._numbers)}"

    @staticmethod
    def _found(name: str, among: Mapping[str, Any]) -> Any:
        if name not in among:
            raise google.NotFound(name)
        return among[name]

    @staticmethod
    def _new(name: str, among: Mapping[str, Any]) -> None:
        if name in among:
            raise google.AlreadyExists(name)


class _Blob:
    def __init__(self, project: GoogleProject, key: str) -> None:
        self._blobs, self._key, self.generation = project.blobs, key, 0

    def download_as_bytes(self) -> bytes:
        found: tuple[bytes, int] = GoogleProject._found(self._key, self._blobs)
        self.generation = found[1]
        return found[0]

    def upload_from_string(self, data: bytes, content_type: str, if_generation_match: int) -> None:
        now = self._blobs.get(self._key, (b"", 0))[1]
        if now != if_generation_match:
            raise google.PreconditionFailed(f"the generation is {now}")
        self.generation = 1 + max((number for _, number in self._blobs.values()), default=now)
        self._blobs[self._key] = data, self.generation

    def delete(self) -> None:
        GoogleProject._found(self._key, self._blobs)
        del self._blobs[self._key]


@contextmanager
def vertex(project: GoogleProject | None = None) -> Iterator[GoogleProject]:
    """Let the hooks of this process speak to a project in memory."""
    found = project or GoogleProject()
    clients = {
        "vertex_ai.endpoint_service.EndpointServiceHook.get_endpoint_service_client",
        "vertex_ai.model_service.ModelServiceHook.get_model_service_client",
        "vertex_ai.prediction_service.PredictionServiceHook.get_prediction_service_client",
        "gcs.GCSHook.get_conn",
    }
    with ExitStack() as stack:
        for name in clients:
            stack.enter_context(patch(f"{_HOOKS}.{name}", lambda self, region=None: found))
        stack.enter_context(patch("airflow_ml_provider.hooks.vertex.VertexServing._monitoring", found))
        yield found
