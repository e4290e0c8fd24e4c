"""The trigger behind every task whose stage runs in a job of Kubeflow Trainer or of KubeRay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from airflow_ml_provider.triggers._kinds import KINDS, Kind, incidents
from airflow_ml_provider.triggers.pods import ClusterTrigger


class JobTrigger(ClusterTrigger):
    """Watch a task's job until there is something to decide, and let the task's log have what its first pod prints.

    The event's `status` is `changed` (the job has ended or is gone, or one of its pods has failed), `late` (it does not
    run in time; time in which it is suspended does not count), `timeout` (the task's time is over) or `error` (with a
    `message`); `namespace`, `deadline`, `logged`, `uid` and `incidents` are those of the trigger by then.

    Parameters:
        kind: `trainjob` or `rayjob`.
        name: the job's name.
        uid: the job's uid; another of the same name is not it.
        namespace: of the job.
        identity: of the task; the value of the label `airflow-ml/identity` of the job and its pods.
        conn_id: connection to the cluster.
        poll_s: time between two looks (seconds).
        log_every_s: time between two looks at the log (seconds); 0 leaves it alone.
        start_s: the job must run so long after it was made or resumed (seconds).
        deadline: time at which the task's time is over (seconds since 1970); none without one.
        incidents: how many failures of its pods are known already.
    """

    kept = (*ClusterTrigger.kept, "kind", "name", "uid", "incidents")
    told = (*ClusterTrigger.told, "uid", "incidents")

    def __init__(
        self,
        kind: str,
        name: str,
        uid: str,
        namespace: str,
        identity: str,
        conn_id: str,
        poll_s: float = 2.0,
        log_every_s: float = 60.0,
        start_s: float = 600.0,
        deadline: float | None = None,
        incidents: int = 0,
    ) -> None:
        super().__init__(namespace, identity, conn_id, poll_s, log_every_s, start_s, deadline)
        self.kind, self.name, self.uid, self.incidents = kind, name, uid, incidents
        self._went_on = datetime.fromtimestamp(0, timezone.utc)  # when it was last seen to run, or to be suspended
        self._said = ""

    @property
    def _of(self) -> Kind:
        return KINDS[self.kind]

    async def _look(self, core: Any) -> str:
        """Look at the job once; return what there is to tell, mostly nothing."""
        job = await self._job(core.api_client)
        selector = f"airflow-ml/identity={self.identity}"
        pods = (await core.list_namespaced_pod(self.namespace, label_selector=selector)).items
        status = self._judge(job, pods)
        if self._log_is_due(status):
            labelled = await core.list_namespaced_pod(
                self.namespace, label_selector=f"{self._of.log_label}={self.name}"
            )
            if (first := self._of.first(labelled.items)) is not None:
                await self._pass_on(core, first, self._of.container)
        return status

    async def _job(self, api: Any) -> Mapping[str, Any] | None:
        """Return the job, unless it is gone."""
        from kubernetes_asyncio.client import ApiException, CustomObjectsApi

        kind = self._of
        try:
            job: Mapping[str, Any] = await CustomObjectsApi(api).get_namespaced_custom_object(
                kind.group, kind.version, self.namespace, kind.plural, self.name
            )
        except ApiException as error:
            if error.status != 404:
                raise
            return None
        return job if job["metadata"]["uid"] == self.uid else None

    def _judge(self, job: Mapping[str, Any] | None, pods: Sequence[Any]) -> str:
        if self._is_over():
            return "timeout"
        if job is None or job["metadata"].get("deletionTimestamp"):
            return "changed"
        state, now = self._of.state(job), datetime.now(timezone.utc)
        if state.phase in ("done", "failed"):
            return "changed"
        if (seen := incidents(pods)) != self.incidents:
            self.incidents = seen
            return "changed"
        if state.phase != "waits":
            self._went_on = now
        self._say(f"is suspended; it is waited for {state.why}".strip() if state.phase == "suspended" else "")
        late = (now - max(state.since, self._went_on)).total_seconds() > self.start_s
        return "late" if state.phase == "waits" and late else ""

    def _say(self, what: str) -> None:
        """Log something about the job once, until there is something else to say."""
        if what and what != self._said:
            self.log.info("%s %s %s", self._of.name, self.name, what)
        self._said = what

    async def _remove(self, api: Any) -> None:
        from kubernetes_asyncio.client import ApiException, CustomObjectsApi

        custom, kind, selector = CustomObjectsApi(api), self._of, f"airflow-ml/identity={self.identity}"
        where = (kind.group, kind.version, self.namespace, kind.plural)
        for job in (await custom.list_namespaced_custom_object(*where, label_selector=selector))["items"]:
            options: Any = removal(job)
            try:
                await custom.delete_namespaced_custom_object(*where, job["metadata"]["name"], body=options)
            except ApiException as error:
                if error.status not in (404, 409):  # gone, or another of the same name
                    raise


def removal(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with which exactly this job is deleted, after all that its controller made for it."""
    return {"propagationPolicy": "Foreground", "preconditions": {"uid": job["metadata"]["uid"]}}
