"""The folder through which a stage's call goes out and its outcome comes back, when they share no process.

EXCHANGE/packages/DIGEST.zip     the part of this package that travels
EXCHANGE/calls/IDENTITY/         one folder per task instance, whatever the try; gone once its outcome was taken
    call.json                    what the stage shall do
    outcome.json                 its result or error, and the digest of the call that it answers
    losses.json                  pods that were lost and replaced
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.runtime import bundle, protocol

if TYPE_CHECKING:
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.runtime import Pod
    from airflow_ml_provider.stages import Result, Spec


class Exchange:
    """One task's part of the exchange folder.

    Parameters:
        root: the folder that worker and pods share.
        info: the task.
    """

    def __init__(self, root: Path, info: RunInfo) -> None:
        self.folder = root / "calls" / info.identity
        self.call, self.outcome = self.folder / "call.json", self.folder / "outcome.json"
        self.losses = self.folder / "losses.json"
        self.package = root / "packages" / f"{bundle.digest()}.zip"
        self.info = info

    def put(self, spec: Spec) -> bool:
        """Write the call, and the package unless it is there; return whether the very same call was there already."""
        text = protocol.call_text(spec, self.info)
        same = self._text(self.call) == text
        if not same:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            tables.write_text(self.call, text)
        if not self.package.is_file():
            with tables.replacing(self.package) as path:
                path.write_bytes(bundle.build())
        return same

    def spec(self) -> Spec:
        """Return what the stage was asked."""
        return protocol.read_call(self.call)[0]

    @property
    def digest(self) -> str:
        """The beginning of the call's digest, fit for a label."""
        return protocol.call_digest(self.call).partition(":")[2][:16]

    def arguments(self, stage: str) -> list[str]:
        """Return the command line, after the Python, that does what the call says."""
        return [str(self.package), stage, "--spec", str(self.call), "--result", str(self.outcome)]

    def read(self) -> dict[str, Any] | None:
        """Return the outcome that answers this very call, if there is one."""
        text = self._text(self.outcome)
        body: dict[str, Any] = json.loads(text) if text else {}
        return body if body.get("call") == protocol.call_digest(self.call) else None

    def take(self, body: dict[str, Any], spec: Spec) -> Result:
        """Return the result in an outcome and forget the call, or raise the stage's error."""
        result = protocol.open_outcome(body, spec)
        shutil.rmtree(self.folder, ignore_errors=True)
        return result

    def drop_outcome(self) -> None:
        """Remove the outcome of an earlier try, an error, and its account of losses."""
        for path in (self.outcome, self.losses):
            path.unlink(missing_ok=True)

    @staticmethod
    def _text(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""


def exchange_root(pod: Pod) -> Path:
    """Return the folder that worker and pod share.

    Raises:
        SpecError: there is none, or the pod would not see it.
    """
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


def task_of(info: RunInfo) -> Mapping[str, Any]:
    """Return what names a task instance, as it is written on everything that is made for it.

    `airflow` is the address of its Airflow, where `[api] base_url` has one: others may use the same namespace.
    """
    task = {"dag_id": info.dag_id, "task_id": info.task_id, "run_id": info.run_id, "map_index": info.map_index}
    return {**task, "airflow": here} if (here := conf.get("api", "base_url", fallback="")) else task
