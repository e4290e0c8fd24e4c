"""What stages have left in a namespace of a Kubernetes cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from airflow_ml_provider.hooks._cluster import CONFLICT, FORBIDDEN, NOT_FOUND, explained, require
from airflow_ml_provider.leftovers.logic import Found, airflow_of, task_of

log = logging.getLogger(__name__)

IDENTITY, TASK = "airflow-ml/identity", "airflow-ml/task"
_PAGE = 500
# Of all but pods only the metadata is fetched; so the contents of Secrets never come here.
_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


@dataclass(frozen=True)
class Kind:
    """A kind of objects, and where the API has it."""

    name: str
    api: str
    plural: str

    @property
    def core(self) -> bool:
        """Every cluster knows it."""
        return self.api == "/api/v1"


KINDS = (
    Kind("Pod", "/api/v1", "pods"),
    Kind("Secret", "/api/v1", "secrets"),
    Kind("Service", "/api/v1", "services"),
    Kind("TrainJob", "/apis/trainer.kubeflow.org/v1alpha1", "trainjobs"),
    Kind("RayJob", "/apis/ray.io/v1", "rayjobs"),
    # Two schedulers for groups have a kind of this name.
    Kind("PodGroup.scheduling.volcano.sh", "/apis/scheduling.volcano.sh/v1beta1", "podgroups"),
    Kind("PodGroup.scheduling.x-k8s.io", "/apis/scheduling.x-k8s.io/v1alpha1", "podgroups"),
)


class ClusterPlace:
    """The objects of stages in one namespace.

    Parameters:
        conn_id: connection to the cluster.
        namespace: the namespace; empty is that of the connection, or `default`.
    """

    def __init__(self, conn_id: str, namespace: str = "") -> None:
        self.conn_id, self._namespace = conn_id, namespace
        self.kinds = {kind.name: kind for kind in KINDS}

    def look(self) -> list[Found]:
        """Return all objects that carry the label of a stage.

        Kinds other than pods that the connection may not list are left out, with a warning.

        Raises:
            SpecError: the connection is not one to a cluster, or may not list pods.
            Unavailable: the cluster does not answer.
            MissingLibrary: the Kubernetes provider is not installed.
        """
        require("the cluster")
        with explained(self.conn_id, "request"):
            return [thing for kind in KINDS for thing in self._of_kind(kind)]

    def remove(self, thing: Found) -> str:
        """Delete an object, unless another one has its name by now, and return what became of it.

        Raises:
            SpecError: the connection may not delete it.
            Unavailable: the cluster does not answer.
        """
        from kubernetes.client import ApiException

        body = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": "Background",
            "preconditions": {"uid": thing.uid},
        }
        with explained(self.conn_id, "deletion"):
            try:
                self._call("DELETE", f"{self._path(self.kinds[thing.kind])}/{thing.name}", body=body)
            except ApiException as error:
                if error.status not in (NOT_FOUND, CONFLICT):
                    raise
                return "was gone already" if error.status == NOT_FOUND else "kept: another one has its name by now"
        return "deleted"

    @cached_property
    def _hook(self) -> Any:
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

        return KubernetesHook(conn_id=self.conn_id)

    @cached_property
    def namespace(self) -> str:
        """The namespace that is looked at."""
        return self._namespace or self._hook.get_namespace() or "default"

    def _path(self, kind: Kind) -> str:
        return f"{kind.api}/namespaces/{self.namespace}/{kind.plural}"

    def _of_kind(self, kind: Kind) -> Iterator[Found]:
        from kubernetes.client import ApiException

        try:
            if kind.core or self._known(kind):
                for item in self._items(kind):
                    yield _found(kind, item)
        except ApiException as error:
            if error.status not in FORBIDDEN or kind.name == "Pod":
                raise
            log.warning("connection %r may not list %s in %s", self.conn_id, kind.plural, self.namespace)

    def _known(self, kind: Kind) -> bool:
        """Return whether the cluster has a kind."""
        from kubernetes.client import ApiException

        try:
            return any(one["name"] == kind.plural for one in self._call("GET", kind.api)["resources"])
        except ApiException as error:
            if error.status == NOT_FOUND:
                return False
            raise

    def _items(self, kind: Kind) -> Iterator[dict[str, Any]]:
        query = {"labelSelector": IDENTITY, "limit": str(_PAGE)}
        accept = "application/json" if kind.name == "Pod" else _METADATA
        while True:
            page = self._call("GET", self._path(kind), query, accept=accept)
            yield from page["items"] or ()  # metadata of no objects is null
            if not (token := page["metadata"].get("continue")):
                return
            query["continue"] = token

    def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Any = None,
        accept: str = "application/json",
    ) -> Any:
        """Return what the API answers. All kinds go the same way, those without a class in the client, too."""
        answer = self._hook.api_client.call_api(
            path,
            method,
            query_params=list((query or {}).items()),
            header_params={"Accept": accept, "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _preload_content=False,
        )
        return json.loads(answer.data)


def _found(kind: Kind, item: dict[str, Any]) -> Found:
    meta, status = item["metadata"], item.get("status") or {}
    owners = meta.get("ownerReferences") or ()
    annotation = (meta.get("annotations") or {}).get(TASK)
    return Found(
        kind=kind.name,
        name=meta["name"],
        uid=meta["uid"],
        created=datetime.fromisoformat(meta["creationTimestamp"].replace("Z", "+00:00")),
        task=task_of(annotation),
        airflow=airflow_of(annotation),
        owner=f"{owners[0]['kind']}/{owners[0]['name']}" if owners else "",
        leaving="deletionTimestamp" in meta,
        where=" ".join(filter(None, [item.get("spec", {}).get("nodeName"), status.get("phase")])),
    )
