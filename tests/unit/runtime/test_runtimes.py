"""The same call in process and in another Python, and what happens when the other side dies."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import airflow_ml_provider
from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import (
    DataError,
    MissingLibrary,
    SpecError,
    StageCrashed,
    StageFailed,
    Unavailable,
)
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import InProcess, Interpreter, Runtime, resolve

from .conftest import gone, pid_in, wait_until_gone

INFO = RunInfo(dag_id="d", task_id="t", run_id="r")
HERE = Interpreter(sys.executable)


class TestResolve:
    def test_forms(self):
        assert resolve(None) == resolve("") == InProcess()
        assert resolve("/opt/ml/bin/python") == Interpreter("/opt/ml/bin/python")
        assert resolve(HERE) is HERE
        assert isinstance(HERE, Runtime)

    def test_something_else(self):
        with pytest.raises(SpecError, match="runtime must be InProcess"):
            resolve(7)  # type: ignore[arg-type]

    def test_bad_timeout(self):
        with pytest.raises(SpecError, match="timeout_s must be greater than 0, got 0"):
            Interpreter("python", timeout_s=0)


class TestSameEverywhere:
    @pytest.fixture(autouse=True)
    def tools(self):
        pytest.importorskip("duckdb")
        pytest.importorskip("pyarrow")

    def test_same_result(self, spec):
        here = InProcess().call(spec, INFO, {})
        assert here.counts["accepted"] == 2
        assert codec.encode(HERE.call(spec, INFO, {})) == codec.encode(here)

    def test_relative_paths_mean_the_same(self, spec, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        relative = dataclasses.replace(spec, source="landing.csv", target="elsewhere")
        assert HERE.call(relative, INFO, {}).counts == InProcess().call(relative, INFO, {}).counts

    def test_package_of_the_working_directory_is_not_taken(self, spec, tmp_path, monkeypatch):
        """Both sides are always of the same version, wherever the worker happens to stand."""
        (tmp_path / "airflow_ml_provider").mkdir()
        (tmp_path / "airflow_ml_provider" / "__init__.py").write_text("raise RuntimeError('the wrong package')")
        (tmp_path / "json.py").write_text("raise RuntimeError('the wrong json')")
        monkeypatch.chdir(tmp_path)
        assert HERE.call(spec, INFO, {}).status == "ok"

    @pytest.mark.parametrize("runtime", [InProcess(), HERE])
    def test_same_errors(self, spec, runtime):
        folder = dataclasses.replace(spec, source=str(Path(spec.source).parent))
        with pytest.raises(SpecError, match=r"source must be a file or a glob, got .*; for all files"):
            runtime.call(folder, INFO, {})
        missing = dataclasses.replace(spec, source=spec.source + ".nope")
        with pytest.raises(Unavailable, match="no landing file matches"):
            runtime.call(missing, INFO, {})

    def test_log_lines_come_through_with_their_level(self, spec, caplog):
        caplog.set_level("INFO")
        HERE.call(spec, INFO, {})
        lines = [(r.levelname, r.getMessage()) for r in caplog.records]
        assert any(level == "INFO" and "landing.csv: accepted, 2 rows" in text for level, text in lines)


class TestErrors:
    def test_missing_library_names_the_environment_and_the_command(self, spec, bare_python):
        with pytest.raises(MissingLibrary) as caught:
            Interpreter(bare_python).call(spec, INFO, {})
        message = str(caught.value)
        assert "stage 'ingest' needs duckdb, pyarrow" in message
        assert os.path.realpath(sys.executable) in message or sys.executable in message
        assert "-m pip install 'duckdb' 'pyarrow'" in message
        assert caught.value.verdict == "terminal"

    def test_broken_library_shows_itself(self, spec, python_with):
        with pytest.raises(StageFailed, match=r"ImportError: libfoo\.so\.1: cannot open(.|\n)*Traceback"):
            python_with("raise ImportError('libfoo.so.1: cannot open')").call(spec, INFO, {})

    def test_unexpected_error_comes_with_its_traceback_and_may_be_retried(self, spec, python_with):
        with pytest.raises(StageFailed, match=r"ZeroDivisionError: division by zero\nTraceback(.|\n)*duckdb\.py") as e:
            python_with("1 / 0").call(spec, INFO, {})
        assert e.value.verdict == "retryable"

    def test_own_errors_keep_their_verdict(self, spec, python_with):
        code = """
            from airflow_ml_provider.exceptions import DataError
            class Special(DataError):
                pass
            raise Special("not these rows")
        """
        with pytest.raises(DataError, match=r"^not these rows$"):
            python_with(code).call(spec, INFO, {})

    def test_no_such_python(self, spec):
        with pytest.raises(SpecError, match="python '/nowhere/python' is not an executable file"):
            Interpreter("/nowhere/python").call(spec, INFO, {})

    def test_not_a_python(self, spec):
        with pytest.raises(StageCrashed, match="ended without a result"):
            Interpreter("/bin/false").call(spec, INFO, {})


class TestSecrets:
    def test_airflows_own_are_withheld_and_the_stages_arrive(self, spec, python_with, tmp_path, monkeypatch):
        monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "secret")
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", "secret")
        monkeypatch.setenv("AIRFLOW_VAR_TOKEN", "secret")
        monkeypatch.setenv("ML_KEPT", "kept")
        code = f"""
            import json, os
            with open({str(tmp_path / "env.json")!r}, "w") as handle:
                json.dump(dict(os.environ), handle)
            os._exit(3)
        """
        with pytest.raises(StageCrashed, match="exit code 3"):
            python_with(code, env={"OMP_NUM_THREADS": "1"}).call(spec, INFO, {"MLFLOW_TRACKING_URI": "http://x"})
        import json

        env = json.loads((tmp_path / "env.json").read_text())
        assert "secret" not in env.values()
        assert (env["ML_KEPT"], env["OMP_NUM_THREADS"]) == ("kept", "1")
        assert env["MLFLOW_TRACKING_URI"] == "http://x"

    def test_environment_of_a_call_in_process_is_put_back(self, spec, monkeypatch):
        pytest.importorskip("duckdb")
        monkeypatch.setenv("ML_KEPT", "before")
        monkeypatch.delenv("ML_NEW", raising=False)
        InProcess().call(spec, INFO, {"ML_KEPT": "during", "ML_NEW": "1"})
        assert os.environ["ML_KEPT"] == "before"
        assert "ML_NEW" not in os.environ

    def test_secrets_are_not_in_the_call_file(self, spec, python_with, tmp_path):
        code = f"""
            import os, shutil, sys
            shutil.copy(sys.argv[sys.argv.index("--spec") + 1], {str(tmp_path / "call.json")!r})
            os._exit(1)
        """
        with pytest.raises(StageCrashed):
            python_with(code).call(spec, INFO, {"MLFLOW_TRACKING_PASSWORD": "hunter2"})
        assert "hunter2" not in (tmp_path / "call.json").read_text()


SLEEP = "import os, time\nopen({path!r}, 'w').write(str(os.getpid()))\ntime.sleep(120)\n"


class TestDeath:
    """Nothing outlives its task, and whoever waits learns what happened."""

    def call_in_thread(self, runtime, spec):
        caught: list[BaseException] = []

        def work():
            try:
                runtime.call(spec, INFO, {})
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        return thread, caught

    def test_killed_by_hand(self, spec, python_with, tmp_path):
        pid = tmp_path / "pid"
        thread, caught = self.call_in_thread(python_with(SLEEP.format(path=str(pid))), spec)
        os.kill(pid_in(pid), signal.SIGKILL)
        thread.join()
        assert isinstance(caught[0], StageCrashed)
        assert "killed by SIGKILL, by hand or for lack of memory" in str(caught[0])
        assert caught[0].verdict == "retryable"

    def test_last_lines_are_in_the_message(self, spec, python_with):
        with pytest.raises(StageCrashed, match=r"killed by SIGSEGV; last lines:\n(.|\n)*on the brink"):
            python_with("import os\nprint('on the brink')\nos.kill(os.getpid(), 11)").call(spec, INFO, {})

    def test_cancel(self, spec, python_with, tmp_path):
        pid = tmp_path / "pid"
        runtime = python_with(SLEEP.format(path=str(pid)))
        thread, caught = self.call_in_thread(runtime, spec)
        number = pid_in(pid)
        runtime.cancel()
        thread.join()
        assert isinstance(caught[0], StageCrashed)
        assert gone(number)
        runtime.cancel()  # nothing is left to cancel

    def test_timeout(self, spec, python_with, tmp_path):
        pid = tmp_path / "pid"
        runtime = python_with(SLEEP.format(path=str(pid)), timeout_s=1.5)
        with pytest.raises(StageCrashed, match=r"killed by SIGKILL after its timeout of 1\.5 s"):
            runtime.call(spec, INFO, {})
        assert not pid.exists() or gone(int(pid.read_text()))

    def test_what_the_stage_started_ends_with_it(self, spec, python_with, tmp_path):
        """A worker that is left holds the pipe of the output open, too; the call ends all the same."""
        pid = tmp_path / "pid"
        code = f"""
            import os, subprocess, sys
            worker = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(120)"])
            open({str(pid)!r}, "w").write(str(worker.pid))
            os._exit(4)
        """
        with pytest.raises(StageCrashed, match="exit code 4"):
            python_with(code).call(spec, INFO, {})
        wait_until_gone(pid_in(pid))

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
    def test_child_dies_with_its_parent(self, spec, python_with, tmp_path):
        pid = tmp_path / "pid"
        runtime = python_with(SLEEP.format(path=str(pid)))
        parent = self.parent(runtime, spec)
        number = pid_in(pid)
        parent.kill()
        parent.wait()
        wait_until_gone(number)

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
    def test_wrapper_script_around_python_is_no_dead_parent(self, spec, tmp_path):
        pytest.importorskip("duckdb")
        wrapper = tmp_path / "wrapped-python"
        wrapper.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n')
        wrapper.chmod(0o755)
        assert Interpreter(str(wrapper)).call(spec, INFO, {}).status == "ok"

    def test_interrupted_caller_takes_the_child_along(self, spec, python_with, tmp_path):
        """Airflow's execution timeout is an exception that a signal raises in the middle of the call."""
        pid = tmp_path / "pid"
        runtime = python_with(SLEEP.format(path=str(pid)))

        def late(*_):
            raise TimeoutError("execution_timeout")

        before = signal.signal(signal.SIGUSR1, late)
        poke = threading.Thread(target=lambda: (pid_in(pid), os.kill(os.getpid(), signal.SIGUSR1)))
        try:
            poke.start()
            with pytest.raises(TimeoutError, match="execution_timeout"):
                runtime.call(spec, INFO, {})
        finally:
            poke.join()
            signal.signal(signal.SIGUSR1, before)
        assert gone(pid_in(pid))

    def test_nothing_is_left_in_the_temporary_folder(self, spec, python_with, tmp_path, monkeypatch):
        import tempfile

        folder = tmp_path / "tmp"
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        with pytest.raises(StageCrashed):
            python_with("import os\nos._exit(9)").call(spec, INFO, {})
        assert not list(folder.iterdir())

    def parent(self, runtime: Interpreter, spec) -> subprocess.Popen:
        import json

        code = textwrap.dedent(
            """
            import json, sys
            from airflow_ml_provider import codec
            from airflow_ml_provider.provenance import RunInfo
            from airflow_ml_provider.runtime import Interpreter
            from airflow_ml_provider.stages.ingest.spec import IngestSpec
            spec, python, path = json.loads(sys.argv[1])
            Interpreter(python, tuple(path)).call(codec.decode(IngestSpec, spec), RunInfo(), {})
            """
        )
        root = str(Path(airflow_ml_provider.__file__).parents[1])
        call = json.dumps([codec.encode(spec), runtime.python, list(runtime.pythonpath)])
        return subprocess.Popen([sys.executable, "-c", code, call], env={**os.environ, "PYTHONPATH": root})
