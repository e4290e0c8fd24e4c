from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.ingest import reader


def write(folder: Path, name: str, body: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def records(path: Path, width: int = 3, delimiter: str = ","):
    """(line, raw) of good records and (line, raw, reason) of broken ones."""
    good, broken = [], []
    for batch in reader.csv_batches(reader.Lines(path), width, delimiter):
        assert len(batch.lines) == len(batch.raw) == len(batch.records)
        good += list(zip(batch.lines, batch.raw, strict=True))
        broken += [(b.line, b.raw, b.reason) for b in batch.broken]
    return good, broken


class TestLandingFiles:
    def test_in_order_of_names_without_hidden_ones_and_folders(self, tmp_path):
        for name in ("b.csv", "a.csv", ".c.csv", "d/e.csv", "note.txt"):
            write(tmp_path, name, b"")
        (tmp_path / "x.csv").mkdir()
        base, files = reader.landing_files(f"{tmp_path}/*.csv")
        assert (base, [f.name for f in files]) == (tmp_path, ["a.csv", "b.csv"])

    def test_any_depth(self, tmp_path):
        write(tmp_path, "y/1/a.csv", b"")
        write(tmp_path, "y/a.csv", b"")
        base, files = reader.landing_files(f"file://{tmp_path}/y/**/*.csv")
        assert [f.relative_to(base).as_posix() for f in files] == ["1/a.csv", "a.csv"]

    def test_question_mark_in_a_uri_is_part_of_the_pattern(self, tmp_path):
        write(tmp_path, "a1.csv", b"")
        write(tmp_path, "a12.csv", b"")
        assert [f.name for f in reader.landing_files(f"file://{tmp_path}/a?.csv")[1]] == ["a1.csv"]

    def test_name_with_characters_of_a_pattern(self, tmp_path):
        write(tmp_path, "a[1].csv", b"")
        write(tmp_path, "a1.csv", b"")
        assert [f.name for f in reader.landing_files(f"{tmp_path}/a[1].csv")[1]] == ["a[1].csv"]

    def test_none(self, tmp_path):
        assert reader.landing_files(f"{tmp_path}/*.csv")[1] == []

    def test_folder(self, tmp_path):
        with pytest.raises(SpecError, match=r"source must be a file or a glob, got .*; for all files of the folder"):
            reader.landing_files(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.csv", "csv"),
        ("a.CSV.GZ", "csv.gz"),
        ("a.b.jsonl.zst", "jsonl.zst"),
        ("a.ndjson", "jsonl"),
        ("a.xlsx", "xlsx"),
        ("a", ""),
    ],
)
def test_format(name, expected):
    assert reader.file_format(Path(name)) == expected


class TestBlocks:
    def lines(self, path):
        return [(number, line) for number, line in reader.Lines(path)]

    @pytest.mark.parametrize("body", [b"", b"a", b"a\n", b"a\nb", b"a\r\nb\r\n", b"\n\na\n", b"\xef\xbb\xbfa\nb\n"])
    @pytest.mark.parametrize("size", [1, 3, 1 << 20])
    def test_lines_do_not_depend_on_block_size(self, tmp_path, monkeypatch, body, size):
        monkeypatch.setattr(reader, "BLOCK", size)
        monkeypatch.setattr(reader, "_STEP", size)
        expected = [line.rstrip(b"\r") for line in body.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
        if expected and expected[-1] == b"":
            expected.pop()
        found = self.lines(write(tmp_path, "a.csv", body))
        assert found == list(enumerate(expected, 1))

    def test_packed(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        body = b"a,b\n" * 1000
        write(tmp_path, "a.csv.gz", gzip.compress(body) + gzip.compress(b"tail\n"))
        with pa.CompressedOutputStream(str(tmp_path / "a.csv.zst"), "zstd") as stream:
            stream.write(body + b"tail\n")
        plain = self.lines(write(tmp_path, "a.csv", body + b"tail\n"))
        assert self.lines(tmp_path / "a.csv.gz") == self.lines(tmp_path / "a.csv.zst") == plain

    @pytest.mark.parametrize("cut", [0, 1, 12, 200, -1])
    def test_cut_off_gzip(self, tmp_path, cut):
        whole = gzip.compress(bytes(str(list(range(2000))), "ascii"))
        path = write(tmp_path, "a.csv.gz", whole[:cut])
        with pytest.raises(reader.BadFile, match="cut off"):
            self.lines(path)

    def test_damaged_gzip(self, tmp_path):
        whole = bytearray(gzip.compress(b"a,b,c\n" * 500))
        whole[-6] ^= 0xFF  # the checksum
        with pytest.raises(reader.BadFile, match="cut off or damaged: CRC check failed"):
            self.lines(write(tmp_path, "a.csv.gz", bytes(whole)))

    def test_not_gzip_at_all(self, tmp_path):
        with pytest.raises(reader.BadFile, match="Not a gzipped file"):
            self.lines(write(tmp_path, "a.csv.gz", b"a,b,c\n"))

    def test_cut_off_zstd(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        with pa.CompressedOutputStream(str(tmp_path / "a.csv.zst"), "zstd") as stream:
            stream.write(bytes(str(list(range(2000))), "ascii"))
        path = write(tmp_path, "a.csv.zst", (tmp_path / "a.csv.zst").read_bytes()[:-5])
        with pytest.raises(reader.BadFile, match="cut off or damaged: Truncated"):
            self.lines(path)

    def test_what_precedes_the_cut_is_counted(self, tmp_path):
        whole = gzip.compress(b"".join(b"%d,b,c\n" % (i * 7919) for i in range(20000)))
        path, read = write(tmp_path, "a.csv.gz", whole[: len(whole) // 2]), 0
        with pytest.raises(reader.BadFile):  # noqa: PT012 - the rows before the error are what is tested
            for batch in reader.csv_batches(reader.Lines(path), 3, ","):
                read += len(batch)
        assert 5000 < read < 15000

    def test_not_utf8(self, tmp_path):
        path = write(tmp_path, "a.csv", "a,b\nü,1\nÄ,2\n".encode("latin-1"))
        with pytest.raises(reader.BadFile, match="not UTF-8: byte 0xfc in line 2"):
            self.lines(path)

    def test_endless_line(self, tmp_path, monkeypatch):
        monkeypatch.setattr(reader, "MAX_LINE", 100)
        with pytest.raises(reader.BadFile, match="line 2 is longer than 100 bytes"):
            self.lines(write(tmp_path, "a.csv", b"a\n" + b"x" * 1000))


class TestCsv:
    def test_plain(self, tmp_path):
        path = write(tmp_path, "a.csv", b"1,2,3\n\n4,,\n5,6\n7,8,9,10\n")
        good, broken = records(path)
        assert good == [(1, b"1,2,3"), (3, b"4,,")]
        assert broken == [(4, "5,6", "2 fields instead of 3"), (5, "7,8,9,10", "4 fields instead of 3")]

    def test_quotes_and_their_line_numbers(self, tmp_path):
        path = write(tmp_path, "a.csv", b'1,"x,y",3\r\n2,"two\r\nlines",3\r\n3,"a ""b""",3\r\n4,y,z\r\n')
        good, broken = records(path)
        assert [line for line, _ in good] == [1, 2, 4, 5]
        assert good[1][1] == b'2,"two\r\nlines",3'
        assert not broken

    def test_long_values(self, tmp_path):
        """The csv module's own limit is 128 KiB."""
        csv.field_size_limit(131072)
        good, broken = records(write(tmp_path, "a.csv", b'1,"' + b"x" * 200_000 + b'",3\n'))
        assert (len(good), broken) == (1, [])

    def test_normal_form(self, tmp_path):
        path = write(tmp_path, "a.csv", b'1,"x,y",say "hi"\n')
        (batch,) = reader.csv_batches(reader.Lines(path), 3, ",")
        assert batch.records == [b'"1","x,y","say ""hi"""']

    def test_broken_quote_costs_one_line(self, tmp_path):
        path = write(tmp_path, "a.csv", b'1,"open,3\n2,b,c\n3,"d",e\n4,f,g\n')
        good, broken = records(path)
        assert [line for line, _ in good] == [2, 3, 4]
        assert broken[0][:2] == (1, '1,"open,3')
        assert broken[0][2].startswith("broken line: ")

    def test_quote_that_never_ends_costs_one_line(self, tmp_path):
        rows = [b"%d,b,c" % i for i in range(1000)]
        rows[10] = b'10,"b,c'
        good, broken = records(write(tmp_path, "a.csv", b"\n".join(rows)))
        assert len(good) == 999
        assert [b[0] for b in broken] == [11]

    def test_nul_and_lone_carriage_return(self, tmp_path):
        good, broken = records(write(tmp_path, "a.csv", b"1,\0,3\n1,a\rb,3\n1,2,3\n"))
        assert [line for line, _ in good] == [3]
        assert [line for line, *_ in broken] == [1, 2]

    def test_delimiter(self, tmp_path):
        assert records(write(tmp_path, "a.csv", b"1;2,5;3\n"), delimiter=";")[0] == [(1, b"1;2,5;3")]

    def test_blocks_make_no_difference(self, tmp_path, monkeypatch):
        body = b"".join(b'%d,"multi\nline %d",x\n%d,y,z\nbad\n' % (i, i, i) for i in range(50))
        path = write(tmp_path, "a.csv", body)
        whole = records(path)
        monkeypatch.setattr(reader, "BLOCK", 16)
        monkeypatch.setattr(reader, "_STEP", 16)
        assert records(path) == whole
        assert (len(whole[0]), len(whole[1])) == (100, 50)

    @pytest.mark.parametrize(
        ("body", "expected"),
        [(b"", None), (b"\n \n", None), (b"\xef\xbb\xbfa, b\r\n1,2\n", ["a", "b"]), (b'\n"a,b",c\n', ["a,b", "c"])],
    )
    def test_header(self, tmp_path, body, expected):
        assert reader.csv_header(reader.Lines(write(tmp_path, "a.csv", body)), ",") == expected

    def test_broken_header(self, tmp_path):
        with pytest.raises(reader.BadFile, match="the header in line 1 is not CSV"):
            reader.csv_header(reader.Lines(write(tmp_path, "a.csv", b'"a,b\n')), ",")


def test_json_lines(tmp_path):
    path = write(tmp_path, "a.jsonl", b'{"a": 1}\n\n  \n{"a":\0}\n{"b": 2}')
    (batch,) = reader.jsonl_batches(reader.Lines(path))
    assert list(zip(batch.lines, batch.raw, strict=True)) == [(1, b'{"a": 1}'), (5, b'{"b": 2}')]
    assert [(b.line, b.reason) for b in batch.broken] == [(4, "broken JSON: a NUL character")]
