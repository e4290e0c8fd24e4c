"""What has become of a service, from its InferenceService and what KServe made of it.

KServe's condition `Ready` does not tell, so it is not asked (read in KServe 0.20, `inference_service_status.go`):

- It stays `True` from the old pods right after a change, and `status.observedGeneration` is that of the Deployment or
  of the Knative service, not of the InferenceService.
- A canary counts as ready with one replica, of whatever template.
- `modelStatus` tells of one pod, which may be an old one, and of no canary.

So a version is looked for by what its predictor was made from (annotation `airflow-ml/rendered`): KServe
copies it to the template of the Deployment's pods, or to the Knative revision. Of that Deployment, `observedGeneration`
and the counts of replicas say whether only pods of that template answer, and the pods themselves why not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from airflow_ml_provider.stages.deploy.kserve.abilities import Abilities
from airflow_ml_provider.stages.deploy.kserve.manifest import TRAFFIC, component, deployment, marks, predictors
from airflow_ml_provider.stages.deploy.kserve.predictor import predictor, rendered
from airflow_ml_provider.stages.deploy.service import Observed, Service, Version, VersionState

Json = Mapping[str, Any]
# What a container waits for in vain. A first `ErrImagePull` or crash may pass, so it is not among them.
_IN_VAIN = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError")
_CRASHES = 2  # so many crashes are no accident
_AGAIN = "the InferenceService is not what it shall be; put the service again"


@dataclass(frozen=True)
class Seen:
    """What was found in the cluster, as JSON of the API server.

    Attributes:
        service: the InferenceService; none when there is none.
        parts: the Deployments of its predictors in the shape `standard`, the Knative revisions in `serverless`.
        pods: its pods.
        warning: the last warning among its events.
    """

    service: Optional[Json] = None
    parts: Sequence[Json] = ()
    pods: Sequence[Json] = ()
    warning: str = ""


def observed(wanted: Service, revision: str, seen: Seen, where: Abilities) -> Observed:
    """Return a service as it is.

    Parameters:
        wanted: what it was last told to be.
        revision: of that.
        seen: what was found.
        where: what KServe can do there.
    """
    if seen.service is None:
        states = {name: VersionState("waits", _AGAIN) for name in wanted.versions}
        return Observed(wanted, revision, states)
    state = _in_deployment if where.shape == "standard" else _in_revision
    shares = percents(seen.service, seen.parts, where)
    states = {}
    for name, version in wanted.versions.items():
        mark = rendered(predictor(version, where))
        phase = _unlike(wanted, version, mark, seen.service, where) or state(wanted, version, mark, seen)
        if phase is _READY and name == wanted.stable.name:
            phase = _reachable(seen.service)
        states[name] = VersionState(phase.phase, phase.why, shares.get(mark, 0.0))
    return Observed(wanted, revision, states, str(_status(seen.service).get("url", "")))


def percents(service: Json, parts: Sequence[Json], where: Abilities) -> dict[str, float]:
    """Return how many of the requests (percent) go to what was made from which predictor.

    In `standard` it is what KServe makes the weights of its HTTPRoute from: a canary that is not ready gets none.
    """
    shares: dict[str, float] = {}
    if where.shape == "serverless":
        of = marks(parts)
        for target in component(service).get("traffic", ()):
            mark = of.get(target.get("revisionName", ""), "")
            shares[mark] = shares.get(mark, 0.0) + float(target.get("percent") or 0)
        return shares
    told = {one["name"]: one for one in _status(service).get("canaryStatuses", ())}
    own = {name: float(one["trafficPercent"]) if one.get("ready") else 0.0 for name, one in told.items()}
    for at, one in enumerate(predictors(service)):
        rest = 0.0 if at else 100.0 - sum(own.values())
        shares[rendered(one)] = own.get(one.get("name", ""), rest)
    return shares


_READY = VersionState("ready")


def _waits(why: str) -> VersionState:
    return VersionState("waits", why)


def _failed(why: str) -> VersionState:
    return VersionState("failed", why)


def _unlike(wanted: Service, version: Version, mark: str, service: Json, where: Abilities) -> Optional[VersionState]:
    """Return a state when the InferenceService is not what it shall be: a writer ended half-way, or others wrote."""
    found = [rendered(one) for one in predictors(service)]
    candidate = wanted.candidate
    if where.shape == "standard":
        percent = [one["trafficPercent"] for one in service["spec"].get("canary", ())]
        expected = [] if candidate is None else [int(wanted.percent)]
        return None if mark in found and percent == expected else _waits(_AGAIN)
    if version == (candidate or wanted.stable) and mark not in found:
        return _waits(_AGAIN)
    percent = service["spec"]["predictor"].get(TRAFFIC)
    return _waits(_AGAIN) if candidate is not None and percent != int(wanted.percent) else None


def _in_deployment(wanted: Service, _: Version, mark: str, seen: Seen) -> VersionState:
    assert seen.service is not None
    made = next(one for one in predictors(seen.service) if rendered(one) == mark)
    return rolled_out(deployment(wanted.name, made), mark, made.get("minReplicas", 1), seen)


def rolled_out(name: str, mark: str, least: int, seen: Seen) -> VersionState:
    """Return whether all pods of a Deployment are of what was asked for, and enough of them are ready.

    Parameters:
        name: of the Deployment.
        mark: what its pods shall be made from.
        least: how many pods there shall be, unless the Deployment itself wants less.
        seen: what was found.
    """
    found = next((one for one in seen.parts if one["metadata"]["name"] == name), None)
    if found is None:
        return _not_taken_up(seen, f"KServe has made no Deployment {name!r} yet")
    spec, status = found["spec"], found.get("status", {})
    if rendered(spec["template"]["metadata"]) != mark:
        return _not_taken_up(seen, f"KServe has not changed the Deployment {name!r} yet")
    if status.get("observedGeneration", 0) < found["metadata"].get("generation", 0):
        return _waits(f"the Deployment {name!r} has not begun yet")
    replicas, updated, available = (status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas"))
    needed = min(spec.get("replicas", 1), least)  # more may be on their way, by load
    if replicas == updated and available >= needed:
        return _READY
    conditions = {one["type"]: one for one in status.get("conditions", ())}
    late = conditions.get("Progressing", {})
    if late.get("status") == "False":
        return by_pods(seen, mark, _failed(f"{late.get('reason')}: {late.get('message')}"))
    refused = conditions.get("ReplicaFailure", {})
    if refused.get("status") == "True":
        return _waits(f"{refused.get('reason')}: {refused.get('message')}")
    return by_pods(
        seen, mark, _waits(f"{available} of {needed} pods are ready, {replicas - updated} old ones are left")
    )


def _in_revision(wanted: Service, version: Version, mark: str, seen: Seen) -> VersionState:
    assert seen.service is not None
    latest = component(seen.service).get("latestCreatedRevision", "")
    found = [one for one in seen.parts if rendered(one["metadata"]) == mark]
    if not found:
        return _not_taken_up(seen, f"Knative has made no revision of {version.name!r} yet")
    conditions = [condition(one, "Ready") for one in found]
    if any(one.get("status") == "True" for one in conditions):
        return _READY
    newest = next((one for one in found if one["metadata"]["name"] == latest), found[-1])
    ready = condition(newest, "Ready")
    why = ": ".join(filter(None, [ready.get("reason"), ready.get("message")]))
    if ready.get("status") == "False" and ready.get("reason") != "Unschedulable":
        return by_pods(seen, mark, _failed(why))
    if marks(seen.parts).get(latest) != mark and version == (wanted.candidate or wanted.stable):
        return _not_taken_up(seen, f"Knative has made no new revision of {version.name!r} yet")
    return by_pods(seen, mark, _waits(why or "the revision is not ready yet"))


def _not_taken_up(seen: Seen, why: str) -> VersionState:
    """Return what KServe says of a version that it has made nothing of."""
    assert seen.service is not None
    status = _status(seen.service).get("modelStatus", {})
    info = status.get("lastFailureInfo", {})
    said = ": ".join(filter(None, [info.get("reason"), info.get("message")]))
    if status.get("transitionStatus") == "InvalidSpec" and _told_since(seen.service):
        return _failed(said or "KServe takes its specification for invalid")
    return _waits("; ".join(filter(None, [why, seen.warning])))


def _told_since(service: Json) -> bool:
    """Return whether the status was written after the specification: KServe's own generation does not say so."""
    times = {"f:spec": "", "f:status": ""}
    for entry in service["metadata"].get("managedFields", ()):
        for key in times:
            if key in entry.get("fieldsV1", {}):
                times[key] = max(times[key], entry.get("time", ""))
    return times["f:status"] > times["f:spec"]


def _reachable(service: Json) -> VersionState:
    """Return whether requests reach the pods that answer them."""
    conditions = {one["type"]: one for one in _status(service).get("conditions", ())}
    for name in ("IngressReady", "PredictorRouteReady"):
        one = conditions.get(name, {"status": "True"} if name == "PredictorRouteReady" else {"status": "Unknown"})
        if one["status"] != "True":
            return _waits(
                ": ".join(filter(None, [f"{name} is {one['status']}", one.get("reason"), one.get("message")]))
            )
    return _READY


def by_pods(seen: Seen, mark: str, otherwise: VersionState) -> VersionState:
    """Return what the pods of a version say, which is more than what is said of all of them."""
    pods = [one for one in seen.pods if rendered(one["metadata"]) == mark]
    words = list(dict.fromkeys(word for pod in pods for word in _words(pod)))
    if any(_hopeless(container) for pod in pods for container in _containers(pod)):
        return _failed("; ".join(words))
    return VersionState(otherwise.phase, "; ".join(filter(None, [*words, otherwise.why])))


def _hopeless(container: Json) -> bool:
    reason = container.get("state", {}).get("waiting", {}).get("reason", "")
    crashed = reason == "CrashLoopBackOff" and container.get("restartCount", 0) >= _CRASHES
    return crashed or reason in _IN_VAIN


def _words(pod: Json) -> Iterator[str]:
    """Give what Kubernetes says of why a pod does not answer."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield f"{condition.get('reason')}: {condition.get('message')}"
    for container in _containers(pod):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            yield ": ".join(filter(None, [container["name"], waiting["reason"], waiting.get("message")]))
        for ended in (container.get(key, {}).get("terminated") for key in ("state", "lastState")):
            if ended and ended.get("exitCode"):
                said = [
                    f"{container['name']}: {ended.get('reason')}, exit code {ended['exitCode']}",
                    ended.get("message"),
                ]
                yield ": ".join(filter(None, said)).strip()


def _containers(pod: Json) -> list[Json]:
    """Return the containers; the one that fetches the model is an init container."""
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


def condition(part: Json, kind: str) -> Json:
    """Return what an object says of itself by a condition; empty when it says nothing."""
    return next((one for one in part.get("status", {}).get("conditions", ()) if one["type"] == kind), {})


def _status(service: Json) -> Json:
    found: Json = service.get("status") or {}
    return found
