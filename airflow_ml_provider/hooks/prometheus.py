"""The connection to Prometheus, or to what answers like it (Thanos, Mimir, VictoriaMetrics)."""

from __future__ import annotations

import json
import ssl
from base64 import b64encode
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, HTTPSHandler, OpenerDirector, Request, build_opener

from airflow.sdk import BaseHook

from airflow_ml_provider.exceptions import SpecError, Unavailable, invalid

if TYPE_CHECKING:
    from airflow.sdk import Connection

_WRONG = (400, 422)  # the query cannot be read, or not be carried out
_BUSY = 429


class PrometheusHook(BaseHook):
    """Ask Prometheus by a connection of type `http`; the provider of that type is not needed.

    The host is a name (with schema `http` or `https` and port beside it) or a whole address, with a path if there is
    one. Login and password are for basic authentication; a password alone, or the extra `token`, is a bearer token. The
    extra `verify` is false to trust any certificate, or the file of the authorities to trust; the extra `headers` are
    sent along.

    Parameters:
        prometheus_conn_id: the connection.
        timeout_s: a query fails after so many seconds.
    """

    conn_name_attr = "prometheus_conn_id"
    default_conn_name = "prometheus_default"

    def __init__(self, prometheus_conn_id: str = default_conn_name, *, timeout_s: float = 30.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prometheus_conn_id, self.timeout_s = prometheus_conn_id, timeout_s

    def query(self, promql: str) -> list[dict[str, Any]]:
        """Return the series that a query gives now: each with its labels, `metric`, and its `value`, time and text.

        Raises:
            SpecError: there is no such connection, it may not ask, or Prometheus does not take the query.
            Unavailable: Prometheus does not answer, or not now.
        """
        base, headers, opener = self._way
        # By POST, since a query may be longer than an address.
        data = urlencode({"query": promql, "timeout": f"{self.timeout_s:g}s"}).encode()
        request = Request(f"{base}/api/v1/query", data, headers)  # noqa: S310
        try:
            with opener.open(request, timeout=self.timeout_s) as answer:
                body = answer.read()
        except HTTPError as error:
            raise self._refusal(error, base) from error
        except URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise SpecError(
                    f"the certificate of {base} is not trusted: {error.reason}; name its authorities in the extra "
                    f"verify of connection {self.prometheus_conn_id!r}"
                ) from error
            raise Unavailable(f"Prometheus at {base} does not answer: {error.reason}") from error
        except OSError as error:
            raise Unavailable(f"Prometheus at {base} does not answer: {error}") from error
        return self._series(body, base)

    @cached_property
    def _way(self) -> tuple[str, dict[str, str], OpenerDirector]:
        """The address, what is sent along, and what opens it; reading the authorities to trust takes its time."""
        conn = self._connection()
        opener = build_opener(HTTPSHandler(context=_tls(conn.extra_dejson.get("verify", True))), _NoRedirect)
        return address(conn), _headers(conn), opener

    def _series(self, body: bytes, base: str) -> list[dict[str, Any]]:
        try:
            found = json.loads(body)
            data = found["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._no_prometheus(base, body.decode(errors="replace")[:200]) from error
        for warning in found.get("warnings", ()):
            self.log.warning("Prometheus warns: %s", warning)
        if data["resultType"] != "vector":
            raise invalid("query", data["resultType"], "one that gives a vector", "no scalar and no range")
        return list(data["result"])

    def _refusal(self, error: HTTPError, base: str) -> Exception:
        said = f"{error.code} {_message(error.read())}"
        if error.code in _WRONG:
            return SpecError(f"Prometheus does not take the query: {said}")
        if error.code in (401, 403):
            return SpecError(f"connection {self.prometheus_conn_id!r} may not ask Prometheus at {base}: {said}")
        if error.code >= 500 or error.code == _BUSY:
            return Unavailable(f"Prometheus at {base} answers {said}")
        return self._no_prometheus(base, said)

    def _no_prometheus(self, base: str, said: str) -> SpecError:
        return SpecError(
            f"{base} of connection {self.prometheus_conn_id!r} does not answer as Prometheus does: {said}; give the "
            "address that /api/v1/query is below"
        )

    def _connection(self) -> Connection:
        from airflow.providers.common.compat.sdk import AirflowNotFoundException

        try:
            return self.get_connection(self.prometheus_conn_id)
        except AirflowNotFoundException as error:
            raise SpecError(
                f"connection {self.prometheus_conn_id!r} is not defined; create it with type http and the address of "
                "Prometheus as its host"
            ) from error


def address(conn: Connection) -> str:
    """Return the address that a connection means.

    Raises:
        SpecError: it names no host, one with credentials in it, or one that is not spoken to by HTTP.
    """
    host = (conn.host or "").strip().rstrip("/")
    if not host:
        raise SpecError(f"connection {conn.conn_id!r} names no host; give the address of Prometheus")
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = conn.schema or "http", host
    name, slash, path = rest.partition("/")
    if scheme not in ("http", "https"):
        raise invalid("schema", scheme, "http or https")
    if "@" in name:
        raise invalid("host", f"{scheme}://…@…", "an address without credentials", "use login and password")
    port = f":{conn.port}" if conn.port and not name.rpartition(":")[2].isdigit() else ""
    return f"{scheme}://{name}{port}{slash}{path}"


class _NoRedirect(HTTPRedirectHandler):
    """Follow nobody to another address: credentials would go there, too."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _headers(conn: Connection) -> dict[str, str]:
    extra = conn.extra_dejson
    headers = {str(key): str(value) for key, value in (extra.get("headers") or {}).items()}
    token = extra.get("token") or ("" if conn.login else conn.password)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    elif conn.login:
        pair = f"{conn.login}:{conn.password or ''}"
        headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    return headers


def _tls(verify: Any) -> ssl.SSLContext:
    if isinstance(verify, str) and verify.lower() not in ("true", "false"):
        try:
            return ssl.create_default_context(cafile=verify)
        except OSError as error:
            raise invalid("verify", verify, "true, false or the file of authorities", str(error)) from error
    context = ssl.create_default_context()
    if str(verify).lower() == "false":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _message(body: bytes) -> str:
    try:
        found: Mapping[str, Any] = json.loads(body)
        return str(found["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200]
