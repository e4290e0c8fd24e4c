"""Start a gateway that outlives the task which started it, find the running one, stop it. Never two of one service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from airflow_ml_provider.exceptions import MissingLibrary, SpecError, Unavailable
from airflow_ml_provider.runtime.protocol import EXIT_MISSING, EXIT_RETRYABLE, EXIT_TERMINAL
from airflow_ml_provider.serving import folder as folders
from airflow_ml_provider.serving.client import Client
from airflow_ml_provider.serving.folder import Address


def find(root: Path, service: str) -> Optional[Address]:
    """Return where the gateway of a service is; none when none runs."""
    address = folders.read_address(folders.place(root, service))
    return address if address and folders.alive(address) else None


def start(
    root: Path,
    service: str,
    *,
    python: str = "",
    host: str = "127.0.0.1",
    port: int = 0,
    grpc_port: Optional[int] = None,
    max_body_mib: float = 16.0,
    timeout_s: float = 60.0,
) -> Client:
    """Return a client of the running gateway of a service; start one if there is none.

    Parameters:
        root: folder with one folder per service; a gateway goes on with the wanted state that it finds there.
        service: name of the service, which is what the model is called in URLs.
        python: interpreter with the libraries of the extra `serving`; empty takes this one.
        host: address at which users reach it; the admin side stays on 127.0.0.1.
        port: port for users; 0 takes the one it had last, or a free one. A running gateway keeps its own.
        grpc_port: likewise for gRPC, which takes the libraries of the extra `grpc`; none serves REST alone.
        max_body_mib: larger requests are answered 413.
        timeout_s: how long the start may take.

    Raises:
        MissingLibrary: the interpreter lacks a library.
        SpecError: the name is none, what is kept in the folder cannot be read, or the running gateway has no gRPC.
        Unavailable: it did not start.
    """
    client = Client(root, service)
    command = _command(root, service, python, host, port, grpc_port, max_body_mib)
    deadline = time.monotonic() + timeout_s
    said = ""
    while time.monotonic() < deadline:
        if address := find(root, service):
            if grpc_port is not None and not address.grpc:
                raise SpecError(
                    f"the gateway of service {service!r} was started without gRPC: end it with `serving.launch.stop`; "
                    "it goes on with the same versions when it is started again"
                )
            client.status()  # healthy, and ours
            return client
        said = _launch(root, service, command, deadline - time.monotonic())
        if said:  # somebody else is just starting or ending one
            time.sleep(0.2)
    raise Unavailable(f"the gateway of service {service!r} did not start within {timeout_s} s: {said}")


def stop(root: Path, service: str, *, grace_s: float = 90.0) -> bool:
    """End the gateway of a service and its servers; return whether there was one. The wanted state stays.

    Parameters:
        grace_s: it is killed, and its servers with it, when it has not finished after so many seconds.
    """
    address = find(root, service)
    if address is None:
        return False
    os.kill(address.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while folders.alive(address) and time.monotonic() < deadline:
        time.sleep(0.05)
    if folders.alive(address):
        os.kill(address.pid, signal.SIGKILL)
    return True


def _command(
    root: Path, service: str, python: str, host: str, port: int, grpc_port: Optional[int], max_body_mib: float
) -> list[str]:
    found = [python or sys.executable, "-m", "airflow_ml_provider.serving", "--detach"]
    found += [f"--root={root.absolute()}", f"--service={service}", f"--host={host}", f"--port={port}"]
    found += [f"--max-body-mib={max_body_mib}"]
    return found if grpc_port is None else [*found, f"--grpc-port={grpc_port}"]


def _launch(root: Path, service: str, command: Sequence[str], timeout_s: float) -> str:
    """Start a gateway and return why it did not start, if that may pass; empty when it runs."""
    folder = folders.place(root, service)
    package = folders.put_package(folder)
    try:
        done = subprocess.run(
            command, env=folders.environment(package), cwd=folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=max(timeout_s, 1.0),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "it took too long"
    except OSError as error:
        raise SpecError(f"python {command[0]!r} cannot be started: {error}") from error
    said = done.stderr.strip()
    if done.returncode == EXIT_MISSING:
        raise MissingLibrary(said)
    if done.returncode == EXIT_TERMINAL:
        raise SpecError(said)
    if done.returncode not in (0, EXIT_RETRYABLE):
        raise Unavailable(f"the gateway of service {service!r} ended with code {done.returncode}: {said}")
    return said if done.returncode else ""
