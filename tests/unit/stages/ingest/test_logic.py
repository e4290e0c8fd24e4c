from __future__ import annotations

from datetime import datetime, timezone

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.ingest import logic
from airflow_ml_provider.stages.ingest.logic import FileReport, match_columns
from airflow_ml_provider.stages.ingest.spec import Column

COLUMNS = {"id": Column("string"), "carrier": Column("string", aliases=("airline", "operator"))}


class TestMatchColumns:
    def test_order_does_not_matter_and_extra_columns_are_named(self):
        match = match_columns(["x", "carrier", "id"], COLUMNS)
        assert match.found == {"id": (2,), "carrier": (1,)}
        assert (match.problem, match.ignored) == ("", ("x",))

    def test_alias(self):
        assert match_columns(["id", "operator"], COLUMNS).found["carrier"] == (1,)

    def test_name_comes_before_alias(self):
        assert match_columns(["airline", "id", "carrier"], COLUMNS).found["carrier"] == (2, 0)

    def test_missing_column_names_the_nearest_unknown_one(self):
        match = match_columns(["id", "carier", "zzz"], COLUMNS)
        assert match.problem == "column 'carrier' is missing; the nearest unknown column is 'carier': is it an alias?"

    def test_missing_column_without_any_unknown_one(self):
        assert match_columns(["id"], COLUMNS).problem == "column 'carrier' is missing"

    def test_column_twice(self):
        assert match_columns(["id", "carrier", "id"], COLUMNS).problem == "column 'id' is there twice"


class TestSource:
    HOUR = Interval.of_grain(datetime(2013, 1, 5, 7, tzinfo=timezone.utc), "hour")

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("in/f_{partition}*.csv", "in/f_2013-01-05T07*.csv"),
            ("in/{start:%Y/%m/%d}/{end:%H}.csv", "in/2013/01/05/08.csv"),
            ("in/{start}.csv", "in/2013-01-05T070000.csv"),
            ("in/{other}-{start!r}.csv", "in/{other}-{start!r}.csv"),
            ("in/plain.csv", "in/plain.csv"),
        ],
    )
    def test_placeholders(self, source, expected):
        assert logic.resolve_source(source, self.HOUR) == expected


def sql(expression: str, value: str):
    duckdb = pytest.importorskip("duckdb")
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection.execute(f"SELECT {expression} FROM (SELECT ? AS t)", [value]).fetchall()[0][0]


class TestParse:
    @pytest.mark.parametrize(
        ("kind", "text", "value"),
        [
            ("string", " x ", " x "),
            ("int", "42", 42),
            ("int", " -7 ", -7),
            ("int", "+3", 3),
            ("int", "3.0", 3),  # pandas writes ints with gaps so
            ("int", "9223372036854775807", 2**63 - 1),
            ("float", "1.5", 1.5),
            ("float", "-1e-3", -0.001),
            ("float", " .5", 0.5),
            ("bool", "TRUE", True),
            ("bool", " f ", False),
            ("bool", "0", False),
            ("date", "2013-01-05", datetime(2013, 1, 5).date()),
            ("timestamp", "2013-01-05", datetime(2013, 1, 5, tzinfo=timezone.utc)),
            ("timestamp", "2013-01-05T10:00:00Z", datetime(2013, 1, 5, 10, tzinfo=timezone.utc)),
            ("timestamp", "2013-01-05 10:00", datetime(2013, 1, 5, 10, tzinfo=timezone.utc)),
            ("timestamp", "2013-01-05T10:00:00.25+02:00", datetime(2013, 1, 5, 8, 0, 0, 250000, timezone.utc)),
            ("timestamp", "2013-01-05T10:00:00-0930", datetime(2013, 1, 5, 19, 30, tzinfo=timezone.utc)),
            ("timestamp", "2013-01-05T10:00:00+14", datetime(2013, 1, 4, 20, tzinfo=timezone.utc)),
            ("timestamp", "0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=timezone.utc)),
            ("timestamp", "9999-12-31 23:59:59.999999", datetime(9999, 12, 31, 23, 59, 59, 999999, timezone.utc)),
            ("date", "0001-01-01", datetime(1, 1, 1).date()),
            ("date", "9999-12-31", datetime(9999, 12, 31).date()),
        ],
    )
    def test_values(self, kind, text, value):
        assert sql(logic.parse_sql("t", kind), text) == value

    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            ("int", "3.7"),
            ("int", "1_000"),
            ("int", "1e3"),
            ("int", "0x1F"),
            ("int", "9223372036854775808"),
            ("int", "12 min"),
            ("float", "NaN"),
            ("float", "inf"),
            ("float", "1e999"),
            ("float", "1_0.5"),
            ("float", "1,5"),
            ("bool", "2"),
            ("date", "2013-02-30"),
            ("date", "05.01.2013"),
            ("date", "2013-01-05T10:00:00"),
            ("timestamp", "epoch"),
            ("timestamp", "infinity"),
            ("timestamp", "now"),
            ("timestamp", "2013-01-05T25:00:00Z"),
            ("timestamp", "1357000000"),
            ("timestamp", "2013-01-05T10:00:00+99:99"),
            ("timestamp", "2013-01-05T10:00:00+15:00"),
            ("timestamp", "2013-01-05T10:00:00+05:60"),
            ("timestamp", "0000-01-01"),
            ("timestamp", "0001-01-01T00:00:00+01:00"),
            ("timestamp", "9999-12-31T23:59:59-12:00"),
            ("timestamp", " 9999-12-31T23:59:59-12:00"),
            ("date", "0000-01-01"),
        ],
    )
    def test_what_is_not_of_the_type(self, kind, text):
        assert sql(logic.parse_sql("t", kind), text) is None

    def test_minus_zero_is_zero(self):
        assert str(sql(logic.parse_sql("t", "float"), "-0.0")) == "0.0"

    def test_null_texts(self):
        assert sql(logic.text_sql("t", ("", "it's")), "it's") is None
        assert sql(logic.text_sql("t", ()), "") == ""


class TestVerdict:
    GOOD = FileReport("a.csv", "/a.csv", "d1", "csv", rows=10)
    BAD = FileReport("b.csv", "/b.csv", "d2", "csv", "quarantined", "cut off", rows=4, quarantined=4)
    MIXED = FileReport("c.csv", "/c.csv", "d3", "csv", reason="column 'x': 'y' is not an int", rows=10, quarantined=3)

    def test_all_good_needs_no_words(self):
        assert logic.verdict([self.GOOD], 10, "q") == ("ok", "")

    def test_nothing_usable_is_refused(self):
        status, reason = logic.verdict([self.BAD], 0, "q/interval=1")
        assert status == "refused"
        assert (
            reason == "nothing usable: 1 of 1 files quarantined (b.csv: cut off); the dead letters are in q/interval=1"
        )

    def test_parts_are_said(self):
        status, reason = logic.verdict([self.GOOD, self.BAD, self.MIXED], 17, "q")
        assert status == "ok"
        assert "1 of 3 files quarantined (b.csv: cut off)" in reason
        assert "3 of 10 rows of c.csv quarantined (column 'x': 'y' is not an int)" in reason

    def test_empty(self):
        assert logic.verdict([], 0, "q") == ("ok", "empty delivery: no file")
        empty = FileReport("e.csv", "/e.csv", "d4", "csv", "empty", "no rows")
        assert logic.verdict([empty], 0, "q") == ("ok", "empty delivery: 1 file without rows")

    def test_empty_and_bad_is_refused(self):
        empty = FileReport("e.csv", "/e.csv", "d4", "csv", "empty", "no rows")
        assert logic.verdict([empty, self.BAD], 0, "q")[0] == "refused"

    def test_counts(self):
        assert logic.counts([self.GOOD, self.BAD, self.MIXED], 15) == {
            "files": 3,
            "duplicate_files": 0,
            "bad_files": 1,
            "read": 24,
            "accepted": 15,
            "duplicates": 2,
            "quarantined": 7,
        }


class TestPlaces:
    def test_bytes_that_come_again_stand_where_they_do_last(self):
        files = [FileReport(n, n, digest, "csv") for n, digest in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "1"))]
        assert logic.place_sql(files) == "[3, 1, 3, 3][file + 1]"

    def test_without_twins_a_file_stands_where_it_is(self):
        assert logic.place_sql([FileReport("a", "a", "1", "csv"), FileReport("b", "b", "1", "jsonl")]) == "file"


class TestTable:
    def test_new_column_may_come(self):
        logic.check_table(COLUMNS, {"id": "VARCHAR"}, "t")

    def test_column_must_not_be_lost(self):
        with pytest.raises(SpecError, match="table t has a column 'speed' that is not expected; add it to columns"):
            logic.check_table(COLUMNS, {"id": "VARCHAR", "speed": "BIGINT"}, "t")

    def test_new_column_cannot_be_part_of_the_key(self):
        with pytest.raises(SpecError, match=r"the table t lacks the key column 'carrier', .*; give the key that"):
            logic.check_table(COLUMNS, {"id": "VARCHAR"}, "t", ("id", "carrier"))

    def test_type_must_stay(self):
        with pytest.raises(SpecError, match="column 'id' of the table t is of type BIGINT, not VARCHAR"):
            logic.check_table(COLUMNS, {"id": "BIGINT"}, "t")
