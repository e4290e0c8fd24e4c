"""A proxy for tests that splits requests among servers, as the ingress of a real installation does."""

from __future__ import annotations

import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import Any

log = logging.getLogger(__name__)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # or the kernel refuses connections when many come at once


class Router:
    """A proxy that sends each request to one of the targets of its host, as often as its share says.

    Parameters:
        header: that says which host is meant.
    """

    def __init__(self, header: str = "Host") -> None:
        self.routes: dict[str, Sequence[tuple[str, float]]] = {}
        self.targets: dict[str, str] = {}
        self._count: dict[str, int] = {}
        router = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = router.forward(self.headers[header], self.path, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                log.debug(format, *args)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="router", daemon=True)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def forward(self, host: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Return what a target of a host answers."""
        routes = [(name, percent) for name, percent in self.routes.get(host, ()) if percent]
        if not routes:
            return 404, b"no route"
        # 37 has no divisor in common with 100: every hundred requests are split exactly, and well mixed.
        at = self._count[host] = (self._count.get(host, 0) + 37) % 100
        return self.send(next(name for name, until in zip(*_until(routes), strict=True) if at < until), path, body)

    def send(self, name: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Return what a target answers."""
        sent = urllib.request.Request(f"{self.targets[name]}{path}", body, {"Content-Type": "application/json"})  # noqa: S310
        try:
            with urllib.request.urlopen(sent, timeout=10) as answer:  # noqa: S310
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            return 503, str(error).encode()


def _until(routes: list[tuple[str, float]]) -> tuple[list[str], list[float]]:
    return [name for name, _ in routes], list(accumulate(percent for _, percent in routes))
