"""`python -m airflow_ml_provider.serving --root DIR --service NAME --port P`: the gateway of one service."""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

from airflow_ml_provider.exceptions import MissingLibrary, MlError
from airflow_ml_provider.runtime.protocol import EXIT_MISSING, EXIT_RETRYABLE, EXIT_TERMINAL
from airflow_ml_provider.serving import folder as folders

_LOG_BYTES, _LOG_FILES = 10 * 2**20, 3
_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the gateway of one service."""
    parser = argparse.ArgumentParser(prog="python -m airflow_ml_provider.serving", description=main.__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder with one folder per service")
    parser.add_argument("--service", required=True)
    parser.add_argument("--port", type=int, default=0, help="0 takes the one it had last, or a free one")
    parser.add_argument("--grpc-port", type=int, help="serve gRPC, too; 0 as for --port")
    parser.add_argument("--host", default="127.0.0.1", help="where users reach it; the admin side stays on 127.0.0.1")
    parser.add_argument("--max-body-mib", type=float, default=16.0, help="larger requests are answered 413")
    parser.add_argument("--detach", action="store_true", help="return once it listens, and leave it running")
    args = parser.parse_args(argv)
    try:
        folder = folders.place(args.root, args.service)
        with folders.locked(folder):  # a lock is inherited: it is held until the last of both has ended
            return _detached(args, folder) if args.detach else _run(args, folder, lambda: None)
    except (MlError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return _exit_code(error)


def _exit_code(error: Exception) -> int:
    if isinstance(error, MissingLibrary):
        return EXIT_MISSING
    return EXIT_TERMINAL if isinstance(error, MlError) and error.verdict == "terminal" else EXIT_RETRYABLE


def _run(args: argparse.Namespace, folder: Path, started: Callable[[], None]) -> int:
    try:
        import aiohttp  # noqa: F401
        import prometheus_client  # noqa: F401

        if args.grpc_port is not None:
            import google.protobuf  # noqa: F401
            import grpc  # noqa: F401
    except ImportError as error:
        extras = "serving" if args.grpc_port is None else "serving,grpc"
        raise MissingLibrary(f"{error} ({sys.executable}); pip install 'airflow-ml-provider[{extras}]'") from error
    import asyncio

    from airflow_ml_provider.serving.aio import gateway

    file = logging.handlers.RotatingFileHandler(folder / folders.LOG, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES)
    handlers: list[logging.Handler] = [file] if args.detach else [file, logging.StreamHandler()]
    logging.basicConfig(level=logging.INFO, format=_FORMAT, handlers=handlers)
    ports = gateway.Ports(args.host, args.port, args.grpc_port)
    work = gateway.run(args.service, folder, ports, max_body_mib=args.max_body_mib, started=started)
    return asyncio.run(work)


def _detached(args: argparse.Namespace, folder: Path) -> int:
    """Leave a gateway running in a session of its own; return 0 once it listens, else its exit code."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        with open(reader, "rb") as pipe:
            if pipe.read():
                return 0
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stderr.write((folder / folders.OUTPUT).read_text(encoding="utf-8", errors="replace")[-4000:])
        return code if code > 0 else EXIT_RETRYABLE
    os.close(reader)
    os.setsid()
    _redirect(folder)

    def started() -> None:
        os.write(writer, b"listening")
        os.close(writer)

    return _run(args, folder, started)


def _redirect(folder: Path) -> None:
    """Have output go to a file, and input come from nowhere: whoever started this may be gone."""
    output = os.open(folder / folders.OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)


if __name__ == "__main__":
    sys.exit(main())
