"""Services of predictions on KServe, through the connection of the Kubernetes provider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

from airflow_ml_provider.exceptions import Conflict, SpecError, Unavailable
from airflow_ml_provider.hooks._cluster import CONFLICT, FORBIDDEN, NOT_FOUND, unless
from airflow_ml_provider.hooks._records import RecordedPlace, check_revision
from airflow_ml_provider.stages.deploy.kserve import inference
from airflow_ml_provider.stages.deploy.kserve.abilities import API_VERSION, GROUP, MODE, PLURAL, Abilities, abilities
from airflow_ml_provider.stages.deploy.kserve.compare import same
from airflow_ml_provider.stages.deploy.kserve.manifest import (
    SERVICE,
    manifest,
    predictors,
    record_name,
    recorded,
)
from airflow_ml_provider.stages.deploy.kserve.parts import parts
from airflow_ml_provider.stages.deploy.kserve.states import Seen, observed
from airflow_ml_provider.stages.deploy.metrics import resolve
from airflow_ml_provider.stages.deploy.place import KServe
from airflow_ml_provider.stages.deploy.service import Observed, Readings, Service

_MODES = {"": "", "standard": "Standard", "serverless": "Knative"}
_SELECTOR = f"{GROUP}/inferenceservice"  # KServe's label on all that it makes of one
_CONFIG, _PROBE = "inferenceservice-config", "airflow-ml-probe"
_NOBODY = (NOT_FOUND, 503)  # no Service, or no pod behind it, yet
_TRIES = 5  # KServe writes the status meanwhile


class KServeServing(RecordedPlace):
    """The services of a namespace on KServe; fulfils `stages.deploy.service.Serving`.

    What a service shall be is kept in a ConfigMap `NAME-airflow-ml` beside its InferenceService, because KServe gives
    the annotations of that one to the pods. It is written first, and its resource version is the service's revision.
    The InferenceService follows from it; should its writer end in between, whoever puts the service again completes it.

    Parameters:
        place: connections, namespace, mode, address, and what counts requests.
        system: namespace of KServe itself.
        timeout_s: a call to the cluster fails after so many seconds.
    """

    system_name = "KServe"

    def __init__(self, place: KServe, *, system: str = "kserve", timeout_s: float = 30.0) -> None:
        super().__init__(place.conn_id, place.namespace, timeout_s)
        self.mode, self.address, self.system = _MODES[place.mode], place.address, system
        self.prometheus_conn_id, self.metrics = place.prometheus_conn_id, resolve(place.metrics)

    def look(self, name: str) -> Observed | None:
        """Return a service as it is, or none."""
        with self._explained():
            found = self._found(name)
            kept = self._record(name)
            if kept is None or _orphaned(kept, found):
                return None
            asked, revision = recorded(kept["data"]), kept["metadata"]["resourceVersion"]
            seen = self._seen(name, found)
            state = observed(asked, revision, seen, self.abilities)
            if found is None or all(one.phase == "ready" for one in state.states.values()):
                return state
            return observed(asked, revision, self._why(name, seen), self.abilities)

    def put(self, wanted: Service, revision: str | None = None) -> str:
        """Make a service what it shall be, without waiting; return the new revision. The same again changes nothing.

        Parameters:
            wanted: what it shall be.
            revision: that of what is to be changed; none when there is no such service yet.

        Raises:
            Conflict: it has another revision, or is there already: somebody else changed it.
            SpecError: KServe cannot do this, or an InferenceService of this name is not ours.
            Unavailable: the cluster does not answer, or the service is still being deleted.
        """
        with self._explained():
            found = self._found(wanted.name)  # before the record: whoever writes it later, writes this later, too
            kept = self._record(wanted.name)
            if kept is not None and _orphaned(kept, found):
                self._give_up(kept)
                kept = None
            if found is not None and SERVICE not in found["metadata"].get("labels", {}):
                raise SpecError(f"InferenceService {wanted.name!r} is not Airflow's; choose another name or delete it")
            check_revision(wanted.name, revision, kept)
            self._manifest(wanted, found)  # refuses before anything is written
            kept = self._keep(wanted, kept)
            found = self._write(wanted, found, kept)
            return str(self._own(kept, found)["metadata"]["resourceVersion"])

    def readings(self, name: str) -> Readings:
        """Return what each version's servers have counted, as Prometheus knows it.

        Raises:
            SpecError: nothing here counts requests, or not in a way that a rollout can use.
            Unavailable: Prometheus or the cluster does not answer.
        """
        if not self.prometheus_conn_id:
            raise SpecError(
                f"nothing counts the requests of service {name!r}: KServe itself does not; set prometheus_conn_id of "
                "the place to a connection to the Prometheus that scrapes its servers or its gateway"
            )
        with self._explained():
            found = self._found(name)
            revisions = self._revisions(name) if found and self.abilities.shape == "serverless" else None
        return self._counted(name, parts(found, revisions) if found else [])

    def remove(self, name: str) -> None:
        """Remove a service; none is no error."""
        with self._explained():
            found = self._found(name, going=True)
            if found is not None and SERVICE not in found["metadata"].get("labels", {}):
                raise SpecError(f"InferenceService {name!r} is not Airflow's, so it is not removed")
            with unless(NOT_FOUND):
                self._custom("delete", name)
            with unless(NOT_FOUND):
                self._core.delete_namespaced_config_map(record_name(name), self.namespace, **self._limit)

    def predict(self, name: str, rows: Mapping[str, Sequence[Any]], version: str = "") -> tuple[Mapping[str, Any], str]:
        """Return the outputs for some rows (column to values), by output, and the version that gave them.

        KServe itself does not say which version answered. It is known when the server says it (`model_version`), when
        one was asked for, or when one version gets all requests; otherwise it is empty.

        Parameters:
            name: the service.
            rows: the rows.
            version: ask this version, whatever its share of the traffic; empty is as a user asks. In the mode
                `Standard` such a request goes through the API server.

        Raises:
            DataError: the model does not take these rows.
            SpecError: there is no such service or version.
            Unavailable: it does not answer.
        """
        state = self.look(name)
        if state is None or (version and version not in state.states):
            raise SpecError(f"there is no version {version!r} of service {name!r}" if state else f"no service {name!r}")
        asked = state.wanted.versions[version] if version else state.wanted.stable
        request = inference.request(rows, asked.server.format)
        if version and self.abilities.shape == "standard":
            answer = self._through(name, version, request, asked.server.timeout_s)
        else:
            url = self._revision_url(name, version) if version else state.address
            answer = inference.post(url, self.address, name, request, asked.server.timeout_s)
        return inference.outputs(answer), inference.answered(answer, state, version)

    @cached_property
    def abilities(self) -> Abilities:
        """What KServe can do in this cluster.

        Whether there is a `spec.canary` is tried by an InferenceService that the server does not keep (`dryRun`), since
        only few may read definitions.
        """
        with self._explained(), unless(NOT_FOUND, *FORBIDDEN) as answer:
            config = self._core.read_namespaced_config_map(_CONFIG, self.system, **self._limit).data or {}
        if answer.refused and not self.mode:
            raise SpecError(
                f"connection {self.conn_id!r} cannot read ConfigMap {_CONFIG!r} in namespace {self.system!r}, which "
                "says how KServe makes pods; allow it, name KServe's namespace in `system`, or give `mode`"
            )
        # Who may not read it gets the benefit of the doubt on how traffic goes.
        config = {"ingress": '{"enableGatewayApi": true}'} if answer.refused else config
        model = {"modelFormat": {"name": "onnx"}, "storageUri": "s3://none/1"}
        predictor, canary = {"name": "a", "model": model}, {"name": "b", "model": {**model, "name": "kserve-container"}}
        probe = {
            "apiVersion": f"{GROUP}/{API_VERSION}", "kind": "InferenceService",
            "metadata": {"name": _PROBE, "annotations": {MODE: "Standard"}},
            "spec": {"predictor": predictor, "canary": [{"predictor": canary, "trafficPercent": 0}]},
        }  # fmt: skip
        with self._explained():
            tried = self._custom("create", body=probe, dry_run="All")
        return abilities(config, "canary" in tried["spec"], self.mode)

    def _found(self, name: str, going: bool = False) -> dict[str, Any] | None:
        """Return the InferenceService, unless there is none or, by default, it is being deleted."""
        found = None
        with unless(NOT_FOUND):
            found = cast("dict[str, Any]", self._custom("get", name))
        return None if found and "deletionTimestamp" in found["metadata"] and not going else found

    def _give_up(self, kept: dict[str, Any]) -> None:
        """Remove the record of a service that somebody deleted; Kubernetes would do it a little later."""
        meta = kept["metadata"]
        body = {"preconditions": {"uid": meta["uid"]}}
        with unless(NOT_FOUND, CONFLICT):
            self._core.delete_namespaced_config_map(meta["name"], self.namespace, body=body, **self._limit)

    def _own(self, kept: dict[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        """Let Kubernetes delete the record with its InferenceService; return the record."""
        if kept["metadata"].get("ownerReferences"):
            return kept
        owner = {key: found[key] for key in ("apiVersion", "kind")} | {
            key: found["metadata"][key] for key in ("name", "uid")
        }
        with unless(CONFLICT):
            return self._replace_record({**kept, "metadata": {**kept["metadata"], "ownerReferences": [owner]}})
        raise Conflict(f"service {found['metadata']['name']!r} was changed by somebody else at this moment")

    def _write(self, wanted: Service, found: dict[str, Any] | None, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Write the InferenceService that follows from the record, unless it is there; return it.

        Raises:
            Conflict: the record was changed by somebody else, who then writes the InferenceService.
        """
        for _ in range(_TRIES):
            made = self._manifest(wanted, found)
            with unless(CONFLICT):
                if found is None:
                    return cast("dict[str, Any]", self._custom("create", body=made))
                if same(made, found):
                    return found
                return cast("dict[str, Any]", self._custom("replace", wanted.name, body=_changed(found, made)))
            found = self._found(wanted.name)
            self._check_kept(wanted.name, kept)
        raise Unavailable(
            f"InferenceService {wanted.name!r} could not be written: it is being deleted, or others write it, too"
        )

    def _manifest(self, wanted: Service, found: Mapping[str, Any] | None) -> dict[str, Any]:
        revisions = self._revisions(wanted.name) if found and self.abilities.shape == "serverless" else ()
        return manifest(wanted, self.abilities, found, revisions)

    def _seen(self, name: str, found: Mapping[str, Any] | None) -> Seen:
        """Return what there is of a service, without its pods and warnings, which only say why it is not ready."""
        if found is None:
            return Seen()
        if self.abilities.shape == "serverless":
            return Seen(found, self._revisions(name))
        made = self._apps.list_namespaced_deployment(self.namespace, **self._selected(name))
        return Seen(found, self._json(made)["items"])

    def _why(self, name: str, seen: Seen) -> Seen:
        """Return what there is of a service, with its pods and warnings."""
        pods = self._json(self._core.list_namespaced_pod(self.namespace, **self._selected(name)))["items"]
        return replace(seen, pods=pods, warning=self._warned("InferenceService", name))

    def _selected(self, name: str) -> dict[str, Any]:
        return {"label_selector": f"{_SELECTOR}={name}", **self._raw}

    def _warned(self, kind: str, name: str) -> str:
        """Return the last warning of KServe; it says there what it does not say in the status."""
        fields = f"involvedObject.kind={kind},involvedObject.name={name},type=Warning"
        events: list[Any] = []
        with unless(*FORBIDDEN):
            events = self._core.list_namespaced_event(self.namespace, field_selector=fields, **self._limit).items
        events.sort(key=lambda event: str(event.last_timestamp or event.metadata.creation_timestamp))
        return f"{events[-1].reason}: {events[-1].message}" if events else ""

    def _revisions(self, name: str) -> list[dict[str, Any]]:
        selector = f"{_SELECTOR}={name}"
        found = self._objects("list", "serving.knative.dev", "v1", "revisions", label_selector=selector)
        return list(found["items"])

    def _revision_url(self, name: str, version: str) -> str:
        """Return the address of a version alone, which Knative gives to the revisions that have a tag."""
        with self._explained():
            found = self._found(name)
            url = inference.tagged(found, self._revisions(name), version) if found else ""
        if not url:
            raise Unavailable(f"version {version!r} of service {name!r} has no address of its own yet")
        return url

    def _through(self, name: str, version: str, request: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """Return what one version answers, by way of the API server."""
        with self._explained():
            found = self._found(name)
        where = inference.deployed(name, predictors(found) if found else (), version)
        path = f"/api/v1/namespaces/{self.namespace}/services/{where}:80/proxy/v2/models/{name}/infer"
        with self._explained(), _told(name):
            # The generated client cannot send a body to a proxy.
            answer = self._api.call_api(
                path, "POST", header_params={"Content-Type": "application/json", "Accept": "application/json"},
                body=request, response_types_map={200: "object"}, auth_settings=["BearerToken"],
                _return_http_data_only=True, _request_timeout=timeout_s,
            )  # fmt: skip
        return cast("Mapping[str, Any]", answer)

    def _custom(self, verb: str, *name: str, **given: Any) -> Any:
        return self._objects(verb, GROUP, API_VERSION, PLURAL, *name, **given)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Tell what a server answered through the API server from what that one says itself."""
    from kubernetes.client import ApiException

    try:
        yield
    except ApiException as error:
        body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
        if '"kind":"Status"' in body.replace(" ", "") and error.status not in _NOBODY:
            raise
        raise inference.refusal(name, error.status or 0, body) from error


def _orphaned(kept: Mapping[str, Any], found: Mapping[str, Any] | None) -> bool:
    """Return whether a record is of an InferenceService that is gone."""
    owners = [owner["uid"] for owner in kept["metadata"].get("ownerReferences", ())]
    return bool(owners) and (found is None or found["metadata"]["uid"] not in owners)


def _changed(found: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Return an InferenceService with what was made here, and with what others wrote beside it."""
    old, new = found["metadata"], made["metadata"]
    labels = {**old.get("labels", {}), **new["labels"]}
    annotations = {**new["annotations"], **old.get("annotations", {})}  # KServe gives the mode its newer name
    return {**found, "metadata": {**old, "labels": labels, "annotations": annotations}, "spec": made["spec"]}
