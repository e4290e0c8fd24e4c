from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.train import data
from airflow_ml_provider.stages.train.spec import TrainSpec

START = datetime(2013, 1, 1, tzinfo=timezone.utc)


def table(count=20, **columns):
    """Return rows in reverse time order: hour 19, 18, …; every other one is late."""
    times = [START + timedelta(hours=count - 1 - i) for i in range(count)]
    base = {
        "id": [str(i) for i in range(count)],
        "event_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
        "x": pa.array([float(count - 1 - i) for i in range(count)]),
        "origin": ["EWR", "JFK"] * (count // 2),
        "label": [0, 0, 1, 1] * (count // 4),
    }
    return pa.table({**base, **columns})


@pytest.fixture
def load(tmp_path):
    def inner(rows, **changes):
        path = tmp_path / "rows.parquet"
        pq.write_table(rows, path)
        dataset = replace(tables.describe("rows", path), **changes.pop("ref", {}))
        return data.load(TrainSpec(**{"name": "m", "dataset": dataset, "output": "/m", "exclude": ("id",), **changes}))

    return inner


def test_rows_of_the_segment_in_time_order(load):
    rows = load(table(), segment={"origin": "JFK"}, validation=0.2)
    assert rows.table.column("x").to_pylist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0]
    assert rows.inputs == {"x": "float"}
    assert rows.split == 8
    assert rows.latest == START + timedelta(hours=18)
    assert (rows.labels.dtype, rows.times.dtype) == (np.float32, np.int64)


def test_files_of_a_folder_are_read_together(tmp_path):
    whole = table(count=24)
    root = tmp_path / "rows"
    for key, part in (("2013-01-01", whole.slice(0, 12)), ("2013-01-02", whole.slice(12))):
        folder = root / f"interval={key}"
        folder.mkdir(parents=True)
        pq.write_table(part, folder / "data.parquet")
    parts = [tables.describe("rows", path) for path in tables.partitions(str(root))]
    dataset = tables.combined("rows", str(root), parts)
    rows = data.load(TrainSpec(name="m", dataset=dataset, output="/m", exclude=("id",)))
    assert rows.table.column("x").to_pylist() == [float(i) for i in range(24)]


def test_changed_rows_are_refused(load):
    with pytest.raises(IntegrityError, match=r"have digest sha256:.*, not sha256:old: they were changed since"):
        load(table(), ref={"digest": "sha256:old"})


def test_missing_rows(tmp_path):
    pq.write_table(table(), tmp_path / "rows.parquet")
    dataset = replace(tables.describe("rows", tmp_path / "rows.parquet"), uri=str(tmp_path / "gone"))
    with pytest.raises(DataError, match="there is no Parquet file at"):
        data.load(TrainSpec(name="m", dataset=dataset, output="/m"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [1, None, 0, None] * 5}, "10 of 20 training rows have no label in 'label'"),
        ({"label": [0, 1, 2, 1] * 5}, "label 'label' must be 0 or 1; 5 of 20 rows differ, such as 2.0"),
        ({"label": ["yes", "no"] * 10}, "label 'label' of type string must be 0 or 1"),
        ({"label": [1] * 20}, "all 17 training rows have label 1; both are needed"),
        (
            {"event_timestamp": list(range(20))},
            "timestamp 'event_timestamp' must be a timestamp column, it has type int",
        ),
        ({"event_timestamp": pa.array([None] + [START] * 19)}, "1 of 20 training rows have no timestamp"),
        ({"event_timestamp": pa.array([START] * 20)}, "all 20 training rows have one and the same timestamp"),
    ],
)
def test_rows_that_cannot_be_learnt_from(load, columns, message):
    with pytest.raises(DataError, match=message):
        load(table(**columns))


def test_empty_segment(load):
    with pytest.raises(DataError, match=r"0 rows with \{'origin': 'LGA'\} are too few to learn from"):
        load(table(), segment={"origin": "LGA"})


def test_rows_after_the_cutoff_would_leak(load):
    interval = Interval.of(START, START + timedelta(hours=19))
    with pytest.raises(DataError, match=r"1 of 20 training rows are not before the cutoff 2013-01-01T19:00:00\+00:00"):
        load(table(), ref={"interval": interval})
    assert load(table(), ref={"interval": Interval.of(START, START + timedelta(hours=20))}).split == 17


def test_boolean_labels_and_other_number_types(load):
    rows = load(table(label=[False, False, True, True] * 5, x=pa.array(range(20), pa.int8()), flag=[True, False] * 10))
    assert rows.labels.tolist()[:4] == [1.0, 1.0, 0.0, 0.0]
    assert rows.inputs == {"x": "float", "origin": "string", "flag": "float"}
