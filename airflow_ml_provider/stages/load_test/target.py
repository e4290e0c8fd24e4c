"""What is tested: a service that runs already, or a server of the package that lives as long as the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import airflow_ml_provider
from airflow_ml_provider import models, tables
from airflow_ml_provider.exceptions import StageCrashed
from airflow_ml_provider.stages.load_test.spec import LoadTestSpec


@dataclass(frozen=True)
class Target:
    """Where requests go.

    Attributes:
        url: of the server.
        name: of the model there.
        began: when its start began (`time.perf_counter`); none when that is not known.
        process: the server that was started for the test.
    """

    url: str
    name: str
    began: Optional[float] = None
    process: Optional[subprocess.Popen[str]] = None

    def check(self) -> None:
        """Raise `StageCrashed` when the server that was started has ended."""
        if self.process is not None and self.process.poll() is not None:
            raise StageCrashed(f"the model server ended with code {self.process.returncode} during the load test")


@contextmanager
def opened(spec: LoadTestSpec) -> Iterator[Target]:
    """Give the target of a test; a server that was started for it ends with the block.

    Raises:
        DataError: there is no complete package to start a server of.
        IntegrityError: it is another model.
        StageCrashed: the server did not start.
    """
    name = spec.service or spec.model.name
    if spec.url:
        yield Target(spec.url, name)
        return
    models.verify(tables.local_path(spec.model.uri), spec.model)
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            _command(spec, name), env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
            text=True,
        )  # fmt: skip
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                process.wait()
                said.seek(0)
                raise StageCrashed(f"the model server ended with code {process.returncode}: {said.read()[-2000:]}")
            ports = json.loads(line)
            url = (
                f"grpc://127.0.0.1:{ports['grpc']}" if spec.protocol == "grpc" else f"http://127.0.0.1:{ports['port']}"
            )
            yield Target(url, name, began, process)
        finally:
            process.kill()
            process.communicate()


def _command(spec: LoadTestSpec, name: str) -> list[str]:
    found = [sys.executable, "-m", "airflow_ml_provider.serving.aio.server", f"--name={name}"]
    found += [f"--package={tables.local_path(spec.model.uri).absolute()}", f"--digest={spec.model.digest}"]
    found += ["--grpc-port=0"] if spec.protocol == "grpc" else []
    # It ends with this process, whatever kills that.
    return [*found, f"--parent={os.getpid()}", f"--version={spec.version or spec.model.version or '1'}"]


def _environment() -> dict[str, str]:
    """Return this environment without Airflow's secrets, with this very package (a folder or a zip) to import."""
    kept = {name: value for name, value in os.environ.items() if not name.lstrip("_").startswith("AIRFLOW")}
    package = Path(airflow_ml_provider.__file__).parents[1]
    return {**kept, "PYTHONPATH": str(package), "PYTHONUNBUFFERED": "1"}
