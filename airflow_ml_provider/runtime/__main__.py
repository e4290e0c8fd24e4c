"""`python -m airflow_ml_provider.runtime STAGE --spec URI --result URI`: one stage, wherever it was carried to.

The zip of `bundle` does the same as `python package.zip STAGE …`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Optional

from airflow_ml_provider import stages, tables
from airflow_ml_provider.runtime import protocol

PR_SET_PDEATHSIG = 1


def main(argv: Optional[list[str]] = None) -> int:
    """Run one stage: read the call, work, write the outcome; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m airflow_ml_provider.runtime", description=main.__doc__)
    parser.add_argument("stage")
    parser.add_argument("--spec", required=True, help="URI of the call file")
    parser.add_argument("--result", required=True, help="URI of the file for the outcome")
    parser.add_argument("--parent", type=int, help="end when the process with this id ends (Linux)")
    args = parser.parse_args(argv)
    if args.parent:
        die_with(args.parent)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s\t%(name)s\t%(message)s")
    if os.getpid() == 1:  # of a container: the kernel ignores what the first process does not handle
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    call = tables.local_path(args.spec)
    answers = None
    try:
        answers = protocol.call_digest(call)
        spec, info = protocol.read_call(call, args.stage)
        outcome = protocol.outcome_of_result(stages.run(spec, info))
    except Exception as error:  # noqa: BLE001 - every error is reported to the caller, with its traceback
        outcome = protocol.outcome_of_error(error)
    tables.write_text(tables.local_path(args.result), json.dumps({**outcome, "call": answers}, allow_nan=False))
    return protocol.exit_code(outcome)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even by `kill -9`; without effect outside Linux."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before the line above. That it is not the direct parent alone proves nothing: a wrapper script
    # around Python may stand between.
    if os.getppid() != parent and not _alive(parent):
        os.kill(os.getpid(), signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


if __name__ == "__main__":
    sys.exit(main())
