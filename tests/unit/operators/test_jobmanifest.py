"""What becomes of a pod in a TrainJob and in a RayJob."""

from __future__ import annotations

import json
import shlex

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.operators import _jobmanifest
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.runtime import Pod
from airflow_ml_provider.stages.train.spec import Launch, TrainSpec
from airflow_ml_provider.triggers._kinds import KINDS

INFO = RunInfo("d", "t", "r")
LIMITS = {"limits": {"nvidia.com/gpu": "2"}, "requests": {"nvidia.com/gpu": "2"}}


def body(command=("python3",), args=("/x/p.zip", "train", "--spec", "/x/a call.json"), **changes):
    """Return a pod as composing one gives it."""
    container = {
        "name": "base", "image": "i:1", "command": list(command), "args": list(args), "ports": [], "envFrom": [],
        "env": [{"name": "PLAIN", "value": "p"}], "resources": LIMITS, "terminationMessagePolicy": "File",
        "volumeMounts": [{"name": "v", "mountPath": "/x"}],
    }  # fmt: skip
    spec = {
        "affinity": {}, "containers": [container], "hostNetwork": False, "restartPolicy": "Never", "initContainers": [],
        "tolerations": [{"operator": "Exists"}], "volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {},
    }  # fmt: skip
    labels = {"airflow-ml/identity": INFO.identity, "airflow-ml/call": "c1", "mine": "m"}
    meta = {"name": "ml-train-a1b2c3d4", "labels": labels, "annotations": {"n": "o"}}
    return {"metadata": meta, "spec": {**spec, **changes}}


def job(controller, launch=None, pod=None, env=(), **changes):
    spec = TrainSpec(
        name="late", dataset=DatasetRef("rows", "/rows", "sha256:0"), output="/models", engine="torch",
        launch=launch or Launch(),
    )  # fmt: skip
    pod = Pod("i:1", controller=controller, **(pod or {}))
    return _jobmanifest.job(KINDS[controller.partition(":")[0]], body(**changes), spec, pod, INFO, env)


@pytest.mark.parametrize("controller", ["trainjob", "rayjob"])
def test_every_job_is_known_by_task_and_call(controller):
    made = job(controller, pod={"gang": "kueue:ml"})
    assert made["metadata"]["labels"] == {
        "airflow-ml/identity": INFO.identity, "airflow-ml/call": "c1", "kueue.x-k8s.io/queue-name": "ml"
    }  # fmt: skip
    assert json.loads(made["metadata"]["annotations"]["airflow-ml/task"])["task_id"] == "t"
    assert len(made["metadata"]["name"]) <= 47  # KubeRay's limit
    assert made["metadata"]["name"] != job(controller)["metadata"]["name"]


def test_a_train_job_has_the_stage_in_its_trainer_and_the_rest_as_a_patch():
    made = job("trainjob", Launch(processes=2, nodes=3), env=["TOKEN"], activeDeadlineSeconds=9)
    spec, trainer = made["spec"], made["spec"]["trainer"]
    assert (made["apiVersion"], made["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert spec["runtimeRef"] == {"name": "torch-distributed"}
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 2)
    assert (trainer["image"], trainer["command"]) == ("i:1", ["python3"])
    assert trainer["resourcesPerNode"] == LIMITS
    key = {"name": made["metadata"]["name"] + "-env", "key": "TOKEN"}
    assert {"name": "TOKEN", "valueFrom": {"secretKeyRef": key}} in trainer["env"]
    assert {"name": "PLAIN", "value": "p"} in trainer["env"]
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = node["template"]["spec"]["template"]
    assert node["name"] == "node"
    assert template["spec"] == {
        "tolerations": [{"operator": "Exists"}],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "node", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}],
    }
    assert template["metadata"]["labels"] == {"airflow-ml/identity": INFO.identity, "mine": "m"}
    assert spec["activeDeadlineSeconds"] == 9


@pytest.mark.parametrize(
    ("controller", "reference"),
    [
        ("trainjob:mine", {"name": "mine"}),
        ("trainjob:TrainingRuntime/mine", {"kind": "TrainingRuntime", "name": "mine"}),
    ],
)
def test_the_runtime_of_a_train_job(controller, reference):
    assert job(controller)["spec"]["runtimeRef"] == reference


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"priorityClassName": "high"}, "priorityClassName"),
        ({"hostNetwork": True}, "hostNetwork"),
        ({"containers": [*body()["spec"]["containers"], {"name": "side"}]}, "containers.side"),
        ({"containers": [{**body()["spec"]["containers"][0], "imagePullPolicy": "Always"}]}, "base.imagePullPolicy"),
    ],
)
def test_what_a_train_job_has_no_place_for_is_refused(change, told):
    with pytest.raises(SpecError, match=f"no place for .*{told} of the pod_template; put it into the training runtime"):
        job("trainjob", **change)


def test_a_ray_job_has_a_head_that_takes_part_and_workers():
    made = job("rayjob:2.52.0", Launch(processes=2, nodes=3), env=["TOKEN"], priorityClassName="high")
    spec, cluster = made["spec"], made["spec"]["rayClusterSpec"]
    assert (made["apiVersion"], made["kind"]) == ("ray.io/v1", "RayJob")
    assert shlex.split(spec["entrypoint"]) == ["python3", "/x/p.zip", "train", "--spec", "/x/a call.json"]
    assert (spec["shutdownAfterJobFinishes"], spec["submissionMode"]) == (True, "K8sJobMode")
    assert cluster["rayVersion"] == "2.52.0"
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (2, 2, 2)
    for group in (cluster["headGroupSpec"], workers):
        assert group["rayStartParams"] == {"num-cpus": "2"}
        assert group["template"]["spec"]["priorityClassName"] == "high"
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"] == LIMITS
        assert {"name": "AIRFLOW_ML_RAY", "value": "1"} in container["env"]
        assert container["envFrom"] == [{"secretRef": {"name": made["metadata"]["name"] + "-env"}}]
        assert "command" not in container
        assert "args" not in container
    submitter = spec["submitterPodTemplate"]["spec"]
    assert submitter["restartPolicy"] == "Never"
    assert "envFrom" not in submitter["containers"][0]
    assert "nvidia.com/gpu" not in json.dumps(submitter)


def test_a_ray_job_of_one_node_has_no_workers():
    cluster = job("rayjob")["spec"]["rayClusterSpec"]
    assert "workerGroupSpecs" not in cluster
    assert "rayVersion" not in cluster


@pytest.mark.parametrize("path", ["/x/$HOME", "/x/a'b", "/x/a;b", "/x/ä", "/x/a\nb"])
def test_a_path_that_two_shells_would_change_is_refused(path):
    with pytest.raises(SpecError, match="a path of a RayJob must be of letters"):
        job("rayjob", args=(path,))


@pytest.mark.parametrize("controller", ["trainjob", "rayjob"])
def test_the_number_of_nodes_is_fixed(controller):
    with pytest.raises(SpecError, match=r"launch\.nodes must be one number with controller .*, got '1:2'"):
        job(controller, Launch(nodes="1:2"))
