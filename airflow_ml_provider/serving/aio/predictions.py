"""A sample of requests and answers as JSON lines, one file a day, for monitoring later."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from array import array
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

Key = Optional[tuple[str, str]]
"""What a request carried, and the version that it has by it."""

log = logging.getLogger(__name__)

_EVERY_S, _MOST = 0.5, 10_000
EXAMPLES = 100  # of copies that were answered otherwise, for each split


class Met:
    """Which keys were met before, in memory of a fixed size: a table with one place for every key's hash.

    A key that has taken the place of another one lets that be new again, never the other way round: of n keys that ask
    at random, (1 - exp(-n / places)) · places / n of the requests find their own. For 2^20 places that are 95 % with
    100 000 keys and 64 % with a million.

    Parameters:
        places: 8 bytes each.
    """

    def __init__(self, places: int = 2**20) -> None:
        self._places = places
        self._marks = array("Q")

    def __contains__(self, key: tuple[str, str]) -> bool:
        mark = _mark(key)
        return bool(self._marks) and self._marks[mark % self._places] == mark

    def add(self, key: tuple[str, str]) -> None:
        """Remember a key."""
        if not self._marks:
            self._marks = array("Q", bytes(8 * self._places))
        mark = _mark(key)
        self._marks[mark % self._places] = mark

    def clear(self) -> None:
        """Forget them all."""
        self._marks = array("Q")


def _mark(key: tuple[str, str]) -> int:
    return hash(key) % 2**64 or 1  # 0 is an empty place


class PredictionLog:
    """Lines that are written twice a second by another thread; what comes faster than the disk is dropped and counted.

    Parameters:
        folder: gets `YYYY-MM-DD.jsonl` files (UTC).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: list[str] = []
        self._writer: Optional[asyncio.Task[None]] = None
        self._met = Met()
        self._examples = 0
        self.dropped = 0

    def is_new(self, sticky: Key) -> bool:
        """Return whether a key may not have been logged with its version since the last `begin_anew`.

        Who was logged is never new, but when so many have come that `Met` has forgotten it; another line does no harm,
        since the first one of a key counts.
        """
        return sticky is not None and sticky not in self._met

    def begin_anew(self) -> None:
        """Log every key, and examples, again: the split is another one."""
        self._met.clear()
        self._examples = 0

    def wants_example(self) -> bool:
        """Return whether one more request whose copy was answered otherwise is to be kept, and count it."""
        self._examples += 1
        return self._examples <= EXAMPLES

    def add(
        self,
        version: str,
        traffic: str,
        request: Mapping[str, Any],
        response: Mapping[str, Any],
        milliseconds: float,
        sticky: Key = None,
        users: Optional[tuple[str, Mapping[str, Any]]] = None,
    ) -> None:
        """Keep one request and its answer.

        Parameters:
            version: who answered.
            traffic: kind of traffic.
            request: as JSON has it.
            response: likewise.
            milliseconds: how long it took.
            sticky: the key that the request carried, and the version that it has by it.
            users: of a copy that was answered otherwise: the version that answered the user, and that answer.
        """
        if len(self._lines) >= _MOST:
            self.dropped += 1
            return
        if sticky:
            self._met.add(sticky)
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "version": version,
            "traffic": traffic,
            "milliseconds": round(milliseconds, 3),
            "request": request,
            "response": response,
        }
        if sticky:
            line["key"], line["assigned"] = sticky
        if users:
            line["user"] = {"version": users[0], "response": users[1]}
        self._lines.append(json.dumps(line))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what is left."""
        while self._writer is not None:
            await asyncio.wait([self._writer])

    async def _write(self) -> None:
        while self._lines:
            await asyncio.sleep(_EVERY_S)
            lines, self._lines = self._lines, []
            await asyncio.get_running_loop().run_in_executor(None, self._append, lines)
        self._writer = None

    def _append(self, lines: list[str]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / time.strftime("%Y-%m-%d.jsonl", time.gmtime())
            with open(path, "a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))
        except OSError as error:
            self.dropped += len(lines)
            log.error("%d predictions were not logged: %s", len(lines), error)
