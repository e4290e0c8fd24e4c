"""The objects by which other controllers run a stage: where they are in the API, and what their status says.

No input or output. Both sides of the task use it: the operator, and the trigger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

Phase = Literal["waits", "suspended", "runs", "done", "failed"]

_INDEX = "batch.kubernetes.io/job-completion-index"
_RAY_NODE = "ray.io/node-type"


@dataclass(frozen=True)
class State:
    """What a job's status says.

    Attributes:
        phase: it `waits` for its pods; it is `suspended`, by hand or by a queue; it `runs`; it is `done`; it `failed`.
        why: the controller's own words.
        since: when it was made, or resumed; its time to start counts from then.
    """

    phase: Phase
    why: str
    since: datetime


@dataclass(frozen=True)
class Kind:
    """One kind of job.

    Attributes:
        name: as it is written in a manifest.
        group: its API group.
        version: of the API.
        plural: its name in the API's paths.
        install: what a cluster without it needs.
        container: the one with the log.
        log_label: label of the pods among which is the one with the log; its value is the job's name.
    """

    name: str
    group: str
    version: str
    plural: str
    install: str
    container: str
    log_label: str

    def state(self, job: Mapping[str, Any]) -> State:
        """Return what a job's status says."""
        return (_train_job if self is TRAIN_JOB else _ray_job)(job)

    def first(self, pods: Iterable[Any]) -> Any:
        """Return the pod whose log is the stage's, of those that its label names; none as long as it has not begun.

        That is the node with number 0 of a TrainJob, and the submitter of a RayJob; the newest if it was replaced.
        """
        begun = [pod for pod in pods if pod.status.phase != "Pending" and _RAY_NODE not in pod.metadata.labels]
        return min(begun, key=lambda pod: (_index(pod), -pod.metadata.creation_timestamp.timestamp()), default=None)


TRAIN_JOB = Kind(
    "TrainJob", "trainer.kubeflow.org", "v1alpha1", "trainjobs", "Kubeflow Trainer 2", "node",
    "jobset.sigs.k8s.io/jobset-name",
)  # fmt: skip
RAY_JOB = Kind(
    "RayJob", "ray.io", "v1", "rayjobs", "KubeRay", "base", "ray.io/originated-from-cr-name",
)  # fmt: skip
KINDS = {"trainjob": TRAIN_JOB, "rayjob": RAY_JOB}


def incidents(pods: Iterable[Any]) -> int:
    """Return how often something went wrong in a job's pods: those that failed, and restarts of containers.

    The controllers start a pod that failed again, so only this tells that the stage has ended with an error.
    """
    return sum(
        (pod.status.phase == "Failed") + sum(c.restart_count for c in pod.status.container_statuses or ())
        for pod in pods
    )


def _index(pod: Any) -> int:
    marks = {**(pod.metadata.annotations or {}), **(pod.metadata.labels or {})}
    return int(marks.get(_INDEX, 0))


def _train_job(job: Mapping[str, Any]) -> State:
    status = job.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    true = {name: condition for name, condition in conditions.items() if condition["status"] == "True"}
    turned = conditions.get("Suspended", {}).get("lastTransitionTime")
    since = max(filter(None, (_time(job["metadata"]["creationTimestamp"]), _time(turned))))
    for name, phase in (("Failed", "failed"), ("Complete", "done")):
        if name in true:
            return State(phase, _words(true[name]), since)  # type: ignore[arg-type]
    if job["spec"].get("suspend") or "Suspended" in true:
        return State("suspended", _words(true.get("Suspended", {})), since)
    nodes = [one for one in status.get("jobsStatus", ()) if one["name"] == "node"]
    return State("runs" if any(one["ready"] or one["succeeded"] for one in nodes) else "waits", "", since)


_RAY_PHASES: dict[str, Phase] = {
    "Running": "runs", "Complete": "done", "Failed": "failed", "ValidationFailed": "failed",
    "Suspending": "suspended", "Suspended": "suspended",
}  # fmt: skip


def _ray_job(job: Mapping[str, Any]) -> State:
    status = job.get("status", {})
    since = max(filter(None, (_time(job["metadata"]["creationTimestamp"]), _time(status.get("startTime")))))
    phase = _RAY_PHASES.get(status.get("jobDeploymentStatus", ""), "waits")
    if phase == "waits" and job["spec"].get("suspend"):
        phase = "suspended"
    if phase == "done" and status.get("jobStatus") == "STOPPED":
        return State("failed", "the Ray job was stopped", since)
    return State(phase, _words(status), since)


def _words(said: Mapping[str, Any]) -> str:
    return ": ".join(filter(None, (said.get("reason"), said.get("message"))))


def _time(stamp: str | None) -> datetime | None:
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc) if stamp else None
