"""Graphs of services and large language models on a real API server with KServe's real definitions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.hooks._objects import KServeObjects
from airflow_ml_provider.operators.kserve import KServeOperator
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.kserve.abilities import Abilities
from airflow_ml_provider.stages.deploy.kserve.graph import Graph, Node, Step
from airflow_ml_provider.stages.deploy.kserve.llm import LLM, Parallelism, Routes
from airflow_ml_provider.stages.deploy.kserve.objects import manifest, same
from airflow_ml_provider.stages.deploy.place import KServe
from airflow_ml_provider.stages.deploy.server import Placement, Scaling
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.tasks import run

GRAPH = Graph({"root": Node("ensemble", (Step("late", name="late"), Step("fare", name="fare", required=False)))})
FULL = Graph(
    {
        "root": Node("switch", (Step(node="cascade", condition="carrier"), Step("late", condition="hour"))),
        "cascade": Node("sequence", (Step("quick"), Step(node="split", condition="unsure", data="response"))),
        "split": Node("split", (Step("slow", weight=90), Step(url="http://other/v2/models/x/infer", weight=10))),
    },
    replicas=(2, 4), cpu=0.5, memory_gib=1, timeout_s=2.5, service_account="router",
    placement=Placement({"pool": "small"}, ({"key": "small", "operator": "Exists"},)),
)  # fmt: skip
MODEL = ModelRef("chat", "s3://models/chat/7", "sha256:7")
CHAT = LLM(MODEL, gpus=0)
LARGE = LLM(
    MODEL, gpus=8, parallelism=Parallelism(tensor=4, data=8, data_local=2, expert=True), served_name="chat",
    replicas=(1, 3), scaling=Scaling(by="keda", metric="query", target=5, query="q", address="http://p:9090"),
    args=("--max-model-len=8192",), env={"A": "1"}, adapters={"legal": "hf://us/legal"}, image="vllm:1",
    routes=Routes("gateways/public"), configs=("ours",), placement=Placement({"pool": "gpu"}), service_account="reader",
    cpu=16, memory_gib=64, template={"tracing": {"sampler": "always_on"}},
)  # fmt: skip


@pytest.mark.parametrize("where", [Abilities(), Abilities(shape="serverless")], ids=lambda one: one.shape)
@pytest.mark.parametrize("wanted", [GRAPH, FULL, CHAT, LARGE], ids=["graph", "full graph", "llm", "large llm"])
def test_accepted(cluster: Any, definitions: None, where: Abilities, wanted: Any) -> None:
    """All that is rendered is taken by the server, and nothing is dropped from it."""
    made = manifest("one", wanted, where)
    found = json.loads(cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(made)))
    assert same(made, found)


def operator(wanted: Any, **settings: Any) -> KServeOperator:
    place = {"kserve": {"mode": "standard"}}
    return KServeOperator(task_id="apply", service="one", place=place, wanted=wanted, poll_s=0.2, wait_s=90, **settings)


@pytest.mark.parametrize(
    ("wanted", "changed"),
    [(GRAPH, replace(GRAPH, timeout_s=5)), (CHAT, replace(CHAT, args=("--max-model-len=1",)))],
    ids=["graph", "llm"],
)
def test_from_first_to_last(
    hook: Callable[..., Any], kserve: Callable[..., Any], limited: str, cluster: Any,
    wait: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, wanted: Any, changed: Any,
) -> None:  # fmt: skip
    """Made, the same again, changed (the old pods do not count), and removed, with the rights of the documentation."""
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", limited)
    controller = kserve()
    kind = f"{wanted.plural}.serving.kserve.io"
    told = run(operator(wanted), context())
    assert told["links"]["service"].startswith("http://one-")
    (made,) = cluster.get(kind)

    assert operator(wanted).execute(context())["links"] == told["links"]
    assert cluster.get(kind)[0]["metadata"]["generation"] == made["metadata"]["generation"]

    controller.faults["one"] = "unready"
    with pytest.raises(TaskDeferred):
        operator(changed).execute(context())
    place, old_ones = KServeObjects(KServe(mode="standard")), "1 old ones are left"
    wait(lambda: old_ones in place.state("one", changed)[0].why, 60, place.state("one", changed))
    conditions = {one["type"]: one["status"] for one in cluster.get(kind)[0]["status"]["conditions"]}
    assert conditions["Ready"] == "True"  # the pods before go on answering, and are not taken for the new ones
    controller.faults.clear()
    run(operator(replace(changed, cpu=0.25)), context())

    run(operator(wanted, state="absent"), context())
    assert cluster.get(kind) == []
    with pytest.raises(AirflowSkipException, match="does not exist"):
        run(operator(wanted, state="absent"), context())


def test_not_ours(hook: Callable[..., Any], cluster: Any) -> None:
    foreign = manifest("one", GRAPH, Abilities())
    del foreign["metadata"]["labels"]
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(foreign))
    for state in ("present", "absent"):
        with pytest.raises(AirflowFailException, match="InferenceGraph 'one' is not Airflow's") as told:
            operator(GRAPH, state=state).execute(context())
        assert isinstance(told.value.__cause__, SpecError)
    assert len(cluster.get("inferencegraphs.serving.kserve.io")) == 1
