"""A stage in one pod or in several: made, found again by a retry, replaced when lost, and always removed.

KubernetesPodOperator composes and creates each pod, `triggers.pods` watches them while the task is deferred, and what
is decided in between, here, stands on what the API server says (`_verdicts`) and on the outcome in the exchange folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_ml_provider import tables
from airflow_ml_provider.hooks._cluster import CONFLICT, NOT_FOUND, unless
from airflow_ml_provider.operators import _manifest
from airflow_ml_provider.operators._calls import StageCall
from airflow_ml_provider.operators._exchange import Exchange
from airflow_ml_provider.operators._verdicts import GONE, Verdict, avoided, never_ran, overdue_s, verdict
from airflow_ml_provider.triggers.pods import OVERDUE_S, PodsTrigger, log_lines

if TYPE_CHECKING:
    from airflow.sdk import Context


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
            if node == 0:  # the next trigger's part of the log has the new pod's lines only
                log_lines(self._lines(old), "")
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
        with unless(CONFLICT):  # an earlier try made it
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
        with unless(CONFLICT) as made:
            api.create_namespaced_service(self.namespace, body)
        if made.refused:
            sanitized = api.api_client.sanitize_for_serialization(owners)
            patch = {"metadata": {"ownerReferences": sanitized}}
            api.patch_namespaced_service(_manifest.service_name(self.info), self.namespace, patch)
        if group := _manifest.pod_group(self.pod, self.info, self._nodes[0], owners):
            with unless(CONFLICT):
                self.carrier.hook.custom_object_client.create_namespaced_custom_object(
                    *_manifest.POD_GROUPS[self.pod.gang.partition(":")[0]], self.namespace, "podgroups", group
                )

    def _defer(self, pods: Sequence[Any], deadline: float | None) -> NoReturn:
        trigger = PodsTrigger(
            self.namespace or pods[0].metadata.namespace, self.info.identity, [pod.metadata.uid for pod in pods],
            self.pod.conn_id, self.pod.poll_s, self.pod.log_every_s, self.pod.start_s, deadline,
        )  # fmt: skip
        self.operator.defer(trigger=trigger, method_name="collect")
        raise AssertionError("a deferred task does not go on")

    def _log_rest(self) -> None:
        """Log what the first pod has printed since the trigger looked."""
        for pod in self._find({}):
            if self._is_ours(pod) and _node_of(pod) == 0:
                log_lines(self._lines(pod, self.logged), self.logged)

    def _remove(self, pod: Any, grace_s: int | None = None) -> None:
        """Delete this very pod; one that never began to run, or has ended, needs no time to end."""
        from kubernetes.client import V1DeleteOptions

        idle = never_ran(pod) or pod.status.phase in ("Succeeded", "Failed")
        if pod.metadata.deletion_timestamp and not (idle or grace_s == 0):
            return
        self.log.info("removing pod %s", pod.metadata.name)
        options = V1DeleteOptions(grace_period_seconds=0 if idle else grace_s, preconditions={"uid": pod.metadata.uid})
        with unless(NOT_FOUND, CONFLICT):  # gone, or another of the same name
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
