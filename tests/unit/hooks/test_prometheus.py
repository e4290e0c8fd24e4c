"""The connection to Prometheus: where it leads, what is sent there, and what becomes of bad answers."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

pytest.importorskip("airflow.sdk")

from airflow_ml_provider.exceptions import SpecError, Unavailable
from airflow_ml_provider.hooks.prometheus import PrometheusHook, address
from airflow_ml_provider.testing.tls import self_signed

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

NONE = json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}})


class Answering(http.server.HTTPServer):
    """Answers everything in one way, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status, self.body, self.headers = 200, NONE, {}
        self.asked: list[tuple[str, dict[str, str], dict[str, list[str]]]] = []


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Answering

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.asked.append((self.path, dict(self.headers), form))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body.encode())

    do_GET = do_POST

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PrometheusHook]:
    def make(**fields: Any) -> PrometheusHook:
        monkeypatch.setenv("AIRFLOW_CONN_PROM", json.dumps({"conn_type": "http", **fields}))
        return PrometheusHook("prom", timeout_s=5)

    return make


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"host": "prom"}, "http://prom"),
        ({"host": "prom", "port": 9090}, "http://prom:9090"),
        ({"host": "prom", "port": 443, "schema": "https"}, "https://prom:443"),
        ({"host": "https://mimir.example/prometheus/"}, "https://mimir.example/prometheus"),
        ({"host": "https://mimir.example/prometheus", "port": 8443}, "https://mimir.example:8443/prometheus"),
        ({"host": "http://prom:9090", "port": 1}, "http://prom:9090"),
        ({"host": "http://[::1]:9090"}, "http://[::1]:9090"),
    ],
)
def test_address(connect: Callable[..., PrometheusHook], fields: dict[str, Any], expected: str) -> None:
    assert address(connect(**fields)._connection()) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "connection 'prom' names no host"),
        ({"host": "ftp://prom"}, "schema must be http or https, got 'ftp'"),
        ({"host": "prom", "schema": "tcp"}, "schema must be http or https, got 'tcp'"),
        ({"host": "http://ann:s3cret@prom"}, "host must be an address without credentials"),
        ({"host": "prom", "extra": {"verify": "/none/such.pem"}}, "verify must be .*, got '/none/such.pem'"),
    ],
)
def test_connections_that_lead_nowhere(
    connect: Callable[..., PrometheusHook], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message) as error:
        connect(**fields).query("up")
    assert "s3cret" not in str(error.value)


def test_no_connection() -> None:
    with pytest.raises(SpecError, match="connection 'none' is not defined; create it with type http"):
        PrometheusHook("none").query("up")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"login": "ann", "password": "s3cret"}, f"Basic {b64encode(b'ann:s3cret').decode()}"),
        ({"password": "t0ken"}, "Bearer t0ken"),
        ({"extra": {"token": "t0ken"}}, "Bearer t0ken"),
    ],
)
def test_what_is_sent(
    connect: Callable[..., PrometheusHook], server: Answering, fields: dict[str, Any], expected: str | None
) -> None:
    extra = {"headers": {"X-Scope-OrgID": "ml"}, **fields.pop("extra", {})}
    hook = connect(host="http://127.0.0.1/base", port=server.server_port, extra=extra, **fields)
    assert hook.query('up{job="a b"}') == []
    ((path, headers, form),) = server.asked
    assert (path, form) == ("/base/api/v1/query", {"query": ['up{job="a b"}'], "timeout": ["5s"]})
    assert (headers.get("Authorization"), headers["X-Scope-Orgid"]) == (expected, "ml")


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, '{"error": "1:3: parse error"}', SpecError, "does not take the query: 400 1:3: parse error"),
        (422, '{"error": "many-to-many"}', SpecError, "does not take the query: 422 many-to-many"),
        (401, "who?", SpecError, "connection 'prom' may not ask Prometheus at http://127.0.0.1:.*: 401 who?"),
        (404, "none", SpecError, "does not answer as Prometheus does: 404 none; give the address that"),
        (200, "<html>", SpecError, "does not answer as Prometheus does: <html>"),
        (200, '{"status": "success"}', SpecError, "does not answer as Prometheus does"),
        (429, "slow down", Unavailable, "answers 429 slow down"),
        (503, '{"error": "query timed out"}', Unavailable, "answers 503 query timed out"),
    ],
)
def test_bad_answers(
    connect: Callable[..., PrometheusHook], server: Answering, status: int, body: str, kind: Any, message: str
) -> None:
    server.status, server.body = status, body
    with pytest.raises(kind, match=message) as error:
        connect(host="127.0.0.1", port=server.server_port, login="ann", password="s3cret").query("up")
    assert "s3cret" not in str(error.value)


def test_credentials_go_to_no_other_address(connect: Callable[..., PrometheusHook], server: Answering) -> None:
    server.status, server.headers = 302, {"Location": f"http://127.0.0.1:{server.server_port}/elsewhere"}
    with pytest.raises(SpecError, match="does not answer as Prometheus does: 302"):
        connect(host="127.0.0.1", port=server.server_port, password="t0ken").query("up")
    assert len(server.asked) == 1


def test_nobody_there(connect: Callable[..., PrometheusHook], server: Answering) -> None:
    port = server.server_port
    server.server_close()
    with pytest.raises(Unavailable, match=f"Prometheus at http://127.0.0.1:{port} does not answer"):
        connect(host="127.0.0.1", port=port).query("up")


def test_certificates(connect: Callable[..., PrometheusHook], server: Answering, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path / "prometheus.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    where: dict[str, Any] = {"host": "127.0.0.1", "port": server.server_port, "schema": "https"}
    with pytest.raises(SpecError, match=r"certificate of https://127.0.0.1:.* is not trusted: .* in the extra verify"):
        connect(**where).query("up")
    assert connect(**where, extra={"verify": str(certificate)}).query("up") == []
    assert connect(**where, extra={"verify": False}).query("up") == []
