"""Another Python on the same machine: its own libraries, no Airflow, no dependency conflict."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from airflow_ml_provider.exceptions import SpecError, StageCrashed, invalid
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages import Result, Spec

log = logging.getLogger(__name__)

# Airflow's configuration, connections and variables are secrets that a stage has no business with.
WITHHELD = ("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_", "_AIRFLOW", "PYTHONPATH", "PYTHONHOME")
_TAIL = 40
_PATIENCE_S = 5.0  # for the last lines of output once the process has ended
_running: set[subprocess.Popen[str]] = set()


@dataclass(frozen=True)
class Interpreter:
    """Run the stage by another Python, 3.9 or newer; this package travels along and need not be installed there.

    Attributes:
        python: path of the interpreter, such as `/opt/venvs/ml/bin/python`.
        pythonpath: folders with the user's own modules.
        env: further environment variables; not for secrets, since they are part of the DAG.
        timeout_s: the stage is killed after so many seconds; none leaves that to the task's `execution_timeout`.
    """

    python: str
    pythonpath: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: Optional[float] = None

    def __post_init__(self) -> None:
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise invalid("timeout_s", self.timeout_s, "greater than 0")

    def call(self, spec: Spec, info: RunInfo, env: Mapping[str, str]) -> Result:
        from airflow_ml_provider.runtime import bundle, protocol

        python = shutil.which(self.python)
        if python is None:
            raise SpecError(
                f"python {self.python!r} is not an executable file; create the environment or mend the path"
            )
        with tempfile.TemporaryDirectory(prefix=f"ml-{spec.stage}-") as folder:
            call, outcome, package = (Path(folder, name) for name in ("call.json", "outcome.json", "package.zip"))
            protocol.write_call(call, spec, info)
            package.write_bytes(bundle.build())
            # Not `-m`: that would look for the package in the working directory first.
            command = [python, str(package), spec.stage]
            command += ["--spec", str(call), "--result", str(outcome), "--parent", str(os.getpid())]
            tail = self._run(command, self._environment(package, env))
            if not outcome.exists():
                raise StageCrashed(f"stage {spec.stage!r} in {self.python} ended without a result ({tail})")
            return protocol.open_outcome(json.loads(outcome.read_text(encoding="utf-8")), spec)

    def cancel(self) -> None:
        for process in tuple(_running):
            _kill_group(process)

    def _environment(self, package: Path, env: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(WITHHELD)}
        path = os.pathsep.join([str(package), *self.pythonpath])
        return {**kept, **self.env, **env, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

    def _run(self, command: list[str], env: Mapping[str, str]) -> str:
        """Run `command` with its output in the log; return how it ended, for a message."""
        tail: deque[str] = deque(maxlen=_TAIL)
        process = subprocess.Popen(
            command, env=dict(env), text=True, errors="replace", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _running.add(process)
        # Something that the stage started and left may hold the pipe open, so the end of the output is not its end.
        reader = threading.Thread(target=_forward, args=(process.stdout, tail), daemon=True)
        expired = False
        try:
            reader.start()
            process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            expired = True
        finally:
            _kill_group(process)  # also what the stage itself left running
            process.wait()
            reader.join(_PATIENCE_S)
            if process.stdout and not reader.is_alive():
                process.stdout.close()
            _running.discard(process)
        return _ending(process.returncode, self.timeout_s if expired else None, tail)


def _forward(lines: Iterable[str], tail: deque[str]) -> None:
    for line in lines:
        text = line.rstrip()
        tail.append(text)
        level, _, message = text.partition("\t")
        number = logging.getLevelName(level) if message else None
        if isinstance(number, int):
            log.log(number, "%s", message.replace("\t", ": ", 1))
        else:
            log.info("%s", text)


def _kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or is a zombie (macOS)
        os.killpg(process.pid, signal.SIGKILL)


def _ending(code: int, timeout_s: Optional[float], tail: Iterable[str]) -> str:
    if code < 0:
        how = f"killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += f" after its timeout of {timeout_s} s" if timeout_s else ", by hand or for lack of memory"
    else:
        how = f"exit code {code}"
    return "; last lines:\n".join([how, *(["\n".join(tail)] if any(tail) else [])])
