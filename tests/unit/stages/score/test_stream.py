"""Streaming from Parquet to Parquet: order, row groups, statistics, bytes, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_ml_provider import models, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, SpecError
from airflow_ml_provider.stages.score import stream
from airflow_ml_provider.testing import packages


@pytest.fixture
def opened(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Two models for a segment each; there is none for LGA."""
    found = []
    for i, origin in enumerate(("EWR", "JFK")):
        ref = packages.package(tmp_path / origin, f"late_{origin.lower()}", seed=i, segment={"origin": origin})
        found.append((replace(ref, version=str(i + 3)), models.Scorer(tmp_path / origin)))
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pq.write_table(packages.rows(1000, seed=4), tmp_path / "in.parquet", row_group_size=300)
    return tmp_path / "in.parquet"


def test_every_row_is_scored_by_the_model_of_its_segment(source, opened, tmp_path):
    counts = stream.score_file(source, tmp_path / "out.parquet", opened, batch_rows=128)
    before, after = pq.read_table(source), pq.read_table(tmp_path / "out.parquet")
    origins = before.column("origin").to_pylist()
    assert (counts.rows, counts.without_model) == (1000, origins.count("LGA"))
    assert counts.per_model == [origins.count("EWR"), origins.count("JFK")]
    assert counts.scored == after.num_rows
    for ref, scorer in opened:
        name = pa.compute.equal(after.column("model_name"), ref.name)
        mine = after.filter(name)
        rows = before.filter(pa.compute.equal(before.column("origin"), ref.segment["origin"]))
        assert mine.column("flight_id").to_pylist() == rows.column("flight_id").to_pylist()  # the order of the input
        np.testing.assert_array_equal(mine.column("score").to_numpy(), scorer.score(rows))
        assert set(mine.column("model_version").to_pylist()) == {ref.version}
        assert set(mine.column("model_digest").to_pylist()) == {ref.digest}
    flagged = after.column("score").to_numpy() >= 0.5
    np.testing.assert_array_equal(after.column("flagged").to_numpy(zero_copy_only=False), flagged)


def test_each_row_group_holds_one_model_and_its_statistics_say_which(source, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "ROW_GROUP_ROWS", 100)
    monkeypatch.setattr(stream, "_WAITING_ROWS", 150)
    target = tmp_path / "out.parquet"
    stream.score_file(source, target, opened, batch_rows=64, keep=("flight_id",))
    found, listed = pq.read_metadata(target), stream.row_groups(target)
    assert found.num_row_groups == len(listed) > 4
    versions = {ref.name: ref for ref, _ in opened}
    with pq.ParquetFile(target) as file:
        columns = {found.row_group(0).column(i).path_in_schema: i for i in range(found.num_columns)}
        for group, told in enumerate(listed):
            assert found.row_group(group).num_rows == told["rows"] <= 100
            ref = versions[told["model"]]
            for column, value in zip(
                ("model_name", "model_version", "model_digest"), (ref.name, ref.version, ref.digest), strict=True
            ):
                statistics = found.row_group(group).column(columns[column]).statistics
                assert (statistics.min, statistics.max) == (value, value)
            assert set(file.read_row_group(group).column("model_name").to_pylist()) == {ref.name}


def test_equal_rows_give_equal_bytes_whatever_the_timing(source, opened, tmp_path):
    digests = set()
    for i in range(4):
        stream.score_file(source, tmp_path / f"{i}.parquet", opened, batch_rows=50, metadata={"provenance": {"a": 1}})
        digests.add(tables.file_digest(tmp_path / f"{i}.parquet"))
    assert len(digests) == 1


def test_batches_do_not_change_the_scores(source, opened, tmp_path):
    for rows in (1, 7, 100_000):
        stream.score_file(source, tmp_path / f"{rows}.parquet", opened, batch_rows=rows)
    one, seven, all_ = (pq.read_table(tmp_path / f"{rows}.parquet") for rows in (1, 7, 100_000))
    assert one.equals(seven)
    assert one.equals(all_)


def test_the_first_model_that_fits_scores_a_row(source, opened, tmp_path):
    everywhere = packages.package(tmp_path / "all", "late_all", seed=9)
    third = (replace(everywhere, version="1"), models.Scorer(tmp_path / "all"))
    counts = stream.score_file(source, tmp_path / "out.parquet", [*opened, third])
    origins = pq.read_table(source).column("origin").to_pylist()
    assert counts.per_model == [origins.count(origin) for origin in ("EWR", "JFK", "LGA")]
    assert counts.without_model == 0
    assert stream.score_file(source, tmp_path / "o.parquet", [third, *opened]).per_model == [1000, 0, 0]


def test_only_wanted_columns_are_carried_over(source, opened, tmp_path):
    stream.score_file(source, tmp_path / "out.parquet", opened, keep=("flight_id", "event_timestamp"))
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == [
        "flight_id", "event_timestamp", "score", "flagged", "model_name", "model_version", "model_digest",
    ]  # fmt: skip
    assert table.schema.field("event_timestamp").type == pa.timestamp("us", tz="UTC")
    assert table.schema.field("score").type == pa.float32()


def test_the_metadata_carries_what_it_is_given(source, opened, tmp_path):
    stream.score_file(source, tmp_path / "out.parquet", opened, metadata={"provenance": {"data": {"rows": "sha256:1"}}})
    found = pq.read_metadata(tmp_path / "out.parquet").metadata
    assert json.loads(found[b"airflow_ml.provenance"]) == {"data": {"rows": "sha256:1"}}


def test_duckdb_reads_it(source, opened, tmp_path):
    stream.score_file(source, tmp_path / "out.parquet", opened)
    with tables.connect() as connection:
        found = connection.execute(
            f"SELECT model_name, count(*), min(score) >= 0 FROM '{tmp_path}/out.parquet' GROUP BY 1 ORDER BY 1"
        ).fetchall()
    assert [row[0] for row in found] == ["late_ewr", "late_jfk"]
    assert all(row[2] for row in found)


def test_no_rows_give_an_empty_file(opened, tmp_path):
    pq.write_table(packages.rows(10).slice(0, 0), tmp_path / "in.parquet")
    counts = stream.score_file(tmp_path / "in.parquet", tmp_path / "out.parquet", opened)
    assert (counts.rows, counts.scored) == (0, 0)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    assert stream.row_groups(tmp_path / "out.parquet") == []


def test_missing_values_are_scored(opened, tmp_path):
    table = packages.rows(30)
    table = table.set_column(4, "distance", pa.array([None] * 30, pa.float64()))
    pq.write_table(table, tmp_path / "in.parquet")
    counts = stream.score_file(tmp_path / "in.parquet", tmp_path / "out.parquet", opened)
    assert counts.not_a_number == counts.scored > 0  # this linear model knows no missing values, and that is told
    assert counts.lowest is None


def test_a_missing_column_names_the_model_and_leaves_what_was_there(source, opened, tmp_path):
    target = tmp_path / "out.parquet"
    stream.score_file(source, target, opened)
    before = tables.file_digest(target)
    pq.write_table(pq.read_table(source).drop_columns(["hour"]), tmp_path / "less.parquet")
    with pytest.raises(DataError, match="model 'late_ewr' needs 'hour'; the data has flight_id"):
        stream.score_file(tmp_path / "less.parquet", target, opened)
    assert tables.file_digest(target) == before


def test_a_failure_half_way_leaves_what_was_there_and_no_litter(source, opened, tmp_path, monkeypatch):
    target = tmp_path / "out" / "data.parquet"
    stream.score_file(source, target, opened)
    before, calls = tables.file_digest(target), []

    def fail(self: models.Scorer, batch: object) -> object:
        calls.append(1)
        raise DataError("no")

    monkeypatch.setattr(models.Scorer, "score", fail)
    with pytest.raises(DataError, match="no"):
        stream.score_file(source, target, opened, batch_rows=10)
    assert tables.file_digest(target) == before
    assert os.listdir(target.parent) == ["data.parquet"]


def test_a_file_that_is_no_parquet(opened, tmp_path):
    (tmp_path / "in.parquet").write_text("hello")
    with pytest.raises(DataError, match=r"rows at .*in\.parquet cannot be scored"):
        stream.score_file(tmp_path / "in.parquet", tmp_path / "out.parquet", opened)


def test_a_column_named_like_one_that_scoring_adds(opened, tmp_path):
    pq.write_table(packages.rows(10).append_column("score", pa.array([0.0] * 10)), tmp_path / "in.parquet")
    with pytest.raises(SpecError, match="name the columns to carry over in keep"):
        stream.score_file(tmp_path / "in.parquet", tmp_path / "out.parquet", opened)
    stream.score_file(tmp_path / "in.parquet", tmp_path / "out.parquet", opened, keep=("flight_id",))


def test_row_groups_of_another_file(source):
    with pytest.raises(DataError, match="was not written by the score stage"):
        stream.row_groups(source)


def test_a_graph_that_does_not_fit_its_manifest(tmp_path):
    packages.package(tmp_path / "p")
    packages.package(tmp_path / "q", features=("hour",))
    (tmp_path / "p" / models.ONNX).write_bytes((tmp_path / "q" / models.ONNX).read_bytes())
    with pytest.raises(IntegrityError, match="the graph has"):
        models.Scorer(tmp_path / "p")


_MEASURE = """
import sys
from pathlib import Path
from airflow_ml_provider import models
from airflow_ml_provider.stages.score.stream import score_file
folder, rows = Path(sys.argv[1]), sys.argv[2]
opened = [(models.describe(folder / "p"), models.Scorer(folder / "p"))]
score_file(folder / f"{rows}.parquet", folder / "out.parquet", opened, keep=("flight_id",), batch_rows=16384)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # ru_maxrss begins with the parent's
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Ten times the rows, 190 MiB of them in one row group, take next to no further memory."""
    packages.package(tmp_path / "p")
    base = packages.rows(100_000).drop_columns(["origin", "label"])
    peaks = []
    for times in (4, 40):
        rows = 100_000 * times
        pq.write_table(pa.concat_tables([base] * times), tmp_path / f"{rows}.parquet", row_group_size=rows)
        env = {**os.environ, "PYTHONPATH": str(Path(models.__file__).parents[1])}
        command = [sys.executable, "-c", _MEASURE, str(tmp_path), str(rows)]
        out = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        peaks.append(int(out.stdout.strip()) / 1024)
    assert peaks[1] - peaks[0] < 100, peaks
