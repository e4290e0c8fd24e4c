"""Who is the gateway of a folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from airflow_ml_provider.exceptions import Conflict, SpecError, Unavailable
from airflow_ml_provider.serving import folder as folders
from airflow_ml_provider.serving import launch
from airflow_ml_provider.serving.client import Client
from airflow_ml_provider.serving.folder import Address


def address(pid: int) -> Address:
    return Address("late", pid, folders.process_start(pid), "http://127.0.0.1:1", "http://127.0.0.1:2", "secret")


def test_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = address(child.pid)
    assert folders.alive(found)
    assert not folders.alive(replace(found, started="1"))  # another process with the same id
    child.communicate(b"\n")
    assert not folders.alive(found)
    assert not folders.alive(address(child.pid))


def test_an_address_is_its_owner_s_alone(tmp_path) -> None:
    folders.write_address(tmp_path, address(os.getpid()))
    assert stat.S_IMODE((tmp_path / folders.GATEWAY).stat().st_mode) == 0o600
    assert folders.read_address(tmp_path) == address(os.getpid())


@pytest.mark.parametrize("text", ["", "{}", "[]", "\x00"])
def test_no_address(tmp_path, text: str) -> None:
    assert folders.read_address(tmp_path) is None
    (tmp_path / folders.GATEWAY).write_text(text)
    assert folders.read_address(tmp_path) is None


def test_one_at_a_time(tmp_path) -> None:
    code = f"""
from pathlib import Path
from airflow_ml_provider.serving import folder
with folder.locked(Path({str(tmp_path)!r})): pass
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with folders.locked(tmp_path):
        second = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert f"{Conflict.__name__}: another gateway runs in {tmp_path}" in second.stderr
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


def test_secrets_of_airflow_stay_behind(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_X", "secret")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    assert "secret" not in folders.environment(tmp_path / "p.zip").values()


def test_the_package_is_put_there_once(tmp_path) -> None:
    first = folders.put_package(tmp_path)
    before = first.stat().st_mtime_ns
    assert folders.put_package(tmp_path) == first
    assert first.stat().st_mtime_ns == before


def test_nobody_there(tmp_path) -> None:
    with pytest.raises(Unavailable, match="no gateway of service 'late' runs in"):
        Client(tmp_path, "late").status()
    assert launch.find(tmp_path, "late") is None
    assert not launch.stop(tmp_path, "late")
    with pytest.raises(SpecError, match="name of a service"):
        Client(tmp_path, "../late")


def test_start_needs_a_python(tmp_path) -> None:
    with pytest.raises(SpecError, match="python '/no/python' cannot be started"):
        launch.start(tmp_path, "late", python="/no/python")
