"""A task's stage in a cluster, whatever carries it there: started, found again by a retry, and never left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_ml_provider.exceptions import StageCrashed, Unavailable
from airflow_ml_provider.hooks._cluster import explained, require
from airflow_ml_provider.operators import _manifest
from airflow_ml_provider.operators._exchange import Exchange, exchange_root
from airflow_ml_provider.operators._lineage import parent_environment
from airflow_ml_provider.operators._tries import has_further_try
from airflow_ml_provider.operators._verdicts import verdict
from airflow_ml_provider.triggers.pods import REMOVED_IN_S, levelled, new_lines

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators._base import StageOperator
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.runtime import Pod
    from airflow_ml_provider.stages import Result, Spec

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
        self.logged = ""  # time of the last line that the trigger has logged

    def begin(self, spec: Spec, env: Mapping[str, str], context: Context) -> Result:
        """Start the stage and defer, or go on with an earlier try's, or return what that has left.

        Raises:
            TaskDeferred: the stage runs.
        """
        require("runtime=Pod(…)")
        self.spec, env = spec, self._with_lineage(env, context)
        with self._kept_only_for_a_retry(context):
            if self.exchange.put(spec) and (body := self.exchange.read()) and "error" not in body:
                self.log.info("the %s of an earlier try has left its result in %s", self.noun, self.exchange.outcome)
                self._find(context)
                return self._conclude(body)
            self.exchange.drop_outcome()
            work = self._ensure(context, env, self._find(context))
        timeout = self.operator.execution_timeout
        return self._defer(work, time.time() + timeout.total_seconds() if timeout else None)

    def finish(self, context: Context, event: Mapping[str, Any], env: Mapping[str, str]) -> Result:
        """Take the outcome, or replace what was lost and defer again.

        Raises:
            TaskDeferred: the stage still runs.
            StageCrashed: it ended without an outcome.
            AirflowTaskTimeout: the task's time is over.
        """
        self.spec, self.namespace = self.exchange.spec(), event["namespace"]
        self.logged = event["logged"]
        env = self._with_lineage(env, context)
        with self._kept_only_for_a_retry(context):
            self._find(context)
            if body := self.exchange.read():
                self._log_rest()
                return self._conclude(body)
            if event["status"] in ("timeout", "error"):
                self._log_rest()
            if event["status"] == "timeout":
                raise AirflowTaskTimeout(
                    f"stage {self.spec.stage!r} took longer than {self.operator.execution_timeout}"
                )
            if event["status"] == "error":
                raise Unavailable(f"the cluster of connection {self.pod.conn_id!r} does not answer: {event['message']}")
            work = self._look_after(context, env, event)
        # A triggerer begins its part of a task's log anew with each deferral: the next trigger logs all of it again.
        return self._defer(work, event["deadline"])

    def cancel(self) -> None:
        """Remove what carries it; called when the task is killed."""
        if self.namespace:
            self._clean_up()

    @contextmanager
    def _kept_only_for_a_retry(self, context: Context) -> Iterator[None]:
        """Explain what the cluster answers, and let a failure leave behind only what a further try can go on with.

        That is what works while its cluster cannot be reached.
        """
        try:
            with explained(self.pod.conn_id, self.noun):
                yield
        except (Exception, AirflowTaskTimeout) as error:
            if not (isinstance(error, Unavailable) and has_further_try(context)):
                self._clean_up()
            raise

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

    def _defer(self, work: Any, deadline: float | None) -> NoReturn:
        """Defer until the trigger has something to decide."""
        raise TypeError(f"{type(self).__name__} must define _defer")

    def _log_rest(self) -> None:
        """Log what was printed since the trigger looked."""
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
        self._log_rest()
        for pod in pods:
            self.log.error("last lines of pod %s:", pod.metadata.name)
            for _, line in self._lines(pod)[-_TAIL:]:
                level, said = levelled(line)
                self.log.log(level, "%s", said)
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
