"""Stand-ins for the controllers of Kubeflow Trainer and KubeRay, for tests on a real API server without them.

The definitions (CRDs) must be installed; the controllers need not be. What they do of it is done here by a thread: it
makes real pods of each TrainJob and RayJob, so that the stage really runs in them, and keeps the status as they do.

    with Controllers(api_client, "default") as controllers:
        ...  # run a task with Pod(controller="trainjob"), on this very API server
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

from kubernetes import client
from kubernetes.client import ApiException

from airflow_ml_provider.testing._standin import tolerant

log = logging.getLogger(__name__)

_TRAIN = ("trainer.kubeflow.org", "v1alpha1", "trainjobs")
_RAY = ("ray.io", "v1", "rayjobs")
_JOBSET, _REPLICATED = "jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/replicatedjob-name"
_INDEX = "batch.kubernetes.io/job-completion-index"
_PORT, _RAY_PORT, _DASHBOARD = 29500, 6379, 8265


class Controllers:
    """Look after the TrainJobs and RayJobs of one namespace as their controllers would; a context manager.

    TrainJobs run in the pods of a runtime like `torch-distributed`: one per node, with the `PET_*` variables of
    torchrun, names that the others can resolve, containers that start again when they fail. RayJobs get a head,
    workers and a submitter, which call the `ray` that is on the `PATH` of their image.

    Parameters:
        api: client of the API server.
        namespace: whose jobs.
        suspended: suspend every new job, as a queue does, until `resume` is called.
        hold: make no pods: no job ever becomes ready.
        backoff_limit: how often the containers of a TrainJob start again before it fails.
        poll_s: time between two looks (seconds).

    Raises:
        RuntimeError: at the end, if the API server refused something.
    """

    def __init__(
        self,
        api: Any,
        namespace: str,
        *,
        suspended: bool = False,
        hold: bool = False,
        backoff_limit: int = 6,
        poll_s: float = 0.2,
    ) -> None:
        self.core, self.custom, self.namespace = client.CoreV1Api(api), client.CustomObjectsApi(api), namespace
        self.suspended, self.hold, self.backoff_limit, self.poll_s = suspended, hold, backoff_limit, poll_s
        self._ended, self._error = threading.Event(), ""
        self._known: set[str] = set()
        self._turn = threading.Lock()  # a look acts on what it has read; nobody changes it meanwhile
        self._thread = threading.Thread(target=self._work, name="controllers", daemon=True)

    def __enter__(self) -> Controllers:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if self._error and error is None:
            raise RuntimeError(self._error)

    def suspend(self) -> None:
        """Suspend all jobs that have not ended: their pods are removed."""
        self._set_suspend(True)

    def resume(self) -> None:
        """Let all jobs go on, and those that come."""
        self.suspended = False
        self._set_suspend(False)

    def fail(self, message: str) -> None:
        """Let all jobs fail for a reason that is not the stage's, and remove their pods."""
        with self._turn:
            for kind, job in self._jobs():
                if kind == _TRAIN:
                    self._condition(job, "Failed", "True", "FailedJobs", message)
                else:
                    told = {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": "AppFailed"}
                    self._status(kind, job, {**told, "message": message})
                self._remove_pods(job)

    def _work(self) -> None:
        while not self._ended.wait(self.poll_s):
            try:
                with self._turn:
                    for kind, job in self._jobs():
                        self._look_after(kind, job)
            except ApiException as error:
                if not self._error:
                    self._error = f"the API server answers {error.status} {error.reason}: {error.body}"
                    log.error("%s", self._error)  # a test that waits would otherwise never say why

    def _jobs(self) -> list[tuple[tuple[str, str, str], dict[str, Any]]]:
        """Return the jobs that are not being deleted; no kind of job need be installed."""
        found = []
        for kind in (_TRAIN, _RAY):
            with tolerant():
                listed = self.custom.list_namespaced_custom_object(kind[0], kind[1], self.namespace, kind[2])
                found += [(kind, job) for job in listed["items"] if "deletionTimestamp" not in job["metadata"]]
        return found

    def _look_after(self, kind: tuple[str, str, str], job: dict[str, Any]) -> None:
        uid = job["metadata"]["uid"]
        with tolerant():
            if uid not in self._known and self.suspended:
                self._patch(kind, job, {"spec": {"suspend": True}})
            else:
                (self._train if kind == _TRAIN else self._ray)(job)
            self._known.add(uid)

    def _train(self, job: dict[str, Any]) -> None:
        """Do the next step of a TrainJob."""
        conditions = {one["type"]: one["status"] for one in job.get("status", {}).get("conditions", ())}
        if "True" in (conditions.get("Complete"), conditions.get("Failed")):
            return
        if job["spec"].get("suspend"):
            self._remove_pods(job)
            self._condition(job, "Suspended", "True", "Suspended", "TrainJob is suspended")
        elif conditions.get("Suspended") == "True":
            self._condition(job, "Suspended", "False", "Resumed", "TrainJob is resumed")
        elif not self.hold:
            self._run_nodes(job)

    def _run_nodes(self, job: dict[str, Any]) -> None:
        name, count = job["metadata"]["name"], job["spec"]["trainer"].get("numNodes", 1)
        pods = {int(pod.metadata.annotations[_INDEX]): pod for pod in self._pods(job) if not _goes(pod)}
        if not pods:
            self._make(self.core.create_namespaced_service, _service(job, name, {_JOBSET: name}))
        for index in set(range(count)) - set(pods):
            self._make(self.core.create_namespaced_pod, _node(job, index, count))
        phases = [pod.status.phase for pod in pods.values()]
        restarts = sum(c.restart_count for pod in pods.values() for c in pod.status.container_statuses or ())
        if "Failed" in phases or restarts > self.backoff_limit:
            self._remove_pods(job, only=("Pending", "Running"))
            why = f"jobset failed due to one or more job failures (first failed job: {name}-node-0)"
            self._condition(job, "Failed", "True", "FailedJobs", why)
        elif phases.count("Succeeded") == count:
            self._condition(job, "Complete", "True", "AllJobsCompleted", "jobset completed successfully")
        else:
            self._count(job, len(phases), sum(phase in ("Running", "Succeeded") for phase in phases) == count)

    def _count(self, job: dict[str, Any], made: int, ready: bool) -> None:
        one = {
            "name": "node",
            "active": int(made > 0),
            "ready": int(ready),
            "succeeded": 0,
            "failed": 0,
            "suspended": 0,
        }
        if job.get("status", {}).get("jobsStatus") != [one]:
            self._status(_TRAIN, job, {"jobsStatus": [one]})

    def _condition(self, job: dict[str, Any], kind: str, status: str, reason: str, message: str) -> None:
        """Set one condition of a TrainJob, and leave the others."""
        others = [one for one in job.get("status", {}).get("conditions", ()) if one["type"] != kind]
        before = [one for one in job.get("status", {}).get("conditions", ()) if one["type"] == kind]
        if before and before[0]["status"] == status:
            return
        made = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": _now()}
        self._status(_TRAIN, job, {"conditions": [*others, made]})

    def _ray(self, job: dict[str, Any]) -> None:
        """Do the next step of a RayJob."""
        now = job.get("status", {}).get("jobDeploymentStatus", "")
        name = job["metadata"]["name"]
        if now in ("Initializing", "Running") and job["spec"].get("suspend"):
            self._status(_RAY, job, {"jobDeploymentStatus": "Suspending"})
        elif now == "":
            ids = {"jobId": f"{name}-{secrets.token_hex(2)}", "rayClusterName": f"{name}-{secrets.token_hex(2)}"}
            self._status(_RAY, job, {**ids, "jobDeploymentStatus": "Initializing", "startTime": _now()})
        elif now == "Suspending":
            if not self._remove_pods(job):
                self._status(_RAY, job, {"jobDeploymentStatus": "Suspended", "jobStatus": None})
        elif now == "Suspended" and not job["spec"].get("suspend"):
            self._status(_RAY, job, {"jobDeploymentStatus": None})
        elif now == "Initializing" and not self.hold:
            self._start_ray(job)
        elif now == "Running":
            self._follow(job)

    def _start_ray(self, job: dict[str, Any]) -> None:
        """Make the head, then the workers, and when all run the submitter."""
        pods = self._ray_pods(job)
        if not pods["head"]:
            self._make(self.core.create_namespaced_pod, _ray_node(job, "head", _HEAD))
            return
        address = pods["head"][0].status.pod_ip
        groups = job["spec"]["rayClusterSpec"].get("workerGroupSpecs", ())
        missing = sum(group["replicas"] for group in groups) - len(pods["worker"])
        for _ in range(missing if address else 0):
            self._make(self.core.create_namespaced_pod, _ray_node(job, "worker", _WORKER.format(head=address)))
        running = [pod for pod in (*pods["head"], *pods["worker"]) if pod.status.phase == "Running"]
        if not missing and len(running) == 1 + len(pods["worker"]):
            self._make(self.core.create_namespaced_pod, _submitter(job, address))
            self._status(_RAY, job, {"jobDeploymentStatus": "Running", "jobStatus": "PENDING"})

    def _follow(self, job: dict[str, Any]) -> None:
        submitters = self._ray_pods(job)["submitter"]
        phase = submitters[0].status.phase if submitters else "Failed"
        if phase == "Running" and job["status"]["jobStatus"] == "PENDING":
            self._status(_RAY, job, {"jobStatus": "RUNNING"})
        if phase not in ("Succeeded", "Failed"):
            return
        if phase == "Succeeded":
            told = {
                "jobStatus": "SUCCEEDED",
                "jobDeploymentStatus": "Complete",
                "message": "Job finished successfully.",
            }
        else:
            message = "Job entrypoint command failed with exit code 1"
            told = {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": message}
        self._status(_RAY, job, told)
        if job["spec"].get("shutdownAfterJobFinishes"):
            for pod in (pod for pods in ("head", "worker") for pod in self._ray_pods(job)[pods]):
                self._delete(pod)

    def _ray_pods(self, job: Mapping[str, Any]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {"head": [], "worker": [], "submitter": []}
        for pod in self._pods(job):
            found[pod.metadata.labels.get("ray.io/node-type", "submitter")].append(pod)
        return found

    def _pods(self, job: Mapping[str, Any]) -> list[Any]:
        """Return the pods that belong to a job."""
        listed = self.core.list_namespaced_pod(self.namespace).items
        uid = job["metadata"]["uid"]
        return [pod for pod in listed if uid in [owner.uid for owner in pod.metadata.owner_references or ()]]

    def _remove_pods(self, job: Mapping[str, Any], only: tuple[str, ...] = ()) -> bool:
        """Delete the pods of a job; return whether there were any."""
        pods = [pod for pod in self._pods(job) if not only or pod.status.phase in only]
        for pod in pods:
            self._delete(pod)
        return bool(pods)

    def _delete(self, pod: Any) -> None:
        if not _goes(pod):
            with tolerant():
                self.core.delete_namespaced_pod(pod.metadata.name, self.namespace)

    def _make(self, create: Callable[..., Any], body: Mapping[str, Any]) -> None:
        with tolerant():
            create(self.namespace, body)

    def _status(self, kind: tuple[str, str, str], job: dict[str, Any], status: Mapping[str, Any]) -> None:
        where = (kind[0], kind[1], self.namespace, kind[2], job["metadata"]["name"])
        changed = self.custom.patch_namespaced_custom_object_status(*where, {"status": dict(status)})
        job["status"] = changed["status"]

    def _patch(self, kind: tuple[str, str, str], job: Mapping[str, Any], change: Mapping[str, Any]) -> None:
        where = (kind[0], kind[1], self.namespace, kind[2], job["metadata"]["name"])
        self.custom.patch_namespaced_custom_object(*where, dict(change))

    def _set_suspend(self, suspend: bool) -> None:
        with self._turn:
            for kind, job in self._jobs():
                self._patch(kind, job, {"spec": {"suspend": suspend}})


def _node(job: Mapping[str, Any], index: int, count: int) -> dict[str, Any]:
    """Return the pod of a node of a TrainJob, as JobSet and the torch plugin make it."""
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    settings = {
        "PET_NNODES": str(count), "PET_NPROC_PER_NODE": str(trainer.get("numProcPerNode", 1)),
        "PET_NODE_RANK": str(index), "PET_MASTER_ADDR": f"{name}-node-0-0.{name}", "PET_MASTER_PORT": str(_PORT),
    }  # fmt: skip
    env = [*trainer.get("env", ()), *({"name": key, "value": value} for key, value in settings.items())]
    container = {key: trainer[key] for key in ("image", "command", "args") if key in trainer}
    container |= {"name": "node", "env": env, "resources": trainer.get("resourcesPerNode", {})}
    spec = {"restartPolicy": "OnFailure", "hostname": f"{name}-node-0-{index}", "subdomain": name}
    labels, annotations = {_JOBSET: name, _REPLICATED: "node", _INDEX: str(index)}, {_INDEX: str(index)}
    for template in _patches(job):
        labels |= template.get("metadata", {}).get("labels", {})
        annotations |= template.get("metadata", {}).get("annotations", {})
        changes = dict(template.get("spec", {}))
        for change in changes.pop("containers", ()):
            container |= change
        spec |= changes
    meta = {"name": f"{name}-node-0-{index}-{secrets.token_hex(2)}", "labels": labels, "annotations": annotations}
    return _pod(job, meta, {**spec, "containers": [container]})


def _patches(job: Mapping[str, Any]) -> list[Any]:
    """Return what a TrainJob changes in the pods of its runtime's job `node`."""
    jobs = [
        one
        for patch in job["spec"].get("runtimePatches", ())
        for one in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    ]
    return [one["template"]["spec"]["template"] for one in jobs if one["name"] == "node"]


_HEAD = "ray start --head --dashboard-host=0.0.0.0 --num-cpus={cpus} --block"
_WORKER = (
    f"until ray health-check --address {{head}}:{_RAY_PORT} >/dev/null 2>&1; do sleep 1; done; "
    f"ray start --address={{head}}:{_RAY_PORT} --num-cpus={{{{cpus}}}} --block"
)
_SUBMIT = (
    f"until (echo > /dev/tcp/{{head}}/{_DASHBOARD}) 2>/dev/null; do sleep 1; done; "
    f"ray job submit --address http://{{head}}:{_DASHBOARD} --submission-id {{id}} -- {{entrypoint}}"
)


def _ray_node(job: Mapping[str, Any], kind: str, command: str) -> dict[str, Any]:
    """Return a pod of a Ray cluster, as KubeRay makes it."""
    cluster = job["spec"]["rayClusterSpec"]
    group = cluster["headGroupSpec"] if kind == "head" else cluster["workerGroupSpecs"][0]
    start = command.format(cpus=group["rayStartParams"].get("num-cpus", "1"))
    labels = {"ray.io/cluster": job["status"]["rayClusterName"], "ray.io/node-type": kind}
    return _of_template(job, group["template"], kind, f"ulimit -n 65536; {start}", labels)


def _submitter(job: Mapping[str, Any], head: str) -> dict[str, Any]:
    """Return the pod that submits a RayJob and prints its log."""
    command = _SUBMIT.format(head=head, id=job["status"]["jobId"], entrypoint=job["spec"]["entrypoint"])
    labels = {"ray.io/originated-from-cr-name": job["metadata"]["name"], "ray.io/originated-from-crd": "RayJob"}
    return _of_template(job, job["spec"]["submitterPodTemplate"], "submitter", command, labels)


def _of_template(
    job: Mapping[str, Any], template: Mapping[str, Any], kind: str, command: str, labels: Mapping[str, str]
) -> dict[str, Any]:
    first, *others = template["spec"]["containers"]
    first = {**first, "command": ["/bin/bash", "-c", "--"], "args": [command]}
    meta = {**template["metadata"], "labels": {**template["metadata"].get("labels", {}), **labels}}
    meta["name"] = f"{job['metadata']['name']}-{kind}-{secrets.token_hex(2)}"
    return _pod(job, meta, {"restartPolicy": "Never", **template["spec"], "containers": [first, *others]})


def _pod(job: Mapping[str, Any], meta: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**meta, "ownerReferences": [_owner(job)]}, "spec": spec}


def _service(job: Mapping[str, Any], name: str, selector: Mapping[str, str]) -> dict[str, Any]:
    """Return the Service by which the pods of a job find each other, ready or not."""
    spec = {"clusterIP": "None", "selector": selector, "publishNotReadyAddresses": True}
    meta = {"name": name, "ownerReferences": [_owner(job)]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def _owner(job: Mapping[str, Any]) -> dict[str, Any]:
    meta = job["metadata"]
    whose = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": meta["name"], "uid": meta["uid"]}
    return {**whose, "controller": True, "blockOwnerDeletion": True}


def _goes(pod: Any) -> bool:
    return pod.metadata.deletion_timestamp is not None


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
