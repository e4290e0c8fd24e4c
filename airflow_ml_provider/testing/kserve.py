"""A stand-in for KServe's controller, for tests on a real API server without it.

The definition of InferenceServices must be installed, for the shape `serverless` also one of Knative's revisions
(`REVISIONS`). What KServe and Knative do of them is done here by a thread: real Deployments whose pods answer by the
Open Inference Protocol, statuses in KServe's order, and a proxy that splits requests as the routes say.

    with Controller(api_client, "default", image="python:3.11") as kserve:
        serving = KServeServing(KServe(address=kserve.address, mode="standard"))
"""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal
from urllib.request import urlopen

from kubernetes import client
from kubernetes.client import ApiException

from airflow_ml_provider.stages.deploy.kserve.abilities import API_VERSION, GROUP, PLURAL
from airflow_ml_provider.stages.deploy.kserve.graph import Graph
from airflow_ml_provider.stages.deploy.kserve.llm import LLM
from airflow_ml_provider.stages.deploy.kserve.manifest import TRAFFIC, deployment
from airflow_ml_provider.stages.deploy.kserve.predictor import CONTAINER, TRANSFORMER
from airflow_ml_provider.testing._kserve_pods import BESIDE, COMMANDS, SERVER
from airflow_ml_provider.testing._standin import condition, holds, tolerant
from airflow_ml_provider.testing.router import Router

log = logging.getLogger(__name__)

Fault = Literal["image", "crash", "unready", "unplaced"]
_OF, _KNATIVE = f"{GROUP}/inferenceservice", ("serving.knative.dev", "v1")
_PORT = 8080
REVISIONS: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "revisions.serving.knative.dev"},
    "spec": {
        "group": _KNATIVE[0],
        "names": {"kind": "Revision", "plural": "revisions", "singular": "revision"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": _KNATIVE[1],
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


class Controller:
    """Look after the InferenceServices of one namespace as KServe would; a context manager.

    Parameters:
        api: client of the API server.
        namespace: whose InferenceServices.
        image: image of the pods, with `python3`.
        faults: name of a version to what is wrong with its pods: there is no such `image`, they `crash`, are never
            ready (`unready`), or fit nowhere (`unplaced`). Others may come while it runs.
        stuck: do nothing.
        poll_s: time between two looks (seconds).

    Raises:
        RuntimeError: at the end, if the API server refused something.
    """

    def __init__(
        self,
        api: Any,
        namespace: str,
        *,
        image: str,
        faults: Mapping[str, Fault] | None = None,
        stuck: bool = False,
        poll_s: float = 0.2,
    ) -> None:
        self.core, self.apps = client.CoreV1Api(api), client.AppsV1Api(api)
        self.custom, self.api, self.namespace = client.CustomObjectsApi(api), api, namespace
        self.image, self.faults, self.stuck, self.poll_s = image, dict(faults or {}), stuck, poll_s
        self._ended, self._error = threading.Event(), ""
        self._thread = threading.Thread(target=self._work, name="kserve", daemon=True)
        self.router = Router()
        self._reached: set[str] = set()

    @property
    def address(self) -> str:
        """Where requests go; the header `Host` says for which service."""
        return self.router.address

    def __enter__(self) -> Controller:
        self.router.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self.router.stop()
        if self._error and error is None:
            raise RuntimeError(self._error)

    def _work(self) -> None:
        while not self._ended.wait(self.poll_s):
            try:
                if not self.stuck:
                    for service in self._services():
                        with tolerant():
                            self._look_after(service)
                    for kind in (Graph, LLM):
                        for one in self._of_kind(kind):
                            with tolerant():
                                self._look_after_object(kind, one)
            except ApiException as error:
                if not self._error:
                    self._error = f"the API server answers {error.status} {error.reason}: {error.body}"
                    log.error("%s", self._error)  # a test that waits would otherwise never say why

    def _services(self) -> list[dict[str, Any]]:
        found = self.custom.list_namespaced_custom_object(GROUP, API_VERSION, self.namespace, PLURAL)
        return [one for one in found["items"] if "deletionTimestamp" not in one["metadata"]]

    def _of_kind(self, kind: type[Graph | LLM]) -> list[dict[str, Any]]:
        with tolerant():  # nobody installed the definition
            found = self.custom.list_namespaced_custom_object(GROUP, kind.api_version, self.namespace, kind.plural)
            return [one for one in found["items"] if "deletionTimestamp" not in one["metadata"]]
        return []

    def _look_after_object(self, kind: type[Graph | LLM], one: dict[str, Any]) -> None:
        """Make the Deployment of a graph or a language model, then say of it what KServe says."""
        meta, spec = one["metadata"], one["spec"]
        old, status = one.get("status", {}), copy.deepcopy(one.get("status", {}))
        if kind is LLM and status.get("observedGeneration") != meta["generation"]:
            condition(status, "Ready", "Unknown", "NewObservedGenFailure")  # as Knative's reconciler begins
        name = meta["name"] if kind is Graph else f"{meta['name']}-kserve"
        notes = meta["annotations"] if kind is Graph else spec["annotations"]
        env = [{"name": "AIRFLOW_ML_VERSION", "value": meta["name"]}]
        made = {"annotations": notes, "containers": [{"name": CONTAINER, "env": env}]}
        found = self._deploy(
            one, name, made, spec.get("minReplicas", spec.get("replicas", 1)), _labels(kind, meta["name"])
        )
        conditions = {each["type"]: each for each in found.get("status", {}).get("conditions", ())}
        if kind is Graph and "Available" in conditions:  # whatever it says
            status["observedGeneration"] = found["status"].get("observedGeneration", 0)
            condition(status, "Ready", "True")
        elif kind is LLM:
            status["observedGeneration"] = meta["generation"]
            available = conditions.get("Available", {"status": "Unknown"})
            condition(status, "MainWorkloadReady", available["status"], available.get("reason", ""))
            condition(status, "Ready", available["status"], available.get("reason", ""))
        if holds(status, "Ready"):
            status["url"] = f"http://{meta['name']}-{self.namespace}.example.test"
        if status != old:
            self.custom.patch_namespaced_custom_object_status(
                GROUP, kind.api_version, self.namespace, kind.plural, meta["name"],
                {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": status},
            )  # fmt: skip

    def _look_after(self, service: dict[str, Any]) -> None:
        """Do what one round of KServe does: pods, then routes, then the status."""
        mode = service["metadata"].get("annotations", {}).get(f"{GROUP}/deploymentMode", "Standard")
        old, status = service.get("status", {}), copy.deepcopy(service.get("status", {}))
        shape = self._standard if mode in ("Standard", "RawDeployment") else self._knative
        weights = shape(service, status)
        meta = service["metadata"]
        host = f"{meta['name']}-{self.namespace}.example.test"
        if holds(status, "PredictorReady") and all(self._reaches(to) for to, percent in weights if percent):
            self.router.routes[host] = weights
            status["url"] = f"http://{host}"
            condition(status, "IngressReady", "True")
        else:
            condition(status, "IngressReady", "False", "Predictor ingress not created")
        ready = holds(status, "PredictorReady") and holds(status, "IngressReady")
        condition(status, "Ready", "True" if ready else "False")
        status["deploymentMode"] = mode
        if status != old:
            self.custom.patch_namespaced_custom_object_status(
                GROUP, API_VERSION, self.namespace, PLURAL, meta["name"],
                {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": status},
            )  # fmt: skip

    def _standard(self, service: dict[str, Any], status: dict[str, Any]) -> list[tuple[str, int]]:
        """Make a Deployment of each predictor, canaries first; return who gets which percentage."""
        stable, canaries = service["spec"]["predictor"], service["spec"].get("canary", [])
        name = service["metadata"]["name"]
        told, names = [], {deployment(name, stable)}
        for canary in canaries:
            merged = _merged(stable, canary["predictor"])
            names.add(deployment(name, merged))
            found = self._deploy(service, deployment(name, merged), merged, merged["minReplicas"])
            ready = bool(found.get("status", {}).get("availableReplicas")) and self._reaches(found["metadata"]["name"])
            percent = canary["trafficPercent"]
            told.append({"name": merged["name"], "ready": ready, "trafficPercent": percent})
        status["canaryStatuses"] = told
        condition(status, "CanaryPredictorReady", "True" if all(one["ready"] for one in told) else "False")
        for orphan in self._deployments(name):
            if orphan.metadata.name not in names:
                self._remove(orphan.metadata.name)
        # What canaries that are ready have, the stable predictor has less.
        spare = sum(c["predictor"].get("minReplicas", 1) for c, one in zip(canaries, told, strict=True) if one["ready"])
        least = max(stable.get("minReplicas", 1) - spare, 1) if spare else stable.get("minReplicas", 1)
        found = self._deploy(service, deployment(name, stable), stable, least)
        conditions = {one["type"]: one for one in found.get("status", {}).get("conditions", ())}
        available = conditions.get("Available", {"status": "Unknown"})
        condition(status, "PredictorReady", available["status"], available.get("reason", ""))
        status["observedGeneration"] = found.get("status", {}).get("observedGeneration", 0)
        self._model_status(status, deployment(name, stable))
        weights = [
            (deployment(name, c["predictor"]), c["trafficPercent"])
            for c, one in zip(canaries, told, strict=True)
            if one["ready"]
        ]
        return [(deployment(name, stable), 100 - sum(percent for _, percent in weights)), *weights]

    def _knative(self, service: dict[str, Any], status: dict[str, Any]) -> list[tuple[str, int]]:
        """Make a revision of what is new in the predictor; return who gets which percentage."""
        name, predictor = service["metadata"]["name"], dict(service["spec"]["predictor"])
        percent = predictor.pop(TRAFFIC, None)
        revisions = self._revisions(name)
        if not revisions or revisions[-1]["spec"]["predictor"] != predictor:
            revisions.append(self._new_revision(service, predictor, len(revisions) + 1))
        for revision in revisions:
            self._run_revision(service, revision)
        told = status.setdefault("components", {}).setdefault("predictor", {})
        ready = [one["metadata"]["name"] for one in revisions if holds(one["status"], "Ready")]
        told["latestCreatedRevision"] = revisions[-1]["metadata"]["name"]
        latest = told["latestReadyRevision"] = ready[-1] if ready else ""
        targets = _targets(latest, told.get("latestRolledoutRevision", ""), percent)
        self._follow(told, targets)
        host = f"{name}-predictor-{self.namespace}.example.test"
        told["traffic"] = [
            {**one, **({"url": f"http://{one['tag']}-{host}"} if "tag" in one else {})} for one in targets
        ]
        for one in told["traffic"]:
            if "url" in one:
                self.router.routes[one["url"].removeprefix("http://")] = [(one["revisionName"], 100)]
        for key in [key for key, value in told.items() if not value]:
            del told[key]  # as KServe leaves out what is empty
        newest = revisions[-1]["metadata"]["name"] == latest
        condition(status, "PredictorReady", "True" if newest else "Unknown")
        condition(status, "PredictorRouteReady", "True" if latest else "Unknown")
        # What has had requests goes on answering them.
        if latest and not newest:
            condition(status, "PredictorReady", "True")
        self._model_status(status, told["latestCreatedRevision"])
        return [(one["revisionName"], one["percent"]) for one in targets if one["revisionName"]]

    @staticmethod
    def _follow(told: dict[str, Any], targets: list[dict[str, Any]]) -> None:
        """Keep which revision was the last that had all requests (KServe's `PropagateStatus`)."""
        shares: dict[str, int] = {}
        for one in targets:
            shares[one["revisionName"]] = shares.get(one["revisionName"], 0) + one["percent"]
        for one in targets:
            latest = told["latestReadyRevision"]
            if not latest or one["revisionName"] != latest or not one["latestRevision"]:
                continue
            if told.get("latestRolledoutRevision", "") != latest:
                if one["percent"] == 100:
                    told["previousRolledoutRevision"] = told.get("latestRolledoutRevision", "")
                    told["latestRolledoutRevision"] = latest
            elif latest == told["latestCreatedRevision"] and one["percent"] < 100 == shares[latest]:
                told["latestRolledoutRevision"] = told.get("previousRolledoutRevision") or latest

    def _revisions(self, name: str) -> list[dict[str, Any]]:
        found = self.custom.list_namespaced_custom_object(
            *_KNATIVE, self.namespace, "revisions", label_selector=f"{_OF}={name}"
        )
        return sorted(found["items"], key=lambda one: str(one["metadata"]["name"]))

    def _new_revision(self, service: dict[str, Any], predictor: dict[str, Any], number: int) -> dict[str, Any]:
        name = f"{service['metadata']['name']}-predictor-{number:05}"
        annotations = {**service["metadata"].get("annotations", {}), **predictor.get("annotations", {})}
        meta = {**_meta(service, name), "annotations": annotations}
        body = {
            "apiVersion": "/".join(_KNATIVE),
            "kind": "Revision",
            "metadata": meta,
            "spec": {"predictor": predictor},
        }
        made: dict[str, Any] = self.custom.create_namespaced_custom_object(*_KNATIVE, self.namespace, "revisions", body)
        return made

    def _run_revision(self, service: dict[str, Any], revision: dict[str, Any]) -> None:
        name, predictor = revision["metadata"]["name"], revision["spec"]["predictor"]
        found = self._deploy(service, name, predictor, predictor.get("minReplicas", 1))
        ready = bool(found.get("status", {}).get("availableReplicas")) and self._reaches(name)
        status = copy.deepcopy(revision.get("status", {}))
        reasons = [one for one in self._waiting(name) if one[0] in ("ImagePullBackOff", "CrashLoopBackOff")]
        if ready:
            condition(status, "Ready", "True")
        elif reasons:
            condition(
                status, "Ready", "False", "ContainerMissing" if "Image" in reasons[0][0] else "ExitCode1", reasons[0][1]
            )
        else:
            condition(status, "Ready", "Unknown", "Deploying")
        if status != revision.get("status"):
            self.custom.patch_namespaced_custom_object_status(
                *_KNATIVE, self.namespace, "revisions", name, {"status": status}
            )
        revision["status"] = status

    def _deploy(
        self,
        service: dict[str, Any],
        name: str,
        predictor: Mapping[str, Any],
        replicas: int,
        labels: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Make or change a Deployment and its Service; return it as it is."""
        body = self._deployment(service, name, predictor, replicas, labels or {})
        try:
            found = self.apps.read_namespaced_deployment(name, self.namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            self._make_service(service, name, predictor)
            return self._json(self.apps.create_namespaced_deployment(self.namespace, body))
        before = found.metadata.annotations.get("test/made-from")
        if before != body["metadata"]["annotations"]["test/made-from"]:
            return self._json(self.apps.patch_namespaced_deployment(name, self.namespace, body))
        return self._json(found)

    def _deployment(
        self,
        service: dict[str, Any],
        name: str,
        predictor: Mapping[str, Any],
        replicas: int,
        further: Mapping[str, str],
    ) -> dict[str, Any]:
        annotations = {**service["metadata"].get("annotations", {}), **predictor.get("annotations", {})}
        labels = {**_meta(service, name)["labels"], "app": f"isvc.{name}", **further}
        container = predictor["model"] if "model" in predictor else predictor["containers"][0]
        env = [one for one in container.get("env", ()) if "value" in one]
        version = next((one["value"] for one in env if one["name"] == "AIRFLOW_ML_VERSION"), "")
        fault = self.faults.get(version, "")
        runs = {
            "name": "kserve-container", "env": env, "ports": [{"containerPort": _PORT}],
            "image": "localhost/none:1" if fault == "image" else self.image,
            "command": COMMANDS.get(fault, ["python3", "-c", SERVER]),
            "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": _PORT}, "periodSeconds": 1},
        }  # fmt: skip
        where = {"nodeSelector": {"nowhere": "true"}} if fault == "unplaced" else {}
        beside = [self._beside(one) for one in _transformers(predictor)]
        spec = {"terminationGracePeriodSeconds": 0, "containers": [runs, *beside], **where}
        template = {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}
        wanted = {"replicas": replicas, "template": template}
        meta = _meta(service, name)
        meta["labels"] = {**meta["labels"], **further}
        meta["annotations"] = {"test/made-from": json.dumps(wanted, sort_keys=True)}
        spec = {**wanted, "selector": {"matchLabels": {"app": labels["app"]}}}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}

    def _beside(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the container of a transformer, which says its image's name."""
        port = made["ports"][0]["containerPort"]
        return {
            "name": made["name"], "image": self.image, "ports": made["ports"],
            "command": ["python3", "-c", BESIDE, made["image"]], "args": made["args"],
            "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": port}, "periodSeconds": 1},
        }  # fmt: skip

    def _make_service(self, service: dict[str, Any], name: str, predictor: Mapping[str, Any]) -> None:
        first = [one["ports"][0]["containerPort"] for one in _transformers(predictor)]
        ports = [{"name": "http", "port": 80, "targetPort": first[0] if first else _PORT}]
        body = {"metadata": _meta(service, name), "spec": {"selector": {"app": f"isvc.{name}"}, "ports": ports}}
        with tolerant():
            made = self.core.create_namespaced_service(self.namespace, body)
            self.router.targets[name] = f"http://{made.spec.cluster_ip}"

    def _reaches(self, name: str) -> bool:
        """Return whether requests get to the pods of a Deployment; nodes send them there a little after it is ready."""
        target = self.router.targets.get(name, "")
        if target and target not in self._reached:
            try:
                with urlopen(f"{target}/v2/health/ready", timeout=1) as answer:  # noqa: S310
                    json.load(answer)
            except (OSError, ValueError):  # nobody there yet, or somebody else
                return False
            self._reached.add(target)
        return bool(target)

    def _model_status(self, status: dict[str, Any], app: str) -> None:
        """Say what KServe says of the model: what the first pod of a predictor does."""
        waiting = self._waiting(app)
        if holds(status, "PredictorReady"):
            status["modelStatus"] = {"transitionStatus": "UpToDate", "states": {"activeModelState": "Loaded"}}
        elif any(reason == "CrashLoopBackOff" for reason, _ in waiting):
            info = {"reason": "ModelLoadFailed", "message": waiting[0][1]}
            status["modelStatus"] = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": info}
        else:
            status["modelStatus"] = {"transitionStatus": "InProgress", "states": {"targetModelState": "Pending"}}

    def _waiting(self, app: str) -> list[tuple[str, str]]:
        """Return why containers of a predictor wait."""
        pods = self.core.list_namespaced_pod(self.namespace, label_selector=f"app=isvc.{app}").items
        states = [one.state.waiting for pod in pods for one in pod.status.container_statuses or () if one.state]
        return [(one.reason or "", one.message or "") for one in states if one]

    def _deployments(self, name: str) -> list[Any]:
        return list(self.apps.list_namespaced_deployment(self.namespace, label_selector=f"{_OF}={name}").items)

    def _remove(self, name: str) -> None:
        with tolerant():
            self.apps.delete_namespaced_deployment(name, self.namespace)
        with tolerant():
            self.core.delete_namespaced_service(name, self.namespace)

    def _json(self, found: Any) -> dict[str, Any]:
        made: dict[str, Any] = self.api.sanitize_for_serialization(found)
        return made


def _targets(latest: str, rolled_out: str, percent: int | None) -> list[dict[str, Any]]:
    """Return how Knative splits requests when KServe has told it so."""
    if percent is None or not rolled_out:
        return [{"revisionName": latest, "latestRevision": True, "percent": 100, "tag": "latest"}] if latest else []
    targets = [{"revisionName": latest, "latestRevision": True, "percent": percent, "tag": "latest"}]
    if percent < 100:
        targets.append({"revisionName": rolled_out, "latestRevision": False, "percent": 100 - percent, "tag": "prev"})
    return targets


def _merged(stable: Mapping[str, Any], canary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a canary laid over the stable predictor, as mergo does it with override: what is empty is inherited."""
    merged = dict(copy.deepcopy(stable))
    for key, value in canary.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        elif value or key == "minReplicas":
            merged[key] = value
    return merged


def _labels(kind: type[Graph | LLM], name: str) -> dict[str, str]:
    if kind is Graph:
        return {f"{GROUP}/inferencegraph": name}
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "llminferenceservice"}


def _transformers(predictor: Mapping[str, Any]) -> list[Any]:
    return [one for one in predictor.get("containers", ()) if one["name"] == TRANSFORMER]


def _meta(service: Mapping[str, Any], name: str) -> dict[str, Any]:
    meta = service["metadata"]
    owner = {"apiVersion": service["apiVersion"], "kind": service["kind"], "name": meta["name"], "uid": meta["uid"]}
    labels = {**meta.get("labels", {}), _OF: meta["name"], "component": "predictor"}
    return {
        "name": name,
        "labels": labels,
        "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
    }
