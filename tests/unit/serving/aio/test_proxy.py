"""Copies beside the users' answers, with real HTTP and servers that answer as a test says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("aiohttp")

import aiohttp
from aiohttp import web

from airflow_ml_provider.serving.aio.gateway_rest import RestUsers
from airflow_ml_provider.serving.aio.predictions import EXAMPLES, PredictionLog
from airflow_ml_provider.serving.aio.proxy import MIRRORS, Proxy, Routes
from airflow_ml_provider.serving.spec import Version, Wanted
from airflow_ml_provider.serving.split import Split
from airflow_ml_provider.serving.stats import VersionStats

WANTED = Wanted(
    {"1": Version("/m", "sha256:" + "a" * 64, percent=100), "2": Version("/m", "sha256:" + "b" * 64, mirror=100)},
    stable="1",
    timeout_s=5,
)
ASKED = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [7]}]}


def good(score: float) -> tuple[int, Any]:
    return 200, {"outputs": [{"name": "score", "datatype": "FP32", "shape": [1], "data": [score]}]}


class Servers:
    """A proxy in front of two servers; each gives `(status, body)` for a request, perhaps only when it may."""

    def __init__(self, folder: Path, **answers: tuple[int, Any]) -> None:
        self.folder, self.answers = folder, answers
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.routes = Routes(WANTED, Split.of(WANTED))
        self._runners: list[web.AppRunner] = []

    async def __aenter__(self) -> Servers:
        self._session = aiohttp.ClientSession()
        for name, answer in self.answers.items():
            url = await self._serve("/v2/models/late/infer", self._server(name, answer))
            replica: Any = SimpleNamespace(version=name.strip("v"), url=url, ready=True, lost=lambda: None)
            self.routes.replicas[replica.version] = replica
            self.routes.stats[replica.version] = VersionStats.empty(WANTED.score_edges)
        self.log = PredictionLog(self.folder)
        self.proxy = Proxy("late", self.routes, self.log)
        self.url = await self._serve("/infer", RestUsers(self.proxy, self._session).infer)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.proxy.close()
        await self.log.close()
        await self._session.close()
        for runner in self._runners:
            await runner.cleanup()

    def _server(self, name: str, answer: tuple[int, Any]) -> Any:
        async def handle(request: web.Request) -> web.Response:
            if name == "v2":
                await self.may_answer.wait()
            status, body = answer
            return web.json_response(body, status=status)

        return handle

    async def _serve(self, path: str, handler: Any) -> str:
        app = web.Application()
        app.router.add_post(path, handler)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def ask(self) -> tuple[int, str]:
        async with self._session.post(f"{self.url}/infer", json=ASKED) as response:
            await response.read()
            return response.status, response.headers["x-model-version"]

    async def copied(self, count: int) -> VersionStats:
        """Return the candidate's counters once so many copies are dealt with."""
        stats = self.routes.stats["2"]

        async def dealt_with() -> None:
            while stats.mirror.requests < count or self.proxy._mirrors:
                await asyncio.sleep(0.005)

        await asyncio.wait_for(dealt_with(), 10)
        return stats

    def examples(self) -> list[dict[str, Any]]:
        """Return what was logged."""
        lines = [line for path in self.folder.glob("*.jsonl") for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("copy", "counted"),
    [
        (good(0.505), (1, 1)),
        (good(0.6), (1, 0)),
        ((400, {"error": "not mine"}), (1, 0)),
        ((500, {"error": "broken"}), (0, 0)),
        ((200, "no answer of the protocol"), (0, 0)),
        ((503, {"error": "ending"}), (0, 0)),
    ],
)
def test_a_copy_is_compared_and_the_user_sees_nothing_of_it(tmp_path, copy, counted):
    async def work() -> Servers:
        async with Servers(tmp_path, v1=good(0.5), v2=copy) as servers:
            assert await servers.ask() == (200, "1")
            stats = await servers.copied(1)
            assert (stats.compared, stats.agreed) == counted
            assert (servers.routes.stats["1"].compared, servers.routes.stats["1"].live.requests) == (0, 1)
        return servers

    differ = asyncio.run(work()).examples()
    assert len(differ) == counted[0] - counted[1]
    for line in differ:
        assert (line["version"], line["traffic"], line["request"]) == ("2", "mirror", ASKED)
        assert line["response"] == (copy[1] if copy[0] == 200 else {"error": json.dumps(copy[1])})
        assert line["user"] == {"version": "1", "response": good(0.5)[1]}


def test_a_bad_request_tells_nothing(tmp_path):
    async def work() -> None:
        async with Servers(tmp_path, v1=(400, {"error": "bad"}), v2=good(0.5)) as servers:
            assert await servers.ask() == (400, "1")
            assert (await servers.copied(1)).compared == 0

    asyncio.run(work())


def test_the_user_does_not_wait_for_the_copy(tmp_path):
    async def work() -> None:
        async with Servers(tmp_path, v1=good(0.5), v2=good(0.5)) as servers:
            servers.may_answer.clear()
            for _ in range(MIRRORS + 3):  # all of which hang
                assert await asyncio.wait_for(servers.ask(), 4) == (200, "1")
            servers.may_answer.set()
            stats = await servers.copied(MIRRORS)
            assert (stats.compared, stats.agreed, stats.mirror_dropped) == (MIRRORS, MIRRORS, 3)

    asyncio.run(work())


def test_a_few_examples_are_kept_for_each_split(tmp_path):
    async def work() -> Servers:
        async with Servers(tmp_path, v1=good(0.5), v2=good(0.9)) as servers:
            for count in range(EXAMPLES + 5):
                await servers.ask()
                await servers.copied(count + 1)
            assert servers.routes.stats["2"].compared == EXAMPLES + 5
            servers.log.begin_anew()
            await servers.ask()
            await servers.copied(EXAMPLES + 6)
        return servers

    assert len(asyncio.run(work()).examples()) == EXAMPLES + 1
