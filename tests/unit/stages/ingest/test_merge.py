from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import airflow_ml_provider
from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.ingest import merge
from airflow_ml_provider.stages.ingest.spec import Column

from .conftest import parquet

HEADER = "id,carrier,delay,seen\n"
BY_DAY = {"mode": "merge", "partition_by": "seen"}


def table(landing) -> dict[str, tuple]:
    """Key to the rest of the row and the partition that it lies in; no key lies in two."""
    rows: dict[str, tuple] = {}
    for path in [*landing.target.glob("data.parquet"), *landing.target.glob("interval=*/data.parquet")]:
        for row in parquet(path):
            assert row["id"] not in rows
            rows[row["id"]] = (row["carrier"], row["delay"], path.parent.name)
    return rows


class TestOneFile:
    def test_inserts_updates_and_ignores_what_is_older(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,2013-01-05T10:00:00Z\ny,AA,1,2013-01-05T10:00:00Z\n")
        first = landing.ingest(mode="merge")
        assert (first.metrics["inserted"], first.metrics["updated"], first.metrics["stale"]) == (2, 0, 0)
        assert first.dataset.uri == str(landing.target / "data.parquet")
        landing.drop("a.csv", HEADER + "x,BB,2,2013-01-05T11:00:00Z\ny,BB,2,2013-01-05T09:00:00Z\nz,BB,2,\n")
        second = landing.ingest(mode="merge")
        assert (second.metrics["inserted"], second.metrics["updated"], second.metrics["stale"]) == (1, 1, 1)
        assert {k: v[0] for k, v in table(landing).items()} == {"x": "BB", "y": "AA", "z": "BB"}
        assert second.dataset.rows == 3

    def test_same_delivery_twice_changes_nothing(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,2013-01-05T10:00:00Z\ny,AA,1,\n")
        first = landing.ingest(mode="merge").dataset
        before = landing.state()
        assert landing.ingest(mode="merge").dataset == first
        assert landing.state() == before

    def test_without_version_the_later_delivery_wins(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,2013-01-05T10:00:00Z\n")
        landing.ingest(mode="merge", version=None)
        landing.drop("a.csv", HEADER + "x,BB,1,2013-01-05T09:00:00Z\n")
        landing.ingest(mode="merge", version=None)
        assert table(landing)["x"][0] == "BB"

    def test_a_version_beats_none(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,\n")
        landing.ingest(mode="merge")
        landing.drop("a.csv", HEADER + "x,BB,1,2013-01-05\n")
        landing.ingest(mode="merge")
        landing.drop("a.csv", HEADER + "x,CC,1,\n")
        assert landing.ingest(mode="merge").metrics["stale"] == 1
        assert table(landing)["x"][0] == "BB"

    def test_empty_delivery_makes_an_empty_table(self, landing):
        landing.drop("a.csv", HEADER)
        result = landing.ingest(mode="merge")
        assert (result.status, result.dataset.rows) == ("ok", 0)

    def test_refused_delivery_leaves_the_table(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,\n")
        landing.ingest(mode="merge")
        before = table(landing)
        landing.drop("a.csv", HEADER + "x,BB,?,\n")
        assert landing.ingest(mode="merge").status == "refused"
        assert table(landing) == before


class TestPartitions:
    def test_by_utc_day(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,2013-01-05T23:30:00-02:00\ny,AA,1,2013-01-05\n")
        result = landing.ingest(**BY_DAY)
        assert {k: v[2] for k, v in table(landing).items()} == {"x": "interval=2013-01-06", "y": "interval=2013-01-05"}
        assert (result.dataset.uri, result.dataset.rows) == (str(landing.target), 2)
        assert result.dataset.interval == landing.spec().interval

    def test_newer_version_may_lie_in_another_partition(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,2013-01-05\ny,AA,1,2013-01-05\n")
        landing.ingest(**BY_DAY)
        landing.drop("a.csv", HEADER + "x,BB,1,2013-01-07\n")
        landing.ingest(**BY_DAY)
        assert {k: (v[0], v[2]) for k, v in table(landing).items()} == {
            "x": ("BB", "interval=2013-01-07"),
            "y": ("AA", "interval=2013-01-05"),
        }
        landing.drop("a.csv", HEADER + "x,CC,1,2013-01-03\n")
        assert landing.ingest(**BY_DAY).metrics["stale"] == 1
        assert not (landing.target / "interval=2013-01-03").exists()

    def test_partition_column_in_the_key_looks_at_its_own_partition_only(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,2013-01-05\n")
        landing.ingest(**BY_DAY, key=("id", "seen"))
        (landing.target / "interval=2013-01-04").mkdir()
        other = landing.target / "interval=2013-01-05" / "data.parquet"
        landing.drop("a.csv", HEADER + "x,BB,1,2013-01-06\n")
        stat = other.stat()
        landing.ingest(**BY_DAY, key=("id", "seen"))
        assert other.stat() == stat
        assert sorted(p.parent.name[-2:] for p in landing.target.rglob("*.parquet")) == ["05", "06"]

    def test_row_without_partition_is_a_dead_letter(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,\ny,AA,1,2013-01-05\n")
        assert landing.ingest(**BY_DAY, version=None).counts["quarantined"] == 1
        assert landing.dead()[0]["reason"] == "column 'seen' has no value"

    def test_order_of_deliveries_does_not_matter_with_versions(self, landing, tmp_path):
        rng = random.Random(7)
        rows = [f"k{rng.randrange(8)},C{i},{i},2013-01-{rng.randrange(1, 6):02}T{i:02}:00:00Z\n" for i in range(24)]
        states = []
        for seed in range(3):
            random.Random(seed).shuffle(order := list(range(4)))
            for part in order:
                landing.drop("a.csv", HEADER + "".join(rows[part::4]))
                landing.ingest(**BY_DAY, target=str(tmp_path / f"t{seed}"))
            landing.target = tmp_path / f"t{seed}"
            states.append(table(landing))
        assert states[0] == states[1] == states[2]
        assert len(states[0]) == len({row.split(",")[0] for row in rows})

    def test_two_processes_at_once_lose_nothing(self, landing):
        """Runs of a backfill merge into the same table at the same time."""
        days = [Interval.from_key(f"2013-01-{day:02}") for day in range(1, 5)]
        children = []
        for i, day in enumerate(days):
            landing.drop(f"f_{day.key}.csv", HEADER + "".join(f"k{i}-{n},AA,{n},2013-01-05\n" for n in range(20)))
            spec = landing.spec(**BY_DAY, interval=day, source=f"{landing.folder}/f_{day.key}.csv")
            children.append(start(spec))
        assert [child.wait() for child in children] == [0] * 4
        assert len(table(landing)) == 80


class TestSchema:
    def test_new_column_is_null_in_old_rows(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,2013-01-05\n")
        landing.ingest(**BY_DAY)
        landing.drop("a.csv", HEADER.replace("\n", ",gate\n") + "y,AA,1,2013-01-05,B7\n")
        columns = {**landing.spec().columns, "gate": Column("string")}
        landing.ingest(**BY_DAY, columns=columns)
        (path,) = landing.target.rglob("*.parquet")
        assert [(row["id"], row["gate"]) for row in parquet(path)] == [("x", None), ("y", "B7")]

    def test_new_version_column(self, landing):
        """The rows that the table holds have no version yet: any version beats them."""
        landing.drop("a.csv", "id,carrier\nx,AA\ny,AA\n")
        columns = {"id": Column("string"), "carrier": Column("string")}
        landing.ingest(mode="merge", columns=columns, version=None)
        landing.drop("a.csv", "id,carrier,seen\nx,BB,2013-01-05\n")
        result = landing.ingest(mode="merge", columns={**columns, "seen": Column("timestamp")})
        assert (result.metrics["inserted"], result.metrics["updated"], result.metrics["stale"]) == (0, 1, 0)
        assert [(row["id"], row["carrier"]) for row in parquet(landing.target / "data.parquet")] == [
            ("x", "BB"), ("y", "AA")
        ]  # fmt: skip

    def test_new_key_column_is_refused(self, landing):
        landing.drop("a.csv", "id,carrier\nx,AA\n")
        columns = {"id": Column("string"), "carrier": Column("string")}
        landing.ingest(mode="merge", columns=columns, version=None)
        before = landing.state()
        landing.drop("a.csv", "id,carrier,gate\nx,BB,B7\n")
        with pytest.raises(SpecError, match=r"the table .* lacks the key column 'gate'"):
            landing.ingest(
                mode="merge", columns={**columns, "gate": Column("string")}, key=("id", "gate"), version=None
            )
        assert landing.state() == before

    def test_key_that_does_not_tell_the_rows_apart_is_refused(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,\nx,BB,1,\ny,AA,1,\n")
        landing.ingest(mode="merge", key=("id", "carrier"))
        before = landing.state()
        landing.drop("a.csv", HEADER + "x,CC,3,\n")
        with pytest.raises(
            SpecError, match=r"key \['id'\] does not identify the rows of the table .*: 2 of them have \['x'\]"
        ):
            landing.ingest(mode="merge")
        assert landing.state() == before

    def test_other_layout_is_refused(self, landing, tmp_path):
        """The rows that the table holds would be neither updated nor read any more."""
        landing.drop("a.csv", HEADER + "x,AA,1,2013-01-05\n")
        landing.ingest(mode="merge")
        with pytest.raises(
            SpecError, match="is laid out as one file, not as partitions by 'seen'; change partition_by"
        ):
            landing.ingest(**BY_DAY)
        landing.target = tmp_path / "other"
        landing.ingest(**BY_DAY, target=str(landing.target))
        with pytest.raises(SpecError, match="is laid out as partitions such as interval=2013-01-05, not as one file"):
            landing.ingest(mode="merge", target=str(landing.target))
        assert set(table(landing)) == {"x"}

    def test_dropped_or_changed_column_is_refused_before_anything_is_written(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,1,2013-01-05\n")
        landing.ingest(**BY_DAY)
        before = landing.state()
        columns = dict(landing.spec().columns)
        with pytest.raises(SpecError, match=r"column 'delay' of the table .* is of type BIGINT, not VARCHAR"):
            landing.ingest(**BY_DAY, columns={**columns, "delay": Column("string")})
        del columns["delay"]
        with pytest.raises(SpecError, match="has a column 'delay' that is not expected"):
            landing.ingest(**BY_DAY, columns=columns)
        assert landing.state() == before


NEW = {
    "x": ("BB", 2, "interval=2013-01-05"),
    "y": ("BB", 2, "interval=2013-01-06"),
    "z": ("BB", 2, "interval=2013-01-07"),
}


class TestKill:
    """A merge that is killed at any step is completed or undone by the next try."""

    @pytest.fixture
    def half(self, landing):
        """A table with two partitions and a delivery that changes both and adds a third."""
        landing.drop("a.csv", HEADER + "x,AA,1,2013-01-05\ny,AA,1,2013-01-06\n")
        landing.ingest(**BY_DAY)
        landing.drop("a.csv", HEADER + "x,BB,2,2013-01-05T01:00:00\ny,BB,2,2013-01-06T01:00:00\nz,BB,2,2013-01-07\n")
        return landing

    @pytest.mark.parametrize("step", range(8))
    def test_retry_ends_in_the_new_state(self, half, monkeypatch, step):
        """Die at the n-th rename: three partitions are written aside, then the intent, then put in place one by one."""
        calls = []

        def replace(source, target):
            calls.append(target)
            if len(calls) > step:
                raise KeyboardInterrupt
            os.rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", replace)
            if step < 7:
                with pytest.raises(KeyboardInterrupt):
                    half.ingest(**BY_DAY)
            else:
                half.ingest(**BY_DAY)
        if step <= 3:  # no intent yet: the old state
            assert {k: v[0] for k, v in table(half).items()} == {"x": "AA", "y": "AA"}
        result = half.ingest(**BY_DAY)
        assert table(half) == NEW
        assert result.dataset.rows == 3
        assert not (half.target / merge.ASIDE).exists()

    def test_another_delivery_finishes_what_was_begun(self, half, monkeypatch):
        calls = []

        def replace(source, target):
            calls.append(target)
            if len(calls) == 6:  # one partition is in place, two are not
                raise KeyboardInterrupt
            os.rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", replace)
            with pytest.raises(KeyboardInterrupt):
                half.ingest(**BY_DAY)
        half.drop("a.csv", HEADER + "w,CC,3,2013-01-08\n")
        half.ingest(**BY_DAY)
        assert table(half) == {**NEW, "w": ("CC", 3, "interval=2013-01-08")}

    def test_kill_minus_nine_at_random_moments(self, half):
        """With a real SIGKILL, the retry gives the bytes of an undisturbed run."""
        spec = half.spec(**BY_DAY)
        rng = random.Random(1)
        for _ in range(4):
            child = start(spec, ready=True)
            assert child.stdout is not None
            child.stdout.readline()
            try:
                child.wait(rng.uniform(0, 0.12))
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
            child.stdout.close()
            rows = table(half)  # whatever happened, every partition can be read and no key lies in two
            assert set(rows) >= {"x", "y"}
        half.ingest(**BY_DAY)
        assert table(half) == NEW


def start(spec, ready: bool = False) -> subprocess.Popen:
    """Run the ingest stage on `spec` in another process; with `ready` it says so once everything is imported."""
    code = textwrap.dedent(
        """
        import json, sys
        import duckdb, pyarrow.csv, pyarrow.parquet
        from airflow_ml_provider import codec
        from airflow_ml_provider.provenance import RunInfo
        from airflow_ml_provider.stages.ingest.files import run
        from airflow_ml_provider.stages.ingest.spec import IngestSpec
        spec = codec.decode(IngestSpec, json.loads(sys.argv[1]))
        print("ready", flush=True)
        run(spec, RunInfo())
        """
    )
    root = str(Path(airflow_ml_provider.__file__).parents[1])
    command = [sys.executable, "-c", code, json.dumps(codec.encode(spec))]
    stdout = subprocess.PIPE if ready else subprocess.DEVNULL
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root}, stdout=stdout)
