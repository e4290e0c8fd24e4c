from __future__ import annotations

import math
import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.stages.monitor import scan, sketch
from airflow_ml_provider.stages.monitor.sketch import Numbers, Sketch, Texts, sketch_parquet

np = pytest.importorskip("numpy")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path, columns, row_group_size=1000):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def numbers(values):
    collected = scan.NumberScan()
    collected.add(pa.array(values, pa.float64()))
    return collected.result()


def texts(values):
    collected = scan.TextScan()
    if values:
        collected.add(pa.array(values, pa.string()))
    return collected.result()


def same(a: Numbers, b: Numbers) -> bool:
    """All but the sum exactly; sums of floats depend on their order in the last digits of the largest value."""
    exact = [(c.count, c.nulls, c.low, c.high, c.shift, dict(c.bins)) for c in (a, b)]
    rounding = 1e-9 * max((abs(edge) for edge in (a.low, a.high) if edge is not None), default=0.0) * a.count + 1e-6
    return exact[0] == exact[1] and (not math.isfinite(a.total) or abs(a.total - b.total) <= rounding)


floats = st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True), max_size=60)


@pytest.fixture
def small_cap(monkeypatch):
    monkeypatch.setattr(sketch, "CAP", 8)
    monkeypatch.setattr(sketch, "BUCKETS", 4)


def test_values_without_a_finite_sum():
    huge = [1.7e308, 1.7e308]
    assert numbers(huge).total == math.inf
    assert numbers([*huge, -1.7e308, -1.7e308]).count == 4


class TestCodes:
    @given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=50))
    def test_order_of_codes_is_order_of_values(self, values):
        codes = scan.codes_of(np.array(values, np.float64)).tolist()
        for a, b, x, y in zip(values, values[1:], codes, codes[1:], strict=False):
            assert (a < b) == (x < y)
            assert (a == b) == (x == y)

    @given(st.floats(width=32, allow_nan=False))
    def test_an_unshifted_code_is_the_value(self, value):
        assert sketch.lower_edge(int(scan.codes_of(np.array([value]))[0]), 0) == value

    @given(st.floats(width=32, allow_nan=False), st.integers(0, 21))
    def test_a_value_lies_in_its_bin(self, value, shift):
        code = int(scan.codes_of(np.array([value]))[0]) >> shift
        assert sketch.lower_edge(code, shift) <= value <= sketch.lower_edge(code + 1, shift)

    def test_relative_width_of_a_bin(self):
        code = int(scan.codes_of(np.array([100.0]))[0]) >> 18
        width = sketch.lower_edge(code + 1, 18) - sketch.lower_edge(code, 18)
        assert width == 2.0  # 64 … 128 in 2^5 bins


@pytest.mark.usefixtures("small_cap")
class TestMergeIsExact:
    # The cap is an attribute of the module, set once for all examples of a test.
    @settings(deadline=None)
    @given(floats, floats, floats)
    def test_numbers(self, a, b, c):
        x, y, z = numbers(a), numbers(b), numbers(c)
        assert same(x.merge(y), y.merge(x))
        assert same(x.merge(y).merge(z), x.merge(y.merge(z)))
        assert same(x.merge(y).merge(z), numbers([*a, *b, *c]))
        assert same(x.merge(Numbers()), x)
        assert len(x.merge(y).bins) <= sketch.CAP

    @settings(deadline=None)
    @given(*[st.lists(st.none() | st.sampled_from("abcdefghijklmnop") | st.text(max_size=2), max_size=20)] * 3)
    def test_texts(self, a, b, c):
        x, y, z = texts(a), texts(b), texts(c)
        assert x.merge(y) == y.merge(x)
        assert x.merge(y).merge(z) == x.merge(y.merge(z)) == texts([*a, *b, *c])
        assert x.merge(Texts()) == x
        assert sum(x.bucketed().values()) == x.count

    @settings(deadline=None)
    @given(floats, st.lists(st.none() | st.text(max_size=3), max_size=20))
    def test_json_round_trip(self, a, b):
        before = Sketch(7, {"n": numbers(a), "t": texts(b)})
        text = before.to_json()
        after = Sketch.from_json(text)
        assert after.to_json() == text
        assert same(after.columns["n"], before.columns["n"])
        assert after.columns["t"] == before.columns["t"]


class TestNumbers:
    def test_small_column_is_kept_exactly(self):
        column = numbers([3.0, -1.5, 3.0, None, float("nan"), 0.0, -0.0])
        assert {sketch.lower_edge(c, column.shift): n for c, n in column.bins.items()} == {-1.5: 1, 0.0: 2, 3.0: 2}
        assert (column.count, column.nulls, column.low, column.high, column.mean) == (5, 2, -1.5, 3.0, 0.9)

    def test_infinite_values_are_counted_and_leave_no_mean(self):
        column = numbers([1.0, math.inf, -math.inf, 1e300])
        assert (column.count, column.low, column.high) == (4, 1.0, 1e300)
        assert column.mean is None

    @pytest.mark.parametrize("draw", ["normal", "lognormal", "standard_cauchy"])
    def test_cumulative_shares_match_the_data(self, draw):
        values = getattr(np.random.default_rng(3), draw)(size=200_000)
        column = numbers(values)
        assert len(column.bins) <= sketch.CAP
        below = 0
        for code, count in column.bins.items():
            edge = sketch.lower_edge(code, column.shift)
            assert below == int((values.astype(np.float32) < np.float32(edge)).sum())
            below += count
        # No bin hides much: what lies within one bin is invisible to every measure.
        assert max(column.bins.values()) / column.count < 0.02

    def test_only_missing_values(self):
        column = numbers([None, float("nan")])
        assert (column.count, column.nulls, column.low, column.high, column.mean) == (0, 2, None, None, None)


class TestTexts:
    def test_counts_by_value(self):
        column = texts(["UA", None, "AA", "UA"])
        assert (column.count, column.nulls, column.by_name) == (3, 1, True)
        assert column.top(1) == [("UA", 2), ("", 1)]

    def test_more_values_than_the_cap_are_counted_by_hash(self):
        values = [f"tail-{i}" for i in range(sketch.CAP + 1)]
        column = texts(values)
        assert not column.by_name
        assert sum(column.buckets.values()) == len(values)
        assert column == texts(values[:10]).merge(texts(values[10:]))

    def test_hash_is_the_same_everywhere(self):
        assert sketch.bucket_of("UA") == 232


class TestSketchParquet:
    def test_does_not_load_pandas(self, tmp_path):
        path = write(tmp_path / "a.parquet", {"x": [1.0, None], "t": ["a", None]})
        code = (
            "import sys; from pathlib import Path; from airflow_ml_provider.stages.monitor.sketch import *;"
            f"sketch_parquet([Path({str(path)!r})], {{'x': 'float', 't': 'string'}});"
            "sys.exit('pandas' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_scan_over_files_and_row_groups(self, tmp_path):
        rng = np.random.default_rng(0)
        delay, carrier = rng.normal(5, 40, 5000), rng.choice(["UA", "AA", "B6"], 5000)
        a = write(tmp_path / "a.parquet", {"delay": delay[:3000], "carrier": carrier[:3000]})
        b = write(tmp_path / "b.parquet", {"delay": delay[3000:], "carrier": carrier[3000:]})
        kinds = {"delay": "float", "carrier": "string"}
        whole = sketch_parquet([a, b], kinds)
        assert whole.rows == 5000
        assert list(whole.columns) == ["delay", "carrier"]
        assert whole.columns["delay"].mean == pytest.approx(delay.mean())
        assert whole.columns["carrier"].values == {v: int((carrier == v).sum()) for v in ("AA", "B6", "UA")}
        merged = sketch_parquet([a], kinds).merge(sketch_parquet([b], kinds))
        assert merged.columns["carrier"] == whole.columns["carrier"]
        assert same(merged.columns["delay"], whole.columns["delay"])
        assert sketch_parquet([a, b], kinds).to_json() == whole.to_json()

    def test_where_keeps_the_rows_of_a_segment(self, tmp_path):
        path = write(
            tmp_path / "a.parquet",
            {"origin": ["EWR", "JFK", None, "EWR"], "hour": [1, 2, 3, None], "gate": [7, 7, 8, 8]},
            row_group_size=2,
        )
        got = sketch_parquet([path], {"hour": "float", "origin": "string"}, {"origin": "EWR"})
        assert got.rows == 2
        assert (got.columns["hour"].count, got.columns["hour"].nulls) == (1, 1)
        assert got.columns["origin"].values == {"EWR": 2}
        assert sketch_parquet([path], {"hour": "float"}, {"origin": "EWR", "gate": "8"}).rows == 1

    @pytest.mark.parametrize("type_", [pa.int8(), pa.int64(), pa.float32(), pa.bool_(), pa.decimal128(5, 2)])
    def test_number_types(self, tmp_path, type_):
        path = write(tmp_path / "a.parquet", {"x": pa.array([0, 1, None, 1], pa.int8()).cast(type_)})
        column = sketch_parquet([path], {"x": "float"}).columns["x"]
        assert (column.count, column.nulls, column.mean) == (3, 1, pytest.approx(2 / 3))

    @pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
    def test_text_types(self, tmp_path, type_):
        path = write(tmp_path / "a.parquet", {"x": pa.array(["a", "b", None, "a"]).cast(type_)}, row_group_size=3)
        assert sketch_parquet([path], {"x": "string"}).columns["x"] == Texts(3, 1, {"a": 2, "b": 1})

    def test_whole_numbers_as_text(self, tmp_path):
        path = write(tmp_path / "a.parquet", {"flight": [1545, 11, 11]})
        assert sketch_parquet([path], {"flight": "string"}).columns["flight"].values == {"11": 2, "1545": 1}

    def test_no_files_and_no_rows(self, tmp_path):
        path = write(tmp_path / "a.parquet", {"x": pa.array([], pa.float64()), "t": pa.array([], pa.string())})
        empty = sketch_parquet([], {"x": "float", "t": "string"})
        assert empty == sketch_parquet([path], {"x": "float", "t": "string"})
        assert empty == Sketch(0, {"x": Numbers(), "t": Texts()})

    def test_missing_column(self, tmp_path):
        path = write(tmp_path / "a.parquet", {"x": [1.0]})
        with pytest.raises(DataError, match=r"column 'y' is missing in .*there are x"):
            sketch_parquet([path], {"y": "float"})

    def test_text_where_numbers_are_due(self, tmp_path):
        path = write(tmp_path / "a.parquet", {"dep_delay": ["5", "garbage"]})
        with pytest.raises(DataError, match=r"'dep_delay' .* cannot be read as float"):
            sketch_parquet([path], {"dep_delay": "float"})

    def test_unreadable_file(self, tmp_path):
        (tmp_path / "a.parquet").write_bytes(b"PAR1 half")
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            sketch_parquet([tmp_path / "a.parquet"], {"x": "float"})

    def test_unknown_kind(self, tmp_path):
        with pytest.raises(SpecError, match="kind of column 'x' must be 'float' or 'string', got 'int'"):
            sketch_parquet([], {"x": "int"})  # type: ignore[dict-item]


class TestSketch:
    def test_columns_of_both(self):
        a, b = Sketch(2, {"x": numbers([1.0, 2.0])}), Sketch(1, {"y": texts(["a"])})
        assert a.merge(b) == Sketch(3, {"x": numbers([1.0, 2.0]), "y": texts(["a"])})

    def test_kinds_must_agree(self):
        with pytest.raises(DataError, match="column 'x' is float in one sketch and string in the other"):
            Sketch(1, {"x": numbers([1.0])}).merge(Sketch(1, {"x": texts(["1"])}))

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1, "rows": 1, "columns": {"x": {"kind": "?"}}}'])
    def test_foreign_text(self, text):
        with pytest.raises(DataError, match="this is no sketch"):
            Sketch.from_json(text)

    def test_other_format(self):
        with pytest.raises(DataError, match="format 0, this version reads 1"):
            Sketch.from_json('{"format": 0, "rows": 1, "columns": {}}')

    def test_text_of_a_sketch(self):
        one = struct.unpack("<I", struct.pack("<f", 1.0))[0] + 0x80000000
        assert Sketch(2, {"x": numbers([1.0, None])}).to_json() == (
            '{"format":1,"rows":2,"columns":{"x":{"kind":"float","count":1,"nulls":1,"low":1.0,"high":1.0,"total":1.0,'
            f'"shift":0,"steps":[{one}],"counts":[1]}}}}}}'
        )
