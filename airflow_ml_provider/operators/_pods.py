"""A stage in a pod, carried by KubernetesPodOperator.

That one starts, watches, logs and removes the pod, and finds the one of an earlier try. This module brings the call
there and the outcome back, through a folder that worker and pod share:

    EXCHANGE/packages/DIGEST.zip     the part of this package that travels
    EXCHANGE/calls/IDENTITY/         one folder per task instance, whatever the try; gone once its outcome was taken
        call.json                    what the stage shall do
        outcome.json                 its result or error, and the digest of the call that it answers
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, TaskDeferred, conf

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import MissingLibrary, SpecError, StageCrashed, Unavailable, invalid
from airflow_ml_provider.runtime import bundle, protocol

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators._base import StageOperator
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.runtime import Pod
    from airflow_ml_provider.stages import Result, Spec

IDENTITY, CALL = "airflow-ml/identity", "airflow-ml/call"
CONTAINER = "base"
_GONE, _THERE, _FORBIDDEN = 404, 409, (401, 403)


class PodCall:
    """One task's stage in a pod.

    Parameters:
        operator: whose stage it is.
        pod: what the pod is like.
        info: the task.
    """

    def __init__(self, operator: StageOperator, pod: Pod, info: RunInfo) -> None:
        self.operator, self.pod, self.info = operator, pod, info
        self.exchange = _exchange(pod)
        self.folder = self.exchange / "calls" / info.identity
        self.call, self.outcome = self.folder / "call.json", self.folder / "outcome.json"
        self.stage = ""

    def begin(self, spec: Spec, env: Mapping[str, str], context: Context) -> Result:
        """Start the pod and defer, or go on with that of an earlier try, or return what it has left.

        Raises:
            TaskDeferred: the pod runs.
        """
        _require()
        text, self.stage = protocol.call_text(spec, self.info), spec.stage
        if self._same(text) and (result := self._left_behind(spec, context)):
            return result
        self.outcome.unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        tables.write_text(self.call, text)
        if not self._package.is_file():
            with tables.replacing(self._package) as path:
                path.write_bytes(bundle.build())
        with _explained(self.pod):
            self._start(env, context)
        namespace = self.carrier.pod.metadata.namespace
        return self._defer(lambda: self.carrier.invoke_defer_method(context=context), spec, namespace)

    def finish(self, context: Context, event: dict[str, Any]) -> Result:
        """Take the outcome of a pod that has ended; or write what it has printed so far, and defer again.

        Raises:
            TaskDeferred: the pod still runs.
            StageCrashed: it ended without an outcome.
        """
        spec, _ = protocol.read_call(self.call)
        self.stage = spec.stage
        return self._defer(lambda: self.carrier.trigger_reentry(context, event), spec, event["namespace"])

    def cancel(self) -> None:
        """Remove the pod; called when the task is killed."""
        if "carrier" in self.__dict__ and self.carrier.pod is not None:
            self._remove(self.carrier.pod.metadata.namespace, all_of_them=True)

    @cached_property
    def carrier(self) -> Any:
        """The KubernetesPodOperator that carries the stage."""
        from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

        return KubernetesPodOperator(**self._settings())

    def _settings(self) -> dict[str, Any]:
        pod, operator, timeout = self.pod, self.operator, self.operator.execution_timeout
        path = ":".join([str(self._package), *pod.pythonpath])
        return {
            "task_id": operator.task_id,
            "name": f"ml-{operator.task_id.replace('.', '-')}"[:200],
            "namespace": pod.namespace or None,
            "labels": {IDENTITY: self.info.identity, CALL: _short(self.call)},
            "image": pod.image,
            "base_container_name": CONTAINER,
            "cmds": [pod.python, str(self._package)],
            "arguments": [self.stage, "--spec", str(self.call), "--result", str(self.outcome)],
            "env_vars": {**pod.env, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            **_volumes_and_resources(pod),
            "pod_template_dict": _template(pod),
            "kubernetes_conn_id": pod.conn_id,
            "deferrable": True,
            "execution_timeout": timeout,
            # For a pod whose worker was killed and whose task is not tried again: nobody else would end it.
            "active_deadline_seconds": int(timeout.total_seconds() + pod.start_s) if timeout else None,
            "startup_timeout_seconds": int(pod.start_s),
            "schedule_timeout_seconds": int(pod.start_s),
            "startup_check_interval_seconds": max(1, round(pod.poll_s)),
            "poll_interval": pod.poll_s,
            "logging_interval": round(pod.log_every_s) or None,
            "log_pod_spec_on_failure": False,
            "do_xcom_push": False,
        }

    @property
    def _package(self) -> Path:
        return self.exchange / "packages" / f"{bundle.digest()}.zip"

    def _same(self, text: str) -> bool:
        try:
            return self.call.read_text(encoding="utf-8") == text
        except FileNotFoundError:
            return False

    def _left_behind(self, spec: Spec, context: Context) -> Result | None:
        """Return the result that a pod has left when nobody was there to take it; an error is another matter."""
        body = self._read()
        if body is None or "error" in body:
            return None
        self.operator.log.info("the pod of an earlier try has left its result in %s", self.outcome)
        with _explained(self.pod):
            self._remove(self.carrier.build_pod_request_obj(context).metadata.namespace, all_of_them=True)
        return self._take(body, spec)

    def _read(self) -> dict[str, Any] | None:
        """Return the outcome that answers this very call, if there is one."""
        try:
            body: dict[str, Any] = json.loads(self.outcome.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return body if body.get("call") == protocol.call_digest(self.call) else None

    def _take(self, body: dict[str, Any], spec: Spec) -> Result:
        result = protocol.open_outcome(body, spec)
        shutil.rmtree(self.folder, ignore_errors=True)
        return result

    def _start(self, env: Mapping[str, str], context: Context) -> None:
        """Create the pod, or find that of an earlier try; then the Secret with its connection settings.

        The Secret is made after its pod, which owns it and waits for it, so that it cannot be left behind.
        """
        from kubernetes import client

        carrier = self.carrier
        wanted = carrier.build_pod_request_obj(context)
        name, namespace = wanted.metadata.name, wanted.metadata.namespace
        self._remove(namespace)
        if env:
            source = client.V1EnvFromSource(secret_ref=client.V1SecretEnvSource(name=f"{name}-env"))
            stage = next(container for container in wanted.spec.containers if container.name == CONTAINER)
            stage.env_from = [*(stage.env_from or []), source]
        try:
            carrier.pod = carrier.get_or_create_pod(wanted, context)
            carrier.pod = carrier.hook.get_pod(carrier.pod.metadata.name, namespace)  # with its uid
            if env:
                self._give(env, carrier.pod)
        except Exception:
            self._clean_up(namespace)
            raise

    def _give(self, env: Mapping[str, str], pod: Any) -> None:
        from kubernetes import client

        owner = client.V1OwnerReference(api_version="v1", kind="Pod", name=pod.metadata.name, uid=pod.metadata.uid)
        meta = client.V1ObjectMeta(
            name=f"{pod.metadata.name}-env", labels={IDENTITY: self.info.identity}, owner_references=[owner]
        )
        body = client.V1Secret(metadata=meta, string_data=dict(env))
        try:
            self.carrier.client.create_namespaced_secret(pod.metadata.namespace, body)
        except client.ApiException as error:
            if error.status != _THERE:  # an earlier try made it
                raise

    def _remove(self, namespace: str, all_of_them: bool = False) -> None:
        """Remove what must not be gone on with: pods of another call, as from before the task was cleared.

        A pod that is on its way out is hidden from the carrier, which would take it for one that works. One that never
        began to run needs no time to end.
        """
        carrier, selector = self.carrier, f"{IDENTITY}={self.info.identity}"
        for old in carrier.client.list_namespaced_pod(namespace, label_selector=selector).items:
            leaving, idle = bool(old.metadata.deletion_timestamp), _never_ran(old)
            if not (leaving or all_of_them or old.metadata.labels.get(CALL) != _short(self.call)):
                continue
            carrier.patch_already_checked(old, reraise=False)
            if not leaving or idle:
                self.operator.log.info("removing pod %s", old.metadata.name)
                _delete(carrier.client, old, grace_s=0 if idle else None)

    def _defer(self, step: Callable[[], Any], spec: Spec, namespace: str) -> Result:
        """Take a step of the carrier: it defers, or the pod has ended and its outcome is there."""
        problem: Exception | None = None
        try:
            step()
        except TaskDeferred as deferred:
            self.operator.defer(trigger=deferred.trigger, method_name="collect", timeout=deferred.timeout)
        except AirflowException as error:
            problem = error
        self._clean_up(namespace)  # the carrier leaves some, such as one whose image is not there
        if body := self._read():
            return self._take(body, spec)
        raise StageCrashed(f"the pod of stage {self.stage!r} ended without a result: {self._why(problem)}") from None

    def _clean_up(self, namespace: str) -> None:
        """Remove all pods of this task; if that fails, how the stage ended still says more."""
        try:
            self._remove(namespace, all_of_them=True)
        except Exception:
            self.operator.log.exception("pods of this task may be left in namespace %s", namespace)

    def _why(self, problem: Exception | None) -> str:
        pod = self.carrier.pod
        return "; ".join(dict.fromkeys([*_told(pod), *filter(None, [str(problem or "")])])) or "no reason is known"


def _require() -> None:
    try:
        import airflow.providers.cncf.kubernetes  # noqa: F401
    except ImportError as error:
        raise MissingLibrary(
            f"runtime=Pod(…) needs the Kubernetes provider: pip install 'airflow-ml-provider[kubernetes]' ({error})"
        ) from error


def _never_ran(pod: Any) -> bool:
    """Return whether no container of a pod has begun."""
    states = [container.state for container in pod.status.container_statuses or () if container.state]
    return pod.status.phase == "Pending" and not any(state.running or state.terminated for state in states)


def _delete(client: Any, pod: Any, grace_s: int | None = None) -> None:
    from kubernetes.client import ApiException

    grace = {} if grace_s is None else {"grace_period_seconds": grace_s}
    try:
        client.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace, **grace)
    except ApiException as error:
        if error.status != _GONE:
            raise


def _message(body: Any) -> str:
    try:
        return str(json.loads(body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(body or "no message")


def _short(call: Path) -> str:
    """Return the beginning of a call's digest, fit for a label."""
    return protocol.call_digest(call).partition(":")[2][:16]


@contextmanager
def _explained(pod: Pod) -> Iterator[None]:
    """Turn what the cluster answers into errors that say whether trying again can help."""
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ConfigException as error:
        raise SpecError(f"connection {pod.conn_id!r} does not say how to reach a cluster: {error}") from error
    except ApiException as error:
        said = f"{error.status} {error.reason}: {_message(error.body)}"
        if error.status in _FORBIDDEN:
            raise SpecError(f"connection {pod.conn_id!r} may not do this in the cluster ({said})") from error
        if error.status is not None and 400 <= error.status < 500 and error.status not in (_THERE, 429):
            raise SpecError(f"the cluster does not take the pod: {said}") from error
        raise Unavailable(f"the cluster of connection {pod.conn_id!r} answers {said}") from error
    except HTTPError as error:
        raise Unavailable(f"the cluster of connection {pod.conn_id!r} does not answer: {error}") from error


def _exchange(pod: Pod) -> Path:
    folder = pod.exchange or conf.get("ml", "exchange", fallback="")
    if not folder:
        raise SpecError(
            "a pod needs a folder that it and the worker share: set exchange of Pod(…), or [ml] exchange in Airflow's "
            "configuration, to one below a volume of both"
        )
    path = tables.local_path(folder)
    if not any(path.is_relative_to(mount) for mount in pod.volumes) and not pod.pod_template:
        raise SpecError(f"exchange {path} is below none of the pod's volumes ({', '.join(pod.volumes) or 'none'})")
    return path


def _template(pod: Pod) -> dict[str, Any]:
    """Return the pod's manifest, with a place for the stage's container.

    Raises:
        SpecError: the file cannot be read, or is no manifest.
    """
    body: Any = pod.pod_template or {}
    if isinstance(body, str):
        import yaml

        try:
            body = yaml.safe_load(tables.local_path(body).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise SpecError(f"pod_template {pod.pod_template} cannot be read: {error}") from error
    if not isinstance(body, Mapping) or not isinstance(body.get("spec", {}), Mapping):
        raise invalid("pod_template", body, "a pod's manifest: a mapping with metadata and spec")
    spec = dict(body.get("spec", {}))
    spec["containers"] = spec.get("containers") or [{"name": CONTAINER}]
    return {**body, "spec": spec}


def _volumes_and_resources(pod: Pod) -> dict[str, Any]:
    """Return volumes and resources as KubernetesPodOperator takes them."""
    from kubernetes import client

    volumes, mounts = [], []
    for number, (path, source) in enumerate(sorted(pod.volumes.items())):
        name = f"ml-{number}"
        mounts.append(client.V1VolumeMount(name=name, mount_path=path))
        if source.startswith("/"):
            volumes.append(client.V1Volume(name=name, host_path=client.V1HostPathVolumeSource(path=source)))
        else:
            claim = client.V1PersistentVolumeClaimVolumeSource(claim_name=source)
            volumes.append(client.V1Volume(name=name, persistent_volume_claim=claim))
    if pod.shm_gib:
        memory = client.V1EmptyDirVolumeSource(medium="Memory", size_limit=f"{round(1024 * pod.shm_gib)}Mi")
        volumes.append(client.V1Volume(name="ml-shm", empty_dir=memory))
        mounts.append(client.V1VolumeMount(name="ml-shm", mount_path="/dev/shm"))  # noqa: S108
    resources = client.V1ResourceRequirements(requests=pod.resources, limits=pod.resources) if pod.resources else None
    return {"volumes": volumes, "volume_mounts": mounts, "container_resources": resources}


def _told(pod: Any) -> Iterator[str]:
    """Give what Kubernetes says of the end of a pod, or of why it never began."""
    status = pod.status if pod is not None else None
    if status is None:
        return
    if status.reason:  # evicted, node lost, preempted
        yield f"{status.reason}: {status.message or 'no message'}"
    for condition in status.conditions or ():
        if condition.status == "False" and condition.type == "PodScheduled":
            yield f"{condition.reason}: {condition.message}"
    for container in status.container_statuses or ():
        state = container.state
        if ended := state and state.terminated:
            yield f"{ended.reason or 'ended'}, exit code {ended.exit_code}"
        if waiting := state and state.waiting:
            yield ": ".join(filter(None, [waiting.reason, waiting.message]))
