"""One model server as a child process: started, watched, started again, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Optional

import aiohttp

from airflow_ml_provider.runtime.protocol import EXIT_TERMINAL

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
STEADY_S = 60.0  # a server that was ready for so long has a clean record
LOOP = 3  # so many starts in a row that did not last are a crash loop
LOADING_PROBE_S, PROBE_S, PROBE_TIMEOUT_S, MISSES = 0.05, 1.0, 5.0, 3
_TAIL, _CHUNK = 20, 2**16


class Replica:
    """The server process of one version over all its restarts.

    Parameters:
        version: its name, for the log.
        command: what starts the server; it prints `{"port": …}` first, with `grpc` if it listens there, too.
        env: its environment.
        cwd: its working directory.
        session: HTTP client for the probes.
        grace_s: how long it may take to end by itself.

    Attributes:
        state: as in `spec.Status`.
        url: where it answers; empty while it has no port.
        grpc: likewise over gRPC, as `HOST:PORT`.
        pid: of the process; none while there is none.
        restarts: how often it was started again.
        reason: why it is not ready.
    """

    def __init__(
        self,
        version: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        session: aiohttp.ClientSession,
        grace_s: float = 35.0,
    ) -> None:
        self.version, self.state, self.url, self.reason, self.restarts = version, "loading", "", "", 0
        self.grpc = ""
        self.pid: Optional[int] = None
        self._command, self._env, self._cwd, self._session, self._grace_s = command, env, cwd, session, grace_s
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._process: Optional[asyncio.subprocess.Process] = None
        self._stopping = asyncio.Event()
        self._short_lives, self._ready_since = 0, 0.0
        self._task = asyncio.create_task(self._run())

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def lost(self) -> None:
        """Take note that it refused a connection: it is not ready until a probe has found it so."""
        if self.state == "ready":
            self.state, self.reason = "loading", "refused a connection"

    async def stop(self) -> None:
        """Take it out of service and let it finish what it is at; kill it when that takes too long."""
        self.state = "draining"
        self._stopping.set()
        self._send(signal.SIGTERM)
        done, _ = await asyncio.wait([self._task], timeout=self._grace_s)
        if not done:
            self._send(signal.SIGKILL)
            await self._task

    async def _run(self) -> None:
        while True:
            code = await self._live()
            self.url, self.pid = "", None
            if self._stopping.is_set():
                return
            self._ended(code)
            if self.state == "failed":
                return
            pause = min(FIRST_PAUSE_S * 2 ** (self._short_lives - 1), LONGEST_PAUSE_S)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            if self._stopping.is_set():
                return
            self.restarts += 1

    async def _live(self) -> int:
        """Start the process, watch it to its end and return its exit code."""
        self._tail.clear()
        self._ready_since = 0.0
        if self._short_lives < LOOP:
            self.state = "loading"
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command, env=dict(self._env), cwd=self._cwd,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            self._tail.append(str(error))
            return EXIT_TERMINAL
        self.pid = process.pid
        if self._stopping.is_set():  # it was asked for while the process was being made
            self._send(signal.SIGTERM)
        watching = asyncio.create_task(self._watch())
        reading = [asyncio.create_task(self._read_output()), asyncio.create_task(self._read_errors())]
        code = await process.wait()
        watching.cancel()
        await asyncio.wait(reading, timeout=2.0)  # something that it started may hold the pipes open
        for task in reading:
            task.cancel()
        return code

    def _ended(self, code: int) -> None:
        """Take note of an end that nobody asked for."""
        lasted = self._ready_since and asyncio.get_running_loop().time() - self._ready_since >= STEADY_S
        self._short_lives = 1 if lasted else self._short_lives + 1
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.reason = "; last lines:\n".join([how, *(["\n".join(self._tail)] if self._tail else [])])
        self.state = "crash_loop" if self._short_lives >= LOOP else "waiting"
        if code == EXIT_TERMINAL:
            self.state = "failed"
        log.error("version %s is down: %s", self.version, self.reason)

    async def _watch(self) -> None:
        """Ask the server whether it is ready, again and again; kill one that has stopped answering."""
        misses = 0
        while True:
            await asyncio.sleep(PROBE_S if self.ready else LOADING_PROBE_S)
            found = await self._probe()
            if found is None and self._ready_since:
                misses += 1
                if misses >= MISSES:
                    self._tail.append(f"killed: it did not answer {MISSES} probes of {PROBE_TIMEOUT_S} s")
                    self._send(signal.SIGKILL)
                    return
            else:
                misses = 0
            self._probed(bool(found))

    async def _probe(self) -> Optional[bool]:
        """Return whether the server is ready; none when it does not answer."""
        if not self.url:
            return False
        try:
            timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
            async with self._session.get(f"{self.url}/v2/health/ready", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return None

    def _probed(self, ready: bool) -> None:
        if self._stopping.is_set():
            return
        if ready:
            self._ready_since = self._ready_since or asyncio.get_running_loop().time()
            self.state, self.reason = "ready", ""
        elif self.ready:
            self.state, self.reason = "loading", "says that it is not ready"

    async def _read_output(self) -> None:
        """Take the port from the first line; the rest is for the log."""
        async for line in _lines(self._process.stdout if self._process else None):
            if self.url:
                log.info("version %s: %s", self.version, line)
            elif line.startswith('{"port":'):
                ports = json.loads(line)
                self.grpc = f"127.0.0.1:{ports['grpc']}" if "grpc" in ports else ""
                self.url = f"http://127.0.0.1:{ports['port']}"

    async def _read_errors(self) -> None:
        async for line in _lines(self._process.stderr if self._process else None):
            self._tail.append(line[:500])
            log.info("version %s: %s", self.version, line)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


async def _lines(stream: Optional[asyncio.StreamReader]) -> AsyncIterator[str]:
    """Give the lines of a stream; one that is too long for its buffer in pieces, which `readline` would stop at."""
    rest = b""
    while stream is not None and (chunk := await stream.read(_CHUNK)):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) >= _CHUNK:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.decode(errors="replace").rstrip()
    if rest:
        yield rest.decode(errors="replace").rstrip()
