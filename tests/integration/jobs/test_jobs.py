"""Stages in TrainJobs and RayJobs on a real API server, whose controllers are stand-ins that make real pods."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

pytest.importorskip("airflow.providers.cncf.kubernetes")
pytest.importorskip("duckdb")

from airflow.sdk.exceptions import AirflowFailException, AirflowTaskTimeout, TaskDeferred

from airflow_ml_provider.exceptions import StageCrashed
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators import _jobmanifest
from airflow_ml_provider.runtime import InProcess
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.tasks import event_of
from airflow_ml_provider.triggers import _kinds

SLOW = "import time\nfor i in range(600):\n    print('tick', i, flush=True)\n    time.sleep(0.1)\n"
TELLING = "import os\nprint('SETTING is', os.environ['SETTING'], flush=True)\nimport time\ntime.sleep(60)\n"
DYING = "import os\nprint('so long', flush=True)\nos._exit(3)\n"
BOTH = pytest.mark.parametrize("controller", ["trainjob", "rayjob"])
# The warnings are the Kubernetes provider's own.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")


def uid(job: dict) -> str:
    return job["metadata"]["uid"]


def digests(value: dict) -> dict[str, str]:
    return {ref["name"]: ref["digest"] for ref in value["outputs"]}


@BOTH
def test_the_result_is_that_of_the_task_s_own_process(task, controllers, controller):
    controllers()
    here = task(controller=controller)
    value = here.run()
    alone = here.operator(runtime=InProcess()).execute(context(Interval.from_key("2013-01-05")))
    assert digests(value) == digests(alone)
    assert value["status"] == alone["status"] == "ok"
    assert not list((here.folder / "exchange" / "calls").iterdir())


@BOTH
def test_an_error_of_the_stage_is_raised_as_in_process(task, controllers, controller):
    """Of a TrainJob whose containers start again when they fail, the first failure is enough."""
    controllers()
    here = task(controller=controller)
    (here.folder / "a.csv").write_text("something\nelse\n")
    with pytest.raises(AirflowFailException, match="column"):
        here.run()


@BOTH
def test_a_failure_without_an_outcome_has_the_controller_s_words(task, controllers, modules, controller, capsys):
    controllers(backoff_limit=0)
    here = task(controller=controller, pythonpath=(modules(DYING),))
    said = {"trainjob": "FailedJobs: jobset failed due to", "rayjob": "AppFailed: Job entrypoint command failed"}
    with pytest.raises(StageCrashed, match=f"stage 'ingest' ended without a result: {said[controller]}"):
        here.run()
    assert "so long" in capsys.readouterr().out


@BOTH
def test_a_job_that_fails_from_outside(task, controllers, modules, controller):
    double = controllers()
    here = task(controller=controller, pythonpath=(modules(SLOW),))
    deferred = here.begin()
    here.running()
    double.fail("the quota is used up")
    with pytest.raises(StageCrashed, match="the quota is used up"):
        here.end(deferred)


def test_a_container_that_starts_again_may_still_succeed(task, controllers, modules):
    """The stage dies without an outcome once; that wakes the task, which waits on."""
    controllers()
    once = "import os, pathlib\nseen = pathlib.Path(__file__).with_name('seen')\nif not seen.exists():\n"
    here = task(pythonpath=(modules(f"{once}    seen.touch()\n    os._exit(3)\n"),))
    assert here.run()["status"] == "ok"


@BOTH
def test_a_suspended_job_is_waited_for(task, controllers, controller, capsys):
    double = controllers(suspended=True)
    here = task(controller=controller, start_s=3)
    deferred = here.begin()
    with pytest.raises(asyncio.TimeoutError):
        event_of(deferred, timeout_s=8)
    assert not here.pods()
    lines = capsys.readouterr().out.splitlines()
    told = [line.partition("is suspended; ")[2] for line in lines if "is suspended; " in line]
    assert told
    assert len(told) == len(set(told)), told  # once, and once more with the controller's words if they come later
    double.resume()
    patient = task(controller=controller)
    assert patient.end(patient.begin(try_number=2))["status"] == "ok"


@BOTH
def test_a_job_that_does_not_start_fails(task, controllers, controller):
    controllers(hold=True)
    with pytest.raises(StageCrashed, match="it does not run after 4 s"):
        task(controller=controller, start_s=4).run()


def test_a_job_whose_pods_find_no_place_says_why(task, controllers):
    controllers()
    with pytest.raises(StageCrashed, match=r"it does not run after 4 s; .*Insufficient cpu"):
        task(cpu=1000, start_s=4).run()


@BOTH
def test_a_job_that_is_deleted_under_the_task(task, controllers, modules, controller):
    controllers()
    here = task(controller=controller, pythonpath=(modules(SLOW),))
    deferred = here.begin()
    here.running()
    kind = {"trainjob": "trainjobs.trainer.kubeflow.org", "rayjob": "rayjobs.ray.io"}[controller]
    here.cluster.kubectl("delete", kind, "--all", "--wait=false")
    with pytest.raises(StageCrashed, match="ended without a result: it was deleted"):
        here.end(deferred)


@BOTH
def test_a_retry_goes_on_with_the_job_of_an_earlier_try(task, controllers, modules, controller):
    """The worker was killed after it had made the job; there is no second one."""
    controllers()
    here = task(controller=controller, pythonpath=(modules(SLOW.replace("600", "40")),))
    here.begin(here.operator(connected=True))
    here.running()
    (first,) = here.jobs()
    deferred = here.begin(here.operator(connected=True), try_number=2)
    assert [uid(job) for job in here.jobs()] == [uid(first)]
    assert here.end(deferred, here.operator(connected=True), try_number=2)["status"] == "ok"


def test_a_result_that_nobody_took_is_taken_by_the_next_try(task, controllers, wait):
    controllers()
    here = task()
    here.begin()
    wait(lambda: [c for c in here.jobs()[0].get("status", {}).get("conditions", ()) if c["type"] == "Complete"], 60)
    assert here.operator().execute(context(Interval.from_key("2013-01-05"), try_number=2))["status"] == "ok"


@BOTH
def test_a_cleared_task_does_not_go_on_with_the_job_from_before(task, controllers, modules, wait, controller):
    controllers()
    here = task(controller=controller, pythonpath=(modules(SLOW),))
    here.begin()
    here.running()
    (old,) = here.jobs()
    operator = here.operator()
    here.begin(operator, cleared=True)
    wait(lambda: uid(old) not in [uid(job) for job in here.jobs()], 60)
    assert len(here.jobs()) == 1
    operator.on_kill()


@BOTH
def test_a_killed_task_leaves_nothing(task, controllers, modules, wait, controller):
    controllers()
    here = task(controller=controller, pythonpath=(modules(SLOW),))
    operator = here.operator(connected=True)
    here.begin(operator)
    here.running()
    operator.on_kill()
    wait(lambda: not here.left(), 120)


@BOTH
def test_a_triggerer_tells_of_a_task_that_was_marked_failed(task, controllers, modules, wait, controller):
    controllers()
    here = task(controller=controller, pythonpath=(modules(SLOW),))
    deferred = here.begin(here.operator(connected=True))
    here.running()
    asyncio.run(deferred.trigger.on_kill())
    wait(lambda: not here.left(), 120)


def test_a_task_whose_time_is_over_leaves_nothing(task, controllers, modules, wait):
    controllers()
    here = task(pythonpath=(modules(SLOW),))
    operator = here.operator()
    operator.execution_timeout = timedelta(seconds=6)
    deferred = here.begin(operator)
    (job,) = here.jobs()
    assert job["spec"]["activeDeadlineSeconds"] == 606
    here.running()
    with pytest.raises(AirflowTaskTimeout, match="stage 'ingest' took longer than 0:00:06"):
        here.end(deferred, operator)
    wait(lambda: not here.left(), 120)


@BOTH
def test_what_the_stage_prints_is_in_the_log(task, controllers, modules, controller, capsys):
    controllers()
    here = task(controller=controller, pythonpath=(modules(SLOW.replace("600", "50")),), log_every_s=2)
    here.run()
    said = capsys.readouterr().out
    assert all(said.count(f"tick {i} ") + said.count(f"tick {i}\x1b") == 1 for i in (0, 20, 49)), said


@BOTH
def test_connection_settings_are_in_a_secret_that_the_job_owns(task, controllers, modules, wait, controller):
    controllers()
    here = task(controller=controller, pythonpath=(modules(TELLING),), log_every_s=0)
    operator = here.operator(connected=True)
    here.begin(operator)
    here.running()
    (job,) = here.jobs()
    (secret,) = (s for s in here.cluster.get("secrets") if s["metadata"]["name"].startswith("ml-"))
    assert secret["metadata"]["ownerReferences"][0]["uid"] == uid(job)

    def told() -> bool:
        pods = [p["metadata"]["name"] for p in here.pods() if p["status"]["phase"] == "Running"]
        return any("SETTING is s3cret" in here.cluster.log(name) for name in pods)

    wait(told, 60)
    assert "s3cret" not in json.dumps(job)
    assert "s3cret" not in json.dumps(here.pods())
    assert not [p for p in (here.folder / "exchange").rglob("*.json") if "s3cret" in p.read_text()]
    operator.on_kill()


@BOTH
def test_the_definition_has_a_place_for_all_that_is_sent(task, monkeypatch, controller):
    """API servers drop what a definition does not know, in silence."""
    sent, real = [], _jobmanifest.job
    monkeypatch.setattr(_jobmanifest, "job", lambda *args: sent.append(real(*args)) or sent[-1])
    template = {
        "metadata": {"labels": {"mine": "m"}},
        "spec": {
            "terminationGracePeriodSeconds": 1, "tolerations": [{"operator": "Exists"}], "nodeSelector": {"a": "b"},
            "serviceAccountName": "default", "securityContext": {"fsGroup": 7}, "imagePullSecrets": [{"name": "s"}],
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "containers": [{"name": "base", "securityContext": {"runAsUser": 0}}],
        },
    }  # fmt: skip
    here = task(controller=controller, cpu=0.1, memory_gib=0.1, gpus=1, shm_gib=0.1, pod_template=template)
    operator = here.operator(connected=True)
    operator.execution_timeout = timedelta(seconds=60)
    here.begin(operator)
    (job,) = here.jobs()
    assert list(missing(sent[0], job)) == []
    operator.on_kill()


def missing(sent: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Give the paths of what was sent and is not kept as it was."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        for name, value in sent.items():
            yield from missing(value, kept.get(name), f"{path}.{name}")
    elif isinstance(sent, list) and isinstance(kept, list) and len(sent) == len(kept):
        for number, (one, other) in enumerate(zip(sent, kept, strict=True)):
            yield from missing(one, other, f"{path}[{number}]")
    elif sent != kept:
        yield f"{path}: {sent!r} is {kept!r}"


def test_a_cluster_without_the_definition_says_what_to_install(task, monkeypatch):
    unknown = replace(_kinds.TRAIN_JOB, version="v9")
    monkeypatch.setitem(_kinds.KINDS, "trainjob", unknown)
    here = task()
    with pytest.raises(
        AirflowFailException, match=r"does not know trainjobs\.trainer\.kubeflow\.org v9: install Kubeflow"
    ):
        here.begin()


@BOTH
def test_the_documented_role_is_enough(task, controllers, limited, monkeypatch, controller):
    controllers()
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", limited)
    here = task(controller=controller)
    deferred = here.begin(here.operator(connected=True))
    assert here.end(deferred, here.operator(connected=True))["status"] == "ok"
    operator = here.operator(connected=True)
    here.begin(operator, cleared=True)
    operator.on_kill()


def test_an_event_that_came_too_late_is_no_reason_to_fail(task, controllers, modules, wait):
    """Between the trigger's look and the worker's, the job has begun to run."""
    controllers()
    here = task(pythonpath=(modules(SLOW.replace("600", "20")),))
    deferred = here.begin()
    wait(lambda: _kinds.TRAIN_JOB.state(here.jobs()[0]).phase == "runs", 120)
    told = {"status": "late", "message": "", "incidents": 0}
    kept = {name: getattr(deferred.trigger, name) for name in ("namespace", "deadline", "logged", "uid")}
    with pytest.raises(TaskDeferred) as again:
        here.operator().collect(context(Interval.from_key("2013-01-05")), {**told, **kept})
    assert here.end(again.value)["status"] == "ok"
