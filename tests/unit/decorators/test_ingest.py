from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("airflow")
pytest.importorskip("duckdb")

from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_ml_provider.decorators.ingest import ingest_task
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.testing.context import context

DAY = Interval.from_key("2013-01-05")
COLUMNS = {"id": "string", "n": "int"}


def build(function, *args, target="/table", **settings):
    """Return the operator of a decorated function that is called with `args` in a DAG."""
    with DAG("d", schedule=None):
        output = ingest_task(function, name="t", target=target, columns=COLUMNS, key="id", **settings)(*args)
    return output.operator


def nothing():
    return "/landing/*"


def test_function_fetches_and_the_stage_ingests(tmp_path):
    def fetch(folder: str, data_interval_start=None) -> str:
        (Path(folder) / f"{data_interval_start:%Y%m%d}.csv").write_text("id,n\na,1\n")
        return folder + "/{start:%Y%m%d}.csv"

    task = build(fetch, str(tmp_path), target=str(tmp_path / "table"))
    assert (task.task_id, task.custom_operator_name) == ("fetch", "@task.ingest")
    value = task.execute(context(DAY))
    assert value["counts"]["accepted"] == 1
    assert task.source == f"{tmp_path}/{{start:%Y%m%d}}.csv"


def test_path_object(tmp_path):
    def fetch():
        path = tmp_path / "a.csv"
        path.write_text("id,n\na,1\n")
        return path

    assert build(fetch, target=str(tmp_path / "table")).execute(context(DAY))["status"] == "ok"


def test_what_comes_from_outside_is_no_template(tmp_path):
    def fetch():
        (tmp_path / "{{ 1 + 1 }}.csv").write_text("id,n\na,1\n")
        return str(tmp_path / "{{ 1 + 1 }}.csv")

    assert build(fetch, target=str(tmp_path / "table")).execute(context(DAY))["status"] == "ok"


@pytest.mark.parametrize("returned", [None, "", 7])
def test_something_else_than_a_path(returned):
    def fetch():
        return returned

    with pytest.raises(AirflowFailException, match="what fetch returns must be the path or glob of the landing files"):
        build(fetch).execute(context(DAY))


def test_error_of_the_function_is_left_as_it_is():
    def fetch():
        raise ConnectionError("away")

    with pytest.raises(ConnectionError, match="away"):
        build(fetch).execute(context(DAY))


def test_source_is_the_functions_business():
    with pytest.raises(SpecError, match="source must be left out"):
        build(nothing, source="/landing/*")


def test_mistakes_show_at_parse_time():
    with pytest.raises(SpecError, match="mode must be one of"):
        build(nothing, mode="upsert")


def test_mapped_over_folders(tmp_path):
    def fetch(folder):
        return f"{folder}/*.csv"

    with DAG("d", schedule=None):
        mapped = ingest_task(fetch, name="t", target="/table", columns=COLUMNS).expand(folder=["/a", "/b"])
    assert mapped.operator.task_id == "fetch"
