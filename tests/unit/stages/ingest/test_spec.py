from __future__ import annotations

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.ingest.spec import Column, IngestSpec, as_columns

DAY = Interval.from_key("2013-01-05")
COLUMNS = {"id": Column("string"), "day": Column("date"), "n": Column("int"), "seen": Column("timestamp")}


def spec(**changes):
    defaults = {"name": "t", "source": "in/*.csv", "target": "out", "interval": DAY, "columns": COLUMNS}
    return IngestSpec(**{**defaults, **changes})


def test_survives_json():
    original = spec(key=("id",), version="seen", mode="merge", partition_by="day")
    assert codec.decode(IngestSpec, codec.encode(original)) == original


def test_columns_in_all_forms():
    assert as_columns({"a": "int", "b": {"type": "float", "required": True}, "c": Column("date")}) == {
        "a": Column("int"),
        "b": Column("float", required=True),
        "c": Column("date"),
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": "integer"}, r"unknown column type 'integer'; did you mean|columns\.a\.type must be one of .*'integer'"),
        ({"a": {"typ": "int"}}, r"unknown key in columns\.a 'typ'; did you mean 'type'\?"),
        ({"a": {"required": True}}, r"columns\.a lacks type"),
        ({"a": 7}, r"columns\.a must be of type Column, got 7"),
    ],
)
def test_bad_columns_name_the_place(columns, message):
    with pytest.raises(SpecError, match=message):
        as_columns(columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {}}, "columns must be at least one column"),
        ({"key": ("idd",)}, "unknown key column 'idd'; did you mean 'id'"),
        ({"version": "sen"}, "unknown version column 'sen'; did you mean 'seen'"),
        ({"mode": "merge"}, "mode 'merge' needs key columns"),
        ({"partition_by": "day"}, "partition_by is for mode 'merge'"),
        ({"mode": "merge", "key": ("id",), "partition_by": "n"}, "partition_by column 'n' must be date or timestamp"),
        ({"delimiter": ";;"}, "delimiter must be one ASCII character"),
        ({"delimiter": '"'}, "delimiter must be one ASCII character"),
        ({"memory_gib": 0}, "memory_gib must be greater than 0"),
        ({"target": ""}, "target must be a text that is not empty"),
        ({"quarantine": "out"}, "quarantine must be another folder than target, got 'out'"),
        ({"target": "/t", "quarantine": "file:///t/"}, "quarantine must be another folder than target"),
    ],
)
def test_bad_spec(changes, message):
    with pytest.raises(SpecError, match=message):
        spec(**changes)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": Column("int"), "b": Column("int", aliases=("a",))}, "'a' belongs to both 'a' and 'b'"),
        ({"a": Column("int"), "A": Column("int")}, "'A' belongs to both 'a' and 'A'"),
        ({"_ml_place": Column("int")}, "does not begin with _ml_, got '_ml_place'; choose another one"),
        ({"_ML_Version": Column("int")}, "does not begin with _ml_, got '_ML_Version'"),
        ({"": Column("int")}, "column name must be a text that is not empty"),
        ({"a": Column("int", known_at="b")}, "unknown known_at of column 'a': 'b'"),
        ({"a": Column("int", known_at="b"), "b": Column("date")}, "must be the name of a timestamp column, got 'b'"),
    ],
)
def test_columns_that_contradict_each_other(columns, message):
    with pytest.raises(SpecError, match=message):
        spec(columns=columns)


def test_alias_may_differ_from_its_own_column_by_case_only():
    assert spec(columns={"Carrier": Column("string", aliases=("carrier",))})
