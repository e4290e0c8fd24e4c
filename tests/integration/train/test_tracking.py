"""MLflow as it is: a database, a server, a server that is not there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from mlflow import MlflowClient

from airflow_ml_provider import models, stages
from airflow_ml_provider.exceptions import Conflict, SpecError, Unavailable
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import Provenance, RunInfo
from airflow_ml_provider.runtime import protocol
from airflow_ml_provider.stages.train import logic, package, tracking
from airflow_ml_provider.stages.train.spec import Function, Launch
from airflow_ml_provider.testing.tracking import server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::FutureWarning:mlflow")

INFO = RunInfo("flights", "train", "r1", 2, interval=Interval.from_key("2013-01-12"), reason="backfill")
FAST = {"num_boost_round": 12}


@pytest.fixture
def train(spec):
    return lambda info=INFO, **changes: stages.run(spec(**{"params": FAST, "experiment": "late", **changes}), info)


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory):
    with server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


def runs(uri, experiment="late"):
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


def dead_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


class TestRun:
    def test_what_is_recorded(self, train, flights, tracking_uri):
        result = train(segment={"origin": "EWR"})
        (run,) = runs(tracking_uri)
        assert run.info.run_id == result.model.run_id == models.read_manifest(Path(result.model.uri)).run_id
        assert (run.info.status, run.info.run_name) == ("FINISHED", "flight_delay_ewr-lightgbm")
        assert {k: run.data.params[k] for k in ("engine", "encoding", "seed", "params.num_boost_round")} == {
            "engine": "lightgbm", "encoding": "ordinal", "seed": "0", "params.num_boost_round": "12",
        }  # fmt: skip
        tags = {k.removeprefix("airflow_ml."): v for k, v in run.data.tags.items() if k.startswith("airflow_ml.")}
        assert tags["identity"] == f"{INFO.identity}_lightgbm"
        assert (tags["dag_id"], tags["task_id"], tags["run_id"], tags["map_index"]) == ("flights", "train", "r1", "2")
        assert (tags["reason"], tags["interval"]) == ("backfill", "2013-01-12")
        assert (tags["dataset_digest"], tags["segment.origin"]) == (flights.digest, "EWR")
        assert tags["trained_until"] == "2013-01-12T00:00:00+00:00"
        assert run.data.metrics["validation_auc"] == pytest.approx(result.metrics["validation_auc"])
        curve = MlflowClient(tracking_uri).get_metric_history(run.info.run_id, "validation_loss")
        assert [m.step for m in curve] == list(range(12))

    def test_finished_package_leaves_the_run_alone(self, train, tracking_uri):
        first = train()
        (before,) = runs(tracking_uri)
        assert train() == first
        (after,) = runs(tracking_uri)
        assert after.info.end_time == before.info.end_time

    def test_another_task_instance_has_another_run(self, train, tracking_uri):
        train()
        train(info=replace(INFO, map_index=3))
        train(engine="sklearn", params={})
        assert len({run.info.run_id for run in runs(tracking_uri)}) == 3

    def test_without_an_address_nothing_is_tracked(self, train, tracking_uri, monkeypatch):
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        result = train()
        assert (result.model.run_id, result.links) == (None, {})
        assert runs(tracking_uri) == []


class TestRetry:
    def failing_once(self, mark):
        source = (
            "def fit(run, mark):\n"
            "    import os\n"
            "    from sklearn.tree import DecisionTreeClassifier\n"
            "    start = (run.resume() or {'step': 0})['step']\n"
            "    for step in range(start, 4):\n"
            "        run.log('loss', 1 / (step + 1), step)\n"
            "        if step % 2:\n"
            "            run.snapshot(step)\n"
            "        if step == 2 and not os.path.exists(mark):\n"
            "            open(mark, 'w').close()\n"
            "            raise RuntimeError('no luck')\n"
            "    return DecisionTreeClassifier(max_depth=2, random_state=0).fit(*run.train.numpy())\n"
        )
        return {"engine": "function", "params": {}, "function": Function("fit", source, {"mark": str(mark)})}

    def test_goes_on_in_the_same_run(self, train, tracking_uri, tmp_path):
        """Steps 0 to 2, a failure, and from the snapshot of step 1 on again: each step is told once."""
        pytest.importorskip("safetensors", reason="a snapshot needs safetensors")
        changes = self.failing_once(tmp_path / "mark")
        with pytest.raises(RuntimeError, match="no luck"):
            train(**changes)
        (failed,) = runs(tracking_uri)
        assert failed.info.status == "FAILED"
        result = train(**changes)
        (finished,) = runs(tracking_uri)
        assert finished.info.run_id == failed.info.run_id == result.model.run_id
        assert (finished.info.status, result.resumed_from) == ("FINISHED", 1)
        history = MlflowClient(tracking_uri).get_metric_history(finished.info.run_id, "loss")
        assert sorted((m.step, m.value) for m in history) == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 0.25)]

    def test_other_settings_are_told(self, train, tracking_uri):
        with pytest.raises(SpecError, match="LightGBM refused params"):
            train(params={"num_leaves": 0})
        train(params={"num_leaves": 5, "num_boost_round": 5})
        (run,) = runs(tracking_uri)
        assert run.data.params["params.num_leaves"] == "0"  # MLflow never changes one
        assert run.data.tags["airflow_ml.changed_params"] == '{"params.num_leaves": "5"}'


class TestProfile:
    def test_traces_of_two_ranks(self, spec, tracking_uri):
        pytest.importorskip("torch")
        params = {"epochs": 1, "batch_size": 256, "hidden": [8]}
        launch = Launch(processes=2, profile_steps=3)
        found = stages.run(spec(engine="torch", experiment="profiled", params=params, launch=launch), INFO)
        folder = Path(found.model.uri)
        traces = sorted((folder / "profile").iterdir())
        assert [path.name for path in traces] == ["rank-0.pt.trace.json", "rank-1.pt.trace.json"]
        assert found.links["profile"] == str(traces[0])
        assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == [f".{folder.name}.lock"]
        (run,) = runs(tracking_uri, "profiled")
        client = MlflowClient(tracking_uri)
        assert [item.path for item in client.list_artifacts(run.info.run_id, "profile")] == [
            f"profile/{path.name}" for path in traces
        ]
        (share,) = client.get_metric_history(run.info.run_id, "performance/communication_share")
        assert (share.step, share.value) == (6, found.performance["communication_share"])
        assert 0 < share.value < 1


class TestServer:
    @pytest.fixture(autouse=True)
    def address(self, mlflow_server, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)

    def test_link(self, train, mlflow_server, monkeypatch):
        result = train(experiment="link")
        (run,) = runs(mlflow_server, "link")
        page = f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        assert result.links == {"mlflow": mlflow_server + page}
        assert train(experiment="link").links == result.links
        monkeypatch.setenv("MLFLOW_UI_URL", "https://mlflow.example.org/")
        other = train(experiment="link", info=replace(INFO, run_id="r2"))
        assert other.links["mlflow"].startswith("https://mlflow.example.org/#/experiments/")

    def test_one_experiment_for_tasks_that_start_together(self, mlflow_server):
        client = MlflowClient(mlflow_server)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: tracking._experiment(client, "together"), range(4)))
        assert len(set(found)) == 1

    def test_deleted_experiment(self, train, mlflow_server):
        client = MlflowClient(mlflow_server)
        client.delete_experiment(client.create_experiment("gone"))
        with pytest.raises(Conflict, match="experiment 'gone' is deleted; restore it"):
            train(experiment="gone")

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_killed_in_the_middle(self, spec, mlflow_server, tmp_path, ranks):
        """`kill -9` of a torch training; the retry continues the run, and every epoch stands in it once."""
        pytest.importorskip("torch")
        experiment = f"killed-{ranks}"
        torch_spec = spec(
            engine="torch", experiment=experiment, launch=Launch(processes=ranks, snapshot_every=5),
            params={"epochs": 6, "batch_size": 256, "hidden": [8], "patience": 99},
        )  # fmt: skip
        call, result = tmp_path / "call.json", tmp_path / "result.json"
        protocol.write_call(call, torch_spec, INFO)
        command = [sys.executable, "-m", "airflow_ml_provider.runtime", "train"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen([*command, "--spec", str(call), "--result", str(result)], env=env)
        folder = package.place(torch_spec, INFO)
        until = time.monotonic() + 120
        while not any(int(p.name[5:]) >= 60 for p in folder.glob("snapshots/step=*")):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (running,) = runs(mlflow_server, experiment)
        assert running.info.status == "RUNNING"
        found = stages.run(torch_spec, INFO)
        (finished,) = runs(mlflow_server, experiment)
        assert finished.info.run_id == running.info.run_id == found.model.run_id
        assert finished.info.status == "FINISHED"
        assert found.resumed_from >= 60
        for name in ("train_loss", "validation_loss"):
            history = MlflowClient(mlflow_server).get_metric_history(finished.info.run_id, name)
            assert sorted(m.step for m in history) == list(range(6))


class TestAway:
    @pytest.fixture(autouse=True)
    def address(self, monkeypatch):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_address())

    def test_before_training(self, train):
        with pytest.raises(Unavailable, match=r"MLflow at http://127\.0\.0\.1:\d+ did not answer") as caught:
            train()
        assert caught.value.verdict == "retryable"

    def test_in_the_middle_measurements_wait(self, spec, caplog):
        """What cannot be sent is kept; only at the end it must go out."""
        uri = dead_address()
        tracker = tracking.MlflowTracker(MlflowClient(uri), uri, tracking.Tracked("run", "0", ""), continued=False)
        tracker.log("loss", 0.5, 1)
        tracker.flush()
        assert "measurements are kept back until the tracking server answers" in caplog.text
        with pytest.raises(Unavailable):
            tracker.finish({"auc": 0.7}, {})
        tracker.fail()
        assert "could not be told of the failure" in caplog.text

    def test_credentials_are_not_shown(self, train, monkeypatch):
        uri = dead_address().replace("http://", "http://me:secret@")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert "secret" not in tracking._link(uri, "1", "2")


def test_mlflow_is_imported_for_tracking_only(spec):
    code = (
        "import sys; from airflow_ml_provider.stages.train import tracking, engines\n"
        "from airflow_ml_provider.provenance import Provenance, RunInfo\n"
        "assert 'mlflow' not in sys.modules and 'requests' not in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_tags_tell_nothing_empty(spec):
    tags = tracking._origin_tags(spec(), RunInfo(), Provenance())
    assert "airflow_ml.trigger" not in tags
    assert tags["airflow_ml.model"] == logic.model_name("flight_delay", {})
