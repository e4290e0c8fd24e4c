"""What a server of a model has besides the model, one small value per question. Airflow-free, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from airflow_ml_provider.exceptions import SpecError, invalid


@dataclass(frozen=True)
class Scaling:
    """What adds replicas and takes them away, within `Server.replicas`.

    Attributes:
        by: what scales: `hpa`, `keda`, an `external` one, or `none` for as many as there are at least; empty leaves it
            to the place.
        metric: what is looked at: `cpu` or `memory` (percent of what is requested), `concurrency` or `rps` (requests at
            once or per second, of each replica), or a `query` of one's own; empty leaves it to the place.
        target: value of that metric to which replicas are added.
        query: of the metric `query`, in PromQL.
        address: of the Prometheus that answers it, as the cluster sees it.
        latency_slo_ms: requests must be answered within so many milliseconds; none promises nothing. Who promises it
            cannot have no replica, since a request would wait until the first one has started.
        cold_starts: have no replica in spite of that promise.
    """

    by: Literal["", "hpa", "keda", "external", "none"] = ""
    metric: Literal["", "cpu", "memory", "concurrency", "rps", "query"] = ""
    target: Optional[int] = None
    query: str = ""
    address: str = ""
    latency_slo_ms: Optional[float] = None
    cold_starts: bool = False

    def __post_init__(self) -> None:
        for name in ("target", "latency_slo_ms"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise invalid(name, value, "greater than 0")
        if self.target is not None and not self.metric:
            raise invalid("target", self.target, "None without a metric")
        if self.metric == "query" and not (self.query and self.address and self.target):
            raise SpecError(
                "the metric 'query' needs query, address and target: say what to ask whom, and from when on"
            )
        if self.metric != "query" and (self.query or self.address):
            raise invalid("query and address", (self.query, self.address), "empty unless the metric is 'query'")
        if self.by == "keda" and self.target is None:
            raise SpecError("by='keda' needs metric and target: KEDA has no metric of its own")


@dataclass(frozen=True)
class Placement:
    """On which nodes of a cluster a server runs; all as Kubernetes writes it.

    Attributes:
        node_selector: labels that a node must have.
        tolerations: taints that a node may have.
        affinity: what else is required or preferred of nodes and of the pods beside it.
    """

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Component:
    """An image that works with the server of a model: it transforms requests and answers, or explains answers.

    It takes the arguments of KServe's own server (`--model_name`, `--http_port`, `--predictor_host`), as everything
    does that is made with KServe's Python package.

    Attributes:
        image: name of the image.
        args: further arguments.
        env: environment variables; not for secrets.
        cpu: CPUs, requested and at most; none leaves both to the place.
        memory_gib: memory (GiB), likewise.
    """

    image: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cpu: Optional[float] = None
    memory_gib: Optional[float] = None

    def __post_init__(self) -> None:
        if not self.image:
            raise invalid("image", self.image, "the name of an image")
        for name in ("cpu", "memory_gib"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise invalid(name, value, "greater than 0")


@dataclass(frozen=True)
class RequestLog:
    """Who is told of requests and answers, as CloudEvents.

    Attributes:
        url: where they are sent.
        mode: `request`, `response`, or `all` for both.
    """

    url: str
    mode: Literal["all", "request", "response"] = "all"

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise invalid("url", self.url, "one that begins with http:// or https://")
