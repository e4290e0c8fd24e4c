"""Landing files as batches of whole records with their line numbers, in bounded memory.

Structure is judged here and exactly: damaged files raise `BadFile`, broken lines come out as `Broken` with their text.
What a value means is the table engine's business.
"""

from __future__ import annotations

import csv
import glob
import gzip
import re
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Callable, Optional

from airflow_ml_provider.exceptions import DataError, invalid
from airflow_ml_provider.tables import local_path

BLOCK = 4 << 20  # bytes that are handed on at a time
_STEP = 1 << 18
MAX_LINE = 4 << 20  # bytes; a longer line means that this is no text of rows
MAX_SPAN = 100  # lines that one quoted value may span; a quote that never ends must not swallow the file
_KINDS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_PACKED = (".gz", ".zst")
_MAGIC = re.compile(r"[*?\[]")


class BadFile(DataError):
    """A landing file that cannot be used as a whole; the message is the reason in the dead letters."""


@dataclass(frozen=True)
class Broken:
    """A record that is not even a row: the number of its line, its text and what is wrong."""

    line: int
    raw: str
    reason: str


@dataclass
class Batch:
    """Whole records of one file.

    Attributes:
        lines: number of the line on which each record begins.
        raw: each record as it stands in the file.
        records: the same; of CSV files in a form that any reader of CSV understands.
        broken: records that are not rows.
    """

    lines: list[int] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines) + len(self.broken)

    def add(self, line: int, raw: bytes, record: bytes) -> None:
        self.lines.append(line)
        self.raw.append(raw)
        self.records.append(record)


def landing_files(source: str) -> tuple[Path, list[Path]]:
    """Return the folder that `source` begins with, and the files that match it in order of their names.

    Raises:
        SpecError: `source` is a folder.
    """
    path = local_path(source)
    if path.is_dir():
        raise invalid("source", source, "a file or a glob", f"for all files of the folder give {source.rstrip('/')}/*")
    fixed = list(path.parts[:-1])
    for position, part in enumerate(fixed):
        if _MAGIC.search(part):
            del fixed[position:]
            break
    base = Path(*fixed) if fixed else Path(".")
    # A name that exists is meant as it is, even if it has characters of a pattern in it.
    names = [str(path)] if path.is_file() else glob.glob(str(path), recursive=True)
    return base, sorted((Path(n) for n in names if Path(n).is_file()), key=lambda p: p.relative_to(base).as_posix())


def file_format(path: Path) -> str:
    """Return `csv`, `csv.gz`, `jsonl.zst` … as the name tells; the bare suffix when it is none of them."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if suffix in _PACKED else suffix
    kind = _KINDS.get(inner, inner.lstrip("."))
    return kind + suffix if suffix in _PACKED else kind


@dataclass
class Block:
    """Some whole lines of a file.

    Attributes:
        first: number of the first line, counted from 1.
        lines: the lines without their ends.
        plain: no quote, no carriage return and no NUL is among them.
    """

    first: int
    lines: list[bytes]
    plain: bool


def blocks(path: Path) -> Iterator[Block]:
    """Give the lines of a file, unpacked.

    Raises:
        BadFile: it is cut off, damaged, not UTF-8, or has a line of more than `MAX_LINE` bytes.
    """
    number, rest = 1, b""
    for chunk in _chunks(path):
        text = rest + chunk
        cut = text.rfind(b"\n") + 1 if chunk else len(text)
        body, rest = text[:cut], text[cut:]
        if len(rest) > MAX_LINE:
            raise BadFile(f"line {number + body.count(10)} is longer than {MAX_LINE} bytes: not a file of rows")
        if body:
            if number == 1:
                body = body.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
            _check_text(body, number)
            plain = b'"' not in body and b"\0" not in body
            if plain and b"\r" in body:
                body = body.replace(b"\r\n", b"\n")
                plain = b"\r" not in body
            lines = body.split(b"\n")
            if body.endswith(b"\n"):
                lines.pop()
            yield Block(number, lines, plain)
            number += len(lines)


class Lines:
    """The lines of a file, block by block or one by one with their numbers; lines can be put back."""

    def __init__(self, path: Path) -> None:
        self._blocks = blocks(path)
        self._block = Block(1, [], True)
        self._at = 0
        self._back: deque[tuple[int, bytes]] = deque()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return self

    def __next__(self) -> tuple[int, bytes]:
        if self._back:
            return self._back.popleft()
        while self._at >= len(self._block.lines):
            self._block, self._at = next(self._blocks), 0
        self._at += 1
        return self._block.first + self._at - 1, self._block.lines[self._at - 1]

    def put_back(self, items: list[tuple[int, bytes]]) -> None:
        self._back.extendleft(reversed(items))

    def rest_of_block(self, wanted: Callable[[Block], bool]) -> Optional[Block]:
        """Take what is left of the block at hand, or the next one, if nothing was put back and it is as wanted."""
        if self._back:
            return None
        if self._at >= len(self._block.lines):
            self._block, self._at = next(self._blocks, Block(1, [], True)), 0
        block = Block(self._block.first + self._at, self._block.lines[self._at :], self._block.plain)
        if not block.lines or not wanted(block):
            return None
        self._at = len(self._block.lines)
        return block


def csv_header(lines: Lines, delimiter: str) -> Optional[list[str]]:
    """Take the header of a CSV file; none when the file holds nothing.

    Raises:
        BadFile: it is not a line of CSV.
    """
    for number, line in lines:
        text = line.rstrip(b"\r").decode()
        if text.strip():
            _allow_long_values()
            try:
                names = next(csv.reader([text], delimiter=delimiter, strict=True))
            except csv.Error as error:
                raise BadFile(f"the header in line {number} is not CSV: {error}") from None
            return [name.strip() for name in names]
    return None


def csv_batches(lines: Lines, width: int, delimiter: str) -> Iterator[Batch]:
    """Give the records below the header; a record that is not `width` fields of CSV comes out broken.

    After a broken quote reading goes on with the very next line, so that one bad line costs no good one.
    """
    _allow_long_values()
    comma = delimiter.encode()

    def wanted(block: Block) -> bool:
        return block.plain and set(map(bytes.count, block.lines, repeat(comma))) == {width - 1} and all(block.lines)

    def take(batch: Batch, number: int, line: bytes) -> None:
        plain = line[:-1] if line.endswith(b"\r") else line
        if not plain:
            return
        if b'"' in plain or b"\r" in plain or b"\0" in plain:
            _take_quoted(batch, number, line, lines, width, delimiter)
        elif (fields := plain.count(comma) + 1) == width:
            batch.add(number, plain, plain)
        else:
            batch.broken.append(Broken(number, plain.decode(), _width(fields, width)))

    return _batches(lines, wanted, take)


def jsonl_batches(lines: Lines) -> Iterator[Batch]:
    """Give the lines that hold anything; whether it is JSON is for the table engine to say."""

    def wanted(block: Block) -> bool:
        return not any(b"\0" in line or not line or line.isspace() for line in block.lines)

    def take(batch: Batch, number: int, line: bytes) -> None:
        if b"\0" in line:
            batch.broken.append(Broken(number, line.decode(), "broken JSON: a NUL character"))
        elif line and not line.isspace():
            batch.add(number, line, line)

    return _batches(lines, wanted, take)


def _batches(
    lines: Lines, wanted: Callable[[Block], bool], take: Callable[[Batch, int, bytes], None]
) -> Iterator[Batch]:
    """Give batches of about `BLOCK` bytes; when the file turns out bad, first what was read of it."""
    bad: Optional[BadFile] = None
    while bad is None:
        batch, size = Batch(), 0
        try:
            # A block in which every line is a record, which is the rule, costs no work per line.
            if block := lines.rest_of_block(wanted):
                yield Batch(list(range(block.first, block.first + len(block.lines))), block.lines, block.lines)
                continue
            while size < BLOCK and (item := next(lines, None)) is not None:
                take(batch, *item)
                size += len(item[1]) + 1
        except BadFile as error:
            bad = error
        if len(batch):
            yield batch
        if not size and bad is None:
            return
    raise bad


def _take_quoted(batch: Batch, number: int, line: bytes, lines: Lines, width: int, delimiter: str) -> None:
    """Add the record that begins with `line`, which has quotes and may go on in the next lines."""
    taken = [(number, line)]

    def feed() -> Iterator[str]:
        while True:
            if b"\0" in taken[-1][1]:
                raise csv.Error("a NUL character")
            yield taken[-1][1].decode() + "\n"
            item = next(lines, None) if len(taken) < MAX_SPAN else None
            if item is None:
                return
            taken.append(item)

    try:
        fields = next(csv.reader(feed(), delimiter=delimiter, strict=True))
        reason = "" if len(fields) == width else _width(len(fields), width)
    except csv.Error as error:
        text = "a carriage return outside quotes" if "new-line character" in str(error) else str(error)
        fields, reason = [], f"broken line: {text}"
    if reason:
        lines.put_back(taken[1:])
        batch.broken.append(Broken(number, line.rstrip(b"\r").decode(), reason))
        return
    record = delimiter.join('"' + text.replace('"', '""') + '"' for text in fields).encode()
    batch.add(number, b"\n".join(text for _, text in taken).rstrip(b"\r"), record)


def _allow_long_values() -> None:
    """Let the csv module read values as long as lines may be. Its limit is the whole process's: it is only raised."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_SPAN * MAX_LINE))


def _width(found: int, expected: int) -> str:
    return f"{found} field{'s' if found != 1 else ''} instead of {expected}"


def _chunks(path: Path) -> Iterator[bytes]:
    """Give the unpacked bytes and, at a sound end, an empty chunk; what precedes damage is given before the error."""
    packed = path.suffix.lower() if path.suffix.lower() in _PACKED else ""
    if packed and path.stat().st_size == 0:
        raise BadFile("a packed file of 0 bytes: it was cut off")
    parts: list[bytes] = []
    size, damage = 0, None
    with _open(path, packed) as stream:
        while damage is None:
            try:
                part = stream.read1(_STEP) if packed == ".gz" else stream.read(_STEP)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                part, damage = b"", BadFile(f"cut off or damaged: {error}")
            except OSError as error:
                if packed != ".zst" or error.errno is not None:  # Arrow's errors about the stream have no number
                    raise
                part, damage = b"", BadFile(f"cut off or damaged: {error}")
            parts.append(part)
            size += len(part)
            if size >= BLOCK or (not part and parts):
                yield b"".join(parts)
                parts, size = [], 0
            if not part:
                break
    if damage:
        raise damage
    yield b""


def _open(path: Path, packed: str) -> Any:
    if packed == ".gz":
        return gzip.open(path, "rb")
    if packed == ".zst":
        import pyarrow as pa

        return pa.input_stream(str(path), compression="zstd")
    return open(path, "rb")


def _check_text(body: bytes, number: int) -> None:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = number + body[: error.start].count(b"\n")
        raise BadFile(f"not UTF-8: byte 0x{body[error.start]:02x} in line {line}") from None
