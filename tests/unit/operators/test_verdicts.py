"""What is taken for the end of a pod, and who is to blame for it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

pytest.importorskip("kubernetes")

from kubernetes.client import (
    V1ContainerState,
    V1ContainerStateTerminated,
    V1ContainerStateWaiting,
    V1ContainerStatus,
    V1ObjectMeta,
    V1Pod,
    V1PodCondition,
    V1PodStatus,
)

from airflow_ml_provider.operators._verdicts import avoided, never_ran, overdue_s, verdict

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def pod(
    phase="Failed", exit_code=None, ended="Error", reason=None, message=None, disrupted=None, deleted=None, waits=None
):
    states = []
    if exit_code is not None:
        states = [V1ContainerState(terminated=V1ContainerStateTerminated(exit_code=exit_code, reason=ended))]
    if waits:
        states = [V1ContainerState(waiting=V1ContainerStateWaiting(reason=waits))]
    containers = [
        V1ContainerStatus(image="i", image_id="id", name="base", ready=False, restart_count=0, state=state)
        for state in states
    ]
    conditions = [V1PodCondition(type="DisruptionTarget", status="True", reason=disrupted)] if disrupted else None
    status = V1PodStatus(
        phase=phase, reason=reason, message=message, container_statuses=containers, conditions=conditions
    )
    return V1Pod(metadata=V1ObjectMeta(name="p", deletion_timestamp=deleted), status=status)


@pytest.mark.parametrize(
    ("given", "kind", "node_s_fault"),
    [
        (pod("Pending"), "waits", False),
        (pod("Running"), "runs", False),
        (pod("Running", deleted=NOW), "leaves", False),
        (pod("Succeeded", exit_code=0, ended="Completed"), "done", False),
        (pod(exit_code=1), "failed", False),
        (pod(exit_code=139), "failed", False),
        (pod(exit_code=137, ended="OOMKilled"), "lost", False),
        (pod(exit_code=137), "lost", True),  # killed from outside, nobody says why
        (pod(exit_code=143, deleted=NOW), "lost", False),  # it was asked to end
        (pod(waits="ContainerCreating", deleted=NOW), "lost", False),  # ended before the kubelet could say how
        (pod(reason="Evicted", message="low on memory"), "lost", True),
        (pod(reason="Preempting"), "lost", False),
        (pod(reason="NodeLost"), "lost", True),
        (pod(exit_code=143, disrupted="PreemptionByScheduler"), "lost", False),
        (pod(exit_code=137, disrupted="TerminationByKubelet"), "lost", True),
        (pod(exit_code=137, reason="DeadlineExceeded"), "failed", False),
    ],
)
def test_verdict(given, kind, node_s_fault):
    found = verdict(given)
    assert (found.kind, found.node_s_fault) == (kind, node_s_fault)


def test_kubernetes_own_words_are_told():
    assert verdict(pod(reason="Evicted", message="low on memory", exit_code=137)).why == (
        "Evicted: low on memory; Error, exit code 137"
    )
    assert verdict(pod("Pending", waits="ImagePullBackOff")).why == "ImagePullBackOff"


def test_a_node_is_avoided_after_the_second_loss_by_its_fault():
    once = {"host": "a", "node_s_fault": True}
    assert avoided([once, {"host": "b", "node_s_fault": True}, {"host": "a", "node_s_fault": False}]) == []
    assert avoided([once, once, {"host": "b", "node_s_fault": True}]) == ["a"]


def test_what_has_not_begun():
    assert never_ran(pod("Pending", waits="ContainerCreating"))
    assert not never_ran(pod("Running"))


def test_how_long_a_deleted_pod_is_overdue():
    assert overdue_s(pod(deleted=NOW), NOW + timedelta(seconds=90)) == 90
    assert overdue_s(pod(), NOW) == 0
