"""What the status of a job says, and when the trigger has something to tell."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from airflow_ml_provider.triggers._kinds import RAY_JOB, TRAIN_JOB, incidents
from airflow_ml_provider.triggers.jobs import JobTrigger

MADE = "2026-01-01T00:00:00Z"
RESUMED = "2026-01-02T00:00:00Z"


def job(status=None, suspend=False, made=MADE, **meta):
    return {"metadata": {"creationTimestamp": made, **meta}, "spec": {"suspend": suspend}, "status": status or {}}


def condition(kind, status="True", reason="R", message="m"):
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": RESUMED}


def counts(ready, succeeded=0):
    return [{"name": "node", "ready": ready, "succeeded": succeeded, "active": 1, "failed": 0, "suspended": 0}]


def pod(phase="Running", restarts=0, age_s=0, **labels):
    made = datetime(2026, 1, 1, tzinfo=timezone.utc) - timedelta(seconds=age_s)
    marks = {name.replace("_", "/", 1).replace("_", "-"): value for name, value in labels.items()}
    meta = SimpleNamespace(labels=marks, annotations=None, creation_timestamp=made)
    containers = [SimpleNamespace(restart_count=restarts)]
    return SimpleNamespace(metadata=meta, status=SimpleNamespace(phase=phase, container_statuses=containers))


@pytest.mark.parametrize(
    ("kind", "body", "phase", "why"),
    [
        (TRAIN_JOB, job(), "waits", ""),
        (TRAIN_JOB, job(suspend=True), "suspended", ""),
        (TRAIN_JOB, job({"conditions": [condition("Suspended")]}), "suspended", "R: m"),
        (TRAIN_JOB, job({"conditions": [condition("Suspended", "False")], "jobsStatus": counts(0)}), "waits", ""),
        (TRAIN_JOB, job({"jobsStatus": counts(1)}), "runs", ""),
        (TRAIN_JOB, job({"jobsStatus": counts(0, 1)}), "runs", ""),
        (TRAIN_JOB, job({"conditions": [condition("Suspended", "False"), condition("Complete")]}), "done", "R: m"),
        (TRAIN_JOB, job({"conditions": [condition("Failed")]}, suspend=True), "failed", "R: m"),
        (RAY_JOB, job(), "waits", ""),
        (RAY_JOB, job(suspend=True), "suspended", ""),
        (RAY_JOB, job({"jobDeploymentStatus": "Initializing"}), "waits", ""),
        (RAY_JOB, job({"jobDeploymentStatus": "Suspended"}), "suspended", ""),
        (RAY_JOB, job({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}), "runs", ""),
        (RAY_JOB, job({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}), "done", ""),
        (
            RAY_JOB,
            job({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}),
            "failed",
            "the Ray job was stopped",
        ),
        (
            RAY_JOB,
            job({"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "m"}),
            "failed",
            "AppFailed: m",
        ),
        (RAY_JOB, job({"jobDeploymentStatus": "ValidationFailed", "message": "m"}), "failed", "m"),
    ],
)
def test_states(kind, body, phase, why):
    state = kind.state(body)
    assert (state.phase, state.why) == (phase, why)


def test_the_time_to_start_counts_from_the_last_resumption():
    body = job({"conditions": [condition("Suspended", "False")]})
    assert TRAIN_JOB.state(body).since == datetime(2026, 1, 2, tzinfo=timezone.utc)
    assert RAY_JOB.state(job({"startTime": RESUMED})).since == datetime(2026, 1, 2, tzinfo=timezone.utc)


def test_the_pod_with_the_log():
    index = "batch.kubernetes.io_job_completion_index"
    second, old, new = pod(**{index: "1"}), pod(age_s=9, **{index: "0"}), pod(**{index: "0"})
    for one, label in ((second, "1"), (old, "0"), (new, "0")):
        one.metadata.labels = {"batch.kubernetes.io/job-completion-index": label}
    assert TRAIN_JOB.first([second, old, new]) is new
    assert TRAIN_JOB.first([pod("Pending")]) is None
    head, submitter = pod(), pod()
    head.metadata.labels = {"ray.io/node-type": "head"}
    assert RAY_JOB.first([head, submitter]) is submitter


def test_incidents_are_failures_and_restarts():
    assert incidents([pod(), pod(restarts=2), pod("Failed")]) == 3
    assert incidents([]) == 0


def trigger(**changes):
    start = {"kind": "trainjob", "name": "j", "uid": "u", "namespace": "n", "identity": "i", "conn_id": "c"}
    return JobTrigger(**{**start, **changes})


def test_it_is_made_again_as_it_was():
    path, arguments = trigger(incidents=2, deadline=1.5).serialize()
    assert path == "airflow_ml_provider.triggers.jobs.JobTrigger"
    assert JobTrigger(**arguments).serialize() == (path, arguments)


def now(**age):
    return (datetime.now(timezone.utc) - timedelta(**age)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("body", "pods", "told"),
    [
        (None, [], "changed"),
        (job(deletionTimestamp=MADE), [], "changed"),
        (job({"conditions": [condition("Complete")]}), [], "changed"),
        (job({"jobsStatus": counts(1)}), [pod(restarts=1)], "changed"),
        (job({"jobsStatus": counts(1)}), [pod()], ""),
        (job(made=now(hours=1)), [], "late"),
        (job(made=now(hours=-1)), [], ""),  # of a clock that is ahead
        (job(suspend=True), [], ""),
    ],
)
def test_what_there_is_to_tell(body, pods, told):
    assert trigger(start_s=60)._judge(body, pods) == told


def test_a_failure_that_is_known_is_not_told_again():
    assert trigger(incidents=1)._judge(job({"jobsStatus": counts(1)}), [pod(restarts=1)]) == ""


def test_a_job_that_lost_its_pods_has_its_time_to_start_again():
    one = trigger(start_s=60)
    assert one._judge(job({"jobsStatus": counts(1)}), []) == ""
    assert one._judge(job({"jobsStatus": counts(0)}), []) == ""


def test_the_time_of_the_task_counts_even_when_it_is_suspended():
    assert trigger(deadline=1.0)._judge(job(suspend=True), []) == "timeout"
