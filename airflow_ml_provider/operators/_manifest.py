"""How a stage's pod is written down: KubernetesPodOperator composes it, this module adds what a group of pods needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.operators._exchange import Exchange, task_of

if TYPE_CHECKING:
    from airflow_ml_provider.operators._base import StageOperator
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.runtime import Pod

IDENTITY, CALL, NODE = "airflow-ml/identity", "airflow-ml/call", "airflow-ml/node"
TASK = "airflow-ml/task"
CONTAINER = "base"
PORT = 29400  # torchrun's usual one
_HOST = "kubernetes.io/hostname"
_SCHEDULERS = {"volcano": "volcano", "coscheduling": "scheduler-plugins-scheduler"}
# System to API group, version of its object that describes the group of pods.
POD_GROUPS = {"volcano": ("scheduling.volcano.sh", "v1beta1"), "coscheduling": ("scheduling.x-k8s.io", "v1alpha1")}


def carrier(
    operator: StageOperator, pod: Pod, exchange: Exchange, stage: str, env: Mapping[str, str] | None = None
) -> Any:
    """Return the KubernetesPodOperator whose pod runs the stage.

    Parameters:
        env: further environment variables, not for secrets.
    """
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    timeout = operator.execution_timeout
    path = ":".join([str(exchange.package), *pod.pythonpath])
    return KubernetesPodOperator(
        task_id=operator.task_id,
        name=f"ml-{operator.task_id.replace('.', '-')}"[:200],
        namespace=pod.namespace or None,
        labels={IDENTITY: exchange.info.identity, CALL: exchange.digest},
        annotations={TASK: json.dumps(task_of(exchange.info))},
        image=pod.image,
        base_container_name=CONTAINER,
        cmds=[pod.python],
        arguments=exchange.arguments(stage),
        env_vars={**(env or {}), **pod.env, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        **_volumes_and_resources(pod),
        pod_template_dict=_template(pod),
        kubernetes_conn_id=pod.conn_id,
        # For a pod whose worker was killed and whose task is not tried again: nobody else would end it.
        active_deadline_seconds=int(timeout.total_seconds() + pod.start_s) if timeout else None,
        log_pod_spec_on_failure=False,
        do_xcom_push=False,
    )


def joined(body: Any, node: int, nodes: tuple[int, int], pod: Pod, info: RunInfo) -> None:
    """Make a pod one of several that train together: its number, its name for the others, and where they meet.

    Parameters:
        body: the pod.
        node: its number, from 0; number 0 keeps the rendezvous.
        nodes: how many there are at least and at most.
    """
    from kubernetes import client

    body.metadata.labels[NODE] = str(node)
    if nodes == (1, 1):
        return
    service = service_name(info)
    # torchrun gives ranks in the order of these names: rank 0 is on node 0, whose log goes into the task's. It takes a
    # pod of the same name for the one that was lost, so only the name that all must know beforehand is used again.
    host = f"node-{node:03}" if node == 0 else f"node-{node:03}-{body.metadata.name.rpartition('-')[2]}"
    body.spec.hostname, body.spec.subdomain = host, service
    settings = {
        "AIRFLOW_ML_NODE": str(node),
        "AIRFLOW_ML_ADDRESS": f"{host}.{service}",
        "AIRFLOW_ML_RENDEZVOUS": f"node-000.{service}:{PORT}",
        "AIRFLOW_ML_PATIENCE_S": str(int(pod.start_s)),
        "AIRFLOW_ML_REPLACEMENTS": str(pod.replacements),
    }
    stage = stage_container(body)
    stage.env = [*(stage.env or []), *(client.V1EnvVar(name, value) for name, value in settings.items())]
    body.metadata.labels.update(_gang_labels(pod, info))
    body.metadata.annotations.update(_gang_annotations(pod, info, nodes[1]))
    body.spec.scheduler_name = body.spec.scheduler_name or _SCHEDULERS.get(pod.gang.partition(":")[0])


def with_secret(body: Any, name: str) -> None:
    """Let the stage's container have what a Secret holds, as environment variables."""
    from kubernetes import client

    source = client.V1EnvFromSource(secret_ref=client.V1SecretEnvSource(name=name))
    stage = stage_container(body)
    stage.env_from = [*(stage.env_from or []), source]


def avoiding(body: Any, hosts: Sequence[str]) -> None:
    """Have a pod go to other nodes than these as long as there are others."""
    from kubernetes import client

    if not hosts:
        return
    wanted = client.V1NodeSelectorRequirement(key=_HOST, operator="NotIn", values=list(hosts))
    term = client.V1PreferredSchedulingTerm(
        weight=100, preference=client.V1NodeSelectorTerm(match_expressions=[wanted])
    )
    affinity = body.spec.affinity = body.spec.affinity or client.V1Affinity()
    node = affinity.node_affinity = affinity.node_affinity or client.V1NodeAffinity()
    node.preferred_during_scheduling_ignored_during_execution = [
        *(node.preferred_during_scheduling_ignored_during_execution or ()),
        term,
    ]


def stage_container(body: Any) -> Any:
    """Return the container of a pod in which the stage runs."""
    return next(container for container in body.spec.containers if container.name == CONTAINER)


def service_name(info: RunInfo) -> str:
    """Return the name of the Service by which the pods of a task find each other."""
    return f"ml-{info.identity}"


def service(info: RunInfo, owners: Sequence[Any]) -> Any:
    """Return the headless Service that gives the pods of a task their names; it goes when they have gone."""
    from kubernetes import client

    return client.V1Service(
        api_version="v1",
        kind="Service",
        metadata=client.V1ObjectMeta(
            name=service_name(info),
            labels={IDENTITY: info.identity},
            annotations={TASK: json.dumps(task_of(info))},
            owner_references=owners,
        ),
        spec=client.V1ServiceSpec(
            cluster_ip="None",
            selector={IDENTITY: info.identity},
            publish_not_ready_addresses=True,  # they meet before any of them is ready
            ports=[client.V1ServicePort(name="rendezvous", port=PORT)],
        ),
    )


def owner(pod: Any) -> Any:
    """Return the reference by which something belongs to a pod, and is removed with it."""
    from kubernetes import client

    return client.V1OwnerReference(api_version="v1", kind="Pod", name=pod.metadata.name, uid=pod.metadata.uid)


def _gang_labels(pod: Pod, info: RunInfo) -> dict[str, str]:
    system, _, queue = pod.gang.partition(":")
    if system == "kueue":
        return {"kueue.x-k8s.io/queue-name": queue, "kueue.x-k8s.io/pod-group-name": service_name(info)}
    return {"scheduling.x-k8s.io/pod-group": service_name(info)} if system == "coscheduling" else {}


def _gang_annotations(pod: Pod, info: RunInfo, most: int) -> dict[str, str]:
    system, _, queue = pod.gang.partition(":")
    if system == "kueue":
        return {"kueue.x-k8s.io/pod-group-total-count": str(most)}
    if system == "volcano":
        name = {"scheduling.k8s.io/group-name": service_name(info)}
        return {**name, "scheduling.volcano.sh/queue-name": queue} if queue else name
    return {}


def pod_group(pod: Pod, info: RunInfo, fewest: int, owners: Sequence[Any]) -> dict[str, Any] | None:
    """Return the object that tells a gang scheduler how many pods must start together; none where labels suffice."""
    from kubernetes import client

    system, _, queue = pod.gang.partition(":")
    if system not in POD_GROUPS:
        return None
    spec = {"minMember": fewest, **({"queue": queue} if queue and system == "volcano" else {})}
    return {
        "apiVersion": "/".join(POD_GROUPS[system]),
        "kind": "PodGroup",
        "metadata": {
            "name": service_name(info),
            "labels": {IDENTITY: info.identity},
            "annotations": {TASK: json.dumps(task_of(info))},
            "ownerReferences": client.ApiClient().sanitize_for_serialization(list(owners)),
        },
        "spec": spec,
    }


def _template(pod: Pod) -> dict[str, Any]:
    """Return the pod's manifest, with a place for the stage's container.

    Raises:
        SpecError: the file cannot be read, or is no manifest.
    """
    body: Any = pod.pod_template or {}
    if isinstance(body, str):
        import yaml

        try:
            body = yaml.safe_load(tables.local_path(body).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise SpecError(f"pod_template {pod.pod_template} cannot be read: {error}") from error
    if not isinstance(body, Mapping) or not isinstance(body.get("spec", {}), Mapping):
        raise invalid("pod_template", body, "a pod's manifest: a mapping with metadata and spec")
    spec = dict(body.get("spec", {}))
    spec["containers"] = spec.get("containers") or [{"name": CONTAINER}]
    return {**body, "spec": spec}


def _volumes_and_resources(pod: Pod) -> dict[str, Any]:
    """Return volumes and resources as KubernetesPodOperator takes them."""
    from kubernetes import client

    volumes, mounts = [], []
    for number, (path, source) in enumerate(sorted(pod.volumes.items())):
        name = f"ml-{number}"
        mounts.append(client.V1VolumeMount(name=name, mount_path=path))
        if source.startswith("/"):
            volumes.append(client.V1Volume(name=name, host_path=client.V1HostPathVolumeSource(path=source)))
        else:
            claim = client.V1PersistentVolumeClaimVolumeSource(claim_name=source)
            volumes.append(client.V1Volume(name=name, persistent_volume_claim=claim))
    if pod.shm_gib:
        memory = client.V1EmptyDirVolumeSource(medium="Memory", size_limit=f"{round(1024 * pod.shm_gib)}Mi")
        volumes.append(client.V1Volume(name="ml-shm", empty_dir=memory))
        mounts.append(client.V1VolumeMount(name="ml-shm", mount_path="/dev/shm"))  # noqa: S108
    resources = client.V1ResourceRequirements(requests=pod.resources, limits=pod.resources) if pod.resources else None
    return {"volumes": volumes, "volume_mounts": mounts, "container_resources": resources}
