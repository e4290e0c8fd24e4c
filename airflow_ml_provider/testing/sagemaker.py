"""Amazon SageMaker for tests: moto, and what it lacks (`UpdateEndpoint`, shadow variants, answers by weights).

botocore has checked every request by AWS' own definition before it comes here. moto itself does what it knows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any
from unittest.mock import patch

import boto3
from moto import mock_aws
from moto.cloudwatch.models import cloudwatch_backends
from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.sagemaker.exceptions import ValidationError
from moto.sagemaker.models import FakeEndpoint, sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse
from moto.sagemakerruntime.models import sagemakerruntime_backends
from moto.sagemakerruntime.responses import SageMakerRuntimeResponse

ACCOUNT, REGION = "123456789012", "us-east-1"
_ONE_AT_A_TIME = "Cannot update in-progress endpoint"


class AmazonAccount:
    """An account of AWS in this process.

    Parameters:
        bucket: that there is.
        slow: looks at an endpoint until a change of it has taken effect.
        seed: of who answers.
    """

    def __init__(self, bucket: str = "models", *, slow: int = 0, seed: int = 0) -> None:
        self.slow, self.bucket = slow, bucket
        self.broken: set[str] = set()
        """Versions whose containers do not pass their health check."""
        self._random = random.Random(seed)  # noqa: S311 - requests of a test
        self._shadows: dict[str, list[dict[str, Any]]] = {}
        self._changes: dict[str, tuple[int, Callable[[], None]]] = {}

    @property
    def endpoints(self) -> Mapping[str, FakeEndpoint]:
        """The endpoints by name."""
        found: Mapping[str, FakeEndpoint] = self._backend.endpoints
        return found

    @property
    def names(self) -> list[str]:
        """The names of all that there is."""
        backend = self._backend
        return sorted([*backend.endpoints, *backend.endpoint_configs, *backend._models])

    def clear(self) -> None:
        """Make it as it was when it was new."""
        for backends in (sagemaker_backends, sagemakerruntime_backends, cloudwatch_backends):
            backends[ACCOUNT][REGION].reset()
        keys = [one["Key"] for one in self._s3.list_objects_v2(Bucket=self.bucket).get("Contents", ())]
        for key in keys:
            self._s3.delete_object(Bucket=self.bucket, Key=key)
        self.slow, self.broken = 0, set()
        self._shadows.clear()
        self._changes.clear()

    @cached_property
    def _s3(self) -> Any:
        return boto3.client("s3", REGION)

    @cached_property
    def _cloudwatch(self) -> Any:
        return boto3.client("cloudwatch", REGION)

    def serve(self, endpoint: str, requests: int, errors: Mapping[str, int] | None = None) -> None:
        """Tell CloudWatch of so many requests, shared out by weights; `errors` are those of versions."""
        found = self.endpoints[endpoint]
        shares = {one["VariantName"]: one.get("CurrentWeight", 0) for one in found.production_variants}
        total = sum(shares.values())
        counted = {name: requests * weight / total for name, weight in shares.items()}
        for one in self._shadows.get(found.endpoint_config_name, ()):
            counted[one["VariantName"]] = requests * one["InitialVariantWeight"]
        for name, count in counted.items():
            self._tell(endpoint, name, "Invocations", count)
            self._tell(endpoint, name, "Invocation5XXErrors", (errors or {}).get(name, 0))

    def _tell(self, endpoint: str, version: str, metric: str, value: float) -> None:
        names = {"EndpointName": endpoint, "VariantName": version}
        dimensions = [{"Name": name, "Value": value} for name, value in names.items()]
        told = {"MetricName": metric, "Dimensions": dimensions, "Value": value}
        self._cloudwatch.put_metric_data(Namespace="AWS/SageMaker", MetricData=[told])

    @property
    def _backend(self) -> Any:
        return sagemaker_backends[ACCOUNT][REGION]

    def create_endpoint_config(self, usual: Any, response: Any) -> Any:
        """Keep the shadow variants, which moto forgets."""
        answer = usual(response)
        name = response._get_param("EndpointConfigName")
        self._shadows[name] = response._get_param("ShadowProductionVariants") or []
        self._backend.endpoint_configs[name].shadow_production_variants = self._shadows[name]
        return answer

    def create_endpoint(self, usual: Any, response: Any) -> Any:
        """Make it, in service after a while."""
        answer = usual(response)
        name, config = (response._get_param(key) for key in ("EndpointName", "EndpointConfigName"))
        endpoint = self.endpoints[name]
        endpoint.production_variants = self._summaries(config)
        self._change(endpoint, "Creating", lambda: self._now(endpoint, config, before=None))
        return answer

    def update_endpoint(self, response: Any) -> ActionResult:
        """Give it another EndpointConfig, in service after a while."""
        name, config = (response._get_param(key) for key in ("EndpointName", "EndpointConfigName"))
        self._backend.describe_endpoint_config(config)
        endpoint = self._free(name)
        before = endpoint.endpoint_config_name
        endpoint.pending_deployment_summary = {"EndpointConfigName": config}
        self._change(endpoint, "Updating", lambda: self._now(endpoint, config, before))
        return ActionResult({"EndpointArn": endpoint.arn})

    def update_weights(self, usual: Any, response: Any) -> Any:
        """Change weights, in effect after a while."""
        endpoint = self._free(response._get_param("EndpointName"))
        before = [dict(one) for one in endpoint.production_variants]
        answer = usual(response)
        after = endpoint.production_variants
        old = {one["VariantName"]: one["CurrentWeight"] for one in before}
        endpoint.production_variants = [{**one, "CurrentWeight": old[one["VariantName"]]} for one in after]
        self._change(endpoint, "Updating", lambda: setattr(endpoint, "production_variants", after))
        return answer

    def describe_endpoint(self, usual: Any, response: Any) -> Any:
        """Let time go on."""
        name = response._get_param("EndpointName")
        if name in self._changes and name in self.endpoints:
            left, take_effect = self._changes[name]
            if left:
                self._changes[name] = left - 1, take_effect
            else:
                del self._changes[name]
                self.endpoints[name].endpoint_status = "InService"
                take_effect()
        return usual(response)

    def invoke_endpoint(self, response: Any) -> tuple[int, dict[str, str], str]:
        """Answer as one of the variants, by the Open Inference Protocol; rows with a column `bad` are refused."""
        name = response.path.split("/")[2]
        if name not in self.endpoints:
            body = {"Message": f"Endpoint {name} of account {ACCOUNT} not found."}
            return 400, {"status": "400", "x-amzn-ErrorType": "ValidationError"}, json.dumps(body)
        asked = json.loads(response.body)
        if any(one["name"] == "bad" for one in asked["inputs"]):
            refused: dict[str, Any] = {"OriginalStatusCode": 400, "OriginalMessage": "unexpected input 'bad'"}
            return 424, {"status": "424", "x-amzn-ErrorType": "ModelError"}, json.dumps(refused)
        variants = self.endpoints[name].production_variants
        weights = [one["CurrentWeight"] for one in variants]
        chosen = self._random.choices([one["VariantName"] for one in variants], weights)[0]
        chosen = response.headers.get("X-Amzn-SageMaker-Target-Variant") or chosen
        rows = asked["inputs"][0]["shape"][0]
        score = {"name": "score", "shape": [rows], "datatype": "FP32", "data": [0.5] * rows}
        headers = {"Content-Type": "application/json", "x-Amzn-Invoked-Production-Variant": chosen}
        return 200, headers, json.dumps({"outputs": [score]})

    def _free(self, name: str) -> FakeEndpoint:
        self._backend.describe_endpoint(name)
        endpoint = self.endpoints[name]
        if endpoint.endpoint_status != "InService":
            raise ValidationError(message=f'{_ONE_AT_A_TIME} "{endpoint.arn}".')
        return endpoint

    def _change(self, endpoint: FakeEndpoint, status: str, take_effect: Callable[[], None]) -> None:
        endpoint.endpoint_status, endpoint.last_modified_time = status, utcnow()
        self._changes[endpoint.endpoint_name] = self.slow, take_effect

    def _now(self, endpoint: FakeEndpoint, config: str, before: str | None) -> None:
        """Let an EndpointConfig take effect, or go back to the one before if a version is broken."""
        endpoint.pending_deployment_summary = endpoint.failure_reason = None
        names = [one["VariantName"] for one in (*self._summaries(config), *self._shadows[config])]
        if ill := sorted(self.broken & set(names)):
            endpoint.failure_reason = f"The variant {ill[0]} did not pass the ping health check."
            if before is None:
                endpoint.endpoint_status = "Failed"
            return
        endpoint.endpoint_config_name, endpoint.production_variants = config, self._summaries(config)

    def _summaries(self, config: str) -> list[dict[str, Any]]:
        """Return the variants as an endpoint tells of them; moto leaves out a weight of 0."""
        variants = self._backend.endpoint_configs[config].production_variants
        return [
            {
                "VariantName": one["VariantName"],
                "CurrentWeight": one["InitialVariantWeight"], "DesiredWeight": one["InitialVariantWeight"],
                "CurrentInstanceCount": one["InitialInstanceCount"],
                "DesiredInstanceCount": one["InitialInstanceCount"],
            }
            for one in variants
        ]  # fmt: skip


@contextmanager
def amazon(account: AmazonAccount | None = None) -> Iterator[AmazonAccount]:
    """Let everything in this process that speaks to AWS speak to an account in memory."""
    found = account or AmazonAccount()
    with ExitStack() as stack:
        stack.enter_context(mock_aws())
        for method in ("create_endpoint_config", "create_endpoint", "describe_endpoint"):
            stack.enter_context(_beside(SageMakerResponse, method, getattr(found, method)))
        stack.enter_context(_beside(SageMakerResponse, "update_endpoint_weights_and_capacities", found.update_weights))
        update = patch.object(
            SageMakerResponse, "update_endpoint", lambda response: found.update_endpoint(response), create=True
        )
        stack.enter_context(update)
        stack.enter_context(
            patch.object(SageMakerRuntimeResponse, "invoke_endpoint", lambda response: found.invoke_endpoint(response))
        )
        found._s3.create_bucket(Bucket=found.bucket)
        yield found


def _beside(kind: type, method: str, own: Callable[[Any, Any], Any]) -> Any:
    usual = getattr(kind, method)
    return patch.object(kind, method, lambda response: own(usual, response))
