"""Services of predictions on Amazon SageMaker, through the hooks of the Amazon provider."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any

from airflow_ml_provider.exceptions import SpecError, Unavailable
from airflow_ml_provider.hooks import _aws
from airflow_ml_provider.stages.deploy import sagemaker
from airflow_ml_provider.stages.deploy.elsewhere import SageMaker
from airflow_ml_provider.stages.deploy.kserve import inference
from airflow_ml_provider.stages.deploy.recorded import RecordedServing
from airflow_ml_provider.stages.deploy.service import Readings, Service, VersionState

_BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


class SageMakerServing(RecordedServing):
    """The services of an AWS account on SageMaker; fulfils `stages.deploy.service.Serving`.

    An endpoint takes one change at a time. `put` waits a little for an earlier one; after that, whoever looks at the
    service goes on.

    Parameters:
        place: connection, role, image, instances, and where records are kept.
        patience_s: how long `put` waits for an earlier change (seconds).
        poll_s: time between two looks meanwhile (seconds).
    """

    def __init__(self, place: SageMaker, *, patience_s: float = 60.0, poll_s: float = 5.0) -> None:
        super().__init__(_aws.S3Records(place.records, place.aws_conn_id, place.region))
        self.place, self.patience_s, self.poll_s = place, patience_s, poll_s
        self._tidied: set[str] = set()
        self._clients: dict[str, Any] = {}

    def check(self, wanted: Service) -> None:
        """Raise `SpecError` for what SageMaker cannot do."""
        sagemaker.check(self.place, wanted)

    def claim(self, name: str) -> None:
        """Raise `SpecError` if there is an endpoint of this name that is not ours."""
        with self._explained():
            endpoint = self._endpoint(name)
            if endpoint is None:
                return
            found = self._hook.get_conn().list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"]
        if sagemaker.tags(name)[0] not in found:
            raise SpecError(f"endpoint {name!r} is not Airflow's; choose another name or delete it")

    def bring(self, wanted: Service, anew: bool = False) -> tuple[Mapping[str, VersionState], str]:
        """Bring the endpoint a step nearer to what it shall be; return what has become of it, and its name."""
        with self._explained():
            config = sagemaker.config(self.place, wanted)
            name, endpoint = config["EndpointConfigName"], self._endpoint(wanted.name)
            if anew:
                endpoint = self._free(wanted.name, endpoint)
                self._forget(name, endpoint)
            failed = self._step(wanted, config, endpoint, anew)
            endpoint = self._endpoint(wanted.name)
            return sagemaker.states(wanted, name, endpoint, failed), wanted.name if endpoint else ""

    def readings(self, name: str) -> Readings:
        """Return what each version has counted, as CloudWatch knows it, which lags behind by a minute or two."""
        record = self.record(name)
        if record is None:
            return {}
        asked = {"StartTime": sagemaker.start(record), "EndTime": datetime.now(timezone.utc) + timedelta(minutes=1)}
        pages = self._client("cloudwatch").get_paginator("get_metric_data")
        with self._explained("CloudWatch"):
            found = pages.paginate(MetricDataQueries=sagemaker.queries(record.service), **asked)
            results = [one for page in found for one in page["MetricDataResults"]]
        return sagemaker.readings(record, results)

    def end(self, name: str) -> None:
        """Delete the endpoint with its configurations and models; none is no error."""
        with self._explained():
            endpoint = self._endpoint(name)
            if endpoint is not None:
                self.claim(name)
                if endpoint["EndpointStatus"] != "Deleting":
                    self._hook.get_conn().delete_endpoint(EndpointName=name)
            self._tidy(name, ())

    def predict(self, name: str, rows: Mapping[str, Sequence[Any]], version: str = "") -> tuple[Mapping[str, Any], str]:
        """Return the outputs for some rows (column to values), by output, and the version that gave them.

        Raises:
            DataError: the model does not take these rows.
            SpecError: there is no such service or version, or it is a shadow, which answers nobody.
            Unavailable: it does not answer.
        """
        record = self.record(name)
        if record is None or (version and version not in record.service.versions):
            raise SpecError(
                f"there is no version {version!r} of service {name!r}" if record else f"no service {name!r}"
            )
        wanted = record.service
        if version and wanted.mirror and version != wanted.stable.name:
            raise SpecError(f"version {version!r} of service {name!r} is a shadow, which SageMaker lets nobody ask")
        asked = wanted.versions[version] if version else wanted.stable
        body = json.dumps(inference.request(rows, asked.server.format), allow_nan=False).encode()
        target = {"TargetVariant": version} if version else {}
        found = self._invoke(name, Body=body, **target)
        return inference.outputs(json.loads(found["Body"].read())), str(found.get("InvokedProductionVariant", ""))

    def _invoke(self, name: str, **given: Any) -> Any:
        runtime = self._client("sagemaker-runtime")
        with self._explained():
            try:
                return runtime.invoke_endpoint(EndpointName=name, ContentType="application/json", **given)
            except runtime.exceptions.ModelError as error:
                said = error.response
                status, message = int(said.get("OriginalStatusCode", 0)), said.get("OriginalMessage", str(error))
                raise inference.refusal(name, status, message) from error
            except runtime.exceptions.ValidationError as error:
                raise Unavailable(f"service {name!r} does not answer: {error}") from error

    def _step(self, wanted: Service, config: Mapping[str, Any], endpoint: Mapping[str, Any] | None, anew: bool) -> bool:
        """Do the next thing that can be done now; return whether the last change has failed."""
        name, client = config["EndpointConfigName"], self._hook.get_conn()
        named = {"EndpointName": wanted.name, "EndpointConfigName": name}
        if endpoint is None:
            self._make(wanted, config)
            self._hook.create_endpoint({**named, "Tags": config["Tags"]}, wait_for_completion=False)
        elif endpoint["EndpointStatus"] in _BUSY:
            return False
        elif endpoint["EndpointStatus"] == "Failed":
            if anew or endpoint["EndpointConfigName"] != name:
                client.delete_endpoint(EndpointName=wanted.name)  # all that can be done; the next look makes it anew
        elif endpoint["EndpointConfigName"] != name:
            if sagemaker.has_failed(endpoint, self._config(name), name):
                return True
            self._make(wanted, config)
            self._hook.update_endpoint(named, wait_for_completion=False)
        elif not sagemaker.weighs(wanted, endpoint):
            client.update_endpoint_weights_and_capacities(
                EndpointName=wanted.name, DesiredWeightsAndCapacities=sagemaker.weights_of(wanted)
            )
        elif name not in self._tidied:
            self._tidy(wanted.name, (name,))
            self._tidied.add(name)
        return False

    def _free(self, name: str, endpoint: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return the endpoint once it can be changed, or when patience is over."""
        deadline = time.monotonic() + self.patience_s
        while endpoint is not None and endpoint["EndpointStatus"] in _BUSY and time.monotonic() < deadline:
            time.sleep(self.poll_s)
            endpoint = self._endpoint(name)
        return endpoint

    def _forget(self, name: str, endpoint: Mapping[str, Any] | None) -> None:
        """Delete an EndpointConfig that is left from an earlier try, so that it does not count as failed."""
        pending = (endpoint or {}).get("PendingDeploymentSummary") or {}
        if endpoint is None or name not in (endpoint["EndpointConfigName"], pending.get("EndpointConfigName")):
            self._unless_missing(self._hook.get_conn().delete_endpoint_config, EndpointConfigName=name)

    def _make(self, wanted: Service, config: Mapping[str, Any]) -> None:
        """Make the models and the EndpointConfig, unless they are there."""
        for model in sagemaker.models(self.place, wanted).values():
            if self._unless_missing(self._hook.describe_model, model["ModelName"]) is None:
                self._hook.create_model(model)
        if self._config(config["EndpointConfigName"]) is None:
            self._hook.create_endpoint_config(dict(config))

    def _tidy(self, service: str, used: Sequence[str]) -> None:
        """Delete the EndpointConfigs and models that a service uses no more."""
        client = self._hook.get_conn()
        pages = client.get_paginator("list_endpoint_configs").paginate(NameContains=sagemaker.prefix(service))
        names = [one["EndpointConfigName"] for page in pages for one in page["EndpointConfigs"]]
        kept = {model for name in used for model in self._models(name)}
        for name in sagemaker.obsolete(service, names, used):
            models = self._models(name)
            self._unless_missing(client.delete_endpoint_config, EndpointConfigName=name)
            for model in models - kept:
                self._unless_missing(self._hook.get_conn().delete_model, ModelName=model)

    def _models(self, config: str) -> set[str]:
        found = self._config(config) or {}
        variants = [*found.get("ProductionVariants", ()), *found.get("ShadowProductionVariants", ())]
        return {one["ModelName"] for one in variants}

    def _config(self, name: str) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self._unless_missing(self._hook.describe_endpoint_config, name)
        return found

    def _endpoint(self, name: str) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self._unless_missing(self._hook.describe_endpoint, name)
        return found

    @staticmethod
    def _unless_missing(call: Any, *given: Any, **named: Any) -> Any:
        """Return what a call answers; none when there is nothing of this name."""
        from botocore.exceptions import ClientError

        try:
            return call(*given, **named)
        except ClientError as error:
            if "Could not find" not in str(error) and _aws.code_of(error) not in ("ResourceNotFound", "404"):
                raise
            return None

    def _client(self, kind: str) -> Any:
        from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

        if kind not in self._clients:
            region = self.place.region or None
            with self._explained():
                hook = AwsBaseHook(aws_conn_id=self.place.aws_conn_id, region_name=region, client_type=kind)
                self._clients[kind] = hook.get_conn()
        return self._clients[kind]

    @cached_property
    def _hook(self) -> Any:
        from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook

        return SageMakerHook(aws_conn_id=self.place.aws_conn_id, region_name=self.place.region or None)

    def _explained(self, what: str = "SageMaker") -> Any:
        _aws.require()
        return _aws.explained(self.place.aws_conn_id, what)
