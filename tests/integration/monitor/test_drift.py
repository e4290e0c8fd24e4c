"""The monitor stage against champions in a real MLflow database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_ml_provider import codec, models, tables
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.monitor import series
from airflow_ml_provider.stages.monitor.drift import run
from airflow_ml_provider.stages.monitor.series import read_series
from airflow_ml_provider.testing.contracts import assert_idempotent, contents

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


def info(store, day, **changes):
    body = {"dag_id": "scoring", "task_id": "monitor", "run_id": f"run-{day}", "reason": "schedule", **changes}
    return RunInfo(interval=store.interval(day), **body)


def report_of(result):
    return json.loads(Path(result.report.uri).read_text(encoding="utf-8"))


class TestRun:
    def test_an_ordinary_day(self, store):
        champion = store.champion()
        store.day(0)
        result = run(store.spec(store.day(1)), info(store, 1))
        report = report_of(result)
        assert (result.status, result.severity, result.drift_share, result.retrain) == ("ok", "none", 0.0, False)
        assert [c["name"] for c in report["columns"]] == ["carrier", "distance", "hour", "score"]
        assert report["reference"]["models"] == [{"name": "late", "version": "1", "digest": champion.digest}]
        assert (report["rows"], report["reference"]["rows"]) == (800, 4000)
        done = report["performance"]
        assert (done["labels"], done["rows"], done["judged"]) == (800, 800, True)
        assert result.metrics["auc"] == done["auc"] > 0.75
        assert done["models"]["late"]["versions"] == ["1"]
        assert result.report.passed is True
        assert "Drift of late on 2013-01-03" in Path(result.report.html).read_text(encoding="utf-8")

    def test_a_drifted_day(self, store, drifted):
        store.champion()
        result = run(store.spec(store.day(0, change=drifted)), info(store, 0))
        severities = {c["name"]: c["severity"] for c in report_of(result)["columns"]}
        assert severities == {
            "distance": "none",
            "hour": "significant",
            "carrier": "significant",
            "score": severities["score"],
        }
        assert result.severity == "significant"
        assert result.drift_share >= 0.5
        assert result.report.passed is False
        assert "hour" in result.reason
        assertions = result.facets["inputs"][result.inputs[0].uri]["assertions"]
        assert {a["column"]: a["success"] for a in assertions} == {"distance": True, "hour": False, "carrier": False}

    def test_inputs_name_all_that_was_read(self, store):
        store.champion()
        store.day(0)
        result = run(store.spec(store.day(1)), info(store, 1))
        assert [ref.name for ref in result.inputs] == [
            "joined", "late", "predictions 2013-01-03", "labels 2013-01-03", "predictions 2013-01-02",
        ]  # fmt: skip

    def test_twice_changes_nothing(self, store, drifted):
        store.champion()
        for day in range(2):
            spec = store.spec(store.day(day, change=drifted))
            first, second = assert_idempotent(spec, info(store, day), roots=[store.output])
            assert codec.encode(first) == codec.encode(second)
        assert second.retrain is True

    def test_no_champion_yet(self, store):
        store.champion(since=store.interval(5).start)
        result = run(store.spec(store.day(0)), info(store, 0))
        assert result.status == "skipped"
        assert result.reason == (
            "no model of late held 'champion' at 2013-01-02T00:00:00+00:00: there is no reference to compare with"
        )
        assert read_series(store.output, "late") == []

    def test_an_empty_day_is_not_judged(self, store):
        store.champion()
        result = run(store.spec(store.day(0, count=0, labels=False)), info(store, 0))
        assert (result.status, result.severity, result.drift_share) == ("ok", "none", None)
        assert result.report.passed is None
        assert "0 rows, drift is judged from 100 on" in result.reason

    def test_bad_predictions_are_significant(self, store):
        def opposite(rows):
            import pyarrow as pa

            labels = pa.array([1 - v for v in rows["label"].to_pylist()])
            return rows.set_column(rows.schema.get_field_index("label"), "label", labels)

        store.champion()
        store.day(0, change=opposite)
        policy = replace(store.spec(store.day(1)).policy, min_auc=0.6)
        result = run(store.spec(store.day(1), policy=policy), info(store, 1))
        assert (result.severity, result.drift_share) == ("significant", 0.0)
        assert ", below 0.6" in result.reason
        (test,) = result.facets["run"]["tests"]
        assert (test["name"], test["passed"]) == ("auc_on_arrived_labels", False)


class TestReference:
    def test_is_that_of_the_champion_of_the_time(self, store):
        store.champion()
        store.champion(seed=1, since=store.interval(3).start)
        early, late = (run(store.spec(store.day(d)), info(store, d)) for d in (2, 3))
        assert [m["version"] for r in (early, late) for m in report_of(r)["reference"]["models"]] == ["1", "2"]
        assert [e["models"] for e in read_series(store.output, "late")] == [{"late": "1"}, {"late": "2"}]

    def test_is_that_of_the_champion_that_has_scored_the_day(self, store):
        """A later promotion, effective for a day that was scored by then, changes nothing about that day."""
        first = store.champion()
        spec = store.spec(store.day(0))
        scored = tables.partition(spec.predictions, store.interval(0))
        table = pq.read_table(scored)
        told = {**(table.schema.metadata or {}), b"airflow_ml.ruled_by": b'{"champion":{"late":1}}'}
        pq.write_table(table.replace_schema_metadata(told), scored)
        store.champion(seed=5)
        names = [m["digest"] for m in report_of(run(spec, info(store, 0)))["reference"]["models"]]
        assert names == [first.digest]

    def test_segments_are_merged_and_others_left_out(self, store):
        store.champion("late_ewr", segment={"origin": "EWR"})
        store.champion("late_jfk", segment={"origin": "JFK"})
        dataset = store.day(0)
        result = run(store.spec(dataset, models=("late_ewr", "late_jfk", "late_lga")), info(store, 0))
        report = report_of(result)
        assert report["reference"]["without_model"] == ["late_lga"]
        import pyarrow.parquet as pq

        origins = pq.ParquetFile(dataset.uri).read()["origin"].to_pylist()
        assert report["rows"] == origins.count("EWR") + origins.count("JFK")
        assert 2000 < report["reference"]["rows"] < 3000

    def test_missing_profile(self, store):
        champion = store.champion()
        Path(champion.uri, models.REFERENCE).unlink()
        with pytest.raises(DataError, match=r"version 1 has no reference\.json .* train it again"):
            run(store.spec(store.day(0)), info(store, 0))

    def test_missing_column(self, store):
        store.champion()
        dataset = store.day(0, change=lambda rows: rows)
        import pyarrow.parquet as pq

        rows = pq.ParquetFile(dataset.uri).read().drop_columns(["hour"])
        pq.write_table(rows, dataset.uri)
        with pytest.raises(DataError, match="column 'hour' is missing"):
            run(store.spec(dataset), info(store, 0))

    def test_without_predictions_the_scores_are_not_compared(self, store, caplog):
        store.champion()
        dataset = store.day(0)
        tables.partition(str(store.root / "predictions"), store.interval(0)).unlink()
        result = run(store.spec(dataset), info(store, 0))
        assert [c["name"] for c in report_of(result)["columns"]] == ["carrier", "distance", "hour"]
        assert "the scores are not compared" in caplog.text


class TestScores:
    def altered(self, store, change):
        """Score two days, change the scores of the first, judge the labels of the first on the second."""
        store.champion()
        first = store.day(0)
        path = tables.partition(str(store.root / "predictions"), store.interval(0))
        rows = pq.ParquetFile(path).read()
        scores = pa.array(change(rows["score"].to_pylist()), pa.float32())
        pq.write_table(rows.set_column(rows.schema.get_field_index("score"), "score", scores), path)
        results = run(store.spec(first), info(store, 0)), run(store.spec(store.day(1)), info(store, 1))
        (column,) = [c for c in report_of(results[0])["columns"] if c["name"] == "score"]
        return *results, column

    def test_that_are_not_a_number_are_missing_ones(self, store):
        day, later, column = self.altered(store, lambda scores: [float("nan")] * len(scores))
        assert (column["missing"], column["severity"]) == ([0.0, 1.0], "significant")
        assert day.severity != "none"
        assert "drifted (score)" in day.reason
        done = report_of(later)["performance"]
        assert (done["labels"], done["rows"], done["not_a_number"], done["judged"]) == (800, 0, 800, False)
        assert "800 scores of rows with labels are not a number" in later.reason
        assert "800 further rows have a score that is not a number" in Path(later.report.html).read_text()

    def test_that_no_model_gave_are_none(self, store):
        day, later, column = self.altered(store, lambda scores: [None] * 400 + scores[400:])
        assert (column["missing"], column["severity"], day.severity) == ([0.0, 0.0], "none", "none")
        done = report_of(later)["performance"]
        assert (done["labels"], done["rows"], done["not_a_number"]) == (800, 400, 0)


class TestTraining:
    def test_starts_once_per_episode(self, store, drifted):
        store.champion()
        results = [run(store.spec(store.day(d, change=drifted if d > 0 else None)), info(store, d)) for d in range(5)]
        assert [r.retrain for r in results] == [False, False, True, False, False]
        assert results[2].reason.endswith("; training starts")
        assert results[3].reason.endswith(
            "training is called for, but training was started on 2013-01-04, in the same episode"
        )
        entries = read_series(store.output, "late")
        assert [(e["called"], e["retrain"]) for e in entries] == [
            (False, False), (False, False), (True, True), (True, False), (True, False),
        ]  # fmt: skip

    def test_a_cleared_day_starts_nothing_and_changes_no_digest(self, store, drifted):
        store.champion()
        specs = [store.spec(store.day(d, change=drifted)) for d in range(3)]
        first = [run(spec, info(store, d)) for d, spec in enumerate(specs)]
        before = contents([Path(store.output)])
        again = [run(spec, info(store, d, cleared=True)) for d, spec in enumerate(specs)]
        assert [r.retrain for r in first] == [False, True, False]
        assert [r.retrain for r in again] == [False, False, False]
        assert [r.report for r in again] == [r.report for r in first]
        assert contents([Path(store.output)]) == before

    def test_a_backfilled_day_has_the_same_report_and_starts_nothing(self, store, drifted, tmp_path):
        store.champion()
        specs = [store.spec(store.day(d, change=drifted)) for d in range(2)]
        scheduled = [run(spec, info(store, d)) for d, spec in enumerate(specs)]
        digests = [r.report.digest for r in scheduled]
        other = [replace(spec, output=str(tmp_path / "other")) for spec in specs]
        backfilled = [run(spec, info(store, d, reason="backfill")) for d, spec in enumerate(other)]
        assert [r.report.digest for r in backfilled] == digests
        assert [r.retrain for r in backfilled] == [False, False]
        assert backfilled[1].reason.endswith("but a backfilled run does not start training")

    def test_days_at_once_start_one_training(self, store, drifted):
        """Three processes decide about three days of one bad stretch at the same time."""
        store.champion()
        place = series.folder(store.output, "late")
        for day in range(2):
            entry = series.Entry(interval=store.interval(day).key, rows=800, judged=True, severity="significant")
            series.write(place, entry)
        calls = []
        for day in range(2, 5):
            spec = store.spec(store.day(day, change=drifted))
            call = store.root / f"call-{day}.json"
            body = {"stage": "monitor", "spec": spec, "info": info(store, day)}
            call.write_text(codec.canonical(body), encoding="utf-8")
            calls.append(["monitor", "--spec", str(call), "--result", str(store.root / f"out-{day}.json")])
        command = [sys.executable, "-m", "airflow_ml_provider.runtime"]
        processes = [subprocess.Popen([*command, *call]) for call in calls]
        assert [p.wait(120) for p in processes] == [0, 0, 0]
        outcomes = [json.loads((store.root / f"out-{d}.json").read_text())["result"] for d in range(2, 5)]
        assert sum(o["retrain"] for o in outcomes) == 1
        assert sum(e["retrain"] for e in read_series(store.output, "late")) == 1

    def test_killed_between_series_and_report(self, store, drifted, tmp_path):
        """The retry of the same task says again what the killed try could not."""
        store.champion()
        run(store.spec(store.day(0, change=drifted)), info(store, 0))
        spec, task = store.spec(store.day(1, change=drifted)), info(store, 1)
        code = (
            "import os, signal\n"
            "from airflow_ml_provider.stages.monitor import drift, page\n"
            "from airflow_ml_provider.runtime import protocol\n"
            "from pathlib import Path\n"
            "page.render = lambda body: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"drift.run(*protocol.read_call(Path({str(tmp_path / 'call.json')!r}), 'monitor'))"
        )
        (tmp_path / "call.json").write_text(codec.canonical({"stage": "monitor", "spec": spec, "info": task}))
        process = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
        assert process.returncode == -signal.SIGKILL
        assert read_series(store.output, "late")[-1]["retrain"] is True
        result = run(spec, task)
        assert result.retrain is True
        assert result.report.digest == tables.file_digest(Path(result.report.uri))


def test_a_folder_of_files_is_a_dataset(store):
    store.champion()
    first = store.day(0)
    folder = DatasetRef(name="joined", uri=str(Path(first.uri).parent), digest=first.digest, interval=first.interval)
    assert run(store.spec(folder), info(store, 0)).metrics["rows"] == 800


class TestTable:
    """A whole table as the data set, as the score stage takes it."""

    def test_later_deliveries_stay_invisible(self, store, drifted):
        store.champion()
        store.day(0)
        table = DatasetRef(name="joined", uri=str(store.root / "joined"), digest="sha256:0")
        spec = store.spec(table, interval=store.interval(1))
        one = run(store.spec(store.day(1), name="one"), info(store, 1))
        before = run(spec, info(store, 1))
        for day in (2, 3):
            store.day(day, change=drifted)
        again = run(spec, info(store, 1))
        assert again.report == before.report
        assert (again.metrics, again.severity) == (one.metrics, one.severity)
        assert report_of(again)["columns"] == report_of(one)["columns"]

    def test_without_the_interval(self, store):
        store.champion()
        store.day(0)
        table = DatasetRef(name="joined", uri=str(store.root / "joined"), digest="sha256:0")
        message = r"table 'joined' at .* has no interval=2013-01-03, its newest is interval=2013-01-02"
        with pytest.raises(DataError, match=message):
            run(store.spec(table, interval=store.interval(1)), info(store, 1))


def test_window_may_differ_from_that_of_the_rows(store):
    store.champion()
    dataset = store.day(0)
    hour = replace(store.interval(0), end=store.interval(0).start + timedelta(hours=1))
    result = run(store.spec(dataset, interval=hour), info(store, 0))
    assert report_of(result)["interval"]["end"] == "2013-01-02T01:00:00+00:00"
