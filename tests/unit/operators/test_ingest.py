from __future__ import annotations

import inspect

import pytest

pytest.importorskip("airflow")
pytest.importorskip("duckdb")

from airflow.sdk import DAG, Asset
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airflow_ml_provider.exceptions import SpecError, Unavailable
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators.ingest import IngestOperator
from airflow_ml_provider.stages.ingest.spec import Column
from airflow_ml_provider.testing.context import context

DAY = Interval.from_key("2013-01-05")
COLUMNS = {"id": "string", "delay": {"type": "int", "known_at": "seen"}, "seen": Column("timestamp")}


def operator(**changes):
    defaults = {"name": "flights", "source": "/landing/*.csv", "target": "/table", "columns": COLUMNS}
    return IngestOperator(task_id="ingest", **{**defaults, **changes})


class TestSpec:
    def test_short_forms(self):
        spec = operator(key="id", version="seen").build_spec(DAY, {})
        assert spec.columns == {
            "id": Column("string"),
            "delay": Column("int", known_at="seen"),
            "seen": Column("timestamp"),
        }
        assert (spec.key, spec.version, spec.interval) == (("id",), "seen", DAY)
        assert spec.null_values == ("", "NA", "NULL", "null")

    def test_rendered_templates(self):
        task = operator(key=["id"], version="", partition_by="", quarantine="", memory_gib="{{ params.memory }}")
        task.memory_gib = "0.5"
        spec = task.build_spec(DAY, {})
        assert (spec.version, spec.partition_by, spec.quarantine, spec.memory_gib) == (None, None, None, 0.5)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"columns": {"id": "text"}}, r"columns\.id.*'text'|'text'"),
            ({"key": "idd"}, "unknown key column 'idd'; did you mean 'id'"),
            ({"mode": "upsert"}, "mode must be one of 'overwrite', 'merge', got 'upsert'"),
            ({"mode": "merge"}, "mode 'merge' needs key columns"),
            ({"on_missing": "ignore"}, "on_missing must be one of 'fail', 'empty'"),
            ({"memory_gib": "much"}, "memory_gib must be of type float, got 'much'"),
            ({"on_refusal": "branch"}, "on_refusal must be one of fail, skip"),
        ],
    )
    def test_bad_values_fail_at_parse_time(self, changes, message):
        with pytest.raises(SpecError, match=message):
            operator(**changes)

    def test_what_is_not_known_at_parse_time_is_not_judged(self):
        assert operator(mode="{{ params.mode }}", source="{{ var.value.landing }}/*.csv")
        with DAG("d", schedule=None):
            upstream = operator()
            assert IngestOperator(
                task_id="second", name="b", source=upstream.output["uri"], target="/t", columns=COLUMNS, key="id"
            )

    def test_source_unknown_does_not_hide_other_mistakes(self):
        with pytest.raises(SpecError, match="unknown key column"):
            operator(source="{{ var.value.landing }}/*.csv", key="nope")


class TestOperator:
    def test_every_argument_is_a_template_field_and_documented(self):
        names = set(inspect.signature(IngestOperator.__init__).parameters) - {"self", "kwargs"}
        for name in names:
            assert name in IngestOperator.template_fields
            assert f"\n        {name}: " in IngestOperator.__doc__

    @pytest.fixture
    def task(self, tmp_path):
        (tmp_path / "f_2013-01-05.csv").write_text("id,delay,seen\nx,1,2013-01-05\ny,?,2013-01-05\n")
        return {
            "source": f"{tmp_path}/f_{{partition}}.csv",
            "target": str(tmp_path / "table"),
            "key": "id",
            "outlets": [Asset("flights")],
        }

    def test_publishes_refs_counts_and_asset_extra(self, task):
        ctx = context(DAY)
        value = operator(**task).execute(ctx)
        assert value["counts"] == {
            "files": 1, "duplicate_files": 0, "bad_files": 0, "read": 2, "accepted": 1, "duplicates": 0,
            "quarantined": 1,
        }  # fmt: skip
        assert ctx["ti"].xcoms["dataset"] == value["dataset"]
        assert ctx["ti"].xcoms["quarantine"]["rows"] == 1
        extra = ctx["outlet_events"][Asset("flights")].extra
        assert extra["partition"] == "2013-01-05"
        assert extra["digests"]["flights"] == value["dataset"]["digest"]

    def test_works_without_a_logical_date(self, task):
        value = operator(**task).execute(context(run_type="asset_triggered", partition_key="2013-01-05"))
        assert value["dataset"]["interval"]["key"] == "2013-01-05"

    @pytest.mark.parametrize(("on_refusal", "error"), [("fail", AirflowFailException), ("skip", AirflowSkipException)])
    def test_refusal_is_published_first(self, task, tmp_path, on_refusal, error):
        (tmp_path / "f_2013-01-05.csv").write_text("ident,delay,seen\nx,1,\n")
        ctx = context(DAY)
        with pytest.raises(error, match="column 'id' is missing; the nearest unknown column is 'ident'"):
            operator(**task, on_refusal=on_refusal).execute(ctx)
        assert ctx["ti"].xcoms["return_value"]["files"][0]["status"] == "quarantined"
        assert ctx["ti"].xcoms["quarantine"]["rows"] == 1

    def test_no_file_is_left_to_the_retries(self, task):
        with pytest.raises(Unavailable, match="no landing file matches"):
            operator(**task).execute(context(Interval.from_key("2013-01-06")))

    def test_same_in_another_python(self, task):
        import sys

        here = operator(**task).execute(context(DAY))
        assert operator(**task, runtime=sys.executable).execute(context(DAY)) == here
