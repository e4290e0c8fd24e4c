"""Stand-ins for what follows an environment repository, for tests: Argo CD or Flux, and a cluster in memory."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml

from airflow_ml_provider import codec
from airflow_ml_provider.stages.deploy.gitops import CONTROLLERS, RECORD, Report
from airflow_ml_provider.stages.deploy.kserve.manifest import recorded
from airflow_ml_provider.stages.deploy.service import Observed, Readings, Service
from airflow_ml_provider.testing.serving import MemoryServing

_OURS = "test/synced"  # label of what was applied, and is pruned once it is not in the repository any more


def definition(controller: Literal["argocd", "flux"]) -> dict[str, Any]:
    """Return a definition of the object in which a controller reports, that takes any content."""
    group, version, plural = CONTROLLERS[controller]
    kind = {"argocd": "Application", "flux": "Kustomization"}[controller]
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "scope": "Namespaced",
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


def repository(folder: Path, branch: str = "main") -> str:
    """Make a bare repository with one commit; return its address."""
    folder.mkdir(parents=True)
    _git(folder, "init", "--quiet", "--bare", f"--initial-branch={branch}")
    tree = _git(folder, "hash-object", "-t", "tree", "-w", "/dev/null")
    who = ("-c", "user.name=Someone", "-c", "user.email=someone@example.com")
    commit = _git(folder, *who, "commit-tree", tree, "-m", "The environment")
    _git(folder, "update-ref", f"refs/heads/{branch}", commit)
    return str(folder)


def manifests(folder: Path | str, commit: str) -> list[dict[str, Any]]:
    """Return all manifests of a commit, records first."""
    names = _git(folder, "ls-tree", "-r", "--name-only", commit).splitlines()
    chosen = sorted((name for name in names if name.endswith(".yaml")), key=lambda name: not name.endswith(RECORD))
    return [yaml.safe_load(_git(folder, "show", f"{commit}:{name}")) for name in chosen]


class MemoryCluster:
    """A cluster in memory that follows a bare repository: each look applies what is there.

    Parameters:
        folder: the bare repository.
        branch: what is followed.
    """

    def __init__(self, folder: str, branch: str = "main") -> None:
        self.folder, self.branch, self.serving = folder, branch, MemoryServing()
        self.stuck = False
        """The controller does nothing."""
        self.said = ""
        """What the controller complains about."""
        self.commit = ""
        """The last commit that was applied."""

    def render(self, wanted: Service, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return a manifest that changes with what serves, but not with who rolls out."""
        made: dict[str, Any] = codec.encode(wanted)
        return {key: value for key, value in made.items() if key != "rollout"}

    def reported(self) -> Report:
        """Apply what is in the repository, and say so."""
        head = _git(self.folder, "rev-parse", self.branch)
        if not self.stuck and head != self.commit:
            found = [recorded(one["data"]) for one in manifests(self.folder, head) if one.get("kind") == "ConfigMap"]
            for gone in set(self.serving._services) - {one.name for one in found}:
                self.serving.remove(gone)
            for one in found:
                seen = self.serving.look(one.name)
                self.serving.put(one, seen.revision if seen else None)
            self.commit = head
        return Report(self.commit, self.said)

    def look(self, name: str) -> Observed | None:
        """Return a service as it is."""
        return self.serving.look(name)

    def readings(self, name: str) -> Readings:
        """Return what each version has counted."""
        return self.serving.readings(name)

    def predict(self, name: str, rows: Mapping[str, Sequence[Any]], version: str = "") -> tuple[Mapping[str, Any], str]:
        """Return a score for each row."""
        self.reported()
        return self.serving.predict(name, rows, version)


class Sync:
    """Follow a bare repository as Argo CD or Flux does, on a real API server; a context manager.

    It applies the manifests of the branch by server-side apply, prunes what it has applied and is gone, and reports the
    commit. The definition of the reporting object must be installed (`definition`).

    Parameters:
        api: client of the API server.
        namespace: where manifests are applied and the object is.
        folder: the bare repository.
        controller: in whose object it reports.
        application: name of that object.
        branch: what is followed.
        poll_s: time between two looks (seconds).
    """

    def __init__(
        self,
        api: Any,
        namespace: str,
        folder: str,
        *,
        controller: Literal["argocd", "flux"] = "argocd",
        application: str = "models",
        branch: str = "main",
        poll_s: float = 0.2,
    ) -> None:
        from kubernetes import dynamic

        self.client = dynamic.DynamicClient(api)
        self.namespace, self.folder, self.branch, self.poll_s = namespace, folder, branch, poll_s
        self.controller, self.application = controller, application
        self._ended, self._applied, self._error = threading.Event(), "", ""
        self._thread = threading.Thread(target=self._work, name="sync", daemon=True)

    def __enter__(self) -> Sync:
        self._say({})  # what reports is there before anything is reported, as an Application or a Kustomization is
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        group, _version, _plural = CONTROLLERS[self.controller]
        self._resource(f"{group}/{_version}", self._kind).delete(self.application, self.namespace)
        if self._error and error is None:
            raise RuntimeError(self._error)

    def _work(self) -> None:
        from kubernetes.client import ApiException

        while True:
            try:
                head = _git(self.folder, "rev-parse", self.branch)
                if head != self._applied:
                    self._sync(head)
                    self._report(head)
                    self._applied = head
            except ApiException as error:
                self._error = self._error or f"the API server answers {error.status} {error.reason}: {error.body}"
            if self._ended.wait(self.poll_s):
                return

    def _sync(self, commit: str) -> None:
        wanted = manifests(self.folder, commit)
        for one in wanted:
            meta = {**one["metadata"], "labels": {**one["metadata"].get("labels", {}), _OURS: self.application}}
            self._apply({**one, "metadata": meta})
        kept = {(one["kind"], one["metadata"]["name"]) for one in wanted}
        for version, kind in (("serving.kserve.io/v1beta1", "InferenceService"), ("v1", "ConfigMap")):
            resource = self._resource(version, kind)
            for one in resource.get(namespace=self.namespace, label_selector=f"{_OURS}={self.application}").items:
                if (kind, one.metadata.name) not in kept:
                    resource.delete(one.metadata.name, self.namespace)

    def _report(self, commit: str) -> None:
        if self.controller == "argocd":
            self._say({"sync": {"status": "Synced", "revision": commit}})
        else:
            self._say({"lastAppliedRevision": f"{self.branch}@sha1:{commit}"})

    def _say(self, status: dict[str, Any]) -> None:
        group, version, _ = CONTROLLERS[self.controller]
        meta = {"name": self.application}
        self._apply({"apiVersion": f"{group}/{version}", "kind": self._kind, "metadata": meta, "status": status})

    @property
    def _kind(self) -> str:
        return str(definition(self.controller)["spec"]["names"]["kind"])

    def _apply(self, made: dict[str, Any]) -> None:
        resource = self._resource(made["apiVersion"], made["kind"])
        resource.server_side_apply(
            made, made["metadata"]["name"], self.namespace, field_manager="sync", force_conflicts=True
        )

    def _resource(self, version: str, kind: str) -> Any:
        return self.client.resources.get(api_version=version, kind=kind)


def _git(folder: Path | str, *args: str) -> str:
    command = ["git", "--git-dir", str(folder), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
