"""Graphs of services and large language models on KServe, through the connection of the Kubernetes provider."""

from __future__ import annotations

from typing import Any, cast

from airflow_ml_provider.exceptions import Conflict, SpecError, Unavailable
from airflow_ml_provider.hooks._cluster import CONFLICT, NOT_FOUND, unless
from airflow_ml_provider.hooks.kserve import KServeServing
from airflow_ml_provider.stages.deploy.kserve import objects
from airflow_ml_provider.stages.deploy.kserve.abilities import GROUP
from airflow_ml_provider.stages.deploy.kserve.graph import Graph
from airflow_ml_provider.stages.deploy.kserve.manifest import SERVICE
from airflow_ml_provider.stages.deploy.kserve.objects import Wanted
from airflow_ml_provider.stages.deploy.kserve.states import Seen
from airflow_ml_provider.stages.deploy.service import VersionState

_TRIES = 5  # KServe writes the status meanwhile


class KServeObjects(KServeServing):
    """The graphs and language models of a namespace on KServe. The parameters are those of `KServeServing`."""

    def apply(self, name: str, wanted: Wanted) -> None:
        """Make an object what it shall be, without waiting. The same again changes nothing.

        Raises:
            SpecError: KServe does not take it, or an object of this name is not ours.
            Conflict: somebody else changes it at the same time.
            Unavailable: the cluster does not answer, or the object is still being deleted.
        """
        with self._explained():
            made = objects.manifest(name, wanted, self.abilities)
            for _ in range(_TRIES):
                found = self._ours(name, wanted)
                if found is not None and "deletionTimestamp" in found["metadata"]:
                    raise Unavailable(f"{wanted.object_kind} {name!r} is still being deleted")
                if found is not None and objects.same(made, found):
                    return
                with unless(CONFLICT):
                    if found is None:
                        self._of(wanted, "create", body=made)
                    else:
                        self._of(wanted, "replace", name, body=_changed(found, made))
                    return
            raise Conflict(f"{wanted.object_kind} {name!r} is being changed by others, too")

    def state(self, name: str, wanted: Wanted) -> tuple[VersionState, str]:
        """Return what has become of an object, and its address."""
        with self._explained():
            made, found = objects.manifest(name, wanted, self.abilities), self._get(name, wanted)
            labels = {"label_selector": objects.selector(name, wanted), **self._raw}
            graph = wanted.object_kind == Graph.object_kind
            if graph and self.abilities.shape == "serverless":
                parts = self._objects(
                    "list", "serving.knative.dev", "v1", "revisions", label_selector=labels["label_selector"]
                )
            else:
                parts = self._json(self._apps.list_namespaced_deployment(self.namespace, **labels))
            pods = self._json(self._core.list_namespaced_pod(self.namespace, **labels))["items"]
            warning = self._warned(wanted.object_kind, name) if found else ""
        state = objects.state(made, Seen(found, parts["items"], pods, warning), self.abilities)
        return state, str(((found or {}).get("status") or {}).get("url", ""))

    def is_there(self, name: str, wanted: Wanted) -> bool:
        """Return whether there is such an object, also one that is being deleted."""
        with self._explained():
            return self._get(name, wanted) is not None

    def delete(self, name: str, wanted: Wanted) -> None:
        """Delete an object, without waiting; none is no error.

        Raises:
            SpecError: it is not ours.
        """
        with self._explained(), unless(NOT_FOUND):
            if self._ours(name, wanted) is not None:
                self._of(wanted, "delete", name)

    def _ours(self, name: str, wanted: Wanted) -> dict[str, Any] | None:
        found = self._get(name, wanted)
        if found is not None and SERVICE not in found["metadata"].get("labels", {}):
            raise SpecError(f"{wanted.object_kind} {name!r} is not Airflow's; choose another name or delete it")
        return found

    def _get(self, name: str, wanted: Wanted) -> dict[str, Any] | None:
        with unless(NOT_FOUND):
            return cast("dict[str, Any]", self._of(wanted, "get", name))
        return None

    def _of(self, wanted: Wanted, verb: str, *name: str, **given: Any) -> Any:
        return self._objects(verb, GROUP, wanted.api_version, wanted.plural, *name, **given)


def _changed(found: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Return an object with what was made here, and with what others wrote beside it."""
    old, new = found["metadata"], made["metadata"]
    both = {key: {**old.get(key, {}), **new[key]} for key in ("labels", "annotations")}
    return {**found, "metadata": {**old, **both}, "spec": made["spec"]}
