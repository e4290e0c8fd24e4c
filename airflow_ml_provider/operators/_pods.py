"""A stage in one pod or in several: made, found again by a retry, replaced when lost, and always removed.

KubernetesPodOperator composes and creates each pod, `triggers.pods` watches them while the task is deferred, and what
is decided in between, here, stands on what the API server says (`_verdicts`) and on the outcome in the exchange folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import MissingLibrary, SpecError, StageCrashed, Unavailable
from airflow_ml_provider.operators import _manifest
from airflow_ml_provider.operators._exchange import Exchange, exchange_root
from airflow_ml_provider.operators._lineage import parent_environment
from airflow_ml_provider.operators._verdicts import GONE, Verdict, avoided, never_ran, overdue_s, verdict
from airflow_ml_provider.triggers.pods import OVERDUE_S, REMOVED_IN_S, PodsTrigger, log_lines, new_lines

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators._base import StageOperator
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.runtime import Pod
    from airflow_ml_provider.stages import Result, Spec

_GONE, _THERE, _FORBIDDEN = 404, 409, (401, 403)
_TAIL = 30  # lines of a pod that ended without an outcome


class StageCall:
    """One task's stage in a cluster; a subclass says what carries it there.

    Parameters:
        operator: whose stage it is.
        pod: what a pod is like.
        info: the task.
    """

    def __init__(self, operator: StageOperator, pod: Pod, info: RunInfo) -> None:
        self.operator, self.pod, self.info, self.log = operator, pod, info, operator.log
        self.exchange = Exchange(exchange_root(pod), info)
        self.spec: Spec | None = None
        self.namespace = ""
        self.plain: Mapping[str, str] = {}
        self.noun, self.container = "pod", _manifest.CONTAINER

    def begin(self, spec: Spec, env: Mapping[str, str], context: Context) -> Result:
        """Start the stage and defer, or go on with an earlier try's, or return what that has left.

        Raises:
            TaskDeferred: the stage runs.
        """
        require()
        self.spec, env = spec, self._with_lineage(env, context)
        with explained(self.pod.conn_id, self.noun):
            if self.exchange.put(spec) and (body := self.exchange.read()) and "error" not in body:
                self.log.info("the %s of an earlier try has left its result in %s", self.noun, self.exchange.outcome)
                self._find(context)
                return self._conclude(body)
            self.exchange.drop_outcome()
            found = self._find(context)
            try:
                work = self._ensure(context, env, found)
            except Exception:
                self._clean_up()
                raise
        timeout = self.operator.execution_timeout
        return self._defer(work, {"deadline": time.time() + timeout.total_seconds() if timeout else None})

    def finish(self, context: Context, event: Mapping[str, Any], env: Mapping[str, str]) -> Result:
        """Take the outcome, or replace what was lost and defer again.

        Raises:
            TaskDeferred: the stage still runs.
            StageCrashed: it ended without an outcome.
            AirflowTaskTimeout: the task's time is over.
        """
        self.spec, self.namespace = self.exchange.spec(), event["namespace"]
        env = self._with_lineage(env, context)
        with explained(self.pod.conn_id, self.noun):
            self._find(context)
            logged = self._log_rest(event["logged"])
            if body := self.exchange.read():
                return self._conclude(body)
            if event["status"] == "timeout":
                self._clean_up()
                raise AirflowTaskTimeout(
                    f"stage {self.spec.stage!r} took longer than {self.operator.execution_timeout}"
                )
            if event["status"] == "error":
                raise Unavailable(f"the cluster of connection {self.pod.conn_id!r} does not answer: {event['message']}")
            work = self._look_after(context, env, event)
        return self._defer(work, {"deadline": event["deadline"], "logged": logged})

    def cancel(self) -> None:
        """Remove what carries it; called when the task is killed."""
        if self.namespace:
            self._clean_up()

    @cached_property
    def carrier(self) -> Any:
        """The KubernetesPodOperator that composes the pods."""
        assert self.spec is not None
        return _manifest.carrier(self.operator, self.pod, self.exchange, self.spec.stage, self.plain)

    def _with_lineage(self, env: Mapping[str, str], context: Context) -> dict[str, str]:
        """Have what emits OpenLineage in the pods hang under the task; return the settings that are secret."""
        self.plain, secret = parent_environment(context)
        return {**secret, **env}

    @property
    def _nodes(self) -> tuple[int, int]:
        assert self.spec is not None
        return self.spec.nodes

    def _find(self, context: Context) -> list[Any]:
        """Return what carries this task's stage, and what an earlier try has left."""
        raise TypeError(f"{type(self).__name__} must define _find")

    def _ensure(self, context: Context, env: Mapping[str, str], found: Sequence[Any]) -> Any:
        """Return what carries the stage from now on: of what was found what still works, or something new."""
        raise TypeError(f"{type(self).__name__} must define _ensure")

    def _look_after(self, context: Context, env: Mapping[str, str], event: Mapping[str, Any]) -> Any:
        """Return what is still to be watched, or fail."""
        raise TypeError(f"{type(self).__name__} must define _look_after")

    def _defer(self, work: Any, state: Mapping[str, Any]) -> NoReturn:
        """Defer until the trigger has something to decide."""
        raise TypeError(f"{type(self).__name__} must define _defer")

    def _log_rest(self, logged: str) -> str:
        """Log what was printed since the trigger looked; return the time of the last line."""
        raise TypeError(f"{type(self).__name__} must define _log_rest")

    def _remove(self, item: Any, grace_s: int | None = None) -> None:
        """Delete one of what `_find` gives."""
        raise TypeError(f"{type(self).__name__} must define _remove")

    def _conclude(self, body: dict[str, Any]) -> Result:
        assert self.spec is not None
        self._clean_up()
        return self.exchange.take(body, self.spec)

    def _crash(self, pods: Sequence[Any], why: str) -> NoReturn:
        """Fail, with what Kubernetes says and the last lines of the pods that are to blame."""
        for pod in pods:
            self.log.error("last lines of pod %s:", pod.metadata.name)
            log_lines(self.log, self._lines(pod)[-_TAIL:], "")
        self._clean_up()
        assert self.spec is not None
        raise StageCrashed(
            f"the {self.noun} of stage {self.spec.stage!r} ended without a result: {why or 'no reason is known'}"
        ) from None

    def _lines(self, pod: Any, after: str = "") -> list[tuple[str, str]]:
        from kubernetes.client import ApiException

        if verdict(pod).kind == "waits":
            return []
        try:
            answer = self.carrier.client.read_namespaced_pod_log(
                pod.metadata.name, self.namespace, container=self.container, timestamps=True, _preload_content=False
            )  # fmt: skip
        except ApiException as error:
            self.log.warning("the log of pod %s cannot be read: %s", pod.metadata.name, error.reason)
            return []
        return new_lines(answer.data.decode(errors="replace"), after)

    def _clean_up(self) -> None:
        """Remove all that carries this task's stage; if that fails, how the stage ended still says more."""
        try:
            for item in self._find({}):
                self._remove(item, grace_s=REMOVED_IN_S)
        except Exception:
            self.log.exception("%ss of this task may be left in namespace %s", self.noun, self.namespace)


class PodCall(StageCall):
    """One task's stage in its pods."""

    def _find(self, context: Context) -> list[Any]:
        """Return the pods of this task, whatever has become of them."""
        if not self.namespace:
            self.namespace = self.carrier.build_pod_request_obj(context).metadata.namespace
        selector = f"{_manifest.IDENTITY}={self.info.identity}"
        found: list[Any] = self.carrier.client.list_namespaced_pod(self.namespace, label_selector=selector).items
        return found

    def _ensure(self, context: Context, env: Mapping[str, str], found: Sequence[Any]) -> list[Any]:
        """Return one pod for each node: those of an earlier try that still work, and new ones."""
        working = {}
        for old in found:
            state = verdict(old)
            ours = old.metadata.labels.get(_manifest.CALL) == self.exchange.digest
            if ours and state.kind in ("waits", "runs"):
                self.log.info("going on with pod %s (%s)", old.metadata.name, old.metadata.uid)
                working[_node_of(old)] = old
            else:
                self._remove(old)
        missing = [node for node in range(self._nodes[1]) if node not in working]
        made = [self._make(context, node, env) for node in missing]
        pods = [*working.values(), *made]
        for pod in pods if env else ():
            self._give(env, pod)
        self._join(pods)
        return pods

    def _look_after(self, context: Context, env: Mapping[str, str], event: Mapping[str, Any]) -> list[Any]:
        """Return the pods that are still to be watched; lost ones are replaced."""
        pods = {_node_of(pod): pod for pod in self._find(context) if self._is_ours(pod)}
        states = {node: verdict(pod) for node, pod in pods.items()}
        losses = _read_losses(self.exchange)
        if failed := [node for node, state in states.items() if state.kind == "failed"]:
            self._crash([pods[node] for node in failed], states[failed[0]].why)
        if states.get(0, GONE).kind == "done":  # it would have written the outcome
            self._crash([pods[0]], states[0].why)
        watched = []
        for node in self._expected(losses):
            pod, state = pods.get(node), states.get(node, GONE)
            if state.kind == "lost" or (state.kind == "leaves" and overdue_s(pod) > OVERDUE_S):
                watched += self._replace(context, node, pod, state, losses, env)
            elif state.kind == "waits" and self._is_late(pod):
                self._do_without(node, pod, state, losses, working=sum(s.kind == "runs" for s in states.values()))
            elif state.kind != "done" and pod is not None:
                watched.append(pod)
        self._join(watched)
        return watched

    def _is_ours(self, pod: Any) -> bool:
        return bool(pod.metadata.labels.get(_manifest.CALL) == self.exchange.digest)

    def _expected(self, losses: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the numbers of the pods that there should be: all but those that were done without."""
        without = {loss["node"] for loss in losses if loss["replaced"] is False}
        return [node for node in range(self._nodes[1]) if node not in without]

    def _is_late(self, pod: Any) -> bool:
        return bool(time.time() - pod.metadata.creation_timestamp.timestamp() > self.pod.start_s)

    def _replace(
        self, context: Context, node: int, old: Any, state: Verdict, losses: list[dict[str, Any]],
        env: Mapping[str, str],
    ) -> list[Any]:  # fmt: skip
        """Return the pod in the place of one that was lost, none if there can be fewer, or fail."""
        spent = sum(loss["replaced"] for loss in losses)
        uid, host = (old.metadata.uid, old.spec.node_name) if old is not None else ("", "")
        loss = {"node": node, "uid": uid, "host": host, "why": state.why, "node_s_fault": state.node_s_fault}
        if spent >= self.pod.replacements:
            if node == 0 or len(self._expected(losses)) <= self._nodes[0]:
                times = f"; {spent} pods were replaced before" if spent else ""
                self._crash([old] if old is not None else [], f"{state.why or 'a pod was lost'}{times}")
            _note(self.exchange, losses, {**loss, "replaced": False})
            self.log.warning("pod %d was lost and is done without: %s", node, state.why)
            return []
        _note(self.exchange, losses, {**loss, "replaced": True})
        self.log.warning(
            "pod %d was lost and is replaced (%d of %d): %s", node, spent + 1, self.pod.replacements, state.why
        )
        if old is not None:
            self._remove(old, grace_s=0)
        new = self._make(context, node, env, avoid=avoided(losses))
        if env:
            self._give(env, new)
        return [new]

    def _do_without(self, node: int, pod: Any, state: Verdict, losses: list[dict[str, Any]], working: int) -> None:
        """Go on without a pod that found no place, if that leaves enough, or fail."""
        if node == 0 or working < self._nodes[0]:
            self._crash([pod], state.why or f"it does not run after {self.pod.start_s:.0f} s")
        self.log.warning("pod %d found no place and is done without: %s", node, state.why)
        _note(self.exchange, losses, {"node": node, "uid": pod.metadata.uid, "why": state.why, "replaced": False})
        self._remove(pod, grace_s=0)

    def _make(self, context: Context, node: int, env: Mapping[str, str], avoid: Sequence[str] = ()) -> Any:
        """Create the pod of a node."""
        carrier = self.carrier
        body = carrier.build_pod_request_obj(context)
        _manifest.joined(body, node, self._nodes, self.pod, self.info)
        _manifest.avoiding(body, avoid)
        if env:
            _manifest.with_secret(body, f"{body.metadata.name}-env")
        made = carrier.pod_manager.create_pod(body)
        self.log.info("created pod %s (%s)", made.metadata.name, made.metadata.uid)
        return made

    def _give(self, env: Mapping[str, str], pod: Any) -> None:
        """Make the Secret that a pod waits for, after the pod, which owns it, so that it cannot be left behind."""
        from kubernetes import client

        meta = client.V1ObjectMeta(
            name=f"{pod.metadata.name}-env",
            labels={_manifest.IDENTITY: self.info.identity},
            annotations={_manifest.TASK: pod.metadata.annotations[_manifest.TASK]},
            owner_references=[_manifest.owner(pod)],
        )
        with unless(_THERE):  # an earlier try made it
            self.carrier.client.create_namespaced_secret(
                self.namespace, client.V1Secret(metadata=meta, string_data=dict(env))
            )

    def _join(self, pods: Sequence[Any]) -> None:
        """Let several pods find each other; what that takes belongs to all of them, and goes with the last."""
        if self._nodes == (1, 1) or not pods:
            return
        owners = [_manifest.owner(pod) for pod in pods]
        body = _manifest.service(self.info, owners)
        api = self.carrier.client
        with unless(_THERE) as made:
            api.create_namespaced_service(self.namespace, body)
        if made.refused:
            sanitized = api.api_client.sanitize_for_serialization(owners)
            patch = {"metadata": {"ownerReferences": sanitized}}
            api.patch_namespaced_service(_manifest.service_name(self.info), self.namespace, patch)
        if group := _manifest.pod_group(self.pod, self.info, self._nodes[0], owners):
            with unless(_THERE):
                self.carrier.hook.custom_object_client.create_namespaced_custom_object(
                    *_manifest.POD_GROUPS[self.pod.gang.partition(":")[0]], self.namespace, "podgroups", group
                )

    def _defer(self, pods: Sequence[Any], state: Mapping[str, Any]) -> NoReturn:
        trigger = PodsTrigger(
            self.namespace or pods[0].metadata.namespace, self.info.identity, [pod.metadata.uid for pod in pods],
            self.pod.conn_id, self.pod.poll_s, self.pod.log_every_s, self.pod.start_s, **state,
        )  # fmt: skip
        self.operator.defer(trigger=trigger, method_name="collect")
        raise AssertionError("a deferred task does not go on")

    def _log_rest(self, logged: str) -> str:
        """Log what the first pod has printed since the trigger looked; return the time of its last line."""
        first = [pod for pod in self._find({}) if self._is_ours(pod) and _node_of(pod) == 0]
        lines = [line for pod in first for line in self._lines(pod, logged)]
        return log_lines(self.log, lines, logged)

    def _remove(self, pod: Any, grace_s: int | None = None) -> None:
        """Delete this very pod; one that never began to run, or has ended, needs no time to end."""
        from kubernetes.client import V1DeleteOptions

        idle = never_ran(pod) or pod.status.phase in ("Succeeded", "Failed")
        if pod.metadata.deletion_timestamp and not (idle or grace_s == 0):
            return
        self.log.info("removing pod %s", pod.metadata.name)
        options = V1DeleteOptions(grace_period_seconds=0 if idle else grace_s, preconditions={"uid": pod.metadata.uid})
        with unless(_GONE, _THERE):  # gone, or another of the same name
            self.carrier.client.delete_namespaced_pod(pod.metadata.name, self.namespace, body=options)


def _node_of(pod: Any) -> int:
    return int(pod.metadata.labels.get(_manifest.NODE, 0))


def _read_losses(exchange: Exchange) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(exchange.losses.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return found


def _note(exchange: Exchange, losses: list[dict[str, Any]], loss: dict[str, Any]) -> None:
    """Write a loss down before anything is done about it, so that no crash makes the budget last longer."""
    losses.append(loss)
    tables.write_text(exchange.losses, json.dumps(losses))


def require() -> None:
    """Raise `MissingLibrary` without the Kubernetes provider."""
    try:
        import airflow.providers.cncf.kubernetes  # noqa: F401
    except ImportError as error:
        raise MissingLibrary(
            f"runtime=Pod(…) needs the Kubernetes provider: pip install 'airflow-ml-provider[kubernetes]' ({error})"
        ) from error


class _Answer:
    """Whether the API server refused."""

    refused = False


@contextmanager
def unless(*statuses: int) -> Iterator[_Answer]:
    """Take these answers of the API server for a fact, not for an error."""
    from kubernetes.client import ApiException

    answer = _Answer()
    try:
        yield answer
    except ApiException as error:
        if error.status not in statuses:
            raise
        answer.refused = True


def _message(body: Any) -> str:
    try:
        return str(json.loads(body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(body or "no message")


@contextmanager
def explained(conn_id: str, what: str) -> Iterator[None]:
    """Turn what the cluster answers into errors that say whether trying again can help."""
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ConfigException as error:
        raise SpecError(f"connection {conn_id!r} does not say how to reach a cluster: {error}") from error
    except ApiException as error:
        said = f"{error.status} {error.reason}: {_message(error.body)}"
        if error.status in _FORBIDDEN:
            raise SpecError(f"connection {conn_id!r} may not do this in the cluster ({said})") from error
        if error.status is not None and 400 <= error.status < 500 and error.status not in (_THERE, 429):
            raise SpecError(f"the cluster does not take the {what}: {said}") from error
        raise Unavailable(f"the cluster of connection {conn_id!r} answers {said}") from error
    except HTTPError as error:
        raise Unavailable(f"the cluster of connection {conn_id!r} does not answer: {error}") from error
