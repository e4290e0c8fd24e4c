"""One training on several nodes by the two controllers' ways: Kubeflow's variables for torchrun, and Ray Train."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

import pytest

pytest.importorskip("airflow.providers.cncf.kubernetes")

from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import Interpreter
from airflow_ml_provider.stages.train.spec import Launch

pytestmark = pytest.mark.filterwarnings("ignore::Warning")  # the Kubernetes provider's own

INFO = RunInfo("dag", "task", "run", interval=Interval.from_key("2013-01-05"), reason="schedule")
SMALL = {"epochs": 1, "batch_size": 1024, "hidden": [8]}
RAY = os.environ.get("ML_PROVIDER_RAY_PYTHON", "")


@pytest.fixture
def training(task, spec, flights):
    """Make a task that trains on two nodes."""

    def make(controller, **settings):
        rows = str(flights.uri).rpartition("/")[0]
        volumes = {rows: rows, **settings.pop("volumes", {})}
        here = task(controller=controller, volumes=volumes, start_s=200, **settings)
        output = str(here.folder / "models")
        return here, spec(output=output, engine="torch", params=SMALL, launch=Launch(nodes=2))

    return make


def alone(here, work):
    """Return the digest of the model that two processes of this machine make."""
    other = replace(work, output=str(here.folder / "others"), launch=Launch(processes=2))
    return Interpreter(here.pod.python).call(other, INFO, {}).model.digest


def test_two_nodes_of_a_train_job_train_the_model_of_two_processes(training, controllers):
    """The stand-in gives the pods the variables and names that Kubeflow does."""
    controllers()
    here, work = training("trainjob")
    deferred = here.begin(here.given(work))
    (job,) = here.jobs()
    assert job["spec"]["trainer"]["numNodes"] == 2
    value = here.end(deferred, here.given(work))
    assert value["model"]["digest"] == alone(here, work)


def test_two_nodes_of_a_real_ray_cluster(training, controllers):
    """Head, worker and submitter are pods with the real Ray; only KubeRay is not."""
    if not RAY or subprocess.run([RAY, "-c", "import ray.train.torch, ray.job_submission"]).returncode:
        pytest.skip("no Python with ray[default,train]; set ML_PROVIDER_RAY_PYTHON to one in a virtual environment")
    controllers()
    home = os.path.dirname(os.path.dirname(RAY))
    path = f"{home}/bin:/usr/local/bin:/usr/bin:/bin"
    env = {"PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    here, work = training("rayjob", python=RAY, env=env, volumes={home: home}, shm_gib=1)
    value = here.end(here.begin(here.given(work)), here.given(work))
    assert value["model"]["digest"] == alone(here, work)
