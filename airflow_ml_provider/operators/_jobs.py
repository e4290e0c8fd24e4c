"""A stage in a job of another controller: Kubeflow Trainer's TrainJob, or KubeRay's RayJob.

The controller makes, replaces and removes the pods; the operator makes the job (`_jobmanifest`), `triggers.jobs`
watches it while the task is deferred, and its status (`triggers._kinds`) and the outcome in the exchange folder decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.hooks._cluster import CONFLICT, NOT_FOUND, unless
from airflow_ml_provider.operators import _jobmanifest, _manifest
from airflow_ml_provider.operators._calls import StageCall
from airflow_ml_provider.operators._verdicts import told
from airflow_ml_provider.triggers._kinds import KINDS
from airflow_ml_provider.triggers.jobs import JobTrigger, removal
from airflow_ml_provider.triggers.pods import log_lines

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators._base import StageOperator
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.runtime import Pod

_WORKING = ("waits", "suspended", "runs")


class JobCall(StageCall):
    """One task's stage in a job that another controller looks after."""

    def __init__(self, operator: StageOperator, pod: Pod, info: RunInfo) -> None:
        super().__init__(operator, pod, info)
        self.kind = KINDS[pod.controller.partition(":")[0]]
        self.noun, self.container = self.kind.name, self.kind.container
        self._incidents = 0

    @property
    def _where(self) -> tuple[str, str, str, str]:
        return self.kind.group, self.kind.version, self.namespace, self.kind.plural

    @property
    def _api(self) -> Any:
        return self.carrier.hook.custom_object_client

    def _find(self, context: Context) -> list[Any]:
        if not self.namespace:
            self.namespace = self.carrier.build_pod_request_obj(context).metadata.namespace
        selector = f"{_manifest.IDENTITY}={self.info.identity}"
        with self._installed():
            found: list[Any] = self._api.list_namespaced_custom_object(*self._where, label_selector=selector)["items"]
        return found

    @contextmanager
    def _installed(self) -> Iterator[None]:
        """Say what the cluster lacks when it does not know this kind of job."""
        from kubernetes.client import ApiException

        try:
            yield
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
            known = f"{self.kind.plural}.{self.kind.group} {self.kind.version}"
            raise SpecError(
                f"the cluster of connection {self.pod.conn_id!r} does not know {known}: install {self.kind.install} "
                f"in it, or run the stage without controller={self.pod.controller!r}"
            ) from error

    def _ensure(self, context: Context, env: Mapping[str, str], found: Sequence[Any]) -> Mapping[str, Any]:
        going_on: Mapping[str, Any] | None = None
        for old in found:
            if going_on is None and self._still_works(old):
                self.log.info("going on with %s %s (%s)", self.noun, *_named(old))
                going_on = old
            else:
                self._remove(old)
        job = going_on or self._make(context, env)
        if env:
            with unless(CONFLICT):  # an earlier try made it
                self.carrier.client.create_namespaced_secret(self.namespace, _jobmanifest.secret(job, env))
        return job

    def _still_works(self, job: Mapping[str, Any]) -> bool:
        meta = job["metadata"]
        ours = meta["labels"].get(_manifest.CALL) == self.exchange.digest
        return ours and "deletionTimestamp" not in meta and self.kind.state(job).phase in _WORKING

    def _make(self, context: Context, env: Mapping[str, str]) -> Mapping[str, Any]:
        assert self.spec is not None
        carrier = self.carrier
        body: dict[str, Any] = carrier.client.api_client.sanitize_for_serialization(
            carrier.build_pod_request_obj(context)
        )
        wanted = _jobmanifest.job(self.kind, body, self.spec, self.pod, self.info, sorted(env))
        made: Mapping[str, Any] = self._api.create_namespaced_custom_object(*self._where, wanted)
        self.log.info("created %s %s (%s)", self.noun, *_named(made))
        return made

    def _look_after(self, context: Context, env: Mapping[str, str], event: Mapping[str, Any]) -> Mapping[str, Any]:
        self._incidents = event["incidents"]
        job: Mapping[str, Any] | None = next(
            (job for job in self._find(context) if job["metadata"]["uid"] == event["uid"]), None
        )
        if job is None or "deletionTimestamp" in job["metadata"]:
            self._crash([], "it was deleted")
        state = self.kind.state(job)
        if state.phase == "failed":
            self._crash(self._first(), state.why)
        if state.phase == "done":  # it would have written the outcome
            self._crash(self._first(), state.why or "the controller calls it complete")
        if event["status"] == "late" and state.phase == "waits":
            self._crash([], "; ".join([f"it does not run after {self.pod.start_s:.0f} s", *self._obstacles(state.why)]))
        return job

    def _obstacles(self, why: str) -> list[str]:
        """Return what keeps the job from running: the controller's words, and Kubernetes' on its pods."""
        selector = f"{_manifest.IDENTITY}={self.info.identity}"
        pods = self.carrier.client.list_namespaced_pod(self.namespace, label_selector=selector).items
        return list(dict.fromkeys(filter(None, [why, *(said for pod in pods for said in told(pod))])))

    def _defer(self, work: Mapping[str, Any], deadline: float | None) -> NoReturn:
        name, uid = _named(work)
        trigger = JobTrigger(
            self.pod.controller.partition(":")[0], name, uid, self.namespace, self.info.identity, self.pod.conn_id,
            self.pod.poll_s, self.pod.log_every_s, self.pod.start_s, deadline, self._incidents,
        )  # fmt: skip
        self.operator.defer(trigger=trigger, method_name="collect")
        raise AssertionError("a deferred task does not go on")

    def _first(self) -> Sequence[Any]:
        """Return the pod with the stage's log, if there is one."""
        labels = [f"{self.kind.log_label}={_named(job)[0]}" for job in self._find({}) if self._is_ours(job)]
        found = [self.carrier.client.list_namespaced_pod(self.namespace, label_selector=one).items for one in labels]
        first = self.kind.first(pod for pods in found for pod in pods)
        return [] if first is None else [first]

    def _is_ours(self, job: Mapping[str, Any]) -> bool:
        return bool(job["metadata"]["labels"].get(_manifest.CALL) == self.exchange.digest)

    def _log_rest(self) -> None:
        for pod in self._first():
            log_lines(self._lines(pod, self.logged), self.logged)

    def _remove(self, item: Mapping[str, Any], grace_s: int | None = None) -> None:
        """Delete this very job; its controller ends the pods with the time that they ask for."""
        if "deletionTimestamp" in item["metadata"]:
            return
        self.log.info("removing %s %s", self.noun, _named(item)[0])
        with unless(NOT_FOUND, CONFLICT):  # gone, or another of the same name
            self._api.delete_namespaced_custom_object(*self._where, _named(item)[0], body=removal(item))


def _named(job: Mapping[str, Any]) -> tuple[str, str]:
    return job["metadata"]["name"], job["metadata"]["uid"]
