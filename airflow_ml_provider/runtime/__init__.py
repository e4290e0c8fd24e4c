"""Where a stage runs: in this process, in another Python, or in a pod. Same spec in, same result out. Airflow-free.

A runtime is a small frozen object with one method, `call(spec, info, env) -> Result`, and one to stop what it started.
Everything that leaves the process goes through `python -m airflow_ml_provider.runtime`, so a further runtime only has
to bring three files to the other side (the package as a zip, the call, later the result) and start that command. A pod
outlives the process that started it, so it has no such methods: the operator defers, and goes on where it left off.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol, Union, overload, runtime_checkable

from airflow_ml_provider import codec, stages
from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime.interpreter import Interpreter
from airflow_ml_provider.stages import Result, Spec

_GANG = re.compile(r"(kueue:[a-z0-9.-]+|volcano(:[a-z0-9.-]+)?|coscheduling)?")
_NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
_CONTROLLER = re.compile(rf"(trainjob(:(TrainingRuntime/)?{_NAME})?|rayjob(:\d+(\.\d+)+\w*)?)?")

__all__ = ["InProcess", "Interpreter", "Pod", "Runtime", "resolve"]


@runtime_checkable
class Runtime(Protocol):
    """What every runtime offers."""

    def call(self, spec: Spec, info: RunInfo, env: Mapping[str, str]) -> Result:
        """Run a stage and return its result.

        `env` holds connection settings (with secrets) for the stage's process; it is never written to a file. Errors
        of the stage are raised as they would be in process; `StageCrashed` when it ended without any result.
        """
        ...

    def cancel(self) -> None:
        """Stop whatever `call` has started; called from a signal handler when the task is killed."""
        ...


@dataclass(frozen=True)
class InProcess:
    """Run the stage in the task's own process: the least overhead, and the task's environment needs the tools."""

    def call(self, spec: Spec, info: RunInfo, env: Mapping[str, str]) -> Result:
        with _environment(env):
            result = stages.run(_through_json(spec), _through_json(info))
        seen: Result = _through_json(result)
        return seen

    def cancel(self) -> None:
        """Nothing was started."""


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
        replacements: how many pods that were preempted, evicted, deleted, killed for lack of memory or lost with their
            node are replaced before the try fails; a program that fails by itself is not. What can be resumed is.
        gang: have several pods start together or not at all: `kueue:QUEUE`, `volcano`, `volcano:QUEUE` or
            `coscheduling`; empty leaves each to itself.
        controller: who makes the pods: empty is the operator itself; `trainjob` is Kubeflow Trainer with its
            ClusterTrainingRuntime `torch-distributed`, `trainjob:NAME` is another one of them,
            `trainjob:TrainingRuntime/NAME` one of the namespace; `rayjob` is KubeRay, `rayjob:VERSION` names the Ray
            version of the image. They replace lost pods by their own rules, so `replacements` stays as it is, and of
            `gang` only `kueue:QUEUE` is theirs.
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
    replacements: int = 3
    gang: str = ""
    controller: str = ""
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
        for name in ("gpus", "log_every_s", "replacements"):
            if getattr(self, name) < 0:
                raise invalid(name, getattr(self, name), "at least 0")
        if not _GANG.fullmatch(self.gang):
            raise invalid("gang", self.gang, "kueue:QUEUE, volcano, volcano:QUEUE, coscheduling or empty")
        for path in self.volumes:
            if not path.startswith("/"):
                raise invalid("volumes", path, "by their path in the pod, which begins with /")
        if self.controller:
            self._check_controlled()

    def _check_controlled(self) -> None:
        if not _CONTROLLER.fullmatch(self.controller):
            allowed = "trainjob, trainjob:RUNTIME, trainjob:TrainingRuntime/RUNTIME, rayjob, rayjob:VERSION or empty"
            raise invalid("controller", self.controller, allowed)
        if self.gang and not self.gang.startswith("kueue:"):
            hint = "the controller starts the pods: set their scheduler in its own configuration"
            raise invalid("gang", self.gang, f"kueue:QUEUE or empty with controller {self.controller!r}", hint)
        usual = type(self).__dataclass_fields__["replacements"].default
        if self.replacements != usual:
            hint = "the controller replaces lost pods by its own rules"
            raise invalid(
                "replacements", self.replacements, f"left at {usual} with controller {self.controller!r}", hint
            )

    @property
    def resources(self) -> dict[str, str]:
        """The quantities that the pod requests, and gets at most."""
        found = {} if self.cpu is None else {"cpu": f"{round(1000 * self.cpu)}m"}
        if self.memory_gib is not None:
            found["memory"] = f"{round(1024 * self.memory_gib)}Mi"
        if self.gpus:
            found[self.gpu_resource] = str(self.gpus)
        return found


@overload
def resolve(runtime: Union[Runtime, str, None]) -> Runtime: ...


@overload
def resolve(runtime: Union[Runtime, Pod, Mapping[str, Any], str, None]) -> Union[Runtime, Pod]: ...


def resolve(runtime: Union[Runtime, Pod, Mapping[str, Any], str, None]) -> Union[Runtime, Pod]:
    """Return the runtime that an operator's argument means.

    None is in process, a text is a path to a Python, a mapping is a pod's attributes, as in a configuration file.
    """
    if runtime is None:
        return InProcess()
    if isinstance(runtime, str):
        return Interpreter(runtime) if runtime else InProcess()
    if isinstance(runtime, Mapping):
        return codec.decode(Pod, runtime, "runtime")
    if not isinstance(runtime, (Runtime, Pod)):
        raise invalid("runtime", runtime, "InProcess(), Interpreter(…), Pod(…) or the path of a Python")
    return runtime


def _through_json(value: Any) -> Any:
    """Return `value` as the far side of a process border would see it, so that no runtime is more lenient."""
    return codec.decode(type(value), json.loads(json.dumps(codec.encode(value), allow_nan=False)))


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
