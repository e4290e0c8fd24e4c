"""Services of predictions on Seldon Core 2, through the connection of the Kubernetes provider."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from airflow_ml_provider.exceptions import SpecError, Unavailable
from airflow_ml_provider.hooks._cluster import CONFLICT, NOT_FOUND, unless
from airflow_ml_provider.hooks._records import RecordedPlace, check_revision
from airflow_ml_provider.stages.deploy import seldon
from airflow_ml_provider.stages.deploy.elsewhere import Seldon
from airflow_ml_provider.stages.deploy.kserve import inference
from airflow_ml_provider.stages.deploy.kserve.manifest import SERVICE, recorded
from airflow_ml_provider.stages.deploy.metrics import resolve
from airflow_ml_provider.stages.deploy.seldon import API_VERSION, EXPERIMENTS, GROUP, MODELS
from airflow_ml_provider.stages.deploy.service import Observed, Readings, Service

_TRIES = 5  # Seldon writes the status meanwhile


class SeldonServing(RecordedPlace):
    """The services of a namespace on Seldon Core 2; fulfils `stages.deploy.service.Serving`.

    What a service shall be is kept in a ConfigMap `NAME-airflow-ml-seldon`, which is written first, and owns the
    Experiment and the Models that follow from it.

    Parameters:
        place: connections, namespace, address, and what counts requests.
        timeout_s: a call to the cluster fails after so many seconds.
        settle_s: how long a Model goes on after the Experiment has sent it the last request (seconds); Seldon does not
            say when a change of an Experiment is in effect.
    """

    system_name, record_suffix = "Seldon", "-seldon"

    def __init__(self, place: Seldon, *, timeout_s: float = 30.0, settle_s: float = 2.0) -> None:
        super().__init__(place.conn_id, place.namespace, timeout_s)
        self.address, self.prometheus_conn_id = place.address, place.prometheus_conn_id
        self.metrics, self.settle_s = resolve(place.metrics), settle_s

    def look(self, name: str) -> Observed | None:
        """Return a service as it is, or none."""
        with self._explained():
            kept = self._record(name)
            if kept is None or "deletionTimestamp" in kept["metadata"]:
                return None
            wanted = recorded(kept["data"])
            states = seldon.states(wanted, self._models(name), self._experiment(name))
            return Observed(wanted, kept["metadata"]["resourceVersion"], states, f"{self.address}/v2/models/{name}")

    def put(self, wanted: Service, revision: str | None = None) -> str:
        """Make a service what it shall be, without waiting; return the new revision. The same again changes nothing.

        Raises:
            Conflict: it has another revision, or is there already: somebody else changed it.
            SpecError: Seldon cannot do this, or an Experiment of this name is not ours.
            Unavailable: the cluster does not answer, or the service is still being deleted.
        """
        seldon.check(wanted)
        with self._explained():
            found = self._experiment(wanted.name)  # before the record: whoever writes it later, writes this later, too
            kept = self._record(wanted.name)
            if kept is not None and "deletionTimestamp" in kept["metadata"]:
                raise Unavailable(f"service {wanted.name!r} is still being deleted")
            check_revision(wanted.name, revision, kept)
            if found is not None and SERVICE not in found["metadata"].get("labels", {}):
                raise SpecError(f"Experiment {wanted.name!r} is not Airflow's; choose another name or delete it")
            kept = self._keep(wanted, kept)
            self._load(wanted, kept)
            self._split(wanted, found, kept)
            self._unload(wanted)
            return str(kept["metadata"]["resourceVersion"])

    def readings(self, name: str) -> Readings:
        """Return what each version's servers have counted, as Prometheus knows it.

        Raises:
            SpecError: nothing here counts requests.
            Unavailable: Prometheus or the cluster does not answer.
        """
        if not self.prometheus_conn_id:
            raise SpecError(
                f"nothing counts the requests of service {name!r}; set prometheus_conn_id of the place to a connection "
                "to the Prometheus that scrapes Seldon's servers"
            )
        with self._explained():
            kept = self._record(name)
        return self._counted(name, seldon.parts(recorded(kept["data"])) if kept else [])

    def remove(self, name: str) -> None:
        """Remove a service; none is no error. Kubernetes deletes what the record owns, and then the record."""
        with self._explained(), unless(NOT_FOUND):
            self._core.delete_namespaced_config_map(
                self._record_name(name), self.namespace, propagation_policy="Foreground", **self._limit
            )

    def predict(self, name: str, rows: Mapping[str, Sequence[Any]], version: str = "") -> tuple[Mapping[str, Any], str]:
        """Return the outputs for some rows (column to values), by output, and the version that gave them.

        Raises:
            DataError: the model does not take these rows.
            SpecError: there is no such service or version.
            Unavailable: it does not answer.
        """
        with self._explained():
            kept = self._record(name)
        wanted = recorded(kept["data"]) if kept else None
        if wanted is None or (version and version not in wanted.versions):
            raise SpecError(
                f"there is no version {version!r} of service {name!r}" if wanted else f"no service {name!r}"
            )
        asked = wanted.versions[version] if version else wanted.stable
        path = seldon.model(name, asked)["metadata"]["name"] if version else name
        headers = {"Seldon-Model": path if version else f"{name}.experiment"}
        request = inference.request(rows, asked.server.format)
        answer = inference.post(self.address, "", path, request, asked.server.timeout_s, headers)
        return inference.outputs(answer), seldon.answered(wanted, answer)

    def _experiment(self, name: str) -> dict[str, Any] | None:
        with unless(NOT_FOUND):
            return cast("dict[str, Any]", self._seldon("get", EXPERIMENTS, name))
        return None

    def _models(self, name: str) -> list[dict[str, Any]]:
        found = self._seldon("list", MODELS, label_selector=f"{SERVICE}={name}")
        return [one for one in found["items"] if "deletionTimestamp" not in one["metadata"]]

    def _load(self, wanted: Service, kept: Mapping[str, Any]) -> None:
        """Make the Models that are not there."""
        there = {one["metadata"]["name"] for one in self._models(wanted.name)}
        for version in wanted.versions.values():
            made = seldon.model(wanted.name, version)
            if made["metadata"]["name"] in there:
                continue
            with unless(CONFLICT) as answer:
                self._seldon("create", MODELS, body=_owned(made, kept))
            if answer.refused:
                raise Unavailable(f"Model {made['metadata']['name']!r} is still being deleted, or not Airflow's")

    def _split(self, wanted: Service, found: dict[str, Any] | None, kept: Mapping[str, Any]) -> None:
        """Write the Experiment that follows from the record, unless it is there.

        Raises:
            Conflict: the record was changed by somebody else, who then writes the Experiment.
        """
        made = _owned(seldon.experiment(wanted), kept)
        for _ in range(_TRIES):
            if found is not None and seldon.as_made(made, found):
                return
            with unless(CONFLICT, NOT_FOUND) as answer:
                if found is None:
                    self._seldon("create", EXPERIMENTS, body=made)
                else:
                    meta = {**found["metadata"], "ownerReferences": made["metadata"]["ownerReferences"]}
                    body = {**found, "metadata": meta, "spec": made["spec"]}
                    self._seldon("replace", EXPERIMENTS, wanted.name, body=body)
            if not answer.refused:
                return
            found = self._experiment(wanted.name)
            self._check_kept(wanted.name, kept)
        raise Unavailable(f"Experiment {wanted.name!r} could not be written: others write it, too")

    def _unload(self, wanted: Service) -> None:
        """Delete the Models of versions that the service has no more."""
        kept = {seldon.model(wanted.name, version)["metadata"]["name"] for version in wanted.versions.values()}
        gone = {one["metadata"]["name"] for one in self._models(wanted.name)} - kept
        if gone:
            time.sleep(self.settle_s)
        for name in gone:
            with unless(NOT_FOUND):
                self._seldon("delete", MODELS, name)

    def _seldon(self, verb: str, plural: str, *name: str, **given: Any) -> Any:
        return self._objects(verb, GROUP, API_VERSION, plural, *name, **given)


def _owned(made: dict[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object that Kubernetes deletes with the record."""
    meta = kept["metadata"]
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": meta["name"], "uid": meta["uid"]}
    return {**made, "metadata": {**made["metadata"], "ownerReferences": [{**owner, "blockOwnerDeletion": True}]}}
