"""How long one prediction over HTTP takes and how many a second there are, beside the bare engine and other servers.

    python benchmarks/serving.py --python /opt/venvs/serving/bin/python --mlserver /opt/venvs/mlserver/bin/python

LightGBM with 100 trees on 20 numbers, `--rows` a request (one). `engine` is ONNX Runtime in the process, `server`
is one of our model servers, `gateway` the same behind our gateway, each with and without (`… 1`) dynamic batching, and
over gRPC, asked by grpcio's own client, which takes its time, where REST is asked over a bare socket.
`kserve` and `mlserver` are their servers with a model class around ONNX Runtime, where the Pythons have them. One
client at a time gives the latencies, then `--clients` at once give the throughput; all share the machine's cores. The
CPU time of the servers per request says what they cost where other work runs beside them, as latencies then do not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HERE = Path(__file__).resolve()
FEATURES = [f"f{i:02d}" for i in range(20)]
ROW = {name: round(0.1 * i - 1, 3) for i, name in enumerate(FEATURES)}
INFER = "/v2/models/bench/infer"

Place = tuple[str, list[int]]  # http:// or grpc:// and a port, and the processes behind it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="of our servers, and of KServe's if it is there")
    parser.add_argument("--mlserver", help="Python with mlserver and onnxruntime")
    parser.add_argument("--requests", type=int, default=3000, help="one after the other, for the latencies")
    parser.add_argument("--seconds", type=float, default=8.0, help="of many clients at once, for the throughput")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1, help="of a request")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(asyncio.run(_load(args.load, args.clients, args.seconds, args.rows))))
        return
    print(f"{os.cpu_count()} cores; latencies of {args.requests} requests, {args.clients} clients for {args.seconds} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package, digest = _train(folder)
        base = _engine(package, args.requests, args.rows)
        print(f"{'engine':12} p50 {base[0]:7.3f} ms  p95 {base[1]:7.3f} ms")
        for way, start in _ways(args, folder, package, digest).items():
            with start() as place:
                print(f"{way:12} {_measure(*place, base[0], args) if place else 'not installed'}", flush=True)


def _measure(url: str, pids: list[int], base: float, args: argparse.Namespace) -> str:
    before = _cpu_ms(pids)
    p50, p95 = _quantiles(_one_by_one(url, args.requests, args.rows))
    between = _cpu_ms(pids)
    many = _many(url, args)
    one, all_at_once = (between - before) / args.requests, (_cpu_ms(pids) - between) / max(many["answered"], 1)
    return (
        f"p50 {p50:7.3f} ms  p95 {p95:7.3f} ms  +{p50 - base:.3f} ms  CPU {one:.3f} ms   "
        f"{many['answered'] / args.seconds:7.0f}/s  p50 {many['p50']:7.2f} ms  p95 {many['p95']:7.2f} ms  "
        f"CPU {all_at_once:.3f} ms  failed {many['failed']}"
    )


def _cpu_ms(pids: list[int]) -> float:
    """Return the CPU time that processes have used so far, all their threads together (milliseconds)."""
    tick_ms, total = 1000 / os.sysconf("SC_CLK_TCK"), 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) * tick_ms  # proc(5): utime and stime are fields 14 and 15
    return total


def _ways(args: argparse.Namespace, folder: Path, package: Path, digest: str) -> dict[str, Callable[[], Any]]:
    def server(max_batch: int, grpc: bool = False) -> Any:
        return lambda: _server(args.python, folder, package, digest, max_batch, grpc)

    def gateway(max_batch: int, grpc: bool = False) -> Any:
        return lambda: _gateway(args.python, folder / f"root-{max_batch}-{grpc}", package, digest, max_batch, grpc)

    return {
        "server": server(64),
        "server 1": server(1),
        "server grpc": server(64, True),
        "gateway": gateway(64),
        "gateway 1": gateway(1),
        "gateway grpc": gateway(64, True),
        "kserve": lambda: _kserve(args.python, folder, package),
        "mlserver": lambda: _mlserver(args.mlserver, folder / "mlserver", package),
    }


def _train(folder: Path) -> tuple[Path, str]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from airflow_ml_provider import stages, tables
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.stages.train.spec import TrainSpec

    rng, count = np.random.default_rng(0), 20_000
    values = rng.normal(size=(len(FEATURES), count)).astype(np.float32)
    label = (rng.random(count) < 1 / (1 + np.exp(-(values[0] + values[1] * values[2])))).astype(np.int64)
    times = pa.array((np.arange(count) * 1_000_000).astype("datetime64[us]"), pa.timestamp("us", tz="UTC"))
    columns = dict(zip(FEATURES, map(pa.array, values), strict=True))
    pq.write_table(pa.table({**columns, "label": label, "event_timestamp": times}), folder / "train.parquet")
    spec = TrainSpec(
        "bench", tables.describe("train", folder / "train.parquet"), str(folder / "models"),
        params={"num_boost_round": 100, "early_stopping_rounds": 0},
    )  # fmt: skip
    model = stages.run(spec, RunInfo()).model  # type: ignore[attr-defined]
    return Path(model.uri), model.digest


def _engine(package: Path, requests: int, rows: int) -> tuple[float, float]:
    import numpy as np

    from airflow_ml_provider import models

    scorer = models.Scorer(package)
    feeds = {one["name"]: np.array(one["data"], np.float32).reshape(-1, 1) for one in _asked(rows)["inputs"]}
    found = []
    for _ in range(requests):
        began = time.perf_counter()
        scorer.run(feeds)
        found.append((time.perf_counter() - began) * 1000)
    return _quantiles(found)


@contextlib.contextmanager
def _server(
    python: str, folder: Path, package: Path, digest: str, max_batch: int, grpc: bool
) -> Iterator[Place | None]:
    from airflow_ml_provider.serving import folder as folders

    if grpc and not _has(python, "grpc"):
        yield None
        return
    port, grpc_port = _free_port(), _free_port()
    command = [python, "-m", "airflow_ml_provider.serving.aio.server", "--name=bench", f"--max-batch={max_batch}"]
    command += [f"--package={package}", f"--digest={digest}", f"--port={port}"]
    command += [f"--grpc-port={grpc_port}"] if grpc else []
    with _process(command, folders.environment(folders.put_package(folder)), folder, port) as pid:
        yield f"grpc://127.0.0.1:{grpc_port}" if grpc else f"http://127.0.0.1:{port}", [pid]


@contextlib.contextmanager
def _gateway(python: str, root: Path, package: Path, digest: str, max_batch: int, grpc: bool) -> Iterator[Place | None]:
    from airflow_ml_provider.serving import launch
    from airflow_ml_provider.serving.spec import Version, Wanted

    if grpc and not _has(python, "grpc"):
        yield None
        return
    client = launch.start(root, "bench", python=python, grpc_port=0 if grpc else None)
    address = launch.find(root, "bench")
    assert address is not None
    try:
        client.apply(Wanted({"1": Version(str(package), digest, percent=100, max_batch=max_batch)}, stable="1"))
        while not (status := client.status()).ready:
            time.sleep(0.1)
        yield address.grpc or address.url, [status.pid, int(status.versions["1"].pid or 0)]
    finally:
        launch.stop(root, "bench")


_KSERVE = """
    import sys
    port, model = int(sys.argv[1]), sys.argv[2]
    sys.argv[1:] = []
    import numpy as np, onnxruntime
    from kserve import InferOutput, InferResponse, Model, ModelServer

    class Onnx(Model):
        def load(self):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(model, options)
            self.ready = True

        async def predict(self, payload, headers=None):
            feeds = {one.name: one.as_numpy().astype(np.float32) for one in payload.inputs}
            scores = self.session.run(["score"], feeds)[0].reshape(-1)
            output = InferOutput("score", list(scores.shape), "FP32")
            output.set_data_from_numpy(scores, binary_data=False)
            return InferResponse(payload.id, self.name, [output])

    served = Onnx("bench")
    served.load()
    ModelServer(http_port=port, enable_grpc=False).start([served])
"""


@contextlib.contextmanager
def _kserve(python: str, folder: Path, package: Path) -> Iterator[Place | None]:
    if not _has(python, "kserve"):
        yield None
        return
    script, port = folder / "serve_with_kserve.py", _free_port()
    script.write_text(textwrap.dedent(_KSERVE))
    command = [python, str(script), str(port), str(package / "model.onnx")]
    with _process(command, dict(os.environ), folder, port) as pid:
        yield f"http://127.0.0.1:{port}", [pid]


_MLSERVER = """
    import numpy as np, onnxruntime
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceResponse

    class Onnx(MLModel):
        async def load(self):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
            return True

        async def predict(self, payload):
            feeds = {one.name: NumpyCodec.decode_input(one).astype(np.float32) for one in payload.inputs}
            scores = self.session.run(["score"], feeds)[0].reshape(-1)
            return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("score", scores)])
"""


@contextlib.contextmanager
def _mlserver(python: str | None, folder: Path, package: Path) -> Iterator[Place | None]:
    if python is None or not _has(python, "mlserver"):
        yield None
        return
    folder.mkdir()
    ports = {name: _free_port() for name in ("http_port", "grpc_port", "metrics_port")}
    (folder / "onnx_model.py").write_text(textwrap.dedent(_MLSERVER))
    # Without worker processes, which would cost it a hop.
    (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "parallel_workers": 0, **ports}))
    model = {"name": "bench", "implementation": "onnx_model.Onnx", "parameters": {"uri": str(package / "model.onnx")}}
    (folder / "model-settings.json").write_text(json.dumps(model))
    program = "import sys; from mlserver.cli import main; sys.argv = ['mlserver', 'start', sys.argv[1]]; main()"
    command = [python, "-c", program, str(folder)]
    with _process(command, {**os.environ, "PYTHONPATH": str(folder)}, folder, ports["http_port"]) as pid:
        yield f"http://127.0.0.1:{ports['http_port']}", [pid]


def _has(python: str, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code]).returncode == 0


@contextlib.contextmanager
def _process(command: list[str], env: dict[str, str], folder: Path, port: int) -> Iterator[int]:
    """Run a server until the block is left; enter it, with its process id, when the server answers."""
    with open(folder / f"{port}.log", "w+") as log:
        process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        try:
            while not _answers(port):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"{command} ended: {log.read()[-2000:]}")
                time.sleep(0.2)
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(port: int) -> bool:
    try:
        return _one_by_one(f"http://127.0.0.1:{port}", 1) != []
    except (OSError, RuntimeError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _asked(rows: int) -> dict[str, Any]:
    columns = {name: [value + at / rows for at in range(rows)] for name, value in ROW.items()}
    inputs = [{"name": n, "shape": [rows, 1], "datatype": "FP32", "data": data} for n, data in columns.items()]
    return {"id": "x", "inputs": inputs}


def _request(rows: int) -> bytes:
    body = json.dumps(_asked(rows)).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _message(rows: int) -> bytes:
    from airflow_ml_provider.stages.deploy import messages

    return messages.ask("bench", "", _asked(rows))


def _complete(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) >= int(length.split(b":")[1])


def _one_by_one(url: str, requests: int, rows: int = 1) -> list[float]:
    """Return the milliseconds of each request of one client."""
    place = urlsplit(url)
    if place.scheme == "grpc":
        return _one_by_one_grpc(place.netloc, requests, rows)
    sent, found = _request(rows), []
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(requests):
            began, answer = time.perf_counter(), b""
            connection.sendall(sent)
            while not _complete(answer):
                part = connection.recv(65536)
                if not part:
                    raise RuntimeError("connection lost")
                answer += part
            if b" 200 " not in answer[:20]:
                raise RuntimeError(answer[:200])
            found.append((time.perf_counter() - began) * 1000)
    return found


def _one_by_one_grpc(target: str, requests: int, rows: int) -> list[float]:
    import grpc

    from airflow_ml_provider.stages.deploy import messages

    sent, found = _message(rows), []
    with grpc.insecure_channel(target) as channel:
        infer = channel.unary_unary(messages.INFER)
        for _ in range(requests):
            began = time.perf_counter()
            infer(sent)
            found.append((time.perf_counter() - began) * 1000)
    return found


def _many(url: str, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, str(HERE), f"--load={url}", f"--clients={args.clients}", f"--seconds={args.seconds}"]
    command += [f"--rows={args.rows}"]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


async def _load(url: str, clients: int, seconds: float, rows: int) -> dict[str, float]:
    """Ask with many clients at once, each the next as soon as it has its answer."""
    place = urlsplit(url)
    client = _grpc_client(place.netloc, rows) if place.scheme == "grpc" else partial(_client, place.port, rows)
    until = time.perf_counter() + seconds
    found = await asyncio.gather(*(client(until) for _ in range(clients)))
    times = [one for good, _ in found for one in good]
    p50, p95 = _quantiles(times)
    return {"answered": len(times), "p50": p50, "p95": p95, "failed": sum(bad for _, bad in found)}


async def _client(port: int, rows: int, until: float) -> tuple[list[float], int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent, good, bad = _request(rows), [], 0
    while (began := time.perf_counter()) < until:
        writer.write(sent)
        answer = b""
        while not _complete(answer):
            answer += await reader.read(65536)
        if b" 200 " in answer[:20]:
            good.append((time.perf_counter() - began) * 1000)
        else:
            bad += 1
    writer.close()
    return good, bad


def _grpc_client(target: str, rows: int) -> Callable[[float], Awaitable[tuple[list[float], int]]]:
    """Return a client; all of them share one connection, as they do in gRPC."""
    import grpc.aio

    from airflow_ml_provider.stages.deploy import messages

    infer, sent = grpc.aio.insecure_channel(target).unary_unary(messages.INFER), _message(rows)

    async def ask(until: float) -> tuple[list[float], int]:
        good, bad = [], 0
        while (began := time.perf_counter()) < until:
            try:
                await infer(sent)
                good.append((time.perf_counter() - began) * 1000)
            except grpc.aio.AioRpcError:
                bad += 1
        return good, bad

    return ask


def _quantiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]


if __name__ == "__main__":
    main()
