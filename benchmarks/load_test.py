"""How fast the load test's generator can ask: delivered rate against the one asked for, and how late it is.

    python benchmarks/load_test.py --rates 100,500,1000,2000 --seconds 5

The server is another process that answers at once with a fixed body, on the same machine: what is late is the generator
(or the machine). The usual event loop is measured beside the one that the stage uses.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from airflow_ml_provider.stages.load_test import generator, logic
from airflow_ml_provider.stages.load_test.logic import Step
from airflow_ml_provider.stages.load_test.rest import RestClient

_SERVER = r"""
import asyncio
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"outputs":[]}'
class Peer(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data):
        # aiohttp sends head and body apart; a body of this benchmark ends with a space.
        if data.endswith(b" "): self.transport.write(ANSWER)
async def main():
    server = await asyncio.get_running_loop().create_server(Peer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
_ROW = {"inputs": [{"name": f"x{i}", "datatype": "FP32", "shape": [1, 1], "data": [1.0]} for i in range(20)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default="100,250,500,1000,2000", help="requests per second, by commas")
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    print("loop     asked/s  answered/s  lag p50 ms  lag p99 ms  latency p50 ms  latency p99 ms")
    with _server() as port:
        for rate in map(float, args.rates.split(",")):
            with generator.punctual() as loop:
                _show("select", loop.run_until_complete(_measure(port, rate, args.seconds)))
            _show("usual", asyncio.run(_measure(port, rate, args.seconds)))


class _Client(RestClient):
    def prepare(self, requests: object) -> None:
        self._bodies = [json.dumps(_ROW).encode() + b" "]


async def _measure(port: int, rate: float, seconds: float) -> Step:
    async with _Client(f"http://127.0.0.1:{port}", "bench", "", {}) as client:
        client.prepare([])
        due = logic.arrivals(rate, seconds, "poisson")
        samples = await generator.drive(due, lambda at: client.send(0), connections=256, timeout_s=10)
    return logic.measured(samples, rate, seconds, 10, 0.95)


def _show(name: str, step: Step) -> None:
    latency = [step.figures[key].value or float("nan") for key in ("p50_ms", "p99_ms")]
    figures = [step.rate, step.completed, step.lag_ms["p50"], step.lag_ms["p99"], *latency]
    print(
        f"{name:8}",
        *(f"{figure:10.2f}" for figure in figures),
        "fell behind" if step.problem else "",
        step.errors or "",
    )


@contextlib.contextmanager
def _server() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
