"""A stand-in for Seldon Core 2, for tests on a real API server without it; written from its public documentation.

The definitions here are this package's own, and take any content. What Seldon does of Models and Experiments is done by
a thread: statuses as Seldon writes them, and a mesh in this process that answers and splits requests.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import threading
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

from kubernetes import client
from kubernetes.client import ApiException

from airflow_ml_provider.stages.deploy.kserve.predictor import VERSION
from airflow_ml_provider.stages.deploy.seldon import API_VERSION, EXPERIMENTS, GROUP, MODELS
from airflow_ml_provider.testing._standin import condition, holds, tolerant
from airflow_ml_provider.testing.router import Router

log = logging.getLogger(__name__)

Fault = Literal["failed", "unplaced"]
_SAYS = {"failed": "ModelFailed", "unplaced": "ScheduleFailed"}


def definition(kind: Literal["Model", "Experiment"]) -> dict[str, Any]:
    """Return a definition that takes any content."""
    plural = {"Model": MODELS, "Experiment": EXPERIMENTS}[kind]
    any_content = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": API_VERSION, "served": True, "storage": True, "subresources": {"status": {}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "scope": "Namespaced",
            "versions": [{**version, "schema": any_content}],
        },
    }


class Mesh(Router):
    """Answers for Models by their names and for Experiments by `NAME.experiment`, as the header says."""

    def __init__(self) -> None:
        super().__init__("Seldon-Model")
        self.mirrors: dict[str, tuple[str, int]] = {}
        self.asked: Counter[str] = Counter()
        """Requests that each Model got."""
        self._random = random.Random(0)  # noqa: S311 - requests of a test

    def forward(self, host: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Return what a Model answers; a mirror gets a copy."""
        name, percent = self.mirrors.get(host, ("", 0))
        if name and self._random.random() * 100 < percent:
            self.send(name, path, body)
        return super().forward(host, path, body)

    def send(self, name: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Return what a Model answers by the Open Inference Protocol; rows with a column `bad` are refused."""
        self.asked[name] += 1
        asked = json.loads(body)["inputs"]
        if any(one["name"] == "bad" for one in asked):
            return 400, b"unexpected input 'bad'"
        rows = asked[0]["shape"][0]
        score = {"name": "score", "shape": [rows], "datatype": "FP32", "data": [0.5] * rows}
        return 200, json.dumps({"model_name": f"{name}_1", "outputs": [score]}).encode()


class Controller:
    """Look after the Models and Experiments of one namespace as Seldon would; a context manager.

    Parameters:
        api: client of the API server.
        namespace: whose.
        faults: name of a version to what is wrong with it: it has `failed`, or no server has room (`unplaced`).
        poll_s: time between two looks (seconds).

    Raises:
        RuntimeError: at the end, if the API server refused something.
    """

    def __init__(
        self, api: Any, namespace: str, *, faults: Mapping[str, Fault] | None = None, poll_s: float = 0.1
    ) -> None:
        self.custom, self.namespace = client.CustomObjectsApi(api), namespace
        self.faults, self.poll_s, self.mesh = dict(faults or {}), poll_s, Mesh()
        self._ended, self._error = threading.Event(), ""
        self._thread = threading.Thread(target=self._work, name="seldon", daemon=True)

    @property
    def address(self) -> str:
        """Of the mesh."""
        return self.mesh.address

    def __enter__(self) -> Controller:
        self.mesh.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self.mesh.stop()
        if self._error and error is None:
            raise RuntimeError(self._error)

    def _work(self) -> None:
        while not self._ended.wait(self.poll_s):
            try:
                ready = {one["metadata"]["name"] for one in self._all(MODELS) if self._load(one)}
                experiments = self._all(EXPERIMENTS)
                for one in experiments:
                    self._split(one, ready)
                routes = {f"{one['metadata']['name']}.experiment" for one in experiments} | ready
                for gone in set(self.mesh.routes) - routes:
                    del self.mesh.routes[gone]
            except ApiException as error:
                if not self._error:
                    self._error = f"the API server answers {error.status} {error.reason}: {error.body}"
                    log.error("%s", self._error)

    def _all(self, plural: str) -> list[dict[str, Any]]:
        found = self.custom.list_namespaced_custom_object(GROUP, API_VERSION, self.namespace, plural)
        return [one for one in found["items"] if "deletionTimestamp" not in one["metadata"]]

    def _load(self, model: dict[str, Any]) -> bool:
        """Say what has become of a Model; return whether it answers."""
        name, status = model["metadata"]["name"], copy.deepcopy(model.get("status", {}))
        fault = self.faults.get(model["metadata"].get("annotations", {}).get(VERSION, ""))
        if fault:
            condition(status, "ModelReady", "False", _SAYS[fault], "no server could load it")
            condition(status, "Ready", "False", _SAYS[fault])
        else:
            condition(status, "ModelReady", "True", message="ModelAvailable")
            condition(status, "Ready", "True")
            status["replicas"] = model["spec"].get("replicas", 1)
            self.mesh.routes[name] = [(name, 100)]
        self._say(MODELS, model, status)
        return not fault

    def _split(self, experiment: dict[str, Any], ready: set[str]) -> None:
        """Let an Experiment split requests once all its Models answer."""
        spec, status = experiment["spec"], copy.deepcopy(experiment.get("status", {}))
        host = f"{experiment['metadata']['name']}.experiment"
        mirror = spec.get("mirror", {})
        candidates = {one["name"]: one["weight"] for one in spec["candidates"]}
        condition(status, "CandidatesReady", "True" if candidates.keys() <= ready else "False")
        condition(status, "MirrorReady", "True" if not mirror or mirror["name"] in ready else "False")
        good = holds(status, "CandidatesReady") and holds(status, "MirrorReady")
        condition(status, "ExperimentReady", "True" if good else "False")
        condition(status, "Ready", "True" if good else "False")
        if good:
            total = sum(candidates.values())
            self.mesh.routes[host] = [(name, 100 * weight / total) for name, weight in candidates.items()]
            self.mesh.mirrors[host] = (mirror.get("name", ""), mirror.get("percent", 0))
        self._say(EXPERIMENTS, experiment, status)

    def _say(self, plural: str, one: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        if status != one.get("status", {}):
            where = (GROUP, API_VERSION, self.namespace, plural, one["metadata"]["name"])
            with tolerant():
                self.custom.patch_namespaced_custom_object_status(*where, {"status": status})
