"""Places that serve by a system of somebody else, and what each of them can do. `place` has the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Union

from airflow_ml_provider.exceptions import SpecError, invalid

if TYPE_CHECKING:
    from airflow_ml_provider.stages.deploy.service import Server, Service
    from airflow_ml_provider.stages.deploy.strategies import Policy


@dataclass(frozen=True)
class SageMaker:
    """Serve by an endpoint of Amazon SageMaker.

    Attributes:
        role: ARN of the IAM role that the models' containers have.
        records: `s3://BUCKET/PREFIX` where what each service shall be is kept; the bucket needs no versions.
        image: of the server, in ECR; it must speak the Open Inference Protocol, as that of Triton does. `Server.image`
            goes before.
        instance_type: of each replica.
        aws_conn_id: Airflow connection to AWS.
        region: AWS region; empty takes that of the connection.
    """

    title: ClassVar[str] = "SageMaker"
    mirrors: ClassVar[bool] = True
    counted: ClassVar[frozenset[str]] = frozenset({"error_rate"})  # CloudWatch tells no distribution that only grows

    role: str
    records: str
    image: str = ""
    instance_type: str = "ml.m5.large"
    aws_conn_id: str = "aws_default"
    region: str = ""

    def __post_init__(self) -> None:
        if not self.role:
            raise invalid("role", self.role, "the ARN of an IAM role")
        _check_bucket(self.records, "s3")


@dataclass(frozen=True)
class Seldon:
    """Serve by Seldon Core 2 in a Kubernetes cluster; Models are loaded by servers that are there.

    Attributes:
        address: of the service `seldon-mesh`, as the worker reaches it.
        conn_id: Airflow connection to the cluster.
        namespace: namespace; empty takes that of the connection.
        prometheus_conn_id: Airflow connection (HTTP) to the Prometheus that scrapes the servers; rollouts need it.
        metrics: what tells there what a version did, as for `KServe`.
    """

    title: ClassVar[str] = "Seldon"
    mirrors: ClassVar[bool] = True

    address: str
    conn_id: str = "kubernetes_default"
    namespace: str = ""
    prometheus_conn_id: str = ""
    metrics: Union[str, Mapping[str, str]] = "seldon"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^/@\s]+", self.address):
            raise invalid("address", self.address, "http://HOST:PORT of seldon-mesh")
        from airflow_ml_provider.stages.deploy import metrics  # not above: every DAG file would load it

        metrics.resolve(self.metrics)

    @property
    def counted(self) -> frozenset[str]:
        """Checks of a rollout that can be made."""
        from airflow_ml_provider.stages.deploy import metrics

        return metrics.counted(metrics.resolve(self.metrics))


@dataclass(frozen=True)
class VertexAI:
    """Serve by an Endpoint of Vertex AI.

    Attributes:
        project: project of Google Cloud.
        location: such as `europe-west3`.
        records: `gs://BUCKET/PREFIX` where what each service shall be is kept.
        image: of the server; it must speak the Open Inference Protocol. `Server.image` goes before.
        machine_type: of each replica.
        accelerator: type of the GPUs of `Server.gpus`, such as `NVIDIA_L4`.
        gcp_conn_id: Airflow connection to Google Cloud.
    """

    title: ClassVar[str] = "Vertex AI"
    mirrors: ClassVar[bool] = False
    counted: ClassVar[frozenset[str]] = frozenset({"error_rate"})

    project: str
    location: str
    records: str
    image: str = ""
    machine_type: str = "n1-standard-2"
    accelerator: str = ""
    gcp_conn_id: str = "google_cloud_default"

    def __post_init__(self) -> None:
        for name in ("project", "location"):
            if not re.fullmatch(r"[a-z0-9][a-z0-9.:-]*", getattr(self, name)):
                raise invalid(name, getattr(self, name), "the name of one of Google Cloud")
        _check_bucket(self.records, "gs")

    @property
    def parent(self) -> str:
        """What the names of all that there is begin with."""
        return f"projects/{self.project}/locations/{self.location}"


Elsewhere = Union[SageMaker, Seldon, VertexAI]
KINDS: Mapping[str, type[Any]] = {"sagemaker": SageMaker, "seldon": Seldon, "vertex": VertexAI}


def check(place: Elsewhere, policy: Policy) -> None:
    """Refuse a policy that a place can never fulfil.

    Raises:
        SpecError: nothing counts there what it needs, or nobody mirrors requests.
    """
    if missing := sorted({one.kind for one in policy.checks} - place.counted):
        raise SpecError(
            f"the policy checks {', '.join(missing)}, which nothing counts on {place.title}, so that the rollout would "
            f"wait until its time is over; what can be checked there: {', '.join(sorted(place.counted))}"
        )
    if policy.strategy == "shadow" and not place.mirrors:
        raise SpecError(f"strategy is 'shadow', but {place.title} cannot mirror requests; take a canary")


def check_service(title: str, service: Service, taken: tuple[str, ...]) -> None:
    """Refuse what a place cannot be told of a service.

    Parameters:
        title: what the place is called.
        service: what it shall be.
        taken: the attributes of servers that the place can be told.

    Raises:
        SpecError: users shall keep their version, or a server has more than these attributes.
    """
    if service.sticky is not None:
        raise SpecError(f"{title} splits every request by itself, so that users would not keep their version")
    for version in service.versions.values():
        if other := beside(version.server, taken):
            raise SpecError(f"{', '.join(other)} of the server of {version.name!r} cannot be had on {title}: leave out")


def beside(server: Server, taken: tuple[str, ...]) -> list[str]:
    """Return the attributes of a server that are not as usual, without those that are `taken`."""
    usual = type(server)()
    return [name for name in vars(usual) if name not in taken and getattr(server, name) != getattr(usual, name)]


def _check_bucket(address: str, scheme: str) -> None:
    if not re.fullmatch(rf"{scheme}://[a-z0-9][a-z0-9._-]+(/[^\s?#]*)?", address):
        raise invalid("records", address, f"{scheme}://BUCKET/PREFIX")
