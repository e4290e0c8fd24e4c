"""A pod: the stage runs in an image of the user's, on CPUs or GPUs of a Kubernetes cluster. Airflow-free.

This says what the pod is like; `operators/_pods.py` has KubernetesPodOperator carry it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from airflow_ml_provider.exceptions import invalid


@dataclass(frozen=True)
class Pod:
    """Run the stage in a pod. The image needs Python 3.9 or newer and the stage's own libraries, not this package.

    The worker and the pod meet in a folder that both see at the same path, and so do the data: mount the same volumes
    in both. The task defers while the pod runs.

    Attributes:
        image: image with Python and the stage's libraries.
        exchange: folder for calls and outcomes, below one of the volumes; empty takes `[ml] exchange` of Airflow's
            configuration.
        python: the Python in the image.
        cpu: CPUs, requested and at most; none leaves both to the cluster.
        memory_gib: memory (GiB), likewise.
        gpus: whole GPUs, or slices when the resource is one of them.
        gpu_resource: name of the extended resource, such as `nvidia.com/mig-1g.10gb`.
        shm_gib: size of `/dev/shm` (GiB), through which PyTorch's data loaders and NCCL pass data; it counts as memory.
        volumes: path in the pod to the name of a persistent volume claim, or to a path on the node (begins with `/`).
        pythonpath: folders with the user's own modules.
        env: further environment variables; not for secrets, since they are part of the DAG.
        namespace: namespace; empty takes that of the connection.
        conn_id: Airflow connection to the cluster.
        pod_template: everything else, as a pod manifest (a mapping, or the path of a YAML file): tolerations, node
            selector, service account, priority class … Its container `base` is the stage's.
        start_s: the task fails when the pod has not begun to run after so many seconds.
        log_every_s: the task's log gets what the pod has printed every so many seconds; 0 at the end only.
        poll_s: the triggerer looks at the pod every so many seconds.
    """

    image: str
    exchange: str = ""
    python: str = "python3"
    cpu: Optional[float] = None
    memory_gib: Optional[float] = None
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    shm_gib: Optional[float] = None
    volumes: Mapping[str, str] = field(default_factory=dict)
    pythonpath: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    conn_id: str = "kubernetes_default"
    pod_template: Union[str, Mapping[str, Any], None] = None
    start_s: float = 600.0
    log_every_s: float = 60.0
    poll_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.image:
            raise invalid("image", self.image, "the name of an image with Python in it")
        for name in ("cpu", "memory_gib", "shm_gib", "start_s", "poll_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise invalid(name, value, "greater than 0")
        for name in ("gpus", "log_every_s"):
            if getattr(self, name) < 0:
                raise invalid(name, getattr(self, name), "at least 0")
        for path in self.volumes:
            if not path.startswith("/"):
                raise invalid("volumes", path, "by their path in the pod, which begins with /")

    @property
    def resources(self) -> dict[str, str]:
        """The quantities that the pod requests, and gets at most."""
        found = {} if self.cpu is None else {"cpu": f"{round(1000 * self.cpu)}m"}
        if self.memory_gib is not None:
            found["memory"] = f"{round(1024 * self.memory_gib)}Mi"
        if self.gpus:
            found[self.gpu_resource] = str(self.gpus)
        return found
