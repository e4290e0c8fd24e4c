"""Who ran what, on which code, in which environment, and why. Airflow-free."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.intervals import Interval

Reason = Literal["schedule", "backfill", "manual", "asset"]
PARENT = "parent_model"
"""Under `data`: digest of the model that another one was made from without newer rows, as the optimise stage does."""


@dataclass(frozen=True)
class RunInfo:
    """The task that a stage works for. It never contains the try number: a retry is the same work.

    Attributes:
        dag_id: the DAG, or any name of the workflow outside Airflow.
        task_id: the task within it.
        run_id: the run.
        map_index: position among mapped tasks; -1 when the task is not mapped.
        interval: the window of data that the run is about.
        reason: why the run was started.
        trigger: what exactly started it: asset names, the user of a manual run; empty when there is nothing to add.
        cleared: the run was cleared and runs again.
        clear_number: how often it was cleared; equal for all tries in between.
        code_version: commit of the DAG bundle; none where the bundle has no versions.
        dag_version: version that Airflow gave to the shape of the DAG.
    """

    dag_id: str = "local"
    task_id: str = "local"
    run_id: str = "local"
    map_index: int = -1
    interval: Optional[Interval] = None
    reason: Reason = "manual"
    trigger: str = ""
    cleared: bool = False
    clear_number: int = 0
    code_version: Optional[str] = None
    dag_version: Optional[str] = None

    @property
    def identity(self) -> str:
        """Sixteen hexadecimal digits that are equal for all tries of this task and for no other task."""
        parts = codec.canonical([self.dag_id, self.task_id, self.run_id, self.map_index])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Provenance:
    """What a result was made from; equal provenance should give an equal result.

    Attributes:
        code: `package` (this package's version), `bundle` (commit of the user's code), `function` (digest of the
            user's function) where they exist.
        data: digest of every input, by name.
        environment: version of Python and of each library that took part, and `digest` over them.
        randomness: seeds by name.
        why: reason and trigger of the run, and its ids.
    """

    code: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    randomness: dict[str, int] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Return the parts that a complete chain of custody needs and that are absent."""
        return [name for name in ("code", "data", "environment", "why") if not getattr(self, name)]


def why(info: RunInfo) -> dict[str, str]:
    """Return the `why` part of the provenance of a run."""
    body = {"reason": info.reason, "trigger": info.trigger, "dag_id": info.dag_id, "run_id": info.run_id}
    return {key: value for key, value in body.items() if value}


def code(info: RunInfo, **extra: str) -> dict[str, str]:
    """Return the `code` part: this package's version, the bundle's commit, the DAG version, and `extra`."""
    from airflow_ml_provider import __version__

    body = {"package": __version__, "bundle": info.code_version or "", "dag": info.dag_version or "", **extra}
    return {key: value for key, value in body.items() if value}


def environment(libraries: Iterable[str]) -> dict[str, str]:
    """Return the version of Python, the platform and each installed distribution of `libraries`, and their digest."""
    from importlib.metadata import PackageNotFoundError, version

    body = {"python": platform.python_version(), "platform": f"{sys.platform}-{platform.machine()}"}
    for name in sorted(libraries):
        try:
            body[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**body, "digest": codec.digest(body)}
