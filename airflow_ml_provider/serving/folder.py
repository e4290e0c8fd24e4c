"""The folder of a service: what the gateway keeps there, and what others learn from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Optional

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import Conflict
from airflow_ml_provider.serving.spec import check_service

GATEWAY, LOCK, LOG, OUTPUT, PREDICTIONS = "gateway.json", "gateway.lock", "gateway.log", "gateway.out", "predictions"


@dataclass(frozen=True)
class Address:
    """Where a gateway is. The file is readable by its owner alone, since the token is in it.

    Attributes:
        service: name of the service.
        pid: its process.
        started: when that was started, as the system says it: another process may get its id later.
        url: where users send requests.
        admin: where the wanted state is changed; on this machine only.
        token: what the admin side wants to be shown.
        grpc: where users send requests over gRPC, as `grpc://HOST:PORT`; empty where it is not served.
    """

    service: str
    pid: int
    started: str
    url: str
    admin: str
    token: str
    grpc: str = ""


def place(root: Path, service: str) -> Path:
    """Return the folder of a service."""
    return root.absolute() / check_service(service)


def read_address(folder: Path) -> Optional[Address]:
    """Return where the gateway was last, whether it still runs or not; none when it never ran."""
    try:
        found: Address = codec.decode(Address, json.loads((folder / GATEWAY).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    return found


def write_address(folder: Path, address: Address) -> None:
    """Keep where the gateway is."""
    with tables.replacing(folder / GATEWAY) as aside:
        aside.touch(mode=0o600)
        aside.write_text(json.dumps(asdict(address), indent=1), encoding="utf-8")


def alive(address: Address) -> bool:
    """Return whether the process of an address still runs and is the same one."""
    return bool(address.started) and process_start(address.pid) == address.started


def process_start(pid: int) -> str:
    """Return when a process was started, in the system's words; empty when there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]  # proc(5): state is field 3, starttime field 22
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return ""
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return shown.stdout.strip()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[IO[str]]:
    """Be the only gateway of a folder; the kernel lets go of the lock when the process ends.

    Raises:
        Conflict: there is another one.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another gateway runs in {folder}") from None
        yield file


def put_package(folder: Path) -> Path:
    """Put this package into the folder as a zip, for Pythons that do not have it, and return its path."""
    from airflow_ml_provider.runtime import bundle

    body = bundle.build()
    path = folder / f"package-{hashlib.sha256(body).hexdigest()[:16]}.zip"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Not `tables.replacing`: several may be starting at a time, and it takes what others are writing for leftovers.
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as aside:
            aside.write(body)
        os.replace(aside.name, path)
    return path


def environment(package: Path) -> dict[str, str]:
    """Return the environment of a gateway or a server: this package to import, and none of Airflow's secrets."""
    from airflow_ml_provider.runtime.interpreter import WITHHELD

    kept = {name: value for name, value in os.environ.items() if not name.startswith(WITHHELD)}
    return {**kept, "PYTHONPATH": str(package), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
