"""Services of predictions on Vertex AI, through the clients of the Google provider's hooks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import cached_property, partial
from typing import Any

from airflow_ml_provider.exceptions import Conflict, DataError, SpecError
from airflow_ml_provider.hooks import _gcp
from airflow_ml_provider.stages.deploy import vertex
from airflow_ml_provider.stages.deploy.elsewhere import VertexAI
from airflow_ml_provider.stages.deploy.kserve import inference
from airflow_ml_provider.stages.deploy.recorded import RecordedServing
from airflow_ml_provider.stages.deploy.service import Readings, Service, Version, VersionState

_ENDPOINT = "endpoint"


class VertexServing(RecordedServing):
    """The services of a project on Vertex AI; fulfils `stages.deploy.service.Serving`.

    What takes minutes is an operation; which ones were begun is kept beside the record, so that nobody begins one
    twice, and whoever looks knows why one has failed.

    Parameters:
        place: connection, project, image, machines, and where records are kept.
        timeout_s: `remove` waits so long for each operation (seconds).
    """

    def __init__(self, place: VertexAI, *, timeout_s: float = 1800.0) -> None:
        super().__init__(_gcp.GcsRecords(place.records, place.gcp_conn_id))
        self.place, self.timeout_s = place, timeout_s

    def check(self, wanted: Service) -> None:
        """Raise `SpecError` for what Vertex AI cannot do."""
        vertex.check(self.place, wanted)

    def claim(self, name: str) -> None:
        """Raise `SpecError` if there is an Endpoint of this name that is not ours."""
        with self._explained():
            found = self._endpoint(name)
        if found is not None and found.labels.get(vertex.SERVICE) != name:
            raise SpecError(f"Endpoint {name!r} is not Airflow's; choose another name or delete it")

    def bring(self, wanted: Service, anew: bool = False) -> tuple[Mapping[str, VersionState], str]:
        """Bring the Endpoint a step nearer to what it shall be; return what has become of it, and its name."""
        with self._explained():
            begun = _Operations(self, wanted.name, anew)
            endpoint = self._endpoint(wanted.name)
            if endpoint is None:
                state = begun.once(_ENDPOINT, lambda: self._create(wanted.name))
                endpoint = self._endpoint(wanted.name)
                if endpoint is None:
                    return vertex.states(self.place, wanted, (), None, dict.fromkeys(wanted.versions, state)), ""
            there = {one.id for one in endpoint.deployed_models}
            ids = vertex.identities(self.place, wanted)
            said = {
                name: self._deploy(wanted, version, begun)
                for name, version in wanted.versions.items()
                if ids[name] not in there
            }
            endpoint = self._split(wanted, self._endpoint(wanted.name))
            there = {one.id for one in endpoint.deployed_models}
            found = vertex.states(self.place, wanted, there, dict(endpoint.traffic_split), said)
            if all(one.phase == "ready" for one in found.values()):
                self._tidy(wanted, there - set(ids.values()), begun)
            return found, str(endpoint.name)

    def readings(self, name: str) -> Readings:
        """Return what each version has answered, as Cloud Monitoring knows it, which lags behind by some minutes."""
        record = self.record(name)
        if record is None:
            return {}
        now = int(datetime.now(timezone.utc).timestamp())
        where = f'resource.labels.endpoint_id="{name}" AND resource.labels.location="{self.place.location}"'
        request = {
            "name": f"projects/{self.place.project}",
            "filter": f'metric.type="{vertex.RESPONSES}" AND {where}',
            "interval": {"start_time": {"seconds": record.since}, "end_time": {"seconds": max(now, record.since + 1)}},
            "view": "FULL",
        }
        with self._explained("Cloud Monitoring"):
            series = [
                (
                    one.metric.labels.get("deployed_model_id", ""),
                    one.metric.labels.get("response_code", ""),
                    sum(point.value.int64_value for point in one.points),
                )
                for one in self._monitoring.list_time_series(request=request)
            ]
        return vertex.readings(self.place, record, series)

    def end(self, name: str) -> None:
        """Undeploy and delete all that there is of a service, and wait for it; none is no error."""
        with self._explained():
            endpoint = self._endpoint(name)
            if endpoint is not None:
                self.claim(name)
                for one in endpoint.deployed_models:
                    self._undeploy(name, one.id).result(timeout=self.timeout_s)
                self._endpoints.delete_endpoint(request={"name": endpoint.name}).result(timeout=self.timeout_s)
            for model in self._models_of(name):
                self._models.delete_model(request={"name": model}).result(timeout=self.timeout_s)
            self.records.delete(f"{name}.operations")

    def predict(self, name: str, rows: Mapping[str, Sequence[Any]], version: str = "") -> tuple[Mapping[str, Any], str]:
        """Return the outputs for some rows (column to values), by output, and the version that gave them.

        Vertex AI does not say which version answered. It is known when the server says it (`model_version`), or when
        one version gets all requests; otherwise it is empty.

        Raises:
            DataError: the model does not take these rows.
            SpecError: there is no such service, or a version is asked that does not get all requests.
            Unavailable: it does not answer.
        """
        from google.api_core.exceptions import InvalidArgument

        seen = self.look(name)
        if seen is None or (version and version not in seen.states):
            raise SpecError(f"there is no version {version!r} of service {name!r}" if seen else f"no service {name!r}")
        if version and seen.states[version].percent != 100:
            raise SpecError(f"Vertex AI lets nobody ask version {version!r} of service {name!r} alone")
        asked = seen.wanted.stable.server
        data = json.dumps(inference.request(rows, asked.format), allow_nan=False).encode()
        body = {"content_type": "application/json", "data": data}
        request = {"endpoint": self._path(name), "http_body": body}
        with self._explained():
            try:
                answer = json.loads(self._predictions.raw_predict(request=request, timeout=asked.timeout_s).data)
            except InvalidArgument as error:
                raise DataError(f"service {name!r} does not take these rows: {error}") from error
        return inference.outputs(answer), inference.answered(answer, seen, version)

    def _create(self, name: str) -> Any:
        made = {"display_name": name, "labels": {vertex.SERVICE: name}}
        request = {"parent": self.place.parent, "endpoint": made, "endpoint_id": name}
        return self._endpoints.create_endpoint(request=request)

    def _deploy(self, wanted: Service, version: Version, begun: _Operations) -> VersionState:
        """Upload and deploy a version, one after the other; return how far that is."""
        key = vertex.model_id(self.place, wanted.name, version)
        path = f"{self.place.parent}/models/{key}"
        if self._unless_missing(self._models.get_model, {"name": path}) is None:
            made = vertex.model(self.place, wanted.name, version)
            upload = {"parent": self.place.parent, "model": made, "model_id": key}
            state = begun.once(key, lambda: self._models.upload_model(request=upload))
            if self._unless_missing(self._models.get_model, {"name": path}) is None:
                return state
        made = vertex.deployed(self.place, wanted.name, version)
        request = {"endpoint": self._path(wanted.name), "deployed_model": made}
        return begun.once(made["id"], lambda: self._endpoints.deploy_model(request=request))

    def _split(self, wanted: Service, endpoint: Any) -> Any:
        """Split the traffic as it shall be, if those who get some are there; return the Endpoint."""
        asked, now = vertex.split(self.place, wanted), {one: n for one, n in endpoint.traffic_split.items() if n}
        if asked == now or not asked.keys() <= {one.id for one in endpoint.deployed_models}:
            return endpoint
        changed = {"name": endpoint.name, "traffic_split": asked, "etag": endpoint.etag}
        return self._endpoints.update_endpoint(
            request={"endpoint": changed, "update_mask": {"paths": ["traffic_split"]}}
        )

    def _tidy(self, wanted: Service, gone: set[str], begun: _Operations) -> None:
        """Undeploy what gets no traffic any more, and delete Models that are not deployed."""
        for one in gone:
            begun.once(f"undeploy {one}", partial(self._undeploy, wanted.name, one))
        if gone or begun.none:
            return
        kept = {f"{self.place.parent}/models/{vertex.model_id(self.place, wanted.name, version)}"
                for version in wanted.versions.values()}  # fmt: skip
        for model in set(self._models_of(wanted.name)) - kept:
            self._models.delete_model(request={"name": model})
        begun.forget()

    def _undeploy(self, name: str, one: str) -> Any:
        return self._endpoints.undeploy_model(request={"endpoint": self._path(name), "deployed_model_id": one})

    def _models_of(self, name: str) -> list[str]:
        request = {"parent": self.place.parent, "filter": f'labels.{vertex.SERVICE}="{name}"'}
        return [one.name for one in self._models.list_models(request=request)]

    def _endpoint(self, name: str) -> Any:
        return self._unless_missing(self._endpoints.get_endpoint, {"name": self._path(name)})

    def _path(self, name: str) -> str:
        return f"{self.place.parent}/endpoints/{name}"

    @staticmethod
    def _unless_missing(call: Callable[..., Any], request: Mapping[str, Any]) -> Any:
        from google.api_core.exceptions import NotFound

        try:
            return call(request=request)
        except NotFound:
            return None

    @cached_property
    def _endpoints(self) -> Any:
        from airflow.providers.google.cloud.hooks.vertex_ai.endpoint_service import EndpointServiceHook

        return EndpointServiceHook(gcp_conn_id=self.place.gcp_conn_id).get_endpoint_service_client(self.place.location)

    @cached_property
    def _models(self) -> Any:
        from airflow.providers.google.cloud.hooks.vertex_ai.model_service import ModelServiceHook

        return ModelServiceHook(gcp_conn_id=self.place.gcp_conn_id).get_model_service_client(self.place.location)

    @cached_property
    def _predictions(self) -> Any:
        from airflow.providers.google.cloud.hooks.vertex_ai.prediction_service import PredictionServiceHook

        hook = PredictionServiceHook(gcp_conn_id=self.place.gcp_conn_id)
        return hook.get_prediction_service_client(self.place.location)

    @cached_property
    def _monitoring(self) -> Any:
        from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
        from google.cloud.monitoring_v3 import MetricServiceClient

        return MetricServiceClient(credentials=GoogleBaseHook(gcp_conn_id=self.place.gcp_conn_id).get_credentials())

    def _explained(self, what: str = "Vertex AI") -> Any:
        _gcp.require()
        return _gcp.explained(self.place.gcp_conn_id, what)


class _Operations:
    """Which operations were begun for a service, by what they are to bring about.

    Parameters:
        serving: whose.
        name: of the service.
        anew: what has failed is forgotten.
    """

    def __init__(self, serving: VertexServing, name: str, anew: bool) -> None:
        self._serving, self._key, self._anew = serving, f"{name}.operations", anew
        found = serving.records.read(self._key)
        self._revision = found[1] if found else None
        self._begun: dict[str, str] = json.loads(found[0]) if found else {}

    def once(self, what: str, begin: Callable[[], Any]) -> VersionState:
        """Begin an operation, unless it was begun; return how far it is."""
        from google.api_core.exceptions import AlreadyExists

        if what in self._begun:
            found = self._serving._endpoints.get_operation({"name": self._begun[what]})
            if not found.done:
                return VersionState("waits", f"Vertex AI works on {self._begun[what]}")
            if not found.HasField("error"):
                del self._begun[what]
                return VersionState("waits", "Vertex AI is about to be done")
            if not self._anew:
                return VersionState("failed", found.error.message)
        try:
            self._begun[what] = begin().operation.name
        except AlreadyExists as error:
            return VersionState("waits", str(error))  # somebody else was quicker
        self._write()
        return VersionState("waits", f"Vertex AI works on {self._begun[what]}")

    @property
    def none(self) -> bool:
        """Whether nothing was begun since all was as it shall be."""
        return not self._begun

    def forget(self) -> None:
        """Forget all, once everything is as it shall be."""
        self._begun = {}
        self._write()

    def _write(self) -> None:
        try:
            self._revision = self._serving.records.write(self._key, json.dumps(self._begun), self._revision)
        except Conflict:  # another one looks, too, and Vertex AI refuses to do a thing twice
            return
