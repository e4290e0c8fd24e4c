"""The zip that travels: the same bytes everywhere, complete, and content with any Python."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import airflow_ml_provider
from airflow_ml_provider import codec
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import bundle, protocol

ROOT = Path(airflow_ml_provider.__file__).parent


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "package.zip"
    path.write_bytes(bundle.build())
    return path


def alone(package: Path, code: str, *args: str) -> subprocess.CompletedProcess:
    """Run code with the zip and the standard library only, from a folder without the package."""
    env = {"PYTHONPATH": str(package), "PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-S", "-c", code, *args], env=env, cwd=package.parent, capture_output=True, text=True
    )


def test_deterministic(tmp_path, package):
    bundle.build.cache_clear()
    assert bundle.build() == package.read_bytes()
    code = "import sys; from airflow_ml_provider.runtime import bundle; sys.stdout.buffer.write(bundle.build())"
    env = {**os.environ, "PYTHONPATH": str(ROOT.parent), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout
    assert other == package.read_bytes()


def test_a_zip_builds_itself_again(package):
    """A stage in another Python may start a further one; it has only the zip to give."""
    code = "import sys; from airflow_ml_provider.runtime import bundle; sys.stdout.buffer.write(bundle.build())"
    env = {"PYTHONPATH": str(package), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=env, cwd=package.parent, capture_output=True)
    assert done.stdout == package.read_bytes(), done.stderr


def test_small_and_without_what_needs_airflow():
    with zipfile.ZipFile(io.BytesIO(bundle.build())) as archive:
        names = archive.namelist()
        sources = {name: archive.read(name).decode() for name in names if name.endswith(".py")}
    assert len(bundle.build()) < 600_000
    assert not [name for name in names if "__pycache__" in name or "/operators/" in name or "/hooks/" in name]
    assert not [name for name, text in sources.items() if "import airflow\n" in text or "from airflow." in text]


def test_everything_that_may_travel_does():
    """A new module at the top that the stages use must be added to the list."""
    with zipfile.ZipFile(io.BytesIO(bundle.build())) as archive:
        names = set(archive.namelist())
    for part in ("stages", "runtime", "lineage", "serving"):
        for path in (ROOT / part).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"airflow_ml_provider/{path.relative_to(ROOT).as_posix()}" in names


def test_every_module_imports_with_the_standard_library_alone(package):
    with zipfile.ZipFile(package) as archive:
        modules = [
            name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for name in archive.namelist()
            if name.endswith(".py") and not name.endswith("__main__.py") and "/serving/aio/" not in name
        ]
    code = (
        "import importlib, json, sys\n"
        "bad = {}\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except Exception as error:\n"
        "        bad[name] = repr(error)\n"
        "print(json.dumps(bad))\n"
    )
    done = alone(package, code, json.dumps(modules))
    assert json.loads(done.stdout or "null") == {}, done.stderr


def test_runs_as_one_command(package, spec, tmp_path):
    """What a pod does: the zip, the call, the outcome."""
    call, outcome = tmp_path / "call.json", tmp_path / "outcome.json"
    protocol.write_call(call, spec, RunInfo())
    args = [str(package), "ingest", "--spec", f"file://{call}", "--result", f"file://{outcome}"]
    bare = subprocess.run([sys.executable, "-S", *args], cwd=tmp_path, capture_output=True, text=True)
    assert bare.returncode == protocol.EXIT_MISSING, bare.stderr
    assert json.loads(outcome.read_text())["error"]["type"] == "MissingLibrary"
    pytest.importorskip("duckdb")
    done = subprocess.run([sys.executable, *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == protocol.EXIT_OK, done.stderr
    assert codec.encode(protocol.open_outcome(json.loads(outcome.read_text()), spec))["counts"]["accepted"] == 2
