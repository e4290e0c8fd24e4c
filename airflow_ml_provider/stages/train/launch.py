"""Several ranks by torchrun, on this machine or on several, that end with the stage, however it ends."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import BY_NAME, SpecError, StageCrashed, StageFailed
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.train.spec import TrainResult, TrainSpec

log = logging.getLogger(__name__)

WORKER = "airflow_ml_provider.stages.train.worker"
CALL = "call.json"
# The process that a rank must not outlive.
LAUNCHER = "AIRFLOW_ML_LAUNCHER"
_TAIL, _GRACE_S, _PAUSE_S = 40, 25.0, 1.0  # the grace is a little less than what Kubernetes gives to a pod
_RANK = re.compile(r"\[rank \d+\] ")
_PR_SET_PDEATHSIG = 1
_REJOIN = 75  # exit code of torchrun when it was the others that it lost


@dataclass(frozen=True)
class Meeting:
    """Where and as what this node takes part in a training on several.

    Attributes:
        node: its number; ranks follow the numbers, and number 0 keeps the rendezvous and the package.
        address: name by which the other nodes reach it; must sort as the numbers do.
        rendezvous: HOST:PORT of the rendezvous, on node 0.
        patience_s: how long to wait for lost nodes to be replaced (seconds).
        replacements: how many nodes may be lost and replaced.
    """

    node: int
    address: str
    rendezvous: str
    patience_s: float = 600.0
    replacements: int = 0


def meeting(spec: TrainSpec) -> Optional[Meeting]:
    """Return what the environment says of the other nodes; none when one node trains alone.

    Raises:
        SpecError: several nodes shall train, and the environment knows of none.
    """
    if spec.launch.span == (1, 1):
        return None
    names = {
        "node": "AIRFLOW_ML_NODE", "address": "AIRFLOW_ML_ADDRESS", "rendezvous": "AIRFLOW_ML_RENDEZVOUS",
        "patience_s": "AIRFLOW_ML_PATIENCE_S", "replacements": "AIRFLOW_ML_REPLACEMENTS",
    }  # fmt: skip
    found = {**_of_kubeflow(), **{field: os.environ[name] for field, name in names.items() if name in os.environ}}
    if missing := [names[field] for field in ("node", "address", "rendezvous") if field not in found]:
        raise SpecError(
            f"launch.nodes {spec.launch.nodes!r} needs pods: give the task runtime=Pod(…), or set {', '.join(missing)} "
            f"on each machine"
        )
    return Meeting(
        int(found["node"]), found["address"], found["rendezvous"], float(found.get("patience_s", 600)),
        int(found.get("replacements", 0)),
    )  # fmt: skip


def _of_kubeflow() -> dict[str, str]:
    """Return what the torch plugin of Kubeflow Trainer says of the nodes, in the pods of a TrainJob."""
    told = [os.environ.get(f"PET_{name}", "") for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")]
    if not all(told):
        return {}
    node, host, port = told
    # Pods of a JobSet are named like the one of the master, and have its domain: JOB-node-0-0.JOB.
    domain = host.partition(".")[1:]
    address = host if node == "0" else "".join((socket.gethostname(), *domain))
    return {"node": node, "address": address, "rendezvous": f"{host}:{port}"}


def torchrun(spec: TrainSpec, info: RunInfo, meeting: Optional[Meeting] = None) -> TrainResult:
    """Train with `spec.launch.processes` ranks on this node and return what rank 0 gives.

    Raises:
        StageCrashed: a rank was killed more often than `max_restarts`, or lost nodes did not come back.
        MlError: what a rank raised.
        SystemExit: this node has done its part; rank 0 is on another one.
    """
    with tempfile.TemporaryDirectory(prefix="airflow-ml-launch-") as name:
        folder = Path(name)
        # Not the canonical form: the name of the model follows the order of the segment's columns.
        call = json.dumps(codec.encode({"spec": spec, "info": info}), allow_nan=False)
        (folder / CALL).write_text(call, encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(os.getpid()), *_arguments(spec, meeting)]
        # Of the ranks of a node the log has the first, the files have all.
        command += ["--tee=3", "--local-ranks-filter=0", f"--log-dir={folder / 'logs'}", "-m", WORKER, name]
        code, tail = _until_joined(command, meeting)
        return _result(spec, folder, code, tail)


def script(
    spec: TrainSpec, meeting: Optional[Meeting], module: list[str], env: Mapping[str, str]
) -> tuple[int, deque[str]]:
    """Run a module with its arguments as every rank of this node; return the exit code and the last lines.

    One rank alone needs no torchrun.
    """
    if spec.launch.ranks == 1:
        launcher = {LAUNCHER: str(os.getpid())}
        return _run([sys.executable, "-u", "-m", *module], {**env, **launcher})
    with tempfile.TemporaryDirectory(prefix="airflow-ml-launch-") as name:
        command = [sys.executable, "-m", __name__, str(os.getpid()), *_arguments(spec, meeting)]
        command += ["--tee=3", "--local-ranks-filter=0", f"--log-dir={name}", "-m", *module]
        return _until_joined(command, meeting, env)


def _arguments(spec: TrainSpec, meeting: Optional[Meeting]) -> list[str]:
    """Return torchrun's arguments, before the name of the module."""
    launch = spec.launch
    common = [f"--nproc-per-node={launch.processes}", "--monitor-interval=0.1"]
    if meeting is None:
        return [*common, "--standalone", f"--max-restarts={launch.max_restarts}"]
    wait = int(meeting.patience_s)
    settings = f"is_host={int(meeting.node == 0)},join_timeout={wait},read_timeout={wait},last_call_timeout=15"
    settings += ",keep_alive_interval=3"  # a node is given up after three of them
    return [
        *common, f"--nnodes={launch.span[0]}:{launch.span[1]}", "--rdzv-backend=c10d", "--rdzv-id=training",
        f"--rdzv-endpoint={meeting.rendezvous}", f"--rdzv-conf={settings}", f"--local-addr={meeting.address}",
        # A lost node makes the ranks of all others fail; the worker sees to it that its own errors are not repeated.
        f"--max-restarts={launch.max_restarts + meeting.replacements}",
    ]  # fmt: skip


def _until_joined(
    command: list[str], meeting: Optional[Meeting], env: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, deque[str]]:
    """Run torchrun, again and again as long as it is other nodes that it lost; return its exit code and last lines."""
    while True:
        begun = time.monotonic()
        code, tail = _run(command, env)
        if meeting is None or code != _REJOIN or time.monotonic() - begun > meeting.patience_s:
            return code, tail
        log.warning("the other nodes were lost; joining them again when they are replaced")
        time.sleep(_PAUSE_S)


def _result(spec: TrainSpec, folder: Path, code: int, tail: deque[str]) -> TrainResult:
    outcomes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("outcome-*.json"))]
    for outcome in outcomes:
        if code == 0 and "result" in outcome:
            return codec.decode(TrainResult, outcome["result"], "result")
    if code == 0 and spec.launch.span[1] > 1:
        log.info("this node has done its part")
        raise SystemExit(0)
    for outcome in sorted(outcomes, key=lambda o: o.get("error", {}).get("time", 0.0)):
        if "error" in outcome and not outcome["error"]["lost"]:
            raise as_error(outcome["error"])
    lines = "\n".join(tail)
    raise StageCrashed(
        f"torchrun with {spec.launch.ranks} processes ended without a result (exit code {code}); a rank was "
        f"killed, by hand or for lack of memory; a retry goes on from the last snapshot; last lines:\n{lines}"
    )


def as_error(told: Mapping[str, Any]) -> Exception:
    """Return the error that a rank has given an account of."""
    kind = BY_NAME.get(told["type"], StageFailed)
    return kind(
        f"rank {told['rank']}: {told['message']}\n{told['traceback']}" if kind is StageFailed else told["message"]
    )


def _run(command: list[str], own: Mapping[str, str]) -> tuple[int, deque[str]]:
    """Run `command` with its output in the log; return its exit code and last lines."""
    tail: deque[str] = deque(maxlen=_TAIL)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] ",
        # The agent of rank 0 tells where its store is only once: a node that joins later would wait for it in vain.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **own,
    }
    process = subprocess.Popen(
        command, env=env, text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        with _ending_in_order():
            for line in process.stdout or ():
                tail.append(line.rstrip())
                _log(tail[-1])
            return process.wait(), tail
    finally:
        _stop(process)


def _log(line: str) -> None:
    """Log a line of a rank, with the rank in front, at the level that the line names."""
    rank, line = (found.group(0), line[found.end() :]) if (found := _RANK.match(line)) else ("", line)
    level, _, message = line.partition("\t")
    number = logging.getLevelName(level)  # a text, where there is no such level
    log.log(*((number, "%s%s", rank, message) if isinstance(number, int) else (logging.INFO, "%s%s", rank, line)))


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM end this process by way of its ranks, which then have the time for a last snapshot."""

    def end(*_: Any) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(process: subprocess.Popen[str]) -> None:
    """End torchrun, which ends its ranks; they also end by themselves when it is gone."""
    if process.poll() is None:
        process.terminate()
        # What the ranks say meanwhile is read, or a full pipe would hold torchrun up.
        with contextlib.suppress(subprocess.TimeoutExpired):
            for line in process.communicate(timeout=_GRACE_S)[0].splitlines():
                _log(line)
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


def main(argv: list[str]) -> int:
    """Be torchrun: `python -m … PARENT TORCHRUN_ARGUMENTS`, ending with the process PARENT."""
    end_with(int(argv[0]))
    os.environ[LAUNCHER] = str(os.getpid())
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import main as torchrun_main

    folder = Path(argv[-1])
    try:
        torchrun_main(argv[1:])
    except (RendezvousError, DistError) as error:
        print(f"WARNING\tthe rendezvous was lost: {error}")  # noqa: T201 - its output is the log
        return _REJOIN
    except ChildFailedError as error:
        outcomes = {rank: folder / f"outcome-{rank}.json" for rank in error.failures}
        if all(map(_was_lost, outcomes.values())):
            return _REJOIN
        rank, failure = error.get_first_failure()
        if not outcomes[rank].is_file():  # killed: what it printed is all there is
            _show(Path(failure.error_file).parent / "stderr.log")
        return 1
    return 0


def _show(path: Path) -> None:
    with contextlib.suppress(OSError):
        print("\n".join(path.read_text(errors="replace").splitlines()[-_TAIL:]))  # noqa: T201


def _was_lost(outcome: Path) -> bool:
    """Return whether a rank failed because another one was gone."""
    try:
        return bool(json.loads(outcome.read_text(encoding="utf-8")).get("error", {}).get("lost"))
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
