"""Where a stage runs: in this process, in another Python, or in a pod. Same spec in, same result out. Airflow-free.

A runtime is a small frozen object with one method, `call(spec, info, env) -> Result`, and one to stop what it started.
Everything that leaves the process goes through `python -m airflow_ml_provider.runtime`, so a further runtime only has
to bring three files to the other side (the package as a zip, the call, later the result) and start that command. A pod
outlives the process that started it, so it has no such methods: the operator defers, and goes on where it left off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Union, overload, runtime_checkable

from airflow_ml_provider import codec, stages
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime.interpreter import Interpreter
from airflow_ml_provider.runtime.pod import Pod
from airflow_ml_provider.stages import Result, Spec

__all__ = ["InProcess", "Interpreter", "Pod", "Runtime", "resolve"]


@runtime_checkable
class Runtime(Protocol):
    """What every runtime offers."""

    def call(self, spec: Spec, info: RunInfo, env: Mapping[str, str]) -> Result:
        """Run a stage and return its result.

        `env` holds connection settings (with secrets) for the stage's process; it is never written to a file. Errors
        of the stage are raised as they would be in process; `StageCrashed` when it ended without any result.
        """
        ...

    def cancel(self) -> None:
        """Stop whatever `call` has started; called from a signal handler when the task is killed."""
        ...


@dataclass(frozen=True)
class InProcess:
    """Run the stage in the task's own process: the least overhead, and the task's environment needs the tools."""

    def call(self, spec: Spec, info: RunInfo, env: Mapping[str, str]) -> Result:
        with _environment(env):
            result = stages.run(_through_json(spec), _through_json(info))
        seen: Result = _through_json(result)
        return seen

    def cancel(self) -> None:
        """Nothing was started."""


@overload
def resolve(runtime: Union[Runtime, str, None]) -> Runtime: ...


@overload
def resolve(runtime: Union[Runtime, Pod, str, None]) -> Union[Runtime, Pod]: ...


def resolve(runtime: Union[Runtime, Pod, str, None]) -> Union[Runtime, Pod]:
    """Return the runtime that an operator's argument means: none is in process, a text is a path to a Python."""
    if runtime is None:
        return InProcess()
    if isinstance(runtime, str):
        return Interpreter(runtime) if runtime else InProcess()
    if not isinstance(runtime, (Runtime, Pod)):
        from airflow_ml_provider.exceptions import invalid

        raise invalid("runtime", runtime, "InProcess(), Interpreter(…), Pod(…) or the path of a Python")
    return runtime


def _through_json(value: Any) -> Any:
    """Return `value` as the far side of a process border would see it, so that no runtime is more lenient."""
    return codec.decode(type(value), json.loads(json.dumps(codec.encode(value), allow_nan=False)))


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
