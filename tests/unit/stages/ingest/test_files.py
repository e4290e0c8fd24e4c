from __future__ import annotations

import gzip
from datetime import datetime, timezone

import pytest

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import SpecError, Unavailable
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.ingest.files import run
from airflow_ml_provider.stages.ingest.spec import Column, IngestResult

HEADER = "id,carrier,delay,seen\n"
TWO = HEADER + "b,AA,-3,2013-01-05T11:00:00Z\na,UA,,2013-01-05T10:00:00+01:00\n"


def at(hour: int, day: int = 5) -> datetime:
    return datetime(2013, 1, day, hour, tzinfo=timezone.utc)


class TestOverwrite:
    def test_rows_typed_and_sorted_by_key(self, landing):
        landing.drop("a.csv.gz", TWO)
        result = landing.ingest()
        assert (result.status, result.reason) == ("ok", "")
        assert landing.rows() == [
            {"id": "a", "carrier": "UA", "delay": None, "seen": at(9)},
            {"id": "b", "carrier": "AA", "delay": -3, "seen": at(11)},
        ]
        assert result.dataset.columns == {
            "id": "string",
            "carrier": "string",
            "delay": "int64",
            "seen": "timestamp[us, tz=UTC]",
        }
        assert result.dataset.rows == 2
        assert result.dataset.interval == landing.spec().interval
        assert result.counts == result.dataset.counts
        assert result.quarantine is None

    def test_twice_is_once(self, landing):
        landing.drop("a.csv", TWO)
        landing.drop("b.csv", HEADER + "c,,1,\n")
        first = landing.ingest()
        before = landing.state()
        again = landing.ingest()
        assert landing.state() == before
        assert codec.encode(again) == codec.encode(first)

    def test_only_its_own_interval_is_replaced(self, landing):
        landing.drop("a.csv", TWO)
        landing.ingest(interval=Interval.from_key("2013-01-04"))
        landing.drop("a.csv", HEADER + "z,AA,1,2013-01-05\n")
        landing.ingest()
        assert [row["id"] for row in landing.rows()] == ["z"]
        assert len(landing.rows(Interval.from_key("2013-01-04"))) == 2

    def test_result_survives_json(self, landing):
        landing.drop("a.csv", TWO + "broken\n")
        result = landing.ingest()
        assert codec.decode(IngestResult, codec.encode(result)).counts == result.counts

    def test_inputs_outputs_and_facets(self, landing):
        path = landing.drop("a.csv.gz", TWO + "broken\n")
        twin = landing.drop("b.csv.gz", TWO + "broken\n")
        result = landing.ingest()
        first, second = result.inputs
        assert (first.name, first.uri, first.format, first.rows) == ("landing/flights", str(path), "csv.gz", 3)
        assert first.digest == second.digest == tables.file_digest(path)
        assert (second.uri, second.rows) == (str(twin), None)
        assert result.outputs == (result.dataset, result.quarantine)
        assert result.facets["inputs"][str(path)] == {"input_rows": 3}
        assert result.facets["outputs"][result.dataset.uri] == {"quality_metrics": {"row_count": 2}}
        provenance = codec.encode(result.facets["run"]["provenance"])
        assert provenance["data"]["a.csv.gz"] == first.digest
        assert "duckdb" in provenance["environment"]

    def test_source_knows_the_interval(self, landing):
        landing.drop("f_2013-01-05.csv", TWO)
        landing.drop("f_2013-01-06.csv", HEADER + "z,AA,1,2013-01-05\n")
        result = landing.ingest(source=f"{landing.folder}/f_{{partition}}*.csv")
        assert result.counts["files"] == 1
        assert result.counts["accepted"] == 2


class TestDuplicates:
    def test_highest_version_wins_whatever_the_order(self, landing):
        landing.drop("a.csv", HEADER + "x,NEW,1,2013-01-05T12:00:00Z\nx,OLD,2,2013-01-05T10:00:00Z\n")
        landing.drop("b.csv", HEADER + "x,MID,3,2013-01-05T11:00:00Z\n")
        result = landing.ingest()
        assert [row["carrier"] for row in landing.rows()] == ["NEW"]
        assert (result.counts["accepted"], result.counts["duplicates"]) == (1, 2)

    def test_equal_versions_last_in_order_of_file_and_line(self, landing):
        landing.drop("b.csv", HEADER + "x,B1,1,2013-01-05\nx,B2,1,2013-01-05\n")
        landing.drop("a.csv", HEADER + "x,A9,1,2013-01-05\n")
        landing.ingest()
        assert [row["carrier"] for row in landing.rows()] == ["B2"]

    def test_no_version_in_the_row_loses(self, landing):
        landing.drop("a.csv", HEADER + "x,HAS,1,2013-01-05\nx,NONE,1,\n")
        landing.ingest()
        assert [row["carrier"] for row in landing.rows()] == ["HAS"]

    def test_without_version_the_last_wins(self, landing):
        landing.drop("a.csv", HEADER + "x,NEW,1,2013-01-05T12:00:00Z\nx,LAST,2,2013-01-05T10:00:00Z\n")
        landing.ingest(version=None)
        assert [row["carrier"] for row in landing.rows()] == ["LAST"]

    def test_without_key_whole_rows(self, landing):
        landing.drop("a.csv", HEADER + "x,A,1,\nx,A,1,\nx,A,2,\n")
        result = landing.ingest(key=(), version=None)
        assert [row["delay"] for row in landing.rows()] == [1, 2]
        assert result.counts["duplicates"] == 1

    def test_same_file_twice_is_absorbed_and_said(self, landing):
        landing.drop("a.csv", TWO)
        landing.drop("a_again.csv", TWO)
        result = landing.ingest()
        assert result.counts["duplicate_files"] == 1
        assert (result.counts["read"], result.counts["accepted"], result.counts["duplicates"]) == (2, 2, 0)
        assert [f["status"] for f in result.files] == ["accepted", "duplicate"]
        assert result.reason == "a_again.csv absorbed: same bytes as a.csv"

    def test_the_last_file_wins_also_when_it_came_before(self, landing):
        """The sender takes a correction back: c brings what a had brought."""
        for name, carrier in (("a", "OLD"), ("b", "NEW"), ("c", "OLD")):
            landing.drop(f"{name}.csv", f"{HEADER}x,{carrier},1,2013-01-05\n")
        for version in (None, "seen"):
            result = landing.ingest(version=version)
            assert [row["carrier"] for row in landing.rows()] == ["OLD"]
            assert [f["status"] for f in result.files] == ["accepted", "accepted", "duplicate"]
            assert result.reason == "c.csv absorbed: same bytes as a.csv"

    def test_twin_of_a_bad_file_is_bad_itself(self, landing):
        landing.drop("a.csv", "x\n1\n")
        landing.drop("b.csv", "x\n1\n")
        result = landing.ingest()
        assert [f["status"] for f in result.files] == ["quarantined", "quarantined"]
        assert result.counts["bad_files"] == 2


class TestDeadLetters:
    def test_rows_with_reason_place_and_text(self, landing):
        body = 'x,,1,\ny,AA,12 min,05.01.2013\nz,"AA,1,\nw,AA,1\n,AA,1,\nok,AA,1.0,\n'
        landing.drop("a.csv", HEADER + body)
        result = landing.ingest()
        assert result.status == "ok"
        dead = [(row["line"], row["reason"], row["raw"]) for row in landing.dead()]
        assert dead[0] == (2, "column 'carrier' has no value", "x,,1,")
        assert dead[1] == (
            3,
            "column 'delay': '12 min' is not an int; column 'seen': '05.01.2013' is not a timestamp",
            "y,AA,12 min,05.01.2013",
        )
        assert dead[2][0] == 4
        assert dead[2][1].startswith("broken line")
        assert dead[3] == (5, "3 fields instead of 4", "w,AA,1")
        assert dead[4] == (6, "column 'id' has no value", ",AA,1,")
        assert [row["delay"] for row in landing.rows()] == [1]
        assert (result.counts["read"], result.counts["quarantined"]) == (6, 5)
        assert (result.quarantine.rows, result.quarantine.name) == (5, "flights_quarantine")
        assert result.files[0]["quarantined"] == 5
        assert "5 of 6 rows of a.csv quarantined (column 'carrier' has no value)" in result.reason

    def test_long_values_are_cut_in_the_reason_only(self, landing):
        landing.drop("a.csv", HEADER + "x,AA," + "9" * 500 + ",\nok,AA,1,\n")
        landing.ingest()
        (dead,) = landing.dead()
        assert len(dead["reason"]) < 150
        assert "9" * 500 in dead["raw"]

    def test_key_is_required_even_if_not_said(self, landing):
        columns = {"id": Column("string"), "delay": Column("int")}
        landing.drop("a.csv", "id,delay\n,1\nx,2\n")
        result = landing.ingest(columns=columns, version=None)
        assert result.counts["quarantined"] == 1

    def test_times_that_no_calendar_has(self, landing):
        times = ("2013-01-05T10:00:00+99:99", "0000-01-01", "9999-12-31T23:59:59-12:00")
        landing.drop(
            "a.csv", HEADER + "ok,AA,1,2013-01-05\n" + "".join(f"x{i},AA,1,{t}\n" for i, t in enumerate(times))
        )
        landing.ingest()
        assert [row["reason"] for row in landing.dead()] == [f"column 'seen': '{t}' is not a timestamp" for t in times]

    def test_replay_after_the_fix_empties_the_quarantine(self, landing):
        landing.drop("a.csv", TWO + "x,AA,??,\n")
        landing.ingest()
        assert len(landing.dead()) == 1
        landing.drop("a.csv", TWO + "x,AA,7,\n")
        result = landing.ingest()
        assert result.quarantine is None
        assert not list((landing.folder.parent / "table_quarantine").rglob("*"))
        assert len(landing.rows()) == 3

    def test_quarantine_elsewhere(self, landing, tmp_path):
        landing.drop("a.csv", TWO + "x,AA,??,\n")
        result = landing.ingest(quarantine=f"file://{tmp_path}/elsewhere")
        assert result.quarantine.uri == f"{tmp_path}/elsewhere/interval=2013-01-05/data.parquet"

    def test_many_dead_rows_keep_their_own_text(self, landing, monkeypatch):
        from airflow_ml_provider.stages.ingest import reader

        monkeypatch.setattr(reader, "BLOCK", 300)
        monkeypatch.setattr(reader, "_STEP", 100)
        rows = [f"k{i},AA,{'bad' + str(i) if i % 3 == 0 else i},2013-01-05" for i in range(500)]
        landing.drop("a.csv", HEADER + "\n".join(rows))
        result = landing.ingest()
        assert result.counts["quarantined"] == 167
        for row in landing.dead():
            assert row["raw"] == rows[row["line"] - 2]
            assert f"'bad{row['line'] - 2}'" in row["reason"]
        assert {(r["id"], r["delay"]) for r in landing.rows()} == {(f"k{i}", i) for i in range(500) if i % 3}


class TestBadFiles:
    def test_renamed_column_names_the_nearest(self, landing):
        landing.drop("a.csv", "id,carier,delay,seen,extra\nx,AA,1,\n")
        result = landing.ingest()
        assert result.status == "refused"
        assert "column 'carrier' is missing; the nearest unknown column is 'carier'" in result.reason
        assert result.files[0]["ignored"] == ["carier", "extra"]
        (dead,) = landing.dead()
        assert (dead["file"], dead["line"], dead["rows"], dead["raw"]) == ("a.csv", None, 1, None)

    def test_alias_mends_it(self, landing):
        landing.drop("a.csv", "id,airline,delay,seen\nx,AA,1,\n")
        assert landing.ingest().status == "ok"
        assert landing.rows()[0]["carrier"] == "AA"

    def test_name_and_alias_both(self, landing):
        """As in JSON Lines, the first that has a value counts; the other is not ignored."""
        landing.drop("a.csv", "id,airline,carrier,delay,seen\nx,AA,,1,\ny,AA,UA,1,\n")
        result = landing.ingest()
        assert [row["carrier"] for row in landing.rows()] == ["AA", "UA"]
        assert result.files[0]["ignored"] == []

    @pytest.mark.parametrize(
        ("name", "body", "reason"),
        [
            ("b.csv.gz", gzip.compress(TWO.encode(), mtime=0)[:-9], "cut off"),
            ("b.csv", TWO.replace("AA", "ÄÄ").encode("latin-1"), "not UTF-8"),
            ("b.csv", "id,carrier,delay,seen,id\n", "column 'id' is there twice"),
            ("b.xlsx", TWO, "format 'xlsx' is none of"),
            ("b.jsonl", '{"id": "x", "carrier": "AA", "delay": 1}\n', "column 'seen' is missing"),
        ],
    )
    def test_one_bad_file_does_not_stop_the_others(self, landing, name, body, reason):
        landing.drop("a.csv", TWO)
        landing.drop(name, body)
        result = landing.ingest()
        assert result.status == "ok"
        assert f"1 of 2 files quarantined ({name}: {reason}" in result.reason
        assert [f["status"] for f in result.files] == ["accepted", "quarantined"]
        assert len(landing.rows()) == 2
        assert result.counts["bad_files"] == 1
        assert sum(row["rows"] for row in landing.dead()) == result.counts["quarantined"]

    def test_refused_leaves_the_old_state_and_is_written_down(self, landing):
        landing.drop("a.csv", TWO)
        landing.ingest()
        before = landing.rows()
        landing.drop("a.csv", "nothing,like,it\n1,2,3\n")
        result = landing.ingest()
        assert result.status == "refused"
        assert result.dataset is None
        assert landing.rows() == before
        assert "column 'id' is missing" in landing.dead()[0]["reason"]
        assert result.outputs == (result.quarantine,)

    def test_all_rows_dead_is_refused_too(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,one,\ny,AA,two,\n")
        result = landing.ingest()
        assert result.status == "refused"
        assert result.counts["quarantined"] == 2
        assert not landing.target.exists()

    def test_damage_late_in_the_file_takes_back_its_rows(self, landing, monkeypatch):
        from airflow_ml_provider.stages.ingest import reader

        monkeypatch.setattr(reader, "BLOCK", 200)
        monkeypatch.setattr(reader, "_STEP", 100)
        landing.drop("a.csv", TWO)
        rows = "".join(f"k{i},AA,{'?' if i % 7 == 0 else i},\n" for i in range(300)).encode()
        landing.drop("b.csv", HEADER.encode() + rows + b"\xff\n")
        result = landing.ingest()
        assert result.counts["accepted"] == 2
        assert result.counts["quarantined"] == result.files[1]["rows"] > 200
        assert [row["line"] for row in landing.dead()] == [None]


class TestEmpty:
    @pytest.mark.parametrize("body", ["", HEADER, "\n\n", HEADER + "\n \n".replace(" ", "")])
    def test_no_rows_is_an_empty_partition(self, landing, body):
        landing.drop("a.csv", body)
        result = landing.ingest()
        assert (result.status, result.reason) == ("ok", "empty delivery: 1 file without rows")
        assert result.files[0]["status"] == "empty"
        assert landing.rows() == []
        assert result.dataset.columns["seen"] == "timestamp[us, tz=UTC]"

    def test_empty_json(self, landing):
        landing.drop("a.jsonl", "\n")
        assert landing.ingest().files[0]["status"] == "empty"

    def test_header_only_must_still_have_the_columns(self, landing):
        landing.drop("a.csv", "id,carrier,delay\n")
        assert landing.ingest().status == "refused"

    def test_packed_file_of_no_bytes_was_cut_off(self, landing):
        landing.drop("a.csv.gz", b"")
        result = landing.ingest()
        assert result.status == "refused"
        assert "0 bytes" in result.reason

    def test_no_file(self, landing):
        with pytest.raises(Unavailable, match=r"no landing file matches '.*f_2013-01-05.csv' for interval 2013-01-05"):
            landing.ingest(source=f"{landing.folder}/f_{{partition}}.csv")
        result = landing.ingest(on_missing="empty")
        assert (result.status, result.reason) == ("ok", "empty delivery: no file")
        assert landing.rows() == []

    def test_folder_as_source(self, landing):
        with pytest.raises(SpecError, match=r"give .*/\*"):
            landing.ingest(source=f"{landing.folder}/")


class TestJsonLines:
    def test_values_of_all_kinds(self, landing):
        columns = {
            "s": Column("string"), "i": Column("int"), "f": Column("float"), "b": Column("bool"), "d": Column("date"),
            "t": Column("timestamp"), "o": Column("string"),
        }  # fmt: skip
        landing.drop(
            "a.jsonl.gz",
            '{"s": "x\\n\\"y\\"", "i": 12345678901234567, "f": 0.1, "b": true, "d": "2013-01-05",'
            ' "t": "2013-01-05T10:00:00Z", "o": {"k": [1]}}\n{"s": 7, "i": 3.0, "f": 2, "b": null, "o": ""}\n',
        )
        landing.ingest(columns=columns, key=("s",), version=None)
        second, first = landing.rows()
        assert first["s"] == 'x\n"y"'
        assert (first["i"], first["f"], first["b"]) == (12345678901234567, 0.1, True)
        assert (first["t"], first["o"]) == (at(10), '{"k":[1]}')
        assert second == {"s": "7", "i": 3, "f": 2.0, "b": None, "d": None, "t": None, "o": None}

    def test_missing_key_is_null_and_alias_is_read(self, landing):
        landing.drop(
            "a.jsonl", '{"id": "x", "airline": "AA", "seen": null}\n{"id": "y", "carrier": "UA", "delay": 1}\n'
        )
        landing.ingest()
        assert [(r["carrier"], r["delay"]) for r in landing.rows()] == [("AA", None), ("UA", 1)]

    def test_name_and_alias_both(self, landing):
        row = '{"id": "%s", "carrier": %s, "airline": "AA", "delay": 1, "seen": null}\n'
        landing.drop("a.jsonl", row % ("x", "null") + row % ("y", '""') + row % ("z", '"UA"'))
        landing.ingest()
        assert [row["carrier"] for row in landing.rows()] == ["AA", "AA", "UA"]

    def test_own_name_as_alias(self, landing):
        columns = {"id": Column("string"), "carrier": Column("string", aliases=("carrier", "airline"))}
        landing.drop("a.csv", "id,carrier\nx,AA\n")
        landing.drop("b.jsonl", '{"id": "y", "airline": "UA"}\n')
        landing.ingest(columns=columns, version=None)
        assert landing.rows() == [{"id": "x", "carrier": "AA"}, {"id": "y", "carrier": "UA"}]

    def test_numbers_that_the_reader_rounds(self, landing):
        """From 2**53 on a number with a point or an exponent may come as another one; a float column wants no more."""
        columns = {"id": Column("string"), "n": Column("int"), "text": Column("string"), "f": Column("float")}
        fine = [
            '{"id": "a", "n": 9007199254740993, "text": 12345678901234567890123, "f": 1e22}',
            '{"id": "b", "n": 9007199254740991.0, "text": "9007199254740993.0", "f": 9007199254740993.0}',
            '{"id": "c", "n": "9007199254740993.0", "text": "1e22", "f": 0}',
        ]
        lossy = [
            '{"id": "d", "n": 9007199254740993.0}',
            '{"id": "e", "text": -123456789012345678.5}',
            '{"id": "f", "text": 1e22}',
        ]
        landing.drop("a.jsonl", "\n".join(fine + lossy))
        landing.ingest(columns=columns, version=None)
        assert [(row["id"], row["n"], row["text"]) for row in landing.rows()] == [
            ("a", 9007199254740993, "12345678901234567890123"),
            ("b", 9007199254740991, "9007199254740993.0"),
            ("c", 9007199254740993, "1e22"),
        ]
        assert [row["raw"] for row in landing.dead()] == lossy
        assert landing.dead()[0]["reason"] == (
            "column 'n': 9007199254740992.0 came as a JSON number that is not exact; "
            "send it without a point, or as a text"
        )

    def test_key_twice_in_an_object(self, landing):
        good = '{"id": "x", "carrier": "AA", "delay": 1, "seen": null, "other": 1, "other": 2}\n'
        landing.drop("a.jsonl", good + '{"id": "y", "carrier": "AA", "carrier": "UA", "delay": 1}\n')
        landing.ingest()
        assert [row["id"] for row in landing.rows()] == ["x"]
        assert [row["reason"] for row in landing.dead()] == ["key 'carrier' is there twice"]

    def test_key_missing_in_all_rows_is_a_missing_column(self, landing):
        landing.drop("a.jsonl", '{"id": "x", "carrier": "AA", "dely": 1, "seen": null}\n')
        result = landing.ingest()
        assert result.status == "refused"
        assert "column 'delay' is missing; the nearest unknown column is 'dely'" in result.reason
        assert result.counts["quarantined"] == 1

    def test_dead_rows(self, landing):
        good = '{"id": "x", "carrier": "AA", "delay": 1, "seen": "2013-01-05"}\n'
        landing.drop("a.jsonl", good + '{"id": "y"\n[1, 2]\n"text"\n{"id": "z", "carrier": "AA", "delay": true}\n')
        result = landing.ingest()
        assert result.counts["quarantined"] == 4
        assert [(row["line"], row["reason"]) for row in landing.dead()] == [
            (2, "broken JSON"),
            (3, "no JSON object but ARRAY"),
            (4, "no JSON object but VARCHAR"),
            (5, "column 'delay': 'true' is not an int"),
        ]
        assert landing.dead()[0]["raw"] == '{"id": "y"'

    def test_only_broken_lines(self, landing):
        landing.drop("a.jsonl", "oops\n")
        result = landing.ingest()
        assert result.status == "refused"
        assert "broken JSON" in result.reason

    def test_keys_with_odd_characters(self, landing):
        columns = {"id": Column("string"), 'a/b~"c"': Column("int")}
        landing.drop("a.jsonl", '{"id": "x", "a/b~\\"c\\"": 5}\n')
        landing.ingest(columns=columns, version=None)
        assert landing.rows() == [{"id": "x", 'a/b~"c"': 5}]

    def test_case_matters_in_keys(self, landing):
        landing.drop("a.jsonl", '{"ID": "x", "id": "y", "carrier": "AA", "delay": 1, "seen": null}\n')
        result = landing.ingest()
        assert landing.rows()[0]["id"] == "y"
        assert result.files[0]["ignored"] == ["ID"]


class TestFormats:
    def test_all_formats_together_give_the_same_rows(self, landing):
        pa = pytest.importorskip("pyarrow")
        landing.drop("a.csv", HEADER + "a,AA,1,2013-01-05\n")
        landing.drop("b.csv.gz", HEADER + "b,AA,1,2013-01-05\n")
        with pa.CompressedOutputStream(str(landing.folder / "c.csv.zst"), "zstd") as stream:
            stream.write((HEADER + "c,AA,1,2013-01-05\n").encode())
        landing.drop("d.ndjson", '{"id": "d", "carrier": "AA", "delay": 1, "seen": "2013-01-05"}')
        result = landing.ingest()
        assert [ref.format for ref in result.inputs] == ["csv", "csv.gz", "csv.zst", "jsonl"]
        assert [tuple(row.values())[1:] for row in landing.rows()] == [("AA", 1, at(0))] * 4

    def test_order_of_files_and_rows_does_not_show_in_the_bytes(self, landing):
        lines = [f"k{i},AA,{i},2013-01-05T00:{i:02}:00Z\n" for i in range(50)]
        landing.drop("a.csv", HEADER + "".join(lines[:30]))
        landing.drop("b.csv", HEADER + "".join(lines[30:]))
        first = landing.ingest().dataset
        (landing.folder / "b.csv").unlink()
        landing.drop("a.csv", "seen,delay,carrier,id\n")
        landing.drop("c.csv", HEADER + "".join(reversed(lines)))
        assert landing.ingest().dataset.digest == first.digest

    def test_delimiter_and_null_values(self, landing):
        landing.drop("a.csv", "id;carrier;delay;seen\nx;A,A;-;\n")
        landing.ingest(delimiter=";", null_values=("", "-"))
        assert landing.rows() == [{"id": "x", "carrier": "A,A", "delay": None, "seen": None}]

    def test_number_may_mean_no_value(self, landing):
        landing.drop("a.csv", HEADER + "x,AA,-999,\n")
        landing.ingest(null_values=("", "-999"))
        assert landing.rows()[0]["delay"] is None

    def test_null_text_with_spaces_around_it(self, landing):
        landing.drop("a.csv", HEADER + "x,AA, NA ,\n")
        assert landing.ingest().counts["quarantined"] == 0

    def test_values_as_long_as_lines_may_be(self, landing):
        rows = [f'x,"{"a" * 200_000}",1,\n', f"y,{'b' * 200_000},1,\n"]
        landing.drop(
            "a.csv", HEADER.replace("\n", f",{'c' * 200_000}\n") + "".join(r.replace("\n", ",\n") for r in rows)
        )
        landing.ingest()
        assert [len(row["carrier"]) for row in landing.rows()] == [200_000, 200_000]

    def test_single_column(self, landing):
        landing.drop("a.csv", 'id\nx\n\n"y"\n')
        landing.ingest(columns={"id": Column("string")}, version=None)
        assert landing.rows() == [{"id": "x"}, {"id": "y"}]


class TestCrash:
    def test_failed_write_leaves_the_old_rows(self, landing, monkeypatch):
        landing.drop("a.csv", TWO)
        landing.ingest()
        before = landing.state()
        landing.drop("a.csv", HEADER + "new,AA,1,\n")
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk gone")))
        with pytest.raises(OSError, match="disk gone"):
            run(landing.spec(), RunInfo())
        assert landing.state() == before
        assert not list(landing.target.rglob(".*.tmp"))

    def test_file_that_is_still_being_written_is_left_to_a_retry(self, landing, monkeypatch):
        from airflow_ml_provider.stages.ingest import staging

        path = landing.drop("a.csv", TWO)
        original = staging._read

        def slow(*args):
            original(*args)
            with open(path, "a") as sender:
                sender.write("c,AA,1,\n")

        monkeypatch.setattr(staging, "_read", slow)
        with pytest.raises(Unavailable, match=r"a\.csv changed while it was read"):
            run(landing.spec(), RunInfo())
        assert not landing.target.exists()

    def test_spill_folder_of_a_killed_run_is_removed(self, landing, monkeypatch, tmp_path):
        import tempfile

        spills = tmp_path / "spills"
        spills.mkdir()
        monkeypatch.setattr(tempfile, "gettempdir", lambda: str(spills))
        landing.drop("a.csv", TWO)
        seen = []
        original = tables.connect
        monkeypatch.setattr(tables, "connect", lambda **s: (seen.append(s["temp_directory"]), original(**s))[1])
        landing.ingest()
        (folder,) = seen
        (spills / folder.rpartition("/")[2]).mkdir()
        (spills / folder.rpartition("/")[2] / "left.tmp").write_text("x")
        landing.ingest()
        assert seen == [folder, folder]
        assert not list(spills.iterdir())

    def test_more_rows_than_memory(self, landing):
        rows = "".join(f"k{i:06},{'x' * 400},{i},2013-01-05\n" for i in range(60000))
        landing.drop("a.csv", HEADER + rows)
        result = landing.ingest(memory_gib=0.06)
        assert result.counts["accepted"] == 60000
