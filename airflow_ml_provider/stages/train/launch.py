"""Several ranks by torchrun, as processes of this machine that end with the stage, however it ends."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import BY_NAME, StageCrashed, StageFailed
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.train.spec import TrainResult, TrainSpec

log = logging.getLogger(__name__)

WORKER = "airflow_ml_provider.stages.train.worker"
CALL = "call.json"
# The process that a rank must not outlive.
LAUNCHER = "AIRFLOW_ML_LAUNCHER"
_TAIL, _GRACE_S = 40, 5.0
_PR_SET_PDEATHSIG = 1


def torchrun(spec: TrainSpec, info: RunInfo, folder: Path) -> TrainResult:
    """Train with `spec.launch.processes` ranks and return what rank 0 gives.

    Parameters:
        folder: for the call and the outcomes; what is in it is removed.

    Raises:
        StageCrashed: a rank was killed more often than `max_restarts`.
        MlError: what a rank raised.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        # Not the canonical form: the name of the model follows the order of the segment's columns.
        call = json.dumps(codec.encode({"spec": spec, "info": info}), allow_nan=False)
        (folder / CALL).write_text(call, encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(os.getpid())]
        command += ["--standalone", f"--nproc-per-node={spec.launch.processes}"]
        command += [f"--max-restarts={spec.launch.max_restarts}", "--monitor-interval=0.1"]
        code, tail = _run([*command, "-m", WORKER, str(folder)])
        outcomes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("outcome-*.json"))]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for outcome in outcomes:
        if code == 0 and "result" in outcome:
            return codec.decode(TrainResult, outcome["result"], "result")
    for outcome in sorted(outcomes, key=lambda o: o.get("error", {}).get("time", 0.0)):
        if "error" in outcome:
            raise _error(outcome["error"])
    lines = "\n".join(tail)
    raise StageCrashed(
        f"torchrun with {spec.launch.processes} processes ended without a result (exit code {code}); a rank was "
        f"killed, by hand or for lack of memory; a retry goes on from the last snapshot; last lines:\n{lines}"
    )


def _error(told: Mapping[str, Any]) -> Exception:
    kind = BY_NAME.get(told["type"], StageFailed)
    return kind(f"{told['message']}\n{told['traceback']}" if kind is StageFailed else told["message"])


def _run(command: list[str]) -> tuple[int, deque[str]]:
    """Run `command` with its output in the log; return its exit code and last lines."""
    tail: deque[str] = deque(maxlen=_TAIL)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    process = subprocess.Popen(
        command, env=env, text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        for line in process.stdout or ():
            tail.append(line.rstrip())
            level, _, message = tail[-1].partition("\t")
            number = logging.getLevelName(level) if message else logging.INFO
            log.log(number if isinstance(number, int) else logging.INFO, "%s", message or tail[-1])
        return process.wait(), tail
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """End torchrun, which ends its ranks; they also end by themselves when it is gone."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even by `kill -9`; without effect outside Linux."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def main(argv: list[str]) -> None:
    """Be torchrun: `python -m … PARENT TORCHRUN_ARGUMENTS`, ending with the process PARENT."""
    end_with(int(argv[0]))
    os.environ[LAUNCHER] = str(os.getpid())
    from torch.distributed.run import main as torchrun_main

    torchrun_main(argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
