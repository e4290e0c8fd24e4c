"""The trigger behind every task whose stage runs in pods, and what it shares with that of other controllers' jobs."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timezone
from typing import Any, ClassVar

import structlog
from airflow.triggers.base import TriggerEvent

from airflow_ml_provider.triggers._kill import KillableTrigger

_PATIENCE_S = 600.0  # for an API server that is away
REMOVED_IN_S = 10  # what a pod gets to end after its task was killed
OVERDUE_S = 60.0  # a deleted pod that is still there then: its node is not
_LEVELS = {name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")}
_OTHER_RANK = re.compile(r"(\w+\t[^\t]*\t)?\[rank (?!0\])\d+\] ")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")


class ClusterTrigger(KillableTrigger):
    """Watch what a task has in a cluster until there is something to decide; a subclass says what that is.

    The event has `status` (`error` when the cluster does not answer for long, with a `message`; `timeout` when the
    task's time is over) and, of the trigger by then, the attributes that `told` names. `logged` is
    the time of the last line that it has logged.

    Parameters:
        namespace: of what is watched.
        identity: of the task; the value of the label `airflow-ml/identity`.
        conn_id: connection to the cluster.
        poll_s: time between two looks (seconds).
        log_every_s: time between two looks at the log (seconds); 0 leaves it alone.
        start_s: a pod must run so long after it was made (seconds).
        deadline: time at which the task's time is over (seconds since 1970); none without one.
    """

    kept: ClassVar[tuple[str, ...]] = (
        "namespace", "identity", "conn_id", "poll_s", "log_every_s", "start_s", "deadline",
    )  # fmt: skip
    """The arguments from which the triggerer makes this trigger again."""
    told: ClassVar[tuple[str, ...]] = ("namespace", "deadline", "logged")

    def __init__(
        self,
        namespace: str,
        identity: str,
        conn_id: str,
        poll_s: float,
        log_every_s: float,
        start_s: float,
        deadline: float | None,
    ) -> None:
        super().__init__()
        self.namespace, self.identity, self.conn_id = namespace, identity, conn_id
        self.poll_s, self.log_every_s, self.start_s = poll_s, log_every_s, start_s
        self.deadline = deadline
        self.logged = ""  # time of the last line, RFC 3339
        self._log_at = time.monotonic() + min(log_every_s, 2 * poll_s)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer needs to make this trigger again."""
        kind = type(self)
        return f"{kind.__module__}.{kind.__name__}", {name: getattr(self, name) for name in self.kept}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Give one event, once there is something to decide."""
        status, message = await self._watch()
        self.has_told = True
        event = {"status": status, "message": message, **{name: getattr(self, name) for name in self.told}}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _watch(self) -> tuple[str, str]:
        """Return the event's status and message once there is one; a cluster that is away for a while is waited for."""
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
        from kubernetes_asyncio.client import CoreV1Api

        answered = time.monotonic()
        while True:
            try:
                async with AsyncKubernetesHook(conn_id=self.conn_id).get_conn() as api:
                    while not (status := await self._look(CoreV1Api(api))):
                        answered = time.monotonic()
                        await asyncio.sleep(self.poll_s)
                    return status, ""
            except Exception as error:  # noqa: BLE001 - of several libraries; the cluster is away, or refuses
                message = str(error) or type(error).__name__
                if time.monotonic() - answered > _PATIENCE_S or getattr(error, "status", None) in (401, 403):
                    return "error", message
                self.log.warning("the cluster does not answer: %s", message)
            await asyncio.sleep(self.poll_s)

    async def _look(self, core: Any) -> str:
        """Look once; return the status that there is to tell, mostly none."""
        raise TypeError(f"{type(self).__name__} must define _look")

    async def _remove(self, api: Any) -> None:
        """Remove what the task has."""
        raise TypeError(f"{type(self).__name__} must define _remove")

    async def _pass_on(self, core: Any, pod: Any, container: str) -> None:
        """Log what a pod has printed since the last time."""
        since = math.ceil(time.time() - nanoseconds(self.logged) / 1e9) + 1 if self.logged else None
        answer = await core.read_namespaced_pod_log(
            pod.metadata.name, self.namespace, container=container, timestamps=True, since_seconds=since,
            _preload_content=False,
        )  # fmt: skip
        text = (await answer.read()).decode(errors="replace")
        if answer.status == 200:
            self.logged = log_lines(new_lines(text, self.logged), self.logged)

    def _is_over(self) -> bool:
        """Return whether the task's time is over."""
        return self.deadline is not None and time.time() >= self.deadline

    def _log_is_due(self, status: str) -> bool:
        """Return whether to look at the log now: after a while, and before anything is told."""
        if not self.log_every_s or not (status or time.monotonic() >= self._log_at):
            return False
        self._log_at = time.monotonic() + self.log_every_s
        return True

    async def on_kill(self) -> None:
        """Remove what the task has: it was marked as something else, or cleared, while it was deferred."""
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook

        if self.has_told:
            return
        self.log.info("removing what this task has in the cluster")
        for pause_s in (1.0, 4.0, None):
            try:
                async with AsyncKubernetesHook(conn_id=self.conn_id).get_conn() as api:
                    await self._remove(api)
                break
            except Exception as error:
                if pause_s is None:
                    raise
                self.log.warning("it could not be removed: %s", error)
                await asyncio.sleep(pause_s)


class PodsTrigger(ClusterTrigger):
    """Watch the pods of one task until there is something to decide, and let the task's log have what they print.

    The event's `status` is `changed` (a pod has ended or is gone), `late` (one does not run in time), `timeout` (the
    task's time is over) or `error` (with a `message`); `namespace`, `deadline` and `logged` are those of
    the trigger by then.

    Parameters:
        namespace: of the pods.
        identity: of the task; the value of their label `airflow-ml/identity`.
        uids: the pods that are watched.
        conn_id: connection to the cluster.
        poll_s: time between two looks (seconds).
        log_every_s: time between two looks at the log (seconds); 0 leaves it alone.
        start_s: a pod must run so long after it was made (seconds).
        deadline: time at which the task's time is over (seconds since 1970); none without one.
    """

    kept = (*ClusterTrigger.kept, "uids")

    def __init__(
        self,
        namespace: str,
        identity: str,
        uids: Sequence[str],
        conn_id: str,
        poll_s: float = 2.0,
        log_every_s: float = 60.0,
        start_s: float = 600.0,
        deadline: float | None = None,
    ) -> None:
        super().__init__(namespace, identity, conn_id, poll_s, log_every_s, start_s, deadline)
        self.uids = list(uids)

    async def _look(self, core: Any) -> str:
        """Look at the pods once; return what there is to tell, mostly nothing."""
        selector = f"airflow-ml/identity={self.identity}"
        found = (await core.list_namespaced_pod(self.namespace, label_selector=selector)).items
        status = self._judge({pod.metadata.uid: pod for pod in found})
        if self._log_is_due(status) and (first := self._first(found)) is not None:
            await self._pass_on(core, first, "base")
        return status

    def _judge(self, pods: dict[str, Any]) -> str:
        if self._is_over():
            return "timeout"
        now = datetime.now(timezone.utc)
        for uid in self.uids:
            pod = pods.get(uid)
            if pod is None or pod.status.phase in ("Succeeded", "Failed"):
                return "changed"
            if (gone := pod.metadata.deletion_timestamp) and (now - gone).total_seconds() > OVERDUE_S:
                return "changed"
            age_s = (now - pod.metadata.creation_timestamp).total_seconds()
            if pod.status.phase == "Pending" and not gone and age_s > self.start_s:
                return "late"
        return ""

    def _first(self, pods: list[Any]) -> Any:
        """Return the pod whose log the task's log has, if it has begun."""
        running = [pod for pod in pods if pod.metadata.uid in self.uids and pod.status.phase != "Pending"]
        return min(running, key=lambda pod: int(pod.metadata.labels.get("airflow-ml/node", 0)), default=None)

    async def _remove(self, api: Any) -> None:
        from kubernetes_asyncio.client import ApiException, CoreV1Api, V1DeleteOptions, V1Preconditions

        core, selector = CoreV1Api(api), f"airflow-ml/identity={self.identity}"
        for pod in (await core.list_namespaced_pod(self.namespace, label_selector=selector)).items:
            grace_s = REMOVED_IN_S if pod.status.phase == "Running" else 0
            options = V1DeleteOptions(grace_period_seconds=grace_s, preconditions=V1Preconditions(uid=pod.metadata.uid))
            try:
                await core.delete_namespaced_pod(pod.metadata.name, self.namespace, body=options)
            except ApiException as error:
                if error.status not in (404, 409):  # gone, or another of the same name
                    raise


def new_lines(text: str, after: str) -> list[tuple[str, str]]:
    """Return the lines of a pod's log with their times, those later than `after`, and of rank 0 where ranks are named.

    >>> new_lines("2026-01-01T00:00:00.1Z a\\n2026-01-01T00:00:00.12Z b\\n", "2026-01-01T00:00:00.1Z")
    [('2026-01-01T00:00:00.12Z', 'b')]
    """
    last = nanoseconds(after)
    lines = (line.partition(" ") for line in text.splitlines())
    return [(stamp, said) for stamp, _, said in lines if nanoseconds(stamp) > last and not _OTHER_RANK.match(said)]


def nanoseconds(stamp: str) -> int:
    """Return the time that an RFC 3339 stamp names, since 1970; -1 for anything else.

    >>> nanoseconds("1970-01-01T01:00:01.5+01:00")
    1500000000
    """
    found = _STAMP.fullmatch(stamp)
    if not found:
        return -1
    whole, fraction, offset = found.groups()
    zone = "+00:00" if offset == "Z" else offset
    return int(datetime.fromisoformat(whole + zone).timestamp()) * 10**9 + int((fraction or "").ljust(9, "0")[:9])


def log_lines(lines: Sequence[tuple[str, str]], logged: str) -> str:
    """Log lines of a pod, each with its own time and at the level that it names; return the time of the last line.

    A triggerer that takes over from one that was killed logs again what that one had. By equal times Airflow's reader
    sees that these are the same lines, and shows each once.
    """
    log = structlog.get_logger(__name__)
    for stamp, line in lines:
        time_s, logged = nanoseconds(stamp) // 1000 / 1e6, stamp
        when = datetime.fromtimestamp(time_s, timezone.utc).isoformat(timespec="microseconds")
        log.log(*levelled(line), timestamp=when)
    return logged


def levelled(line: str) -> tuple[int, str]:
    """Return the level that a line begins with, and the rest.

    >>> levelled("ERROR\\tit broke"), levelled("a\\tb")
    ((40, 'it broke'), (20, 'a\\tb'))
    """
    level, _, said = line.partition("\t")
    return (_LEVELS[level], said) if level in _LEVELS else (logging.INFO, line)
