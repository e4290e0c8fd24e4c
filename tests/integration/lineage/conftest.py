"""An Airflow of the tests' own: a fresh home, events to a file; and the validator of events."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_ml_provider.testing.fixtures import event_validator

__all__ = ["event_validator"]

DAGS = Path(__file__).parent / "dags"
ROOT = Path(__file__).parents[3]


@dataclass
class OwnAirflow:
    """An Airflow below `home` with a migrated database."""

    home: Path
    env: dict[str, str]

    @property
    def events(self) -> Path:
        """The file with the lineage events."""
        return self.home / "events.jsonl"

    def run(self, *command: str, fails: bool = False, timeout_s: float = 500) -> None:
        """Run a command of this environment in a process group of its own; nothing of it is left behind."""
        log = self.home / "output.log"
        with open(log, "w") as output:
            program = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
            process = subprocess.Popen(program, env=self.env, stdout=output, stderr=output, start_new_session=True)
            try:
                code = process.wait(timeout_s)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert bool(code) == fails, log.read_text(errors="replace")[-4000:]


@pytest.fixture(scope="module")
def own_airflow(tmp_path_factory: pytest.TempPathFactory) -> OwnAirflow:
    """Make an Airflow; `ML_TEST_FOLDER` is its home, and so is MLflow's database."""
    home = tmp_path_factory.mktemp("airflow")
    transport = {"type": "file", "log_file_path": str(home / "events.jsonl"), "append": True}
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "test",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW_CONN_MLFLOW_DEFAULT": json.dumps({"conn_type": "mlflow", "host": f"sqlite:///{home}/mlflow.db"}),
        "ML_TEST_FOLDER": str(home),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    airflow = OwnAirflow(home, env)
    airflow.run("airflow", "db", "migrate")
    return airflow
