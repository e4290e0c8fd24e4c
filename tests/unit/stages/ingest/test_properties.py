"""Whatever is delivered, every row is accounted for, exactly once, and the order of delivery cannot be seen."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_ml_provider import codec
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.ingest import reader
from airflow_ml_provider.stages.ingest.files import run
from airflow_ml_provider.stages.ingest.spec import Column, IngestSpec

from .conftest import DAY, parquet

COLUMNS = {"id": Column("string"), "n": Column("int"), "text": Column("string")}
SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

words = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6)
values = st.one_of(st.integers(-5, 5).map(str), st.sampled_from(["", "NA", "x", "1.5", "3.0"]))
rows = st.tuples(st.sampled_from(["a", "b", "c", ""]), values, words)
garbage = st.sampled_from(
    [b"\n", b"one,two\n", b'"open,1,x\n', b"1,2,3,4\n", b'a,1,"x"y\n', b"\0,1,2\n", b'"\n', b",,\n", b"a,\r1,x\n"]
)
bodies = st.lists(st.one_of(rows, garbage), max_size=12)


def as_csv(lines) -> bytes:
    body = b"id,n,text\n"
    for line in lines:
        if isinstance(line, bytes):
            body += line
        else:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerow(line)
            body += text.getvalue().encode()
    return body


def ingest(folder: Path, **changes):
    defaults = {
        "name": "t", "source": f"{folder}/in/*", "target": f"{folder}/out", "interval": DAY, "columns": COLUMNS,
        "key": ("id",),
    }  # fmt: skip
    result = run(IngestSpec(**{**defaults, **changes}), RunInfo())
    accepted = parquet(folder / "out/interval=2013-01-05/data.parquet") if result.dataset else []
    dead = parquet(folder / "out_quarantine/interval=2013-01-05/data.parquet") if result.quarantine else []
    return result, accepted, dead


@SLOW
@given(files=st.lists(st.one_of(bodies.map(as_csv), st.binary(max_size=40)), min_size=1, max_size=3), key=st.booleans())
def test_nothing_is_silently_dropped(files, key):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for i, body in enumerate(files):
            (folder / "in" / f"{i}.csv").write_bytes(body)
        result, accepted, dead = ingest(folder, key=("id",) if key else ())
        counts = result.counts
        assert counts["read"] == counts["accepted"] + counts["duplicates"] + counts["quarantined"]
        assert sum(row["rows"] for row in dead) == counts["quarantined"]
        assert all(row["reason"] for row in dead)
        if result.dataset:
            assert len(accepted) == counts["accepted"] == result.dataset.rows
        else:
            assert (result.status, counts["accepted"]) == ("refused", 0)
        assert len(result.files) == len(files)
        again, *_ = ingest(folder, key=("id",) if key else ())
        assert codec.encode(again) == codec.encode(result)


@SLOW
@given(lines=st.lists(rows, max_size=15))
def test_agrees_with_a_model_of_it(lines):
    """Good rows by key, the last one wins: what ten lines of Python would do."""
    expected, dead_expected = {}, 0
    for ident, number, text in lines:
        try:
            n = None if number in ("", "NA") else int(number.removesuffix(".0"))
        except ValueError:
            dead_expected += 1
            continue
        if not ident:
            dead_expected += 1
        else:
            expected[ident] = (n, None if text in ("", "NA", "NULL", "null") else text)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        (folder / "in" / "a.csv").write_bytes(as_csv(lines))
        result, accepted, dead = ingest(folder)
        assert result.counts["read"] == len(lines)
        assert len(dead) == dead_expected
        if result.status == "ok":
            assert {row["id"]: (row["n"], row["text"]) for row in accepted} == expected
            assert [row["id"] for row in accepted] == sorted(expected)
        else:
            assert not expected


@SLOW
@given(lines=st.lists(rows, max_size=15))
def test_csv_and_json_lines_say_the_same(lines):
    with tempfile.TemporaryDirectory() as name:
        results = []
        for form in ("csv", "jsonl"):
            folder = Path(name) / form
            (folder / "in").mkdir(parents=True)
            objects = "".join(json.dumps(dict(zip(COLUMNS, line, strict=True))) + "\n" for line in lines)
            body = as_csv(lines) if form == "csv" else objects.encode()
            (folder / "in" / f"a.{form}").write_bytes(body)
            results.append(ingest(folder))
        (first, accepted, dead), (second, accepted_json, dead_json) = results
        assert accepted == accepted_json
        assert [row["reason"] for row in dead] == [row["reason"] for row in dead_json]
        if lines:
            assert first.counts == second.counts


@SLOW
@given(lines=st.lists(rows, max_size=15), seed=st.randoms(use_true_random=False), parts=st.integers(1, 3))
def test_order_and_number_of_files_do_not_show(lines, seed, parts):
    """With a version in every row, the same rows give the same bytes however they come."""
    columns = {"id": Column("string"), "n": Column("int")}
    versioned = [f"{ident or 'd'},{i}\n" for i, (ident, *_) in enumerate(lines)]
    digests = set()
    for order in (versioned, seed.sample(versioned, len(versioned))):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "in").mkdir()
            for part in range(parts):
                (folder / "in" / f"{part}.csv").write_text("id,n\n" + "".join(order[part::parts]))
            digests.add(ingest(folder, columns=columns, version="n")[0].dataset.digest)
    assert len(digests) == 1


@SLOW
@given(body=bodies.map(as_csv), size=st.integers(1, 30))
def test_blocks_make_no_difference(body, size):
    def read(block):
        before = reader.BLOCK, reader._STEP
        reader.BLOCK = reader._STEP = block
        try:
            lines = reader.Lines(path)
            reader.csv_header(lines, ",")
            batches = list(reader.csv_batches(lines, 3, ","))
        finally:
            reader.BLOCK, reader._STEP = before
        good = [item for b in batches for item in zip(b.lines, b.raw, strict=True)]
        return good, [broken for b in batches for broken in b.broken]

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.csv"
        path.write_bytes(body)
        assert read(size) == read(1 << 20)
