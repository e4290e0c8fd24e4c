"""Services of an environment repository: its connection, and the cluster that Argo CD or Flux brings it to."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
import weakref
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseHook

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.hooks._cluster import FORBIDDEN, NOT_FOUND, unless
from airflow_ml_provider.hooks.kserve import KServeServing
from airflow_ml_provider.stages.deploy.git import LOGIN, PASSWORD, Repository
from airflow_ml_provider.stages.deploy.gitops import CONTROLLERS, GitOpsServing, Report
from airflow_ml_provider.stages.deploy.kserve.abilities import Abilities
from airflow_ml_provider.stages.deploy.kserve.manifest import manifest
from airflow_ml_provider.stages.deploy.place import GitOps

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_ml_provider.stages.deploy.service import Service

_HOMES = {"argocd": "argocd", "flux": "flux-system"}
_COMMIT = re.compile(r"[0-9a-f]{40,64}$")


class GitOpsHook(BaseHook):
    """Open an environment repository by a connection of type `git`, as that of the Git provider, which is not needed.

    The host is the repository's address. A password (a token) is for https, its login is `git` unless given; for ssh
    the extra `private_key` is a key, or `key_file` the file of one, and `known_hosts` the file of the servers to trust.
    No secret is part of an address, of an argument, or of what the copy of the repository keeps.

    Parameters:
        git_conn_id: the connection; empty needs none.
    """

    conn_name_attr = "git_conn_id"
    default_conn_name = "git_default"

    def __init__(self, git_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.git_conn_id = git_conn_id

    def repository(self, place: GitOps) -> Repository:
        """Return the repository of a place.

        Raises:
            SpecError: there is no such connection, or no address in it or in the place.
        """
        conn = self._connection() if self.git_conn_id else None
        url = place.repository or (conn.host if conn else "") or ""
        extra = conn.extra_dejson if conn else {}
        key = _key_file(str(extra["private_key"])) if extra.get("private_key") else ""
        environment = _environment(conn, key) if conn else {}
        found = Repository(url, copy=place.copy, author=place.author, environment=environment)
        if key:
            weakref.finalize(found, Path(key).unlink, missing_ok=True)
        return found

    def _connection(self) -> Connection:
        from airflow.providers.common.compat.sdk import AirflowNotFoundException

        try:
            return self.get_connection(self.git_conn_id)
        except AirflowNotFoundException as error:
            raise SpecError(
                f"connection {self.git_conn_id!r} is not defined; create it with the type git, the repository's "
                "address as its host and a token as its password"
            ) from error


class SyncedKServe(KServeServing):
    """A cluster that a controller writes to; it is only read here.

    Parameters:
        place: controller and cluster.
        settings: those of `KServeServing`.
    """

    def __init__(self, place: GitOps, **settings: Any) -> None:
        super().__init__(place.kserve, **settings)
        self.controller, self.application = place.controller, place.application
        self.home = place.application_namespace or _HOMES.get(place.controller, "")

    @cached_property
    def abilities(self) -> Abilities:
        """What KServe can do in this cluster; who may not try that gets the benefit of the doubt: KServe 0.20."""
        try:
            found: Abilities = super().abilities
        except SpecError as error:
            if not self.mode or getattr(error.__cause__, "status", None) not in FORBIDDEN:
                raise
            found = Abilities("serverless" if self.mode == "Knative" else "standard")
        return found

    def render(self, wanted: Service, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the InferenceService of a service; what serves now is taken from the repository, as it is newer."""
        with self._explained():
            found = self._found(wanted.name)
            revisions = self._revisions(wanted.name) if found and self.abilities.shape == "serverless" else ()
            now = {**(found or {}), "spec": before["spec"]} if before else found
            made = manifest(wanted, self.abilities, now, revisions)
        return {**made, "metadata": {**made["metadata"], "namespace": self.namespace}}

    def reported(self) -> Report | None:
        """Return what the controller says of its last commit; none when no controller is to be asked."""
        if not self.controller:
            return None
        found: dict[str, Any] = {}
        with self._explained(), unless(NOT_FOUND) as answer:
            found = cast(
                "dict[str, Any]",
                self._kubernetes.custom_object_client.get_namespaced_custom_object(
                    *CONTROLLERS[self.controller][:2], self.home, CONTROLLERS[self.controller][2], self.application,
                    **self._limit,
                ),
            )  # fmt: skip
        if answer.refused:
            raise SpecError(
                f"there is no {CONTROLLERS[self.controller][2][:-1]} {self.application!r} in namespace {self.home!r}; "
                "set application and application_namespace of the place"
            )
        return report_of(self.controller, found.get("status") or {})


def gitops(place: GitOps, **settings: Any) -> GitOpsServing:
    """Return what deploys to a repository and looks at the cluster.

    Parameters:
        place: both.
        settings: of `KServeServing`.
    """
    return GitOpsServing(place, GitOpsHook(place.conn_id).repository(place), SyncedKServe(place, **settings))


def report_of(controller: str, status: Mapping[str, Any]) -> Report:
    """Return what a controller says, from the status of its object.

    Argo CD: `status.sync` is what the cluster was compared with, and counts when it is `Synced`; else the last
    operation that succeeded does. Flux: `lastAppliedRevision`, as `main@sha1:…`, before 0.35 `main/…`.
    """
    if controller == "flux":
        ready: Mapping[str, Any] = next((one for one in status.get("conditions", ()) if one.get("type") == "Ready"), {})
        said = str(ready.get("message", "")) if ready.get("status") == "False" else ""
        return Report(_commit(status.get("lastAppliedRevision")), said)
    sync, operation = status.get("sync") or {}, status.get("operationState") or {}
    failed = operation.get("phase") in ("Failed", "Error")
    notes = [str(one.get("message", "")) for one in status.get("conditions") or () if "Error" in str(one.get("type"))]
    said = "; ".join(filter(None, [*notes, str(operation.get("message", "")) if failed else ""]))
    if sync.get("status") == "Synced":
        return Report(_commit(sync.get("revision")), said)
    done = operation.get("syncResult") or {}
    return Report(_commit(done.get("revision")) if operation.get("phase") == "Succeeded" else "", said)


def _commit(revision: Any) -> str:
    found = _COMMIT.search(str(revision or ""))
    return found.group() if found else ""


def _environment(conn: Connection, key: str) -> dict[str, str]:
    """Return the variables through which `git` gets a connection's secrets."""
    extra = conn.extra_dejson
    found = {LOGIN: conn.login or "git", PASSWORD: conn.password} if conn.password else {}
    key_file = key or str(extra.get("key_file") or "")
    known = str(extra.get("known_hosts") or "")
    options = ["-i", key_file, "-o", "IdentitiesOnly=yes"] if key_file else []
    options += ["-o", f"UserKnownHostsFile={known}"] if known else []
    if options:
        found["GIT_SSH_COMMAND"] = shlex.join(["ssh", "-o", "BatchMode=yes", *options])
    return found


def _key_file(key: str) -> str:
    """Write a private key into a file for this user alone; return its path."""
    handle, path = tempfile.mkstemp(prefix="airflow-ml-key-")
    with os.fdopen(handle, "w") as file:
        file.write(key if key.endswith("\n") else f"{key}\n")
    return path
