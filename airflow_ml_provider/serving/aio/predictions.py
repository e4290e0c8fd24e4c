"""A sample of requests and answers as JSON lines, one file a day, for monitoring later."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

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
        self.dropped = 0

    def add(self, version: str, traffic: str, request: bytes, response: bytes, milliseconds: float) -> None:
        """Keep one request and its answer."""
        if len(self._lines) >= _MOST:
            self.dropped += 1
            return
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "version": version,
            "traffic": traffic,
            "milliseconds": round(milliseconds, 3),
            "request": json.loads(request, parse_constant=lambda _: None),  # NaN is not JSON
            "response": json.loads(response),
        }
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
