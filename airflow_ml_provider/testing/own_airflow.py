"""An Airflow of the tests' own: a fresh home and database, DAGs from one folder, lineage events to a file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import airflow_ml_provider

ROOT = Path(airflow_ml_provider.__file__).parents[1]


@dataclass
class OwnAirflow:
    """An Airflow below `home`; `migrate` first.

    Attributes:
        home: folder for everything that it writes; the environment variable `ML_TEST_FOLDER` names it to DAGs.
        dags: folder with DAG files.
        further: more environment variables.
    """

    home: Path
    dags: Path
    further: dict[str, str] = field(default_factory=dict)

    @property
    def events(self) -> Path:
        """The file with the lineage events."""
        return self.home / "events.jsonl"

    @property
    def output(self) -> str:
        """What the last command has printed so far."""
        return (self.home / "output.log").read_text(errors="replace")

    @property
    def env(self) -> dict[str, str]:
        """The environment of its commands. MLflow is a database in `home`."""
        transport = {"type": "file", "log_file_path": str(self.events), "append": True}
        return {
            **os.environ,
            "AIRFLOW_HOME": str(self.home / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__OPENLINEAGE__NAMESPACE": "test",
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
            "AIRFLOW_CONN_MLFLOW_DEFAULT": json.dumps({"conn_type": "mlflow", "host": self.tracking_uri}),
            "ML_TEST_FOLDER": str(self.home),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            **self.further,
        }

    @property
    def tracking_uri(self) -> str:
        """The tracking URI that its connection `mlflow_default` means."""
        return f"sqlite:///{self.home}/mlflow.db"

    def migrate(self) -> OwnAirflow:
        """Make the database."""
        self.run("airflow", "db", "migrate")
        return self

    def run(self, *command: str, fails: bool = False, timeout_s: float = 500) -> None:
        """Run a command of this environment to its end; fail unless it ends well (or, with `fails`, badly)."""
        with self.running(*command) as process:
            code = process.wait(timeout_s)
        assert bool(code) == fails, self.output[-4000:]

    @contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command in a process group of its own; at the end nothing of it is left behind."""
        program = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
        with open(self.home / "output.log", "w") as log:
            process = subprocess.Popen(program, env=self.env, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
