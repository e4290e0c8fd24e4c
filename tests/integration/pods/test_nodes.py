"""One training on several pods of a real cluster: the same model, lost pods replaced, nothing left behind."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

pytest.importorskip("airflow.providers.cncf.kubernetes")
pytest.importorskip("duckdb")

from airflow.sdk.exceptions import TaskDeferred

from airflow_ml_provider.exceptions import SpecError, StageCrashed, StageFailed
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import Interpreter
from airflow_ml_provider.stages.train.spec import Function, Launch

pytestmark = pytest.mark.filterwarnings("ignore::Warning")  # the Kubernetes provider's own

SMALL = {"epochs": 2, "batch_size": 1024, "hidden": [8]}
INFO = RunInfo("dag", "task", "run", interval=Interval.from_key("2013-01-05"), reason="schedule")


@pytest.fixture
def training(task, spec, flights):
    """Make a task and a training for it."""

    def make(launch, params=SMALL, pod=None, **changes):
        source = str(flights.uri)
        here = task(poll_s=1, **{**(pod or {}), "volumes": {source.rpartition("/")[0]: source.rpartition("/")[0]}})
        work = spec(output=str(here.folder / "models"), engine="torch", params=params, launch=launch)
        return here, replace(work, **changes)

    return make


def alone(here, work, tmp_path):
    """Return the digest of the model that as many ranks make, undisturbed, as processes of this machine."""
    launch = replace(work.launch, nodes=1, processes=work.launch.ranks)
    result = Interpreter(here.pod.python).call(replace(work, output=str(tmp_path / "others"), launch=launch), INFO, {})
    return result.model.digest


def names(here):
    return sorted(
        pod["spec"].get("hostname", "") for pod in here.pods() if pod["metadata"]["name"].startswith("ml-given")
    )


def test_two_pods_train_the_model_of_two_processes(training, tmp_path, capsys):
    here, work = slowly(training, Launch(nodes=2), steps=40, pause_s=0)
    deferred = here.begin(here.given(work))
    first, second = names(here)
    assert first == "node-000"
    assert second.startswith("node-001-")
    assert [one["spec"]["clusterIP"] for one in here.cluster.get("services") if "ml-" in one["metadata"]["name"]] == [
        "None"
    ]
    value = here.end(deferred, here.given(work))
    said = capsys.readouterr().out
    assert "[rank 0] " in said
    assert "[rank 1] " not in said
    assert value["model"]["digest"] == alone(here, work, tmp_path)


SLOWLY = """
def fit(run, steps: int, pause_s: float):
    import time
    import torch

    torch.manual_seed(run.seed)
    net = torch.nn.Sequential(torch.nn.Linear(len(run.features), 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    model = run.parallel(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    rows, labels = map(torch.from_numpy, run.train.numpy())
    step, found = 0, run.resume()
    if found:
        step = found["step"]
        net.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
    batches = run.batches(0, 256)
    while step < steps:
        chosen = torch.from_numpy(batches[step % len(batches)])
        optimizer.zero_grad()
        logits = model(rows[chosen]).squeeze(1) + 0 * torch.randn(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[chosen])
        loss.backward()
        optimizer.step()
        step += 1
        time.sleep(pause_s)
        if run.due(step, 10):
            run.snapshot(step, model=net, optimizer=optimizer)
        if step == 3:
            print("here we go", flush=True)
    return net
"""
FAILING = """
def fit(run):
    import torch
    from torch import distributed

    if run.rank == 1:
        raise ArithmeticError("rank one can go no further")
    distributed.all_reduce(torch.ones(1))
"""


def slowly(training, launch, steps=200, pause_s=0.05, **pod):
    function = Function("fit", SLOWLY, {"steps": steps, "pause_s": pause_s})
    return training(launch, params={}, engine="function", function=function, pod=pod)


def node(here, number):
    pods = [pod for pod in here.pods() if pod["metadata"]["labels"]["airflow-ml/node"] == str(number)]
    return pods[0]["metadata"]["name"]


def printed(here):
    return here.cluster.log(node(here, 0))


def newest(here):
    return max((int(path.name[5:]) for path in here.folder.glob("models/*/*/snapshots/step=*")), default=0)


def test_any_pod_may_be_killed_at_any_step_five_times(training, tmp_path, wait):
    """And the model is the one of a training that nobody disturbed."""
    here, work = slowly(training, Launch(nodes=2, snapshot_every=10), replacements=5)
    deferred, chance = here.begin(here.given(work)), random.SystemRandom()
    victims = []
    for kill in range(5):
        seen = newest(here)
        wait(lambda seen=seen: newest(here) >= seen + chance.randrange(10, 30), 120, "no progress")
        victim = chance.choice([0, 1]) if kill else 0
        here.cluster.kubectl("delete", "pod", node(here, victim), "--grace-period=0", "--force")
        victims.append(victim)
        with pytest.raises(TaskDeferred) as again:
            here.go_on(deferred, here.given(work))
        deferred = again.value
    value = here.end(deferred, here.given(work))
    assert value["resumed_from"], victims
    assert value["model"]["digest"] == alone(here, work, tmp_path), victims


@pytest.mark.parametrize("launch", [Launch(nodes=2, snapshot_every=1000), Launch(processes=2, snapshot_every=1000)])
def test_a_pod_that_is_asked_to_end_takes_a_last_snapshot(training, tmp_path, wait, launch):
    """As before a preemption; no other snapshot is due, so without it training would begin anew."""
    here, work = slowly(training, launch)
    deferred = here.begin(here.given(work))
    wait(lambda: "[rank 0] here we go" in printed(here), 60, "no rank prints")
    here.cluster.kubectl("delete", "pod", node(here, launch.span[1] - 1), "--wait=false")
    wait(lambda: newest(here), 60, "no snapshot")
    value = here.end(deferred, here.given(work))
    assert 0 < value["resumed_from"] < 200
    assert value["model"]["digest"] == alone(here, work, tmp_path)


def test_the_error_of_the_rank_that_failed_first_is_told(training):
    function = Function("fit", FAILING)
    here, work = training(Launch(nodes=2), params={}, engine="function", function=function)
    with pytest.raises(StageFailed, match=r"(?s)^rank 1: ArithmeticError: .*raise Arithmetic") as told:
        here.end(here.begin(here.given(work)), here.given(work))
    assert "rank 0" not in str(told.value)
    assert str(told.value).count("Traceback") == 1


def test_training_goes_on_with_fewer_pods_when_it_may(training, wait):
    launch = Launch(nodes="1:2", snapshot_every=10)
    here, work = slowly(training, launch, replacements=0)
    deferred = here.begin(here.given(work))
    wait(lambda: newest(here) >= 20, 120, "no progress")
    here.cluster.kubectl("delete", "pod", node(here, 1), "--grace-period=0", "--force")
    assert here.end(deferred, here.given(work))["status"] == "ok"


def test_a_pod_for_which_there_is_no_place_is_done_without(training, capsys):
    here, work = training(Launch(nodes="1:2"), pod={"cpu": 1.1, "start_s": 20})
    assert here.end(here.begin(here.given(work)), here.given(work))["status"] == "ok"
    assert "found no place and is done without: Unschedulable" in capsys.readouterr().out


def test_too_few_pods_fail_with_the_scheduler_s_reason(training):
    here, work = training(Launch(nodes=2), pod={"cpu": 1.1, "start_s": 5})
    with pytest.raises(StageCrashed, match="Insufficient cpu"):
        here.end(here.begin(here.given(work)), here.given(work))


def test_a_retry_goes_on_with_all_pods(training):
    here, work = slowly(training, Launch(nodes=2, snapshot_every=10), steps=100)
    here.begin(here.given(work))
    first = {pod["metadata"]["uid"] for pod in here.pods()}
    deferred = here.begin(here.given(work), try_number=2)
    assert {pod["metadata"]["uid"] for pod in here.pods()} == first
    assert here.end(deferred, here.given(work), try_number=2)["status"] == "ok"


def test_several_pods_need_pods(training):
    here, work = training(Launch(nodes=2))
    with pytest.raises(SpecError, match=r"launch\.nodes 2 needs pods"):
        Interpreter(here.pod.python).call(work, INFO, {})
