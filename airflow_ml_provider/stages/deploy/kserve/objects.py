"""Objects of KServe that are asked for as a whole: graphs of services and large language models.

Neither has versions with shares of the traffic. What is asked for is marked (`airflow-ml/rendered`), and KServe gives
the mark to the pods, so that it is seen when *they* answer. The condition `Ready` alone stays `True` from older pods:

- of an InferenceGraph in the mode Standard it is `True` once the Deployment has a condition `Available`, with whatever
  value, and `status.observedGeneration` is that of the Deployment (`raw_ig.go`);
- of an LLMInferenceService it follows the Deployment's `Available`, which the pods before fulfil, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Union

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.stages.deploy.kserve.abilities import GROUP, MODE, Abilities
from airflow_ml_provider.stages.deploy.kserve.compare import within
from airflow_ml_provider.stages.deploy.kserve.graph import Graph
from airflow_ml_provider.stages.deploy.kserve.llm import LLM
from airflow_ml_provider.stages.deploy.kserve.manifest import SERVICE
from airflow_ml_provider.stages.deploy.kserve.predictor import MODEL, RENDERED, rendered
from airflow_ml_provider.stages.deploy.kserve.states import Seen, by_pods, condition, rolled_out
from airflow_ml_provider.stages.deploy.service import VersionState

Wanted = Union[Graph, LLM]
KINDS: Mapping[str, type[Any]] = {"graph": Graph, "llm": LLM}
Json = Mapping[str, Any]


def resolve(wanted: Any) -> Wanted:
    """Return what an operator's argument means: a `Graph`, an `LLM`, or a mapping such as `{"llm": {"uri": …}}`.

    Raises:
        SpecError: it is neither.
    """
    if isinstance(wanted, (Graph, LLM)):
        return wanted
    if isinstance(wanted, Mapping) and len(wanted) == 1 and (kind := next(iter(wanted))) in KINDS:
        found: Wanted = codec.decode(KINDS[kind], wanted[kind] or {}, kind)
        return found
    raise invalid("wanted", wanted, 'Graph(…), LLM(…), or one of them as a mapping such as {"llm": {"uri": "hf://…"}}')


def encode(wanted: Wanted) -> dict[str, Any]:
    """Return it as the mapping that `resolve` takes."""
    return {next(kind for kind, cls in KINDS.items() if isinstance(wanted, cls)): codec.encode(wanted)}


def manifest(name: str, wanted: Wanted, where: Abilities) -> dict[str, Any]:
    """Return the object of KServe.

    Parameters:
        name: its name.
        wanted: what it shall be.
        where: what KServe can do there.

    Raises:
        SpecError: KServe cannot do this, or not there.
    """
    spec = wanted.spec(where.shape)
    mark = hashlib.sha256(codec.canonical([where.mode, spec]).encode()).hexdigest()[:16]
    annotations = {RENDERED: mark}
    if isinstance(wanted, LLM):
        given = {RENDERED: mark, **({MODEL: wanted.model.digest} if wanted.model else {})}
        spec["annotations"] = {**spec.get("annotations", {}), **given}  # KServe gives the pods these, not the object's
    else:
        annotations[MODE] = where.mode
    return {
        "apiVersion": f"{GROUP}/{wanted.api_version}",
        "kind": wanted.object_kind,
        "metadata": {"name": name, "labels": {SERVICE: name}, "annotations": annotations},
        "spec": spec,
    }


def same(made: Json, found: Json) -> bool:
    """Return whether what was found in the cluster is what was made here; what the server added does not count."""
    return rendered(made["metadata"]) == rendered(found["metadata"]) and within(made["spec"], found["spec"])


def selector(name: str, wanted: Wanted) -> str:
    """Return the labels that KServe gives to what it makes of an object."""
    if isinstance(wanted, LLM):
        return f"app.kubernetes.io/name={name},app.kubernetes.io/part-of=llminferenceservice"
    return f"{GROUP}/inferencegraph={name}"


def state(made: Json, seen: Seen, where: Abilities) -> VersionState:
    """Return what has become of an object.

    Parameters:
        made: the object that was asked for.
        seen: what was found; its parts are Deployments, or of a graph in `serverless` the Knative revisions.
        where: what KServe can do there.
    """
    found = seen.service
    if found is None:
        return VersionState("waits", f"there is no {made['kind']} of this name")
    if not same(made, found):
        return VersionState("waits", f"the {made['kind']} was changed by somebody else")
    mark = rendered(made["metadata"])
    pods = (
        _pods_of_graph(made, mark, seen, where) if made["kind"] == Graph.object_kind else _pods_of_llm(made, mark, seen)
    )
    return _by_condition(found, pods, mark, seen, made["kind"] == LLM.object_kind)


def _pods_of_graph(made: Json, mark: str, seen: Seen, where: Abilities) -> VersionState:
    name, least = made["metadata"]["name"], made["spec"]["minReplicas"]
    if where.shape == "standard":
        return rolled_out(name, mark, least, seen)
    of_it = [one for one in seen.parts if rendered(one["metadata"]) == mark]
    conditions = [condition(one, "Ready") for one in of_it]
    if any(one.get("status") == "True" for one in conditions):
        return VersionState("ready")
    said = [": ".join(filter(None, [one.get("reason"), one.get("message")])) for one in conditions]
    return by_pods(
        seen, mark, VersionState("waits", "; ".join(filter(None, said)) or "Knative has made no revision yet")
    )


def _pods_of_llm(made: Json, mark: str, seen: Seen) -> VersionState:
    """Return whether the Deployments answer with what was asked for; who spreads a replica over pods has none."""
    name = f"{made['metadata']['name']}-kserve"
    if "worker" in made["spec"]:
        return by_pods(seen, mark, VersionState("ready"))
    least = made["spec"].get("replicas", made["spec"].get("scaling", {}).get("minReplicas", 1))
    return rolled_out(name, mark, least, seen)


def _by_condition(found: Json, pods: VersionState, mark: str, seen: Seen, generations: bool) -> VersionState:
    """Return the state by what KServe says of an object whose pods are in a state."""
    if pods.phase != "ready":
        return VersionState(pods.phase, "; ".join(filter(None, [pods.why, seen.warning])))
    status = found.get("status") or {}
    if generations and status.get("observedGeneration", 0) < found["metadata"].get("generation", 0):
        return VersionState("waits", "KServe has not seen the last change yet")
    if (ready := condition(found, "Ready")).get("status") == "True":
        return VersionState("ready")
    others = [
        _said(one)
        for one in status.get("conditions", ())
        if one["status"] != "True" and one["type"] not in ("Ready", "Stopped")
    ]
    said = _said({"type": "Ready", "status": "not said", **ready})
    return VersionState("waits", "; ".join(filter(None, [said, *others, seen.warning])))


def _said(one: Json) -> str:
    return ": ".join(filter(None, [f"{one['type']} is {one['status']}", one.get("reason"), one.get("message")]))
