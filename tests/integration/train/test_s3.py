"""Snapshots in a bucket, by the S3 protocol: a training that is killed goes on from what the bucket holds."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_ml_provider import stages
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import protocol
from airflow_ml_provider.stages.train.places import SEAL, RemotePlace
from airflow_ml_provider.stages.train.snapshots import Snapshots
from airflow_ml_provider.stages.train.spec import Launch

torch = pytest.importorskip("torch")
pytest.importorskip("moto", reason="an S3 server is not installed: pip install 'moto[s3]' flask flask-cors")
s3fs = pytest.importorskip("s3fs", reason="what fsspec reaches S3 by is not installed: pip install s3fs")

INFO = RunInfo("flights", "train", "r1")
# 26 steps per epoch, 78 in all; dropout draws random numbers on both ranks.
PARAMS = {"epochs": 3, "batch_size": 256, "hidden": [16], "dropout": 0.3, "patience": 99}
BUCKET = "snapshots-of-tests"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """The address of an S3 server of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path_factory.mktemp("s3") / "server.log"
    with open(out, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
    until = time.monotonic() + 60
    while not listens(port):
        assert process.poll() is None, out.read_text()
        assert time.monotonic() < until, out.read_text()
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def bucket(endpoint, monkeypatch, tmp_path):
    """The URI of an empty folder in a bucket, which this process and its children reach as any other."""
    env = {
        "ACCESS_KEY_ID": "test",
        "SECRET_ACCESS_KEY": "test",
        "ENDPOINT_URL": endpoint,
        "DEFAULT_REGION": "us-east-1",
    }
    for name, value in env.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def torch_spec(spec, bucket):
    def make(**launch):
        settings = Launch(processes=2, snapshot_every=7, snapshots=bucket, **launch)
        return spec(engine="torch", params=PARAMS, launch=settings)

    return make


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def whole(spec, kept):
    """The result of the same training, not interrupted, with snapshots on this machine; made once."""
    if not kept:
        untouched = spec(engine="torch", params=PARAMS, launch=Launch(processes=2, snapshot_every=7))
        kept["result"] = stages.run(untouched, replace(INFO, run_id="whole"))
    return kept["result"]


@pytest.fixture
def place(bucket):
    """Where the bucket has the snapshots of the training, once there are some."""

    def find() -> RemotePlace | None:
        fs = s3fs.S3FileSystem(skip_instance_cache=True)
        found = fs.glob(f"{bucket}/flight_delay/*/snapshots")
        return RemotePlace(f"s3://{found[0]}") if found else None

    return find


@contextmanager
def killed(spec, tmp_path: Path):
    """Run the stage as a process of its own, and kill it with its ranks in the end."""
    call, result = tmp_path / "call.json", tmp_path / "result.json"
    protocol.write_call(call, spec, INFO)
    command = [
        sys.executable,
        "-m",
        "airflow_ml_provider.runtime",
        "train",
        "--spec",
        str(call),
        "--result",
        str(result),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with open(tmp_path / "stage.log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        yield process
        assert process.poll() is None, (tmp_path / "stage.log").read_text()
    finally:
        process.send_signal(signal.SIGKILL)  # the ranks end with it
        process.wait()


def wait_for(place, process, enough) -> None:
    until = time.monotonic() + 120
    while not ((found := place()) and enough(found.steps())):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


def test_killed_at_a_random_step_and_tried_again(torch_spec, whole, place, tmp_path):
    """It ends in the bytes of a training that nobody disturbed, and leaves nothing in the bucket."""
    victim = random.SystemRandom().randrange(7, 50)
    with killed(torch_spec(), tmp_path) as process:
        wait_for(place, process, lambda steps: steps and steps[-1] >= victim)
    assert not list(Path(torch_spec().output).rglob("step=*"))
    found = stages.run(torch_spec(), INFO)
    assert found.resumed_from >= victim
    assert found.model.digest == whole.model.digest
    assert found.metrics == whole.metrics
    assert place() is None


def test_damaged_newest_snapshot_costs_a_few_steps_only(torch_spec, whole, place, tmp_path):
    with killed(torch_spec(), tmp_path) as process:
        wait_for(place, process, lambda steps: len(steps) == 2 and steps[-1] > 20)
    older, newest = place().steps()[-2:]
    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"{place().shown(newest)}/tensors.safetensors", b"damaged")
    found = stages.run(torch_spec(), INFO)
    assert found.resumed_from == older
    assert found.model.digest == whole.model.digest


@pytest.mark.parametrize("missing", [SEAL, "state.json", "tensors.safetensors"])
def test_half_a_snapshot_is_none(bucket, caplog, missing):
    """Without a seal as after a kill in the middle of an upload, and with a file that somebody has removed."""
    writer = Snapshots(bucket, "recipe")
    for step in (1, 2):
        writer.save(step, {"weights": torch.full((3,), float(step))})
    writer.finish()
    s3fs.S3FileSystem(skip_instance_cache=True).rm_file(f"{bucket}/step=2/{missing}")
    step, state = Snapshots(bucket, "recipe").load()
    assert (step, state["weights"].tolist()) == (1, [1.0, 1.0, 1.0])
    assert ("snapshot" in caplog.text and "is damaged" in caplog.text) == (missing != SEAL)
