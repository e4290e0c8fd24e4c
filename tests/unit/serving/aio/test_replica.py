"""What a server's output is, line by line."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("aiohttp")

from airflow_ml_provider.serving.aio.replica import _CHUNK, _lines


def lines(*chunks: bytes) -> list[str]:
    async def work() -> list[str]:
        stream = asyncio.StreamReader()
        for chunk in chunks:
            stream.feed_data(chunk)
        stream.feed_eof()
        return [line async for line in _lines(stream)]

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("chunks", "found"),
    [
        ([], []),
        ([b"one\ntw", b"o\n"], ["one", "two"]),
        ([b"one\r\n\nlast"], ["one", "", "last"]),
        ([b"\xff\n"], ["\ufffd"]),
    ],
)
def test_lines(chunks: list[bytes], found: list[str]) -> None:
    assert lines(*chunks) == found


def test_a_line_without_an_end_is_given_in_pieces() -> None:
    """Otherwise the pipe would fill, and the server stand still."""
    found = lines(b"x" * (3 * _CHUNK) + b"\nend\n")
    assert "".join(found) == "x" * (3 * _CHUNK) + "end"
    assert max(map(len, found)) <= 2 * _CHUNK
