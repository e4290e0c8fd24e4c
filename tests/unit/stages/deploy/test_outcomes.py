"""Who is counted, for which version, and with what."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.stages.deploy.outcomes import Outcomes, read
from airflow_ml_provider.stages.deploy.stats import Moments

duckdb = pytest.importorskip("duckdb")


def at(second: float) -> str:
    return datetime.fromtimestamp(1_000_000 + second, timezone.utc).isoformat()


def now(second: float) -> float:
    return 1_000_000.0 + second


@pytest.fixture
def log(tmp_path):
    """Users: ann and bob get v1, eve and joe v2; joe's first answer came from v1 since v2 was away."""
    lines = [
        ("ann", "v1", 10), ("ann", "v1", 50), ("bob", "v1", 20), ("eve", "v2", 20), ("joe", "v2", 30), ("old", "v1", 1),
    ]  # fmt: skip
    body = [
        {"time": at(s), "traffic": "live", "key": key, "assigned": assigned, "version": "v1"}
        for key, assigned, s in lines
    ]
    body += [{"time": at(40), "traffic": "live", "version": "v2", "request": {}}]  # carried no key
    (tmp_path / "1970-01-12.jsonl").write_text("".join(json.dumps(line) + "\n" for line in body) + '{"time": "19')
    return str(tmp_path)


def sql(*rows, columns="key, value, time") -> str:
    values = ", ".join(f"({', '.join(repr(v) for v in row)})" for row in rows)
    return f"SELECT * FROM (VALUES {values}) AS t ({columns})"


ROWS = sql(("ann", 1, at(15)), ("ann", 1, at(16)), ("eve", 1, at(90)), ("old", 1, at(20)), ("bob", 1, at(5)))


def test_each_user_counts_once_for_the_version_that_he_was_assigned(log):
    """Users from before the split, and outcomes from before a user's first answer, take no part."""
    found = read(Outcomes(sql=ROWS, log=log), since=now(10), now=now(100))
    assert found == {"v1": Moments(2, 1, 1), "v2": Moments(2, 1, 1)}
    found = read(Outcomes(sql=ROWS, log=log, per_user="sum", missing=None), since=now(10), now=now(100))
    assert found == {"v1": Moments(1, 2, 4), "v2": Moments(1, 1, 1)}


def test_late_outcomes_favour_nobody(log):
    """With a window of 40 s, at 61 s only ann and bob and eve are known for good, and eve's came too late."""
    outcomes = Outcomes(sql=ROWS, log=log, window_s=40)
    assert read(outcomes, now(10), now(61)) == {"v1": Moments(2, 1, 1), "v2": Moments(1, 0, 0)}


def test_a_user_who_was_moved_counts_for_the_version_that_he_has_now(log):
    with open(f"{log}/1970-01-13.jsonl", "w") as file:
        file.write(json.dumps({"time": at(60), "traffic": "live", "key": "bob", "assigned": "v2"}) + "\n")
    assert read(Outcomes(sql=ROWS, log=log), now(10), now(100))["v2"].count == 3


def test_without_a_log_the_table_tells_the_version():
    rows = sql(
        ("a", 0.5, at(20), "v1"), ("b", 1.5, at(20), "v2"), ("c", 9, at(5), "v2"), columns="key, value, time, version"
    )
    found = read(Outcomes(sql=rows), now(10), now(100))
    assert found == {"v1": Moments(1, 0.5, 0.25), "v2": Moments(1, 1.5, 2.25)}
    with pytest.raises(DataError, match="they need the columns key, value, time, version"):
        read(Outcomes(sql=ROWS), now(10), now(100))


def test_a_table_of_parquet_files_may_come_later(tmp_path, log):
    outcomes = Outcomes(table=str(tmp_path / "late-*.parquet"), log=log)
    assert read(outcomes, now(10), now(100)) == {}
    duckdb.execute(f"COPY ({ROWS}) TO '{tmp_path}/late-1.parquet' (FORMAT parquet)")
    assert read(outcomes, now(10), now(100))["v1"] == Moments(2, 1, 1)


def test_what_is_asked_for_must_make_sense():
    for wrong in ({}, {"table": "t", "sql": "SELECT 1"}, {"table": "t", "window_s": -1}):
        with pytest.raises(SpecError):
            Outcomes(**wrong)


@pytest.mark.parametrize("kind", ["TIMESTAMPTZ", "TIMESTAMP", "TIMESTAMP_NS"])
def test_rows_from_before_the_experiment_are_not_read(tmp_path, log, kind):
    """The first of two row groups is spoilt, which nobody sees who passes over it."""
    path, old = tmp_path / "outcomes.parquet", 2048
    rows = f"""SELECT k.key, 1.0 AS value, CAST('{at(0)[:19]}' AS TIMESTAMP) + k.s * INTERVAL 1 SECOND AS time
        FROM (SELECT 'user ' || range AS key, range / -1e3 - 1 AS s FROM range({old})
              UNION ALL VALUES ('ann', 15), ('eve', 90)) k"""
    duckdb.sql(f"""COPY (SELECT key, value, time::{kind} AS time FROM ({rows}) ORDER BY time)
        TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE {old}, COMPRESSION uncompressed)""")
    pages = f"""SELECT min(coalesce(dictionary_page_offset, data_page_offset)) AS first FROM parquet_metadata('{path}')
        GROUP BY row_group_id ORDER BY first"""
    (first,), (second,) = duckdb.sql(pages).fetchall()
    body = bytearray(path.read_bytes())
    body[first:second] = b"\xff" * (second - first)
    path.write_bytes(body)
    with pytest.raises(duckdb.Error):
        duckdb.sql(f"SELECT * FROM '{path}'").fetchall()
    found = read(Outcomes(table=str(path), log=log), since=now(10), now=now(100))
    assert found == {"v1": Moments(2, 1, 1), "v2": Moments(2, 1, 1)}


def test_a_log_of_days_before_is_not_read(log):
    line = json.dumps({"time": at(60), "traffic": "live", "key": "bob", "assigned": "v2"}) + "\n"
    for name, count in {"1970-01-11.jsonl": 2, "mine.jsonl": 3}.items():
        with open(f"{log}/{name}", "w") as file:
            file.write(line)
        assert read(Outcomes(sql=ROWS, log=log), now(10), now(100))["v2"].count == count


@pytest.mark.parametrize("kind", ["TIMESTAMPTZ", "TIMESTAMP", "TIMESTAMP_S", "VARCHAR"])
def test_times_may_be_of_any_type(log, kind):
    rows = f"SELECT key, value, time::{kind} AS time FROM ({ROWS.replace('+00:00', '')})"
    assert read(Outcomes(sql=rows, log=log), now(10), now(100)) == {"v1": Moments(2, 1, 1), "v2": Moments(2, 1, 1)}
