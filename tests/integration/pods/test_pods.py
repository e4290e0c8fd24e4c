"""Stages in pods on a real cluster: the same result, clear ends, re-attached, nothing left behind."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("airflow.providers.cncf.kubernetes")
pytest.importorskip("duckdb")

from airflow.sdk.exceptions import AirflowFailException, AirflowTaskTimeout, TaskDeferred

from airflow_ml_provider.exceptions import StageCrashed, Unavailable
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import InProcess, Interpreter
from airflow_ml_provider.stages.train.spec import Launch
from airflow_ml_provider.testing.context import context

# What importing duckdb, hence the ingest stage, does.
SLOW = "import time\nfor i in range(600):\n    print('tick', i, flush=True)\n    time.sleep(0.1)\n"
GREEDY = "kept = bytearray(400 * 2**20)\n"
TELLING = "import os\nprint('SETTING is', os.environ['SETTING'], flush=True)\nimport time\ntime.sleep(60)\n"
# The warnings are the Kubernetes provider's own.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")


DAY = Interval.from_key("2013-01-05")


def digests(value: dict) -> dict[str, str]:
    return {ref["name"]: ref["digest"] for ref in value["outputs"]}


def uid(pod: dict) -> str:
    return pod["metadata"]["uid"]


def test_the_result_is_that_of_the_task_s_own_process(task):
    here = task()
    value = here.run()
    assert not here.pods()
    assert not list((here.folder / "exchange" / "calls").iterdir())
    alone = here.operator(runtime=InProcess()).execute(context(DAY))
    assert digests(value) == digests(alone)
    assert value["status"] == alone["status"] == "ok"


def test_the_pod_is_as_it_was_asked_for(task, modules):
    here = task(
        cpu=0.2, memory_gib=0.25, shm_gib=0.125, env={"PLAIN": "p"}, pythonpath=(modules(SLOW),),
        pod_template={"spec": {"terminationGracePeriodSeconds": 3, "tolerations": [{"operator": "Exists"}]}},
    )  # fmt: skip
    operator = here.operator()
    here.begin(operator)
    (pod,) = here.pods()
    (container,) = pod["spec"]["containers"]
    quantities = {"cpu": "200m", "memory": "256Mi"}
    assert container["resources"] == {"limits": quantities, "requests": quantities}
    assert {"name": "PLAIN", "value": "p"} in container["env"]
    shm = next(volume["emptyDir"] for volume in pod["spec"]["volumes"] if volume["name"] == "ml-shm")
    assert shm == {"medium": "Memory", "sizeLimit": "128Mi"}
    assert {"operator": "Exists"} in pod["spec"]["tolerations"]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 3
    here.running()
    sizes = here.cluster.kubectl("exec", pod["metadata"]["name"], "--", "df", "--output=size", "/dev/shm")
    assert int(sizes.split()[-1]) > 64 * 1024  # KiB; what a pod has by default
    operator.on_kill()


def test_connection_settings_are_in_a_secret_that_the_pod_owns(task, modules, wait):
    here = task(pythonpath=(modules(TELLING),))
    operator = here.operator(connected=True)
    here.begin(operator)
    pod = here.running()
    wait(lambda: "SETTING is s3cret" in here.cluster.log(pod["metadata"]["name"]), 60)
    (secret,) = (s for s in here.cluster.get("secrets") if s["metadata"]["name"].startswith("ml-"))
    assert secret["metadata"]["ownerReferences"][0]["uid"] == uid(pod)
    assert "s3cret" not in json.dumps(pod)
    assert not [p for p in (here.folder / "exchange").rglob("*.json") if "s3cret" in p.read_text()]
    operator.on_kill()


def test_what_emits_lineage_in_the_pod_is_told_its_parent(task, modules, monkeypatch):
    parent = {"OPENLINEAGE_PARENT_ID": "space/dag.task/0"}, {"OPENLINEAGE__TRANSPORT": "s3cret"}
    monkeypatch.setattr("airflow_ml_provider.operators._calls.parent_environment", lambda _: parent)
    here = task(pythonpath=(modules(SLOW),))
    operator = here.operator()
    here.begin(operator)
    (pod,) = here.pods()
    assert {"name": "OPENLINEAGE_PARENT_ID", "value": "space/dag.task/0"} in pod["spec"]["containers"][0]["env"]
    assert "s3cret" not in json.dumps(pod)
    (secret,) = (s for s in here.cluster.get("secrets") if s["metadata"]["name"].startswith("ml-"))
    assert set(secret["data"]) == {"OPENLINEAGE__TRANSPORT"}
    operator.on_kill()


def test_an_error_of_the_stage_is_raised_as_in_process(task):
    here = task()
    (here.folder / "a.csv").write_text("something\nelse\n")
    deferred = here.begin()
    with pytest.raises(AirflowFailException, match="column"):
        here.end(deferred)


def test_what_exceeds_its_memory_is_replaced_and_then_says_so(task, modules):
    here = task(memory_gib=0.125, pythonpath=(modules(GREEDY),), replacements=1)
    told = r"'ingest' ended without a result: OOMKilled, exit code 137; 1 pods were replaced before"
    with pytest.raises(StageCrashed, match=told):
        here.run()


def test_a_pod_that_is_deleted_is_replaced_without_a_retry(task, modules):
    here = task(pythonpath=(modules(SLOW.replace("600", "30")),))
    deferred = here.begin(here.operator(connected=True))
    first = here.running()
    here.cluster.kubectl("delete", "pod", first["metadata"]["name"], "--grace-period=0", "--force")
    with pytest.raises(TaskDeferred) as again:
        here.go_on(deferred, here.operator(connected=True))
    assert uid(here.running()) != uid(first)
    assert here.end(again.value, here.operator(connected=True))["status"] == "ok"


def test_a_program_that_fails_is_not_replaced(task, modules):
    here = task(pythonpath=(modules("import os\nprint('so long', flush=True)\nos._exit(3)\n"),))
    with pytest.raises(StageCrashed, match=r"Error, exit code 3$"):
        here.run()


def test_a_task_whose_time_is_over_leaves_nothing(task, modules, wait):
    here = task(pythonpath=(modules(SLOW),))
    operator = here.operator()
    operator.execution_timeout = timedelta(seconds=6)
    deferred = here.begin(operator)
    here.running()
    with pytest.raises(AirflowTaskTimeout, match="stage 'ingest' took longer than 0:00:06"):
        here.end(deferred, operator)
    wait(lambda: not here.cluster.left(), 60)


def test_a_result_of_two_megabytes(task, modules):
    telling = (
        "from dataclasses import replace\n"
        "from airflow_ml_provider import codec\n"
        "encode = codec.encode\n"
        "def wordy(value):\n"
        "    return encode(replace(value, reason='long ' * 400_000) if hasattr(value, 'reason') else value)\n"
        "codec.encode = wordy\n"
    )
    value = task(pythonpath=(modules(telling),)).run()
    assert value["reason"] == "long " * 400_000


def test_what_the_pod_prints_is_in_the_log(task, modules, capsys):
    here = task(pythonpath=(modules(SLOW.replace("600", "50")),), log_every_s=2)
    here.run()
    said = capsys.readouterr().out
    assert all(said.count(f"tick {i} ") + said.count(f"tick {i}\x1b") == 1 for i in (0, 20, 49)), said


def test_a_pod_that_never_fits_fails_with_the_scheduler_s_reason(task):
    here = task(cpu=1000, start_s=4)
    with pytest.raises(StageCrashed, match="Insufficient cpu"):
        here.run()


def test_an_image_that_is_not_there(task):
    here = task(image="localhost/nothing:1", start_s=15)
    with pytest.raises(StageCrashed, match="localhost/nothing:1"):
        here.run()


def test_a_retry_goes_on_with_the_pod_that_an_earlier_try_has_started(task, modules):
    """The worker was killed after it had started the pod; no second one is ever created."""
    here = task(pythonpath=(modules(SLOW.replace("600", "40")),))
    here.begin(here.operator(connected=True))
    first = here.running()
    operator = here.operator(connected=True)
    deferred = here.begin(operator, try_number=2)
    assert [uid(pod) for pod in here.pods()] == [uid(first)]
    assert here.end(deferred, here.operator(connected=True), try_number=2)["status"] == "ok"


def test_a_cluster_that_stumbles_costs_no_pod_as_long_as_there_is_a_further_try(task, modules, wait, monkeypatch):
    from kubernetes.client import ApiException, CoreV1Api

    def stumble(*_, **__):
        raise ApiException(500, "stumbled")

    here = task(pythonpath=(modules(SLOW),))
    deferred = here.begin(here.operator(connected=True), max_tries=2)
    first = here.running()
    event = {**deferred.trigger.serialize()[1], "status": "error", "message": "away for long", "logged": ""}
    with pytest.raises(Unavailable, match="away for long"):
        here.operator(connected=True).collect(context(DAY, max_tries=2), event)
    with monkeypatch.context() as patch:
        patch.setattr(CoreV1Api, "create_namespaced_secret", stumble)
        with pytest.raises(Unavailable, match="500 stumbled"):
            here.begin(here.operator(connected=True), try_number=2, max_tries=2)
    assert [uid(pod) for pod in here.pods()] == [uid(first)]
    with pytest.raises(Unavailable, match="away for long"):
        here.operator(connected=True).collect(context(DAY, try_number=3, max_tries=2), event)
    wait(lambda: not here.cluster.left(), 60)


def test_a_result_that_nobody_took_is_taken_by_the_next_try(task, wait):
    here = task()
    here.begin()
    wait(lambda: here.pods()[0]["status"]["phase"] == "Succeeded", 60)
    assert here.operator().execute(context(DAY, try_number=2))["status"] == "ok"


def test_a_cleared_task_does_not_go_on_with_the_pod_from_before(task, modules, wait):
    here = task(pythonpath=(modules(SLOW),))
    here.begin()
    old = here.running()
    operator = here.operator()
    here.begin(operator, cleared=True)
    wait(lambda: uid(old) not in [uid(pod) for pod in here.pods()], 60)
    assert len(here.pods()) == 1
    operator.on_kill()


def test_a_killed_task_leaves_nothing(task, modules, wait):
    here = task(pythonpath=(modules(SLOW),))
    operator = here.operator(connected=True)
    here.begin(operator)
    here.running()
    operator.on_kill()
    wait(lambda: not here.cluster.left(), 60)


def test_a_triggerer_tells_of_a_task_that_was_marked_failed(task, modules, wait):
    """In deferred state the trigger's `on_kill` is what Airflow calls."""
    here = task(pythonpath=(modules(SLOW),))
    deferred = here.begin(here.operator(connected=True))
    here.running()
    asyncio.run(deferred.trigger.on_kill())
    wait(lambda: not here.cluster.left(), 60)


def test_a_cluster_that_refuses_or_is_away(task, away, monkeypatch):
    elsewhere = task(namespace="nowhere")
    with pytest.raises(AirflowFailException, match='namespaces "nowhere" not found'):
        elsewhere.begin()
    here = task()
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", away)
    with pytest.raises(Unavailable, match="'kubernetes_default' does not answer"):
        here.begin()


def test_a_folder_that_the_pod_does_not_see(task):
    elsewhere, nowhere = task(exchange="/somewhere/else"), task(exchange="")
    with pytest.raises(AirflowFailException, match="is below none of the pod's volumes"):
        elsewhere.begin()
    with pytest.raises(AirflowFailException, match=r"set exchange of Pod\(…\)"):
        nowhere.begin()


def test_the_documented_role_is_enough(task, limited, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", limited)
    here = task()
    deferred = here.begin(here.operator(connected=True))
    assert here.end(deferred, here.operator(connected=True))["status"] == "ok"
    operator = here.operator(connected=True)
    here.begin(operator, cleared=True)
    operator.on_kill()
    elsewhere = task(namespace="kube-system")
    with pytest.raises(AirflowFailException, match=r"may not do this in the cluster .403 Forbidden: .*kube-system"):
        elsewhere.begin()


def test_two_ranks_in_one_pod(task, spec, flights_file, tmp_path):
    """The model is that of the same training by another Python on this machine."""
    work = spec(
        engine="torch", params={"epochs": 1, "batch_size": 1024, "hidden": [8]}, launch=Launch(processes=2),
        output=str(tmp_path / "models"),
    )  # fmt: skip
    here = task(volumes={str(flights_file.parent): str(flights_file.parent)})
    value = here.end(here.begin(here.given(work)), here.given(work))
    info = RunInfo("dag", "task", "run", interval=DAY, reason="schedule")
    alone = Interpreter(here.pod.python).call(replace(work, output=str(tmp_path / "others")), info, {})
    assert value["model"]["digest"] == alone.model.digest


def test_the_benchmark_runs(cluster, tmp_path, monkeypatch, capsys):
    path = Path(__file__).parents[3] / "benchmarks" / "pods.py"
    spec = importlib.util.spec_from_file_location("pods_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", "")  # the benchmark sets its own
    benchmark.measure(cluster, tmp_path, 1)
    assert "overhead" in capsys.readouterr().out
