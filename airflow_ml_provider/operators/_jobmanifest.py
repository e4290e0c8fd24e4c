"""How a stage's pod becomes a TrainJob of Kubeflow Trainer or a RayJob of KubeRay.

The pod is composed as for a pod by itself (`_manifest.carrier`); here its parts go where these objects have a place for
them. What they have no place for is refused, never dropped.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.operators._exchange import task_of
from airflow_ml_provider.operators._manifest import CALL, CONTAINER, IDENTITY, TASK

if TYPE_CHECKING:
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.runtime import Pod
    from airflow_ml_provider.stages import Spec
    from airflow_ml_provider.triggers._kinds import Kind

_RUNTIME = "torch-distributed"  # comes with Kubeflow Trainer
_PATCH = "airflow-ml/operator"
_NODE = "node"  # job and container of every runtime of Kubeflow Trainer
# What a TrainJob may change in the pods of its runtime.
_POD_FIELDS = {
    "affinity", "imagePullSecrets", "nodeSelector", "schedulingGates", "securityContext", "serviceAccountName",
    "terminationGracePeriodSeconds", "tolerations", "volumes",
}  # fmt: skip
_TRAINER_FIELDS = {"image", "command", "args", "env", "resources"}
_CONTAINER_FIELDS = {"securityContext", "volumeMounts"}
# What composing a pod sets by itself: ends and restarts are the controllers' matter.
_OWN = {"activeDeadlineSeconds", "restartPolicy", "terminationMessagePolicy", "containers", "name"}
# What comes through two shells and Ray's own joining of words as it is.
_PLAIN = re.compile(r"[\w@%+=:,./ -]+\Z", re.ASCII)


def job(kind: Kind, body: Mapping[str, Any], spec: Spec, pod: Pod, info: RunInfo, env: Sequence[str]) -> dict[str, Any]:
    """Return the object that runs a stage.

    Parameters:
        kind: what it shall be.
        body: the pod, as JSON.
        env: names of the variables that the job's Secret will have.

    Raises:
        SpecError: the pod has something for which the object has no place, or the number of nodes may vary.
    """
    fewest, most = spec.nodes
    if fewest != most:
        raise SpecError(f"launch.nodes must be one number with controller {pod.controller!r}, got '{fewest}:{most}'")
    name = f"{body['metadata']['name'][:30].rstrip('-')}-{secrets.token_hex(3)}"
    labels = {IDENTITY: info.identity, CALL: body["metadata"]["labels"][CALL]}
    if pod.gang:
        labels["kueue.x-k8s.io/queue-name"] = pod.gang.partition(":")[2]
    head = {"name": name, "labels": labels, "annotations": {TASK: json.dumps(task_of(info))}}
    content = (_train_job if kind.name == "TrainJob" else _ray_job)(body, spec, pod, secret_name(name), env)
    if seconds := body["spec"].get("activeDeadlineSeconds"):
        content["activeDeadlineSeconds"] = seconds
    return {"apiVersion": f"{kind.group}/{kind.version}", "kind": kind.name, "metadata": head, "spec": content}


def secret_name(name: str) -> str:
    """Return the name of the Secret of a job."""
    return f"{name}-env"


def secret(job: Mapping[str, Any], env: Mapping[str, str]) -> Any:
    """Return the Secret that a job's pods wait for; it goes with the job."""
    from kubernetes import client

    meta = job["metadata"]
    owner = client.V1OwnerReference(api_version=job["apiVersion"], kind=job["kind"], name=meta["name"], uid=meta["uid"])
    return client.V1Secret(
        metadata=client.V1ObjectMeta(
            name=secret_name(meta["name"]),
            labels={IDENTITY: meta["labels"][IDENTITY]},
            annotations={TASK: meta["annotations"][TASK]},
            owner_references=[owner],
        ),
        string_data=dict(env),
    )


def _train_job(body: Mapping[str, Any], spec: Spec, pod: Pod, secret: str, env: Sequence[str]) -> dict[str, Any]:
    container, others = _containers(body)
    _refuse(f"containers.{other['name']}" for other in others)
    _refuse(f"containers.{CONTAINER}.{field}" for field in set(container) - _CONTAINER_FIELDS - _TRAINER_FIELDS - _OWN)
    _refuse(set(_filled(body["spec"])) - _POD_FIELDS - _OWN)
    name = pod.controller.partition(":")[2] or _RUNTIME
    runtime = {"kind": "TrainingRuntime", "name": name.partition("/")[2]} if "/" in name else {"name": name}
    trainer = _some(container, _TRAINER_FIELDS)
    if resources := trainer.pop("resources", None):
        trainer["resourcesPerNode"] = resources
    # Of all containers of a TrainJob only an initialiser's can take a whole Secret.
    given = [{"name": n, "valueFrom": {"secretKeyRef": {"name": secret, "key": n}}} for n in env]
    patience = {"name": "AIRFLOW_ML_PATIENCE_S", "value": str(int(pod.start_s))}
    trainer |= {"numNodes": spec.nodes[0], "env": [*trainer.get("env", ()), patience, *given]}
    trainer["numProcPerNode"] = spec.processes
    of_pod = _some(_filled(body["spec"]), _POD_FIELDS)
    of_container = {"name": _NODE, **_some(container, _CONTAINER_FIELDS)}
    template = {"metadata": _marks(body), "spec": {**of_pod, "containers": [of_container]}}
    jobs = [{"name": _NODE, "template": {"spec": {"template": template}}}]
    patch = {"manager": _PATCH, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}}
    return {"runtimeRef": runtime, "trainer": trainer, "runtimePatches": [patch]}


def _ray_job(body: Mapping[str, Any], spec: Spec, pod: Pod, secret: str, env: Sequence[str]) -> dict[str, Any]:
    container, others = _containers(body)
    command = [*container.pop("command"), *container.pop("args")]
    if odd := [word for word in command if not _PLAIN.match(word)]:
        raise SpecError(f"a path of a RayJob must be of letters, digits, space and @%+=:,./-_, got {odd[0]!r}")
    # The submitter only hands the command over and prints the log: it needs neither the secrets nor GPUs.
    submitter = {**{k: v for k, v in container.items() if k != "resources"}, "resources": _SUBMITTER}
    container["env"] = [*container.get("env", ()), {"name": "AIRFLOW_ML_RAY", "value": "1"}]
    if env:
        container["envFrom"] = [*container.get("envFrom", ()), {"secretRef": {"name": secret}}]
    # As many CPUs as ranks, and every rank takes one: so they are spread over the nodes as `launch` says.
    group = {"rayStartParams": {"num-cpus": str(spec.processes)}, "template": _template(body, [container, *others])}
    workers = spec.nodes[0] - 1
    cluster: dict[str, Any] = {"headGroupSpec": group}
    if workers:
        size = {"replicas": workers, "minReplicas": workers, "maxReplicas": workers}
        cluster["workerGroupSpecs"] = [{"groupName": "workers", **size, **group}]
    if version := pod.controller.partition(":")[2]:
        cluster["rayVersion"] = version
    return {
        "entrypoint": shlex.join(command),
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": _template(body, [submitter], restartPolicy="Never"),
        "rayClusterSpec": cluster,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 0,
        "backoffLimit": 0,  # another try is Airflow's matter
    }


_SUBMITTER = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}


def _template(body: Mapping[str, Any], containers: Sequence[Any], **more: str) -> dict[str, Any]:
    spec = {name: value for name, value in _filled(body["spec"]).items() if name not in _OWN}
    return {"metadata": _marks(body), "spec": {**spec, **more, "containers": list(containers)}}


def _marks(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return labels and annotations of the pods.

    Without the label of the call: should the task have pods of its own in its next try, these are none of them.
    """
    meta = body["metadata"]
    labels = {name: value for name, value in meta["labels"].items() if name != CALL}
    return {"labels": labels, "annotations": meta["annotations"]}


def _containers(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return the stage's container, and the others."""
    found = [_filled(container) for container in body["spec"]["containers"]]
    (stage,) = (container for container in found if container["name"] == CONTAINER)
    return stage, [container for container in found if container is not stage]


def _refuse(fields: Iterable[str]) -> None:
    if told := ", ".join(sorted(fields)):
        raise SpecError(f"a TrainJob has no place for {told} of the pod_template; put it into the training runtime")


def _filled(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return what says something; composing a pod leaves empty lists and mappings, and a default in full."""
    said = {name: value for name, value in mapping.items() if value not in (None, [], {})}
    return {name: value for name, value in said.items() if (name, value) != ("hostNetwork", False)}


def _some(mapping: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name in names}
