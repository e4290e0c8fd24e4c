from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_ml_provider import codec, models, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, SpecError
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.evaluate.metrics import METRICS
from airflow_ml_provider.stages.evaluate.report import run
from airflow_ml_provider.stages.evaluate.spec import EvaluateSpec, OperatingPoint
from airflow_ml_provider.testing.contracts import assert_idempotent

np = pytest.importorskip("numpy")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
ort = pytest.importorskip("onnxruntime")
sklearn = pytest.importorskip("sklearn.metrics")


@pytest.fixture
def spec(tmp_path, package, test_set):
    return EvaluateSpec(
        model=package(),
        test=test_set(),
        output=str(tmp_path / "evaluations"),
        key=("flight_id",),
        slices=("carrier", "hour", "distance", "carrier*origin"),
        resamples=100,
    )


def report_of(result):
    return json.loads(Path(result.report.uri).read_text(encoding="utf-8"))


class TestRun:
    @pytest.mark.parametrize("digits", [8, 1])
    def test_measures_exactly_what_the_predictions_say(self, spec, monkeypatch, digits):
        exact = models.Scorer.score
        monkeypatch.setattr(models.Scorer, "score", lambda *args: exact(*args).round(digits))  # 1: many equal scores
        result = run(spec, RunInfo())
        report, rows = report_of(result), pq.ParquetFile(result.predictions.uri).read()
        labels, scores = np.array(rows["label"].to_pylist()), np.array(rows["score"].to_pylist())
        assert report["metrics"]["auc"]["value"] == pytest.approx(sklearn.roc_auc_score(labels, scores))
        assert report["metrics"]["pr_auc"]["value"] == pytest.approx(sklearn.average_precision_score(labels, scores))
        assert (len(set(scores)) < 12) == (digits == 1)
        ua = np.array(rows["carrier"].to_pylist()) == "UA"
        (entry,) = [s for s in report["slices"] if s["slice"] == "carrier=UA"]
        assert entry["rows"] == ua.sum()
        assert entry["metrics"]["auc"]["value"] == pytest.approx(sklearn.roc_auc_score(labels[ua], scores[ua]))

    def test_report_says_what_was_measured(self, spec):
        result = run(spec, RunInfo())
        report = report_of(result)
        assert report["model"] == {"name": "late", "digest": spec.model.digest, "segment": {}}
        assert report["test"]["digest"] == spec.test.digest
        assert report["test"]["rows"] == 1500
        assert report["test"]["start"] < report["test"]["end"] < "2013-01-03"
        assert report["operating_point"] == {
            "by": "threshold", "value": 0.5, "threshold": 0.5, "chosen_on": "given",
        }  # fmt: skip
        assert set(report["metrics"]) == set(METRICS)
        assert report["predictions"] == {"uri": result.predictions.uri, "digest": result.predictions.digest}
        names = {s["slice"] for s in report["slices"]}
        assert {"carrier=AA", "hour=5", "carrier=AA*origin=EWR"} <= names
        assert report["worst_slice"]["auc"]["slice"] == result.worst_slice
        judged = [s["metrics"]["auc"]["value"] for s in report["slices"] if s["judged"]]
        assert report["worst_slice"]["auc"]["value"] == min(judged)
        assert all(s["rows"] < spec.min_rows for s in report["slices"] if not s["judged"])

    def test_result_carries_the_numbers(self, spec):
        result = run(spec, RunInfo())
        assert result.status == "ok"
        assert result.metrics["rows"] == 1500
        assert result.model.metrics["auc"] == result.metrics["auc"] == result.report.summary["auc"]
        assert result.report.digest == tables.file_digest(Path(result.report.uri))
        assert "Evaluation of late" in Path(result.report.html).read_text(encoding="utf-8")
        assert result.predictions.columns.keys() == {
            "flight_id", "event_timestamp", "carrier", "hour", "distance", "origin", "label", "score",
        }  # fmt: skip
        lineage = result.facets["outputs"][result.predictions.uri]["column_lineage"]
        assert lineage["score"] == [[spec.test.uri, name] for name in ("distance", "hour", "carrier")]

    def test_twice_changes_nothing(self, spec):
        assert_idempotent(spec, roots=[spec.output])

    def test_killed_half_way_leaves_no_report_and_the_retry_writes_the_same(self, spec, tmp_path):
        call = tmp_path / "call.json"
        call.write_text(codec.canonical({"stage": "evaluate", "spec": spec, "info": RunInfo()}), encoding="utf-8")
        code = (
            "import os, signal; from pathlib import Path\n"
            "from airflow_ml_provider.runtime import protocol\n"
            "from airflow_ml_provider.stages.evaluate import page, report\n"
            "page.render = lambda body: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"report.run(*protocol.read_call(Path({str(call)!r}), 'evaluate'))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
        assert list(Path(spec.output).rglob("evaluation.json")) == []
        assert len(list(Path(spec.output).rglob("predictions.parquet"))) == 1
        first = run(spec, RunInfo())
        elsewhere = run(replace(spec, output=str(tmp_path / "elsewhere")), RunInfo())
        assert first.predictions.digest == elsewhere.predictions.digest
        assert report_of(first)["metrics"] == report_of(elsewhere)["metrics"]

    def test_another_setting_keeps_the_earlier_report(self, spec):
        first = run(spec, RunInfo())
        second = run(replace(spec, seed=1), RunInfo())
        assert first.report.uri != second.report.uri
        assert tables.file_digest(Path(first.report.uri)) == first.report.digest

    def test_only_the_rows_of_the_segment(self, spec, package):
        model = package("late_ewr", segment={"origin": "EWR"})
        result = run(replace(spec, model=model), RunInfo())
        rows = pq.ParquetFile(result.predictions.uri).read()
        assert set(rows["origin"].to_pylist()) == {"EWR"}
        assert report_of(result)["test"]["left_out"] == {"other_segment": 1500 - rows.num_rows, "unlabelled": 0}

    def test_unlabelled_rows_are_left_out_and_counted(self, spec, test_set):
        def some_unlabelled(rows):
            labels = [None if i % 10 == 0 else v for i, v in enumerate(rows["label"].to_pylist())]
            return rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(labels, pa.int64()))

        result = run(replace(spec, test=test_set(name="holes", change=some_unlabelled)), RunInfo())
        assert report_of(result)["test"]["left_out"] == {"other_segment": 0, "unlabelled": 150}
        assert result.metrics["rows"] == 1350


class TestOperatingPoint:
    def test_is_chosen_on_validation_rows(self, spec):
        report = report_of(run(replace(spec, operating_point=OperatingPoint("share", 0.2)), RunInfo()))
        validation = pq.ParquetFile(Path(spec.model.uri, models.VALIDATION)).read()
        scores = np.array(validation[models.SAMPLE_SCORE].to_pylist())
        threshold = report["operating_point"]["threshold"]
        assert (scores >= threshold).mean() == pytest.approx(0.2, abs=0.005)
        assert report["operating_point"]["chosen_on"] == "validation rows"

    def test_none_flagged_is_none_flagged_by_the_score_stage(self, spec, monkeypatch, tmp_path):
        """Many rows share the best score, whose native value lies a little below the one that is served."""
        from airflow_ml_provider.stages.score.stream import score_file

        exact = models.Scorer.score
        monkeypatch.setattr(models.Scorer, "score", lambda *args: np.minimum(exact(*args), np.float32(0.3)))
        path = Path(spec.model.uri, models.VALIDATION)
        rows = pq.ParquetFile(path).read()
        native = np.minimum(np.array(rows[models.SAMPLE_SCORE].to_pylist()), float(np.float32(0.3)) - 1e-9)
        index = rows.schema.get_field_index(models.SAMPLE_SCORE)
        pq.write_table(rows.set_column(index, models.SAMPLE_SCORE, pa.array(native)), path)
        result = run(replace(spec, operating_point=OperatingPoint("fpr", 0.01)), RunInfo())
        assert result.metrics["fpr"] == 0.0
        point = report_of(result)["operating_point"]["threshold"]
        scorer = models.Scorer(Path(spec.model.uri))
        score_file(Path(spec.test.uri), tmp_path / "scored.parquet", [(spec.model, scorer)], thresholds=[point])
        assert not any(pq.read_table(tmp_path / "scored.parquet")["flagged"].to_pylist())

    def test_manifest_stands_in(self, spec, package, tmp_path, test_set):
        training = test_set(50, days=0, name="training")
        model = package("bare", validation=False, threshold=0.3)
        manifest = models.read_manifest(Path(model.uri))
        models.write_manifest(Path(model.uri), replace(manifest, training=training))
        report = report_of(run(replace(spec, model=model, operating_point=OperatingPoint("recall", 0.8)), RunInfo()))
        assert report["operating_point"] == {
            "by": "recall", "value": 0.8, "threshold": 0.3, "chosen_on": "manifest",
        }  # fmt: skip


class TestRefusal:
    def test_test_rows_that_are_not_later_than_training(self, spec, test_set):
        result = run(replace(spec, test=test_set(days=0, name="early")), RunInfo())
        assert result.status == "refused"
        assert "the test rows begin at 2013-01-01T" in result.reason
        assert "what it has seen cannot measure it" in result.reason
        assert result.report is None
        assert not Path(spec.output).exists()

    def test_cutoff_may_lie_after_the_test_window(self, spec, package):
        from datetime import datetime, timezone

        model = package("cut", trained_until=datetime(2013, 1, 3, tzinfo=timezone.utc))
        assert run(replace(spec, model=model), RunInfo()).status == "ok"


class TestDates:
    """Rows whose moment is a day; training takes them, too."""

    @pytest.fixture
    def by_day(self, spec, test_set):
        def cut(rows):
            days = rows["event_timestamp"].cast(pa.date32())
            return rows.set_column(rows.schema.get_field_index("event_timestamp"), "event_timestamp", days)

        path = Path(spec.model.uri, models.VALIDATION)
        pq.write_table(cut(pq.ParquetFile(path).read()), path)
        return lambda days: replace(spec, test=test_set(name="days", days=days, change=cut))

    def test_are_measured(self, by_day):
        report = report_of(run(by_day(1), RunInfo()))
        assert report["test"]["start"] == report["test"]["end"] == "2013-01-02T00:00:00+00:00"

    def test_the_same_day_is_refused(self, by_day):
        assert run(by_day(0), RunInfo()).status == "refused"


class TestBadInput:
    def test_changed_test_set(self, spec):
        path = Path(spec.test.uri)
        rows = pq.ParquetFile(path).read()
        pq.write_table(rows.slice(1), path)
        with pytest.raises(IntegrityError, match=r"test set 'test' at .* has digest sha256:.*: it was changed"):
            run(spec, RunInfo())

    def test_changed_model(self, spec):
        with open(Path(spec.model.uri, models.ONNX), "ab") as handle:
            handle.write(b"\0")
        with pytest.raises(IntegrityError, match="model 'late'"):
            run(spec, RunInfo())

    def test_test_set_is_gone(self, spec):
        Path(spec.test.uri).unlink()
        with pytest.raises(DataError, match="make the training set again"):
            run(spec, RunInfo())

    def test_missing_slice_column(self, spec):
        with pytest.raises(DataError, match=r"lacks column gate; there are flight_id"):
            run(replace(spec, slices=("gate",)), RunInfo())

    def test_label_that_is_no_label(self, spec, test_set):
        def doubled(rows):
            labels = pa.array([2 * v for v in rows["label"].to_pylist()])
            return rows.set_column(rows.schema.get_field_index("label"), "label", labels)

        with pytest.raises(DataError, match=r"label in .* must be 0 or 1, got 2 in \d+ rows"):
            run(replace(spec, test=test_set(name="wrong", change=doubled)), RunInfo())

    def test_text_label(self, spec):
        with pytest.raises(DataError, match=r"label 'carrier' .* must be 0 or 1"):
            run(replace(spec, label="carrier"), RunInfo())

    def test_one_label_only(self, spec, test_set):
        def late_only(rows):
            return rows.filter(pa.compute.equal(rows["label"], 1))

        with pytest.raises(DataError, match=r"all \d+ labelled test rows .* have label 1; .* lengthen the test window"):
            run(replace(spec, test=test_set(name="late", change=late_only)), RunInfo())

    def test_no_row_of_the_segment(self, spec, package):
        model = package("late_bos", segment={"origin": "BOS"})
        with pytest.raises(DataError, match=r"1500 rows, none labelled of segment {'origin': 'BOS'}"):
            run(replace(spec, model=model), RunInfo())

    def test_later_cannot_be_proven(self, spec, package):
        with pytest.raises(DataError, match=r"training set file:///training is gone: it cannot be proven"):
            run(replace(spec, model=package("bare", validation=False)), RunInfo())

    def test_timestamp_that_is_none(self, spec):
        with pytest.raises(DataError, match="the timestamp column has type double"):
            run(replace(spec, timestamp="hour"), RunInfo())


class TestSpec:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("confidence", 95, "give a fraction, not percent"),
            ("resamples", 10, "resamples must be at least 100, got 10"),
            ("min_rows", 0, "min_rows must be at least 1"),
            ("slices", ("a*b*c",), r"pairs of two different columns such as 'carrier\*origin', got 'a\*b\*c'"),
            ("slices", ("a*a",), "pairs of two different columns"),
            ("slices", ("",), "columns or pairs"),
        ],
    )
    def test_bad_values(self, spec, field, value, message):
        with pytest.raises(SpecError, match=message):
            replace(spec, **{field: value})
