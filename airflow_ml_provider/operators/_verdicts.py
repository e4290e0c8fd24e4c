"""What has become of a stage's pod: it runs, has done its part, failed by its own fault, or was taken away.

No input or output: decisions on what the API server says, for `_pods`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

Kind = Literal["waits", "runs", "leaves", "done", "failed", "lost"]

# Reasons that Kubernetes gives a failed pod, or a container in it, when the program is not to blame; and whether the
# node may be, so that it is avoided if it happens there again.
_TAKEN = {
    "Evicted": True,  # pressure on the node's memory or disk
    "NodeLost": True,
    "Shutdown": True,
    "NodeShutdown": True,
    "Terminated": True,  # the node went down in an orderly way
    "UnexpectedAdmissionError": True,  # such as a GPU that is gone
    "OutOfcpu": True,
    "OutOfmemory": True,
    "OutOfpods": True,
    "NodeAffinity": True,
    "ContainerStatusUnknown": True,
    "Preempting": False,
    "Preempted": False,
    "OOMKilled": False,
    "PreemptionByScheduler": False,
    "PreemptionByKubeScheduler": False,
    "DeletionByTaintManager": True,
    "EvictionByEvictionAPI": False,
    "DeletionByPodGC": True,
    "TerminationByKubelet": True,
}
_KILLED, _TERMINATED = 137, 143  # 128 + SIGKILL, SIGTERM


@dataclass(frozen=True)
class Verdict:
    """What has become of a pod.

    Attributes:
        kind: `waits` for a place or its image; `runs`; `leaves`: it was deleted and is ending; `done`: it ended well;
            `failed` by the program's fault; `lost`: preempted, evicted, deleted, out of memory, or with its node.
        why: Kubernetes' own words.
        node_s_fault: its node may be to blame.
    """

    kind: Kind
    why: str = ""
    node_s_fault: bool = False


GONE = Verdict("lost", "the pod was deleted")


def verdict(pod: Any) -> Verdict:
    """Return what has become of a pod, as the Kubernetes client gives it."""
    status, why = pod.status, "; ".join(dict.fromkeys(told(pod)))
    if status.phase == "Succeeded":
        return Verdict("done", why)
    if status.phase == "Failed":
        if status.reason == "DeadlineExceeded":  # its own time was over
            return Verdict("failed", why)
        taken = [_TAKEN[reason] for reason in _reasons(pod) if reason in _TAKEN]
        if taken:
            return Verdict("lost", why, any(taken))
        # Somebody killed it from outside of the program: it was asked to end, or nobody says why.
        codes, deleted = _exit_codes(pod), pod.metadata.deletion_timestamp
        killed = any(code in (_KILLED, _TERMINATED) for code in codes) or bool(deleted and not codes)
        return Verdict("lost" if killed else "failed", why, killed and not deleted)
    if pod.metadata.deletion_timestamp:
        return Verdict("leaves", why)
    return Verdict("runs" if status.phase == "Running" else "waits", why)


def overdue_s(pod: Any, now: datetime | None = None) -> float:
    """Return for how long a deleted pod should have been gone (seconds); its node may be unreachable."""
    due = pod.metadata.deletion_timestamp
    return ((now or datetime.now(timezone.utc)) - due).total_seconds() if due else 0.0


def never_ran(pod: Any) -> bool:
    """Return whether no container of a pod has begun."""
    states = [container.state for container in pod.status.container_statuses or () if container.state]
    return pod.status.phase == "Pending" and not any(state.running or state.terminated for state in states)


def avoided(losses: Sequence[dict[str, Any]]) -> list[str]:
    """Return the nodes that pods were lost on by the nodes' fault more than once."""
    blamed = [loss["host"] for loss in losses if loss.get("node_s_fault") and loss.get("host")]
    return sorted({host for host in blamed if blamed.count(host) > 1})


def told(pod: Any) -> Iterator[str]:
    """Give what Kubernetes says of the end of a pod, or of why it never began."""
    status = pod.status
    if status.reason:  # evicted, node lost, preempted
        yield f"{status.reason}: {status.message or 'no message'}"
    for condition in status.conditions or ():
        if condition.status == "False" and condition.type == "PodScheduled":
            yield f"{condition.reason}: {condition.message}"
        if condition.status == "True" and condition.type == "DisruptionTarget":
            yield f"{condition.reason}: {condition.message}"
    for container in status.container_statuses or ():
        state = container.state
        if ended := state and state.terminated:
            yield f"{ended.reason or 'ended'}, exit code {ended.exit_code}"
        if waiting := state and state.waiting:
            yield ": ".join(filter(None, [waiting.reason, waiting.message]))


def _reasons(pod: Any) -> Iterator[str]:
    yield pod.status.reason or ""
    for condition in pod.status.conditions or ():
        if condition.status == "True" and condition.type == "DisruptionTarget":
            yield condition.reason or ""
    for container in pod.status.container_statuses or ():
        if container.state and container.state.terminated:
            yield container.state.terminated.reason or ""


def _exit_codes(pod: Any) -> list[int]:
    states = [container.state for container in pod.status.container_statuses or () if container.state]
    return [state.terminated.exit_code for state in states if state.terminated]
