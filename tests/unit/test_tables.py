from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import airflow_ml_provider
from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.intervals import Interval

DAY = Interval.from_key("2013-01-05")


@pytest.fixture
def connection():
    pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow")
    connection = tables.connect()
    yield connection
    connection.close()


class TestLocalPath:
    @pytest.mark.parametrize(
        ("uri", "path"),
        [
            ("/data/x", "/data/x"),
            ("data/x", "data/x"),
            ("file:///data/a%20b", "/data/a b"),
            ("file://localhost/data", "/data"),
            ("file:/data", "/data"),
            ("file:///data/a?.csv", "/data/a?.csv"),
            ("file:///data/#1", "/data/#1"),
            ("/data/a://b", "/data/a:/b"),
            ("//share/[x]", "//share/[x]"),
        ],
    )
    def test_forms(self, uri, path):
        assert tables.local_path(uri) == Path(path)

    @pytest.mark.parametrize("uri", ["s3://bucket/x", "gs://b", "https://h/x", "file://host/x", "file://x"])
    def test_not_local(self, uri):
        with pytest.raises(SpecError, match=r"location must be a path or a file:// URI, got .*; mount the bucket"):
            tables.local_path(uri)


class TestReplacing:
    def test_all_or_nothing(self, tmp_path):
        path = tmp_path / "deep" / "a.txt"
        tables.write_text(path, "old")

        def break_off():
            with tables.replacing(path) as aside:
                aside.write_text("ne")
                raise RuntimeError("half-way")

        with pytest.raises(RuntimeError, match="half-way"):
            break_off()
        assert path.read_text() == "old"
        assert os.listdir(path.parent) == ["a.txt"]
        tables.write_text(path, "new")
        assert path.read_text() == "new"

    def test_nothing_written_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError), tables.replacing(tmp_path / "a"):
            pass

    def test_litter_of_a_killed_writer_is_removed_and_nothing_else(self, tmp_path):
        path = tmp_path / "a[1].txt"
        (tmp_path / ".a[1].txt.0123.tmp").write_text("half")
        (tmp_path / ".a1.txt.0123.tmp").write_text("another's")
        tables.write_text(path, "new")
        assert sorted(os.listdir(tmp_path)) == [".a1.txt.0123.tmp", "a[1].txt"]

    def test_kill_minus_nine_in_the_middle(self, tmp_path):
        path = tmp_path / "a.txt"
        tables.write_text(path, "old")
        code = textwrap.dedent(
            """
            import os, sys
            from pathlib import Path
            from airflow_ml_provider import tables
            with tables.replacing(Path(sys.argv[1])) as aside:
                aside.write_text("half")
                os.kill(os.getpid(), 9)
            """
        )
        env = {**os.environ, "PYTHONPATH": str(Path(airflow_ml_provider.__file__).parents[1])}
        assert subprocess.run([sys.executable, "-c", code, str(path)], env=env).returncode == -9
        assert path.read_text() == "old"
        assert len(os.listdir(tmp_path)) == 2
        tables.write_text(path, "new")
        assert os.listdir(tmp_path) == ["a.txt"]


class TestDigests:
    def test_of_a_file(self, tmp_path):
        (tmp_path / "a").write_bytes(b"abc")
        # FIPS 180-2, example B.1
        expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert tables.file_digest(tmp_path / "a") == expected

    def test_of_files_sees_names_and_bytes_but_not_place_and_order(self, tmp_path):
        def make(root: str, **bodies: str) -> str:
            paths = []
            for name, body in bodies.items():
                (tmp_path / root).mkdir(exist_ok=True)
                (tmp_path / root / name).write_text(body)
                paths.append(tmp_path / root / name)
            return tables.files_digest(tmp_path / root, reversed(paths))

        first = make("one", a="1", b="2")
        assert make("two", b="2", a="1") == first
        assert len({first, make("three", a="2", b="1"), make("four", a="1"), make("five", a="1", c="2")}) == 4


class TestPartitions:
    @pytest.fixture
    def root(self, tmp_path):
        for key in ("2013-01-04", "2013-01-05", "2013-01-06", "2012-12-31"):
            path = tables.partition(str(tmp_path), Interval.from_key(key))
            path.parent.mkdir()
            path.touch()
        (tmp_path / "interval=2013-01-07").mkdir()  # begun, not written
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "data.parquet").touch()
        return str(tmp_path)

    def keys(self, *args):
        return [path.parent.name[-5:] for path in tables.partitions(*args)]

    def test_in_order_of_time(self, root):
        assert self.keys(root) == ["12-31", "01-04", "01-05", "01-06"]

    def test_later_ones_are_invisible(self, root):
        assert self.keys(root, DAY) == ["12-31", "01-04", "01-05"]

    def test_since(self, root):
        assert self.keys(root, DAY, "2013-01-04") == ["01-04", "01-05"]

    def test_as_uri_and_no_table_at_all(self, root):
        assert len(tables.partitions(f"file://{root}")) == 4
        assert tables.partitions(root + "/nowhere") == []

    def test_name_of_the_folder_may_look_like_a_pattern(self, tmp_path):
        path = tables.partition(str(tmp_path / "t[1]"), DAY)
        path.parent.mkdir(parents=True)
        path.touch()
        assert tables.partitions(str(tmp_path / "t[1]")) == [path]


class TestWrite:
    ROWS = "SELECT i AS id, hash(i) % 1000 / 7 AS x, 'text' || (i % 97) AS s FROM range(300000) t(i)"

    def test_equal_rows_give_equal_bytes_whatever_threads_and_source_order(self, connection, tmp_path):
        pytest.importorskip("duckdb")
        digests = set()
        for threads, order in ((1, "id"), (4, "hash(id)"), (3, "id DESC")):
            other = tables.connect(threads=threads)
            other.execute(f"CREATE TABLE t AS SELECT * FROM ({self.ROWS}) ORDER BY {order}")
            path = tmp_path / f"{threads}.parquet"
            tables.write(other, "SELECT * FROM t ORDER BY id", path)
            digests.add(tables.file_digest(path))
            other.close()
        assert len(digests) == 1

    def test_metadata_and_row_groups(self, connection, tmp_path):
        import pyarrow.parquet as pq

        path = tmp_path / "it's" / "a.parquet"
        tables.write(connection, self.ROWS, path, metadata={"b": "it's", "a:x": '"quoted"'})
        with pq.ParquetFile(path) as file:
            assert file.metadata.num_rows == 300000
            assert file.metadata.num_row_groups == 3
            assert file.metadata.metadata[b"b"] == b"it's"
            assert file.metadata.metadata[b"a:x"] == b'"quoted"'
            assert file.metadata.row_group(0).column(0).compression == "ZSTD"

    def test_no_rows_keep_their_columns(self, connection, tmp_path):
        tables.write(connection, "SELECT 1::INT AS a, now() AS t WHERE false", tmp_path / "a.parquet")
        ref = tables.describe("empty", tmp_path / "a.parquet")
        assert (ref.rows, ref.columns) == (0, {"a": "int32", "t": "timestamp[us, tz=UTC]"})

    def test_failed_query_leaves_the_old_file(self, connection, tmp_path):
        import duckdb

        path = tmp_path / "a.parquet"
        tables.write(connection, "SELECT 1 AS a", path)
        before = path.read_bytes()
        with pytest.raises(duckdb.Error):
            tables.write(connection, "SELECT CAST('x' || i AS INT) AS a FROM range(5) t(i)", path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["a.parquet"]


class TestDescribe:
    def test_what_is_in_the_file(self, connection, tmp_path):
        path = tables.partition(str(tmp_path), DAY)
        tables.write(connection, "SELECT 'x' AS name, 1.5::DOUBLE AS value", path)
        ref = tables.describe("t", path, interval=DAY, counts={"read": 1})
        assert ref.columns == {"name": "string", "value": "double"}
        assert (ref.rows, ref.uri, ref.interval, ref.counts) == (1, str(path), DAY, {"read": 1})
        assert ref.digest == tables.file_digest(path)

    def test_missing_or_no_parquet(self, connection, tmp_path):
        with pytest.raises(DataError, match=r"dataset 't' at .*nope cannot be read"):
            tables.describe("t", tmp_path / "nope")
        (tmp_path / "a").write_text("not parquet")
        with pytest.raises(DataError, match=r"dataset 't' at .* cannot be read"):
            tables.describe("t", tmp_path / "a")

    def test_combined(self, connection, tmp_path):
        refs = []
        for key in ("2013-01-05", "2013-01-06"):
            path = tables.partition(str(tmp_path), Interval.from_key(key))
            tables.write(connection, f"SELECT '{key}' AS k", path)
            refs.append(tables.describe("t", path))
        whole = tables.combined("t", str(tmp_path), refs)
        assert (whole.rows, whole.uri, whole.columns) == (2, str(tmp_path), {"k": "string"})
        assert tables.combined("t", str(tmp_path), reversed(refs)) == whole
        assert tables.combined("t", str(tmp_path), refs[:1]).digest != whole.digest


class TestConnect:
    def test_times_are_utc_and_nothing_is_downloaded(self, connection):
        settings = dict(
            connection.execute(
                "SELECT name, value FROM duckdb_settings() WHERE name IN ('TimeZone', 'autoinstall_known_extensions')"
            ).fetchall()
        )
        assert settings == {"TimeZone": "UTC", "autoinstall_known_extensions": "false"}

    def test_settings(self):
        pytest.importorskip("duckdb")
        connection = tables.connect(threads=1)
        assert connection.execute("SELECT current_setting('threads')").fetchall() == [(1,)]
        connection.close()

    @pytest.mark.parametrize("text", ["", "it's", "a\\b", 'say "x"', "ü\n--;"])
    def test_quotes(self, connection, text):
        assert connection.execute(f"SELECT {tables.quote(text)}").fetchall() == [(text,)]

    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20))
    def test_quoted_names(self, name):
        duckdb = pytest.importorskip("duckdb")
        with duckdb.connect() as connection:
            connection.execute(f"SELECT 1 AS {tables.quote_name(name)}")
            assert connection.description[0][0] == name
