"""What is written down for the cluster, checked against the schemas of a current Kubernetes."""

from __future__ import annotations

import pytest

pytest.importorskip("airflow.providers.cncf.kubernetes")
pytest.importorskip("kubernetes_validate")

import kubernetes_validate
from kubernetes import client

from airflow_ml_provider.operators import _manifest
from airflow_ml_provider.operators._base import StageOperator
from airflow_ml_provider.operators._exchange import Exchange
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.runtime import Pod
from airflow_ml_provider.stages.train.spec import TrainSpec
from airflow_ml_provider.testing.context import context

INFO = RunInfo("flights", "train", "r1")
TEMPLATE = {
    "spec": {
        "runtimeClassName": "nvidia",
        "priorityClassName": "training",
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "initContainers": [{"name": "warm-up", "image": "i", "command": ["cp", "-r", "/cold", "/data/warm"]}],
        "containers": [{"name": "base", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}],
    }
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return the pod of a node as the API server gets it."""
    monkeypatch.setattr("airflow.providers.cncf.kubernetes.hooks.kubernetes.KubernetesHook.is_in_cluster", False)
    monkeypatch.setattr("airflow.providers.cncf.kubernetes.hooks.kubernetes.KubernetesHook.get_namespace", lambda _: "")

    def make(node=0, nodes=(1, 1), avoid=(), **settings):
        pod = Pod(
            "image", volumes={"/data": "ml-data", "/node": "/mnt/node"}, exchange="/data/exchange",
            namespace="ml", **settings,
        )  # fmt: skip
        exchange = Exchange(tmp_path, INFO)
        exchange.put(TrainSpec(name="n", dataset=DatasetRef(name="d", uri="/d", digest=""), output="/o"))
        body = _manifest.carrier(StageOperator(task_id="train"), pod, exchange, "train").build_pod_request_obj(
            context()
        )
        _manifest.joined(body, node, nodes, pod, INFO)
        _manifest.avoiding(body, avoid)
        _manifest.with_secret(body, "s")
        return validated(body)

    return make


def validated(body):
    data = client.ApiClient().sanitize_for_serialization(body)
    kubernetes_validate.validate(data, kubernetes_validate.latest_version(), strict=True)
    return data


def env(pod):
    return {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]}


def test_everything_that_a_gpu_pod_may_ask_for(written):
    pod = written(
        cpu=8, memory_gib=64, gpus=2, gpu_resource="nvidia.com/mig-3g.40gb", shm_gib=16, pod_template=TEMPLATE,
        env={"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "eth0"},
    )  # fmt: skip
    spec, (base,) = pod["spec"], pod["spec"]["containers"]
    wanted = {"cpu": "8000m", "memory": "65536Mi", "nvidia.com/mig-3g.40gb": "2"}
    assert base["resources"] == {"requests": wanted, "limits": wanted}
    assert base["securityContext"] == {"capabilities": {"add": ["IPC_LOCK"]}}
    assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("nvidia", "training")
    assert spec["nodeSelector"] == {"gpu": "h100"}
    assert [one["name"] for one in spec["initContainers"]] == ["warm-up"]
    assert {"name": "ml-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16384Mi"}} in spec["volumes"]
    assert env(pod)["NCCL_SOCKET_IFNAME"] == "eth0"
    assert spec["restartPolicy"] == "Never"


def test_one_pod_knows_of_no_others(written):
    pod = written()
    assert pod["metadata"]["labels"]["airflow-ml/node"] == "0"
    assert "subdomain" not in pod["spec"]
    assert not [name for name in env(pod) if name.startswith("AIRFLOW_ML_")]


def test_several_pods_meet_at_the_first(written):
    first, second = written(0, (2, 3)), written(1, (2, 3))
    service = f"ml-{INFO.identity}"
    assert (first["spec"]["hostname"], first["spec"]["subdomain"]) == ("node-000", service)
    assert second["spec"]["hostname"] > "node-001-"
    assert env(first)["AIRFLOW_ML_RENDEZVOUS"] == env(second)["AIRFLOW_ML_RENDEZVOUS"] == f"node-000.{service}:29400"
    assert (env(first)["AIRFLOW_ML_NODE"], env(second)["AIRFLOW_ML_NODE"]) == ("0", "1")


def test_a_node_that_failed_is_avoided_where_there_are_others(written):
    (term,) = written(avoid=["bad"])["spec"]["affinity"]["nodeAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    assert term["preference"]["matchExpressions"] == [
        {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["bad"]}
    ]


@pytest.mark.parametrize(
    ("gang", "labels", "annotations", "scheduler"),
    [
        ("", {}, {}, None),
        (
            "kueue:gpus",
            {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/pod-group-name": f"ml-{INFO.identity}"},
            {"kueue.x-k8s.io/pod-group-total-count": "4"}, None,
        ),
        ("volcano:q", {}, {"scheduling.k8s.io/group-name": f"ml-{INFO.identity}"}, "volcano"),
        ("coscheduling", {"scheduling.x-k8s.io/pod-group": f"ml-{INFO.identity}"}, {}, "scheduler-plugins-scheduler"),
    ],
)  # fmt: skip
def test_a_gang_starts_together(written, gang, labels, annotations, scheduler):
    pod = written(1, (4, 4), gang=gang)
    assert pod["metadata"]["labels"].items() >= labels.items()
    assert pod["metadata"]["annotations"].items() >= annotations.items()
    assert pod["spec"].get("schedulerName") == scheduler


@pytest.mark.parametrize(("gang", "version"), [("volcano:q", "scheduling.volcano.sh/v1beta1"), ("kueue:q", None)])
def test_a_gang_scheduler_is_told_how_many_must_start(gang, version):
    owner = client.V1OwnerReference(api_version="v1", kind="Pod", name="p", uid="u")
    group = _manifest.pod_group(Pod("i", gang=gang), INFO, 4, [owner])
    assert (group or {}).get("apiVersion") == version
    if group:
        assert group["spec"] == {"minMember": 4, "queue": "q"}
        assert group["metadata"]["ownerReferences"][0]["uid"] == "u"


def test_the_service_goes_with_the_pods():
    owners = [client.V1OwnerReference(api_version="v1", kind="Pod", name=name, uid=name) for name in "ab"]
    service = validated(_manifest.service(INFO, owners))
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert [owner["uid"] for owner in service["metadata"]["ownerReferences"]] == ["a", "b"]
