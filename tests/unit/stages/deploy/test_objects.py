"""Graphs of services and large language models: what is asked of KServe, and what has become of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.kserve.abilities import Abilities
from airflow_ml_provider.stages.deploy.kserve.graph import Graph, Node, Step
from airflow_ml_provider.stages.deploy.kserve.llm import LLM, Parallelism, Routes
from airflow_ml_provider.stages.deploy.kserve.objects import encode, manifest, resolve, same, state
from airflow_ml_provider.stages.deploy.kserve.predictor import rendered
from airflow_ml_provider.stages.deploy.kserve.states import Seen
from airflow_ml_provider.stages.deploy.server import Placement, Scaling

STANDARD, SERVERLESS = Abilities(), Abilities(shape="serverless")
PAIR = Graph({"root": Node("ensemble", (Step("late", name="late"), Step("fare", name="fare", required=False)))})
CASCADE = Graph(
    {
        "root": Node("sequence", (Step("quick"), Step(node="sure", condition="unsure", data="response"))),
        "sure": Node("split", (Step("slow", weight=90), Step(url="http://other/v2/models/x/infer", weight=10))),
    },
    replicas=(2, 4), cpu=0.5, placement=Placement({"pool": "small"}), service_account="router",
)  # fmt: skip
QWEN = LLM(uri="hf://Qwen/Qwen3-8B")
QUERY = Scaling(by="keda", metric="query", target=5, query="sum(waiting)", address="http://prometheus:9090")


def to(node: str) -> Node:
    return Node("sequence", (Step(node=node),))


class TestGraph:
    def test_ensemble(self) -> None:
        made = manifest("pair", PAIR, STANDARD)
        assert (made["apiVersion"], made["kind"]) == ("serving.kserve.io/v1alpha1", "InferenceGraph")
        assert made["spec"]["nodes"]["root"] == {
            "routerType": "Ensemble",
            "steps": [
                {"name": "late", "serviceName": "late", "dependency": "Hard"},
                {"name": "fare", "serviceName": "fare", "dependency": "Soft"},
            ],
        }

    def test_cascade(self) -> None:
        spec = manifest("cascade", CASCADE, STANDARD)["spec"]
        assert (spec["minReplicas"], spec["maxReplicas"], spec["resources"]["limits"]) == (2, 4, {"cpu": "500m"})
        assert (spec["nodeSelector"], spec["serviceAccountName"]) == ({"pool": "small"}, "router")
        second = spec["nodes"]["root"]["steps"][1]
        assert (second["nodeName"], second["data"]) == ("sure", "$response")
        assert [one["weight"] for one in spec["nodes"]["sure"]["steps"]] == [90, 10]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Step(), "target of a step must be exactly one of service, node and url"),
            (lambda: Step("a", node="b"), "target of a step must be exactly one"),
            (lambda: Node("sequence", ()), "steps must be one at least"),
            (lambda: Node("split", (Step("a", weight=50), Step("b", weight=40))), "weights must be 100 in all"),
            (lambda: Node("ensemble", (Step("a", weight=50),)), "weights must be left out except in a split"),
            (lambda: Node("switch", (Step("a"),)), "every step of a switch needs a condition"),
            (lambda: Node("sequence", (Step("a", data="response"),)), "data of the first step must be request"),
            (lambda: Node("ensemble", (Step("a", name="x"), Step("b", name="x"))), "names of steps must be different"),
            (lambda: Graph({"one": PAIR.nodes["root"]}), "nodes must be with one named 'root'"),
            (lambda: Graph({"root": Node("sequence", (Step(node="far"),))}), "node of a step must be one of root"),
            (lambda: Graph({"root": to("b"), "b": to("root")}), "the nodes root -> b -> root are a circle"),
            (lambda: Graph({**PAIR.nodes, "lost": to("root")}), r"nodes must be reached from 'root', got \['lost'\]"),
            (lambda: manifest("pair", Graph(PAIR.nodes, (0, 1)), STANDARD), "replicas must be one at least in KServe"),
        ],
    )  # fmt: skip
    def test_refused(self, make: Any, message: str) -> None:
        with pytest.raises(SpecError, match=message):
            make()


class TestLLM:
    def test_one_gpu(self) -> None:
        made = manifest("chat", QWEN, STANDARD)
        assert (made["apiVersion"], made["kind"]) == ("serving.kserve.io/v1alpha2", "LLMInferenceService")
        spec = made["spec"]
        assert spec["model"] == {"uri": "hf://Qwen/Qwen3-8B"}
        assert (spec["replicas"], spec["router"]) == (1, {"route": {}, "gateway": {}, "scheduler": {}})
        (container,) = spec["template"]["containers"]
        assert container["name"] == "main"
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
        assert spec["annotations"]["airflow-ml/rendered"] == rendered(made["metadata"])

    def test_many_gpus(self) -> None:
        model = ModelRef("chat", "s3://models/chat/7", "sha256:7")
        large = LLM(
            model, gpus=8, parallelism=Parallelism(tensor=4, data=8, data_local=2, expert=True),
            served_name="chat", replicas=(1, 3), scaling=QUERY, args=("--max-model-len=8192", "--trust-nobody"),
            adapters={"legal": "hf://us/legal"}, routes=Routes("gateways/public", scheduler=False), configs=("ours",),
            template={"tracing": {}, "template": {"containers": [{"name": "main", "imagePullPolicy": "Always"}]}},
        )  # fmt: skip
        spec = manifest("chat", large, STANDARD)["spec"]
        assert spec["model"]["uri"] == "s3://models/chat/7"
        assert spec["model"]["lora"] == {"adapters": [{"name": "legal", "uri": "hf://us/legal"}]}
        assert spec["parallelism"] == {"tensor": 4, "expert": True, "data": 8, "dataLocal": 2}
        assert spec["worker"]["containers"][0]["resources"]["requests"] == {"nvidia.com/gpu": "8"}
        assert spec["router"]["gateway"] == {"refs": [{"name": "public", "namespace": "gateways"}]}
        assert "replicas" not in spec
        assert spec["scaling"]["keda"]["triggers"][0]["metadata"]["threshold"] == "5"
        assert spec["template"]["containers"][0]["imagePullPolicy"] == "Always"
        assert spec["template"]["containers"][0]["env"][0]["value"] == "--max-model-len=8192 --trust-nobody"
        assert spec["annotations"]["airflow-ml/model"] == "sha256:7"
        assert (spec["tracing"], spec["baseRefs"]) == ({}, [{"name": "ours"}])

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: LLM(), "a language model needs uri or model"),
            (lambda: LLM(uri="hf://a", replicas=(0, 1)), "replicas must be .* with 1 <= least"),
            (lambda: LLM(uri="hf://a", replicas=(1, 2)), "scaling must be KEDA with a query when replicas vary"),
            (lambda: LLM(uri="hf://a", scaling=QUERY), "scaling must be left out when least and most"),
            (lambda: LLM(uri="hf://a", parallelism=Parallelism(tensor=4)), "gpus must be 4 at least in a pod"),
            (lambda: Parallelism(pipeline=2, data=2), "pipeline and data must be not both greater than 1"),
            (lambda: Parallelism(data=5, data_local=2), "data must be a multiple of data_local=2"),
            (lambda: Parallelism(tensor=0), "tensor must be 1 at least"),
            (lambda: Routes("public"), "gateway must be NAMESPACE/NAME"),
        ],
    )
    def test_refused(self, make: Any, message: str) -> None:
        with pytest.raises(SpecError, match=message):
            make()


@pytest.mark.parametrize("wanted", [PAIR, CASCADE, QWEN], ids=["pair", "cascade", "llm"])
def test_as_a_mapping(wanted: Any) -> None:
    assert resolve(json.loads(json.dumps(encode(wanted)))) == wanted
    assert resolve(wanted) is wanted


def test_neither() -> None:
    with pytest.raises(SpecError, match="wanted must be Graph"):
        resolve({"graph": {}, "llm": {}})


def deployed(made: dict[str, Any], name: str, mark: str = "", available: int = 1) -> dict[str, Any]:
    notes = {"airflow-ml/rendered": mark or rendered(made["metadata"])}
    return {
        "metadata": {"name": name, "generation": 1},
        "spec": {"replicas": 1, "template": {"metadata": {"annotations": notes}}},
        "status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available},
    }  # fmt: skip


def there(made: dict[str, Any], generation: int = 1, seen: int = 1, **conditions: str) -> dict[str, Any]:
    told = [{"type": kind, "status": status} for kind, status in conditions.items()]
    meta = {**made["metadata"], "generation": generation}
    return {**made, "metadata": meta, "status": {"observedGeneration": seen, "conditions": told}}


class TestState:
    GRAPH, CHAT = manifest("pair", PAIR, STANDARD), manifest("chat", QWEN, STANDARD)

    def look(self, made: dict[str, Any], found: Any, *parts: Any, where: Abilities = STANDARD) -> tuple[str, str]:
        state_ = state(made, Seen(found, parts), where)
        return state_.phase, state_.why

    def test_ready(self) -> None:
        assert self.look(self.GRAPH, there(self.GRAPH, Ready="True"), deployed(self.GRAPH, "pair")) == ("ready", "")
        assert self.look(self.CHAT, there(self.CHAT, Ready="True"), deployed(self.CHAT, "chat-kserve")) == ("ready", "")

    def test_the_pods_before_are_not_asked(self) -> None:
        """KServe says `Ready` of them, although the Deployment is still that of what was asked for before."""
        for made, name in ((self.GRAPH, "pair"), (self.CHAT, "chat-kserve")):
            phase, why = self.look(made, there(made, Ready="True"), deployed(made, name, mark="before"))
            assert phase == "waits"
            assert f"KServe has not changed the Deployment '{name}' yet" in why

    def test_not_enough_pods(self) -> None:
        found = self.look(self.GRAPH, there(self.GRAPH, Ready="True"), deployed(self.GRAPH, "pair", available=0))
        assert found == ("waits", "0 of 1 pods are ready, 0 old ones are left")

    def test_an_old_generation(self) -> None:
        found = there(self.CHAT, 2, 1, Ready="True")
        assert self.look(self.CHAT, found, deployed(self.CHAT, "chat-kserve")) == (
            "waits", "KServe has not seen the last change yet",
        )  # fmt: skip

    def test_what_kserve_says(self) -> None:
        found = there(self.CHAT, Ready="False", RouterReady="False")
        phase, why = self.look(self.CHAT, found, deployed(self.CHAT, "chat-kserve"))
        assert (phase, why) == ("waits", "Ready is False; RouterReady is False")

    def test_others_wrote(self) -> None:
        other = manifest("pair", Graph({"root": Node("sequence", (Step("late"),))}), STANDARD)
        assert not same(self.GRAPH, other)
        assert self.look(self.GRAPH, there(other)) == ("waits", "the InferenceGraph was changed by somebody else")
        assert self.look(self.GRAPH, None) == ("waits", "there is no InferenceGraph of this name")

    def test_serverless(self) -> None:
        made = manifest("pair", PAIR, SERVERLESS)
        revision = {
            "metadata": {"name": "pair-00001", "annotations": {"airflow-ml/rendered": rendered(made["metadata"])}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }
        assert self.look(made, there(made, Ready="True"), revision, where=SERVERLESS) == ("ready", "")
        phase, why = self.look(made, there(made, Ready="True"), where=SERVERLESS)
        assert (phase, why) == ("waits", "Knative has made no revision yet")
