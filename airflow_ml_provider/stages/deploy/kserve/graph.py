"""Services behind one address: ensembles, sequences (cascades), splits and switches, by KServe's InferenceGraph.

What is relied on was read in KServe 0.20 (`inference_graph_validation.go`, `cmd/router/main.go`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Optional

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.deploy.kserve.render import placed, resources
from airflow_ml_provider.stages.deploy.server import Placement

ROOT = "root"
_ROUTERS = {"sequence": "Sequence", "split": "Splitter", "ensemble": "Ensemble", "switch": "Switch"}


@dataclass(frozen=True)
class Step:
    """Who is asked in a node: a `service`, another `node`, or a `url`; exactly one of them.

    Attributes:
        service: name of an InferenceService in the same namespace.
        node: name of another node of the graph.
        url: address of any other service.
        name: of the step, in an ensemble also of its part of the answer.
        weight: of the requests, how many (percent) go here, in a `split`.
        condition: a path of GJSON that the request must have in a `switch`, or the answer before in a `sequence`; a
            sequence ends with that answer where it has not.
        data: what is sent in a `sequence`: the `request` of the user, or the `response` of the step before.
        required: an error of this step is the answer to the user; otherwise the others go on with what it said.
    """

    service: str = ""
    node: str = ""
    url: str = ""
    name: str = ""
    weight: Optional[int] = None
    condition: str = ""
    data: Literal["request", "response"] = "request"
    required: bool = True

    def __post_init__(self) -> None:
        targets = [one for one in (self.service, self.node, self.url) if one]
        if len(targets) != 1:
            raise invalid("target of a step", targets, "exactly one of service, node and url")
        if self.weight is not None and not 0 <= self.weight <= 100:
            raise invalid("weight", self.weight, "in [0, 100]")


@dataclass(frozen=True)
class Node:
    """A place in a graph where steps are taken.

    Attributes:
        router: `sequence` takes the steps one after the other, `split` one of them by weight, `ensemble` all at once
            (the answer has a part for each), `switch` the first whose condition is met.
        steps: the steps.
    """

    router: Literal["sequence", "split", "ensemble", "switch"]
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if self.router not in _ROUTERS:
            raise invalid("router", self.router, f"one of {', '.join(_ROUTERS)}")
        if not self.steps:
            raise invalid("steps", self.steps, "one at least")
        names = [step.name for step in self.steps if step.name]
        if len(set(names)) != len(names):
            raise invalid("names of steps", names, "different ones in one node")
        weights = [step.weight for step in self.steps]
        if self.router == "split" and (None in weights or sum(one or 0 for one in weights) != 100):
            raise invalid("weights", weights, "100 in all in a split")
        if self.router != "split" and any(one is not None for one in weights):
            raise invalid("weights", weights, "left out except in a split")
        if self.router == "switch" and not all(step.condition for step in self.steps):
            raise SpecError("every step of a switch needs a condition: say which requests it gets")
        if self.steps[0].data == "response":
            raise invalid("data of the first step", "response", "request: there is no answer before it")


@dataclass(frozen=True)
class Graph:
    """Services that answer together, as one service.

    Attributes:
        nodes: name to node; requests begin at the node `root`.
        replicas: how many routers there are at least and at most.
        cpu: CPUs of each router; none leaves them to KServe.
        memory_gib: memory (GiB) of each router, likewise.
        timeout_s: a request fails after so many seconds.
        placement: on which nodes of the cluster the routers run.
        service_account: Kubernetes' account of the routers.
    """

    object_kind: ClassVar[str] = "InferenceGraph"
    api_version: ClassVar[str] = "v1alpha1"
    plural: ClassVar[str] = "inferencegraphs"

    nodes: Mapping[str, Node]
    replicas: tuple[int, int] = (1, 1)
    cpu: Optional[float] = None
    memory_gib: Optional[float] = None
    timeout_s: float = 60.0
    placement: Placement = field(default_factory=Placement)
    service_account: str = ""

    def __post_init__(self) -> None:
        if ROOT not in self.nodes:
            raise invalid("nodes", sorted(self.nodes), f"with one named {ROOT!r}, at which requests begin")
        least, most = self.replicas
        if not 0 <= least <= most or most < 1:
            raise invalid("replicas", self.replicas, "(least, most) with 0 <= least <= most and most at least 1")
        if self.timeout_s <= 0:
            raise invalid("timeout_s", self.timeout_s, "greater than 0")
        reached = self._reached(ROOT, ())
        if lost := sorted(set(self.nodes) - reached):
            raise invalid("nodes", lost, f"reached from {ROOT!r}")

    def _reached(self, name: str, way: tuple[str, ...]) -> set[str]:
        if name in way:
            raise SpecError(f"the nodes {' -> '.join((*way, name))} are a circle: no request would ever be answered")
        if name not in self.nodes:
            raise invalid("node of a step", name, f"one of {', '.join(sorted(self.nodes))}")
        further = [self._reached(step.node, (*way, name)) for step in self.nodes[name].steps if step.node]
        return {name}.union(*further)

    def spec(self, shape: str) -> dict[str, Any]:
        """Return what KServe is asked for."""
        if shape == "standard" and self.replicas[0] == 0:
            raise invalid("replicas", self.replicas, "one at least in KServe's mode Standard")
        made = resources(self.cpu, self.memory_gib)
        return {
            "nodes": {name: _node(node) for name, node in self.nodes.items()},
            "minReplicas": self.replicas[0],
            "maxReplicas": self.replicas[1],
            "timeout": math.ceil(self.timeout_s),
            **placed(self.placement, self.service_account),
            **({"resources": made} if made else {}),
        }


def _node(node: Node) -> dict[str, Any]:
    return {"routerType": _ROUTERS[node.router], "steps": [_step(step) for step in node.steps]}


def _step(step: Step) -> dict[str, Any]:
    found = {
        "name": step.name,
        "serviceName": step.service,
        "nodeName": step.node,
        "serviceUrl": step.url,
        "condition": step.condition,
        "data": "$response" if step.data == "response" else "",
    }
    return {
        **{key: value for key, value in found.items() if value},
        **({} if step.weight is None else {"weight": step.weight}),
        "dependency": "Hard" if step.required else "Soft",
    }
