"""What a service of predictions shall be, what it is, and what every place that serves offers. Airflow-free, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Protocol

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.server import Component, Placement, RequestLog, Scaling
from airflow_ml_provider.stages.deploy.stats import VersionStats

Format = Literal[
    "onnx", "triton", "mlflow", "sklearn", "xgboost", "lightgbm", "pytorch", "huggingface", "custom"
]  # fmt: skip
FORMATS: tuple[Format, ...] = (
    "onnx", "triton", "mlflow", "sklearn", "xgboost", "lightgbm", "pytorch", "huggingface", "custom",
)  # fmt: skip
_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Server:
    """What serves a version: what the model is saved as, and what its server gets.

    Attributes:
        format: what the model is saved as; `custom` is an image that brings server and model.
        image: image of the server; empty takes the one that the place has for the format.
        storage: where the server fetches the model from; empty takes the model's own URI.
        cpu: CPUs of each replica, requested and at most; none leaves both to the place.
        memory_gib: memory (GiB), likewise.
        gpus: whole GPUs, or slices when the resource is one of them.
        gpu_resource: name of the extended resource, such as `nvidia.com/mig-1g.10gb`.
        replicas: how many replicas at least and at most.
        scaling: what adds replicas and takes them away.
        placement: on which nodes of a cluster it runs.
        transformer: an image beside it that transforms requests before, and answers after the model; each version has
            its own, so that both are tried out and rolled back together.
        explainer: an image that explains answers.
        request_log: who is told of requests and answers.
        max_batch: requests that are computed together at most; 1 is none.
        max_delay_ms: how long a request waits for others (ms).
        timeout_s: a request fails after so many seconds.
        env: further environment variables; not for secrets.
        service_account: Kubernetes' account of the server, through which it may read the storage.
        template: everything else of the place's own manifest, laid over what is made here.
    """

    format: Format = "onnx"
    image: str = ""
    storage: str = ""
    cpu: Optional[float] = None
    memory_gib: Optional[float] = None
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    replicas: tuple[int, int] = (1, 1)
    scaling: Scaling = field(default_factory=Scaling)
    placement: Placement = field(default_factory=Placement)
    transformer: Optional[Component] = None
    explainer: Optional[Component] = None
    request_log: Optional[RequestLog] = None
    max_batch: int = 1
    max_delay_ms: float = 2.0
    timeout_s: float = 60.0
    env: Mapping[str, str] = field(default_factory=dict)
    service_account: str = ""
    template: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise invalid("format", self.format, f"one of {', '.join(FORMATS)}")
        if self.format == "custom" and not self.image:
            raise invalid("image", self.image, "the name of an image with format 'custom'")
        for name in ("cpu", "memory_gib", "timeout_s", "max_batch"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise invalid(name, value, "greater than 0")
        for name in ("gpus", "max_delay_ms"):
            if getattr(self, name) < 0:
                raise invalid(name, getattr(self, name), "at least 0")
        least, most = self.replicas
        if not 0 <= least <= most or most < 1:
            raise invalid("replicas", self.replicas, "(least, most) with 0 <= least <= most and most at least 1")
        slo_ms = self.scaling.latency_slo_ms
        if least == 0 and slo_ms is not None and not self.scaling.cold_starts:
            raise invalid(
                "replicas", self.replicas, f"one at least with latency_slo_ms={slo_ms:g}",
                "a request would wait for a server to start; set scaling.cold_starts to have that",
            )  # fmt: skip


@dataclass(frozen=True)
class Version:
    """One version of a model, and what serves it.

    Attributes:
        name: what it is called in the service, a DNS label such as `v7`.
        model: the model.
        server: what serves it.
    """

    name: str
    model: ModelRef
    server: Server = field(default_factory=Server)

    def __post_init__(self) -> None:
        _check_label("name of a version", self.name)


@dataclass(frozen=True)
class Sticky:
    """Requests that carry the same key get the same version, as long as the shares stay: `experiment.assign`.

    Attributes:
        header: of a request, with the key.
        salt: another one mixes the keys anew.
    """

    header: str
    salt: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.header):
            raise invalid("header", self.header, "the name of an HTTP header")


@dataclass(frozen=True)
class Service:
    """What a service shall be: a stable version, perhaps a candidate beside it, and who gets which requests.

    Attributes:
        name: name of the service, a DNS label.
        stable: answers all requests but those of the candidate.
        candidate: the version that is tried out; none most of the time.
        percent: of the requests, how many the candidate answers.
        mirror: of the requests that the stable version answers, how many (percent) the candidate gets, too, without
            anybody seeing its answer.
        rollout: who moves the traffic, and how far that is, as plain JSON; empty when nobody does.
        sticky: how requests keep their version, where the place can do that; none leaves it to the place.
        tolerance: numbers of a mirrored answer are those of the user's within it, where the place compares them.
    """

    name: str
    stable: Version
    candidate: Optional[Version] = None
    percent: float = 0
    mirror: float = 0
    rollout: Mapping[str, Any] = field(default_factory=dict)
    sticky: Optional[Sticky] = None
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        _check_label("name of a service", self.name)
        for name in ("percent", "mirror"):
            if not 0 <= getattr(self, name) <= 100:
                raise invalid(name, getattr(self, name), "in [0, 100]")
        if self.candidate is None and (self.percent or self.mirror):
            raise SpecError(f"service {self.name!r} has no candidate, so percent and mirror must be 0")
        if self.candidate is not None and self.candidate.name == self.stable.name:
            raise invalid("name of the candidate", self.candidate.name, f"another than {self.stable.name!r}")

    @property
    def versions(self) -> Mapping[str, Version]:
        """The versions by name, the stable one first."""
        found = {self.stable.name: self.stable}
        return found if self.candidate is None else {**found, self.candidate.name: self.candidate}


@dataclass(frozen=True)
class VersionState:
    """What has become of a version.

    Attributes:
        phase: `ready` when it answers as it shall be now; `waits` when it may become so; `failed` when it will not.
        why: what the place says, for people; empty when it is ready.
        percent: of the requests, how many it answers.
        mirror: of the others, how many it gets, too.
    """

    phase: Literal["ready", "waits", "failed"]
    why: str = ""
    percent: float = 0
    mirror: float = 0


@dataclass(frozen=True)
class Observed:
    """A service as it is.

    Attributes:
        wanted: what it was last told to be.
        revision: changes whenever that changes; `Serving.put` refuses another one.
        states: name of a version to what has become of it.
        address: where requests go.
        grpc: where they go over gRPC; empty where that was not asked for, or the place does not say it.
    """

    wanted: Service
    revision: str
    states: Mapping[str, VersionState]
    address: str = ""
    grpc: str = ""

    @property
    def links(self) -> dict[str, str]:
        """The addresses, as a result's links."""
        return {"service": self.address, **({"grpc": self.grpc} if self.grpc else {})}


Readings = Mapping[str, Mapping[str, VersionStats]]
"""Name of a version to its servers' counters."""


class Serving(Protocol):
    """A place that serves models: KServe in a cluster, or processes on this machine.

    Each method raises `Unavailable` when the place does not answer, `SpecError` when it does not take what was asked.
    """

    def look(self, name: str) -> Optional[Observed]:
        """Return a service as it is, or none."""
        ...

    def put(self, wanted: Service, revision: Optional[str] = None) -> str:
        """Make a service what it shall be, without waiting; return the new revision. The same again changes nothing.

        Parameters:
            wanted: what it shall be.
            revision: that of what is to be changed; none when there is no such service yet.

        Raises:
            Conflict: it has another revision, or is there already: somebody else changed it.
        """
        ...

    def readings(self, name: str) -> Readings:
        """Return what each version has counted since its servers started.

        Raises:
            SpecError: nothing here counts requests.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a service; none is no error."""
        ...

    def predict(self, name: str, rows: Mapping[str, Sequence[Any]], version: str = "") -> tuple[Mapping[str, Any], str]:
        """Return the outputs for some rows (column to values), by output, and the version that gave them.

        Parameters:
            version: ask this version, whatever its share of the traffic; empty is as a user asks.

        Raises:
            DataError: the model does not take these rows.
        """
        ...


def _check_label(what: str, value: str) -> None:
    if not _LABEL.fullmatch(value):
        raise invalid(what, value, "a DNS label: lower-case letters, digits and -, at most 40, a letter first")
