"""A large language model as a service of vLLM, by KServe's LLMInferenceService.

What is relied on was read in KServe 0.20 (`llm_inference_service_validation.go`, `workload_single_node.go`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.kserve.render import gpus, over, placed, resources, variables
from airflow_ml_provider.stages.deploy.server import Placement, Scaling

_MAIN = "main"  # the container that KServe's configurations know
_ARGS = "VLLM_ADDITIONAL_ARGS"


@dataclass(frozen=True)
class Parallelism:
    """How one replica of a model is spread over GPUs and pods.

    Attributes:
        tensor: each layer over so many GPUs of one pod.
        pipeline: the layers over so many pods; not together with `data`.
        data: so many copies that share their experts, over pods; with `data_local`.
        data_local: of them, how many in one pod.
        expert: the experts of a mixture over the GPUs.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    data_local: int = 1
    expert: bool = False

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "data", "data_local"):
            if getattr(self, name) < 1:
                raise invalid(name, getattr(self, name), "1 at least")
        if self.pipeline > 1 and self.data > 1:
            raise invalid("pipeline and data", (self.pipeline, self.data), "not both greater than 1")
        if self.data % self.data_local:
            raise invalid("data", self.data, f"a multiple of data_local={self.data_local}")

    @property
    def pods(self) -> int:
        """Over how many pods a replica is spread."""
        return max(self.pipeline, self.data // self.data_local)


@dataclass(frozen=True)
class Routes:
    """How requests reach a model.

    Attributes:
        gateway: the Gateway, as `NAMESPACE/NAME`; empty takes KServe's.
        scheduler: whether each request goes to the replica that KServe's scheduler chooses by load and by what is in
            its cache.
    """

    gateway: str = ""
    scheduler: bool = True

    def __post_init__(self) -> None:
        if self.gateway and self.gateway.count("/") != 1:
            raise invalid("gateway", self.gateway, "NAMESPACE/NAME")


@dataclass(frozen=True)
class LLM:
    """A large language model, and what serves it.

    Attributes:
        model: the model, when it is registered.
        uri: where the model is, such as `hf://Qwen/Qwen3-8B`; empty takes that of `model`.
        served_name: how requests call the model; empty takes the service's name.
        replicas: how many replicas at least and at most; more than the least needs `scaling`.
        scaling: KEDA with a query.
        parallelism: how one replica is spread.
        gpus: GPUs of each pod, or slices when the resource is one of them.
        gpu_resource: name of the extended resource.
        cpu: CPUs of each pod; none leaves them to KServe's configuration.
        memory_gib: memory (GiB) of each pod, likewise.
        image: image with vLLM; empty takes that of KServe's configuration.
        args: further arguments of vLLM.
        env: further environment variables; not for secrets, which `template` takes by `valueFrom`.
        adapters: name to URI of LoRA adapters.
        routes: how requests reach it; none makes no route.
        configs: names of LLMInferenceServiceConfigs to begin with.
        placement: on which nodes of the cluster it runs.
        service_account: Kubernetes' account of the pods, through which they may read the storage.
        template: everything else of the specification, laid over what is made here.
    """

    object_kind: ClassVar[str] = "LLMInferenceService"
    api_version: ClassVar[str] = "v1alpha2"
    plural: ClassVar[str] = "llminferenceservices"

    model: Optional[ModelRef] = None
    uri: str = ""
    served_name: str = ""
    replicas: tuple[int, int] = (1, 1)
    scaling: Scaling = field(default_factory=Scaling)
    parallelism: Parallelism = field(default_factory=Parallelism)
    gpus: int = 1
    gpu_resource: str = "nvidia.com/gpu"
    cpu: Optional[float] = None
    memory_gib: Optional[float] = None
    image: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    routes: Optional[Routes] = field(default_factory=Routes)
    configs: tuple[str, ...] = ()
    placement: Placement = field(default_factory=Placement)
    service_account: str = ""
    template: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.uri and self.model is None:
            raise SpecError("a language model needs uri or model: say where it is")
        least, most = self.replicas
        if not 1 <= least <= most:
            raise invalid("replicas", self.replicas, "(least, most) with 1 <= least <= most")
        if least < most and (self.scaling.by, self.scaling.metric) != ("keda", "query"):
            raise invalid("scaling", (self.scaling.by, self.scaling.metric), "KEDA with a query when replicas vary")
        if least == most and self.scaling != Scaling():
            raise invalid("scaling", self.scaling.by, "left out when least and most replicas are the same")
        needed = self.parallelism.tensor * self.parallelism.data_local
        if self.gpus < needed and needed > 1:
            raise invalid("gpus", self.gpus, f"{needed} at least in a pod, as the parallelism says")

    def spec(self, shape: str) -> dict[str, Any]:
        """Return what KServe is asked for; the mode does not matter."""
        pod = self._pod()
        made = {
            "model": self._model(),
            **self._scale(),
            **({"parallelism": _parallel(self.parallelism)} if self.parallelism != Parallelism() else {}),
            "template": pod,
            **({"worker": pod} if self.parallelism.pods > 1 else {}),
            **({"router": _router(self.routes)} if self.routes else {}),
            **({"baseRefs": [{"name": name} for name in self.configs]} if self.configs else {}),
        }
        return dict(over(made, codec.encode(self.template)))

    def _model(self) -> dict[str, Any]:
        assert self.uri or self.model is not None
        adapters = [{"name": name, "uri": uri} for name, uri in sorted(self.adapters.items())]
        return {
            "uri": self.uri or (self.model.uri if self.model else ""),
            **({"name": self.served_name} if self.served_name else {}),
            **({"lora": {"adapters": adapters}} if adapters else {}),
        }

    def _scale(self) -> dict[str, Any]:
        least, most = self.replicas
        if least == most:
            return {"replicas": least}
        told = {
            "serverAddress": self.scaling.address,
            "query": self.scaling.query,
            "threshold": str(self.scaling.target),
        }
        triggers = [{"type": "prometheus", "metadata": told}]
        return {"scaling": {"minReplicas": least, "maxReplicas": most, "keda": {"triggers": triggers}}}

    def _pod(self) -> dict[str, Any]:
        env = {**({_ARGS: " ".join(self.args)} if self.args else {}), **self.env}
        container = {
            "name": _MAIN,
            "resources": resources(self.cpu, self.memory_gib, **gpus(self.gpus, self.gpu_resource)),
            **({"image": self.image} if self.image else {}),
            **({"env": variables(env)} if env else {}),
        }
        return {"containers": [container], **placed(self.placement, self.service_account)}


def _parallel(made: Parallelism) -> dict[str, Any]:
    found: dict[str, Any] = {"tensor": made.tensor, "expert": made.expert}
    if made.pipeline > 1:
        found["pipeline"] = made.pipeline
    if made.data > 1:
        found.update(data=made.data, dataLocal=made.data_local)
    return found


def _router(routes: Routes) -> dict[str, Any]:
    namespace, _, name = routes.gateway.partition("/")
    return {
        "route": {},
        "gateway": {"refs": [{"name": name, "namespace": namespace}]} if name else {},
        **({"scheduler": {}} if routes.scheduler else {}),
    }
