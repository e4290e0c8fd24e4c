"""A sample of requests and answers as JSON lines, one file a day, for monitoring later."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

Key = Optional[tuple[str, str]]
"""What a request carried, and the version that it has by it."""

log = logging.getLogger(__name__)

_EVERY_S, _MOST = 0.5, 10_000


class PredictionLog:
    """Lines that are written twice a second by another thread; what comes faster than the disk is dropped and counted.

    Parameters:
        folder: gets `YYYY-MM-DD.jsonl` files (UTC).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: list[str] = []
        self._writer: Optional[asyncio.Task[None]] = None
        self._met: set[tuple[str, str]] = set()
        self.dropped = 0

    def is_new(self, sticky: Key) -> bool:
        """Return whether a key has not been logged with its version since the last `begin_anew`."""
        return sticky is not None and sticky not in self._met

    def begin_anew(self) -> None:
        """Log every key again: the split is another one."""
        self._met.clear()

    def add(
        self,
        version: str,
        traffic: str,
        request: Mapping[str, Any],
        response: Mapping[str, Any],
        milliseconds: float,
        sticky: Key = None,
    ) -> None:
        """Keep one request and its answer.

        Parameters:
            version: who answered.
            traffic: kind of traffic.
            request: as JSON has it.
            response: likewise.
            milliseconds: how long it took.
            sticky: the key that the request carried, and the version that it has by it.
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
