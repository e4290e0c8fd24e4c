"""What a Kubernetes cluster answers, told as errors that say whether another try can help."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

from airflow_ml_provider.exceptions import MissingLibrary, SpecError, Unavailable

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

NOT_FOUND, CONFLICT, FORBIDDEN = 404, 409, (401, 403)
_BUSY = 429
_WEBHOOK = "admission webhook"  # which refuses what the API server knows nothing of, with 403, too


def require(what: str) -> None:
    """Raise `MissingLibrary` without the Kubernetes provider.

    Parameters:
        what: needs it.
    """
    try:
        import airflow.providers.cncf.kubernetes.hooks.kubernetes  # noqa: F401
    except ImportError as error:
        raise MissingLibrary(
            f"{what} needs the Kubernetes provider: pip install 'airflow-ml-provider[kubernetes]' ({error})"
        ) from error


class Answer:
    """Whether the API server refused."""

    refused = False


@contextmanager
def unless(*statuses: int) -> Iterator[Answer]:
    """Take these answers of the API server for a fact, not for an error."""
    from kubernetes.client import ApiException

    answer = Answer()
    try:
        yield answer
    except ApiException as error:
        if error.status not in statuses:
            raise
        answer.refused = True


@contextmanager
def explained(conn_id: str, what: str) -> Iterator[None]:
    """Turn what goes wrong on the way to a cluster into errors of this package.

    Parameters:
        conn_id: the connection.
        what: what the cluster is asked to take, for its refusal.

    Raises:
        SpecError: the connection does not lead to a cluster, may not do this, or the cluster does not take it.
        Unavailable: the cluster does not answer, or answers that it cannot now.
    """
    from airflow.providers.common.compat.sdk import AirflowNotFoundException
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (ConfigException, AirflowNotFoundException) as error:
        raise SpecError(f"connection {conn_id!r} does not say how to reach a cluster: {error}") from error
    except ApiException as error:
        said = f"{error.status} {error.reason}: {_message(error.body)}"
        if error.status in FORBIDDEN and _WEBHOOK not in said:
            raise SpecError(f"connection {conn_id!r} may not do this in the cluster ({said})") from error
        if error.status is not None and 400 <= error.status < 500 and error.status not in (CONFLICT, _BUSY):
            raise SpecError(f"the cluster does not take the {what}: {said}") from error
        raise Unavailable(f"the cluster of connection {conn_id!r} answers {said}") from error
    except HTTPError as error:
        raise Unavailable(f"the cluster of connection {conn_id!r} does not answer: {error}") from error


class ClusterPlace:
    """What every place that serves in a cluster needs of it, through the connection of the Kubernetes provider.

    Parameters:
        conn_id: connection to the cluster.
        namespace: namespace of the services; empty takes that of the connection.
        timeout_s: a call to the cluster fails after so many seconds.
    """

    system_name: ClassVar[str] = "Kubernetes"

    def __init__(self, conn_id: str, namespace: str, timeout_s: float) -> None:
        self.conn_id, self.timeout_s, self._namespace = conn_id, timeout_s, namespace

    @cached_property
    def namespace(self) -> str:
        """The namespace of the services."""
        return self._namespace or self._kubernetes.get_namespace() or "default"

    def _objects(self, verb: str, group: str, version: str, plural: str, *name: str, **given: Any) -> Any:
        """Call the API of custom objects; `create`, `get`, `replace`, `delete`, `list`."""
        call = getattr(self._kubernetes.custom_object_client, f"{verb}_namespaced_custom_object")
        return call(group, version, self.namespace, plural, *name, **given, **self._limit)

    def _json(self, answer: Any) -> dict[str, Any]:
        """Return the answer to a call with `_raw`: the client's own classes cost more than the call itself."""
        return cast("dict[str, Any]", json.loads(answer.data))

    def _explained(self) -> Any:
        require(self.system_name)
        return explained(self.conn_id, "service")

    @cached_property
    def _kubernetes(self) -> Any:
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

        return KubernetesHook(conn_id=self.conn_id)

    @property
    def _api(self) -> ApiClient:
        return self._kubernetes.api_client

    @property
    def _core(self) -> Any:
        return self._kubernetes.core_v1_client

    @property
    def _apps(self) -> Any:
        return self._kubernetes.apps_v1_client

    @property
    def _limit(self) -> dict[str, Any]:
        return {"_request_timeout": self.timeout_s}

    @property
    def _raw(self) -> dict[str, Any]:
        return {**self._limit, "_preload_content": False}


def _message(body: Any) -> str:
    try:
        return str(json.loads(body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(body or "no message")
