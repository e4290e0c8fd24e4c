"""The connection to MLflow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseHook

from airflow_ml_provider.exceptions import SpecError, invalid

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from mlflow import MlflowClient


class MlflowHook(BaseHook):
    """Turn a connection of type `mlflow` into what MLflow's client reads: environment variables, or a client.

    The host is a name (with scheme and port beside it), a whole address such as `https://mlflow.example/base`, or,
    without a server, a database such as `sqlite:////data/mlflow.db`. Login and password are the credentials; a password
    without a login, or the extra `token`, is a token. The extra `ui_url` is the address of MLflow's pages when browsers
    know it under another one.

    Parameters:
        mlflow_conn_id: the connection.
    """

    conn_name_attr = "mlflow_conn_id"
    default_conn_name = "mlflow_default"
    conn_type = "mlflow"
    hook_name = "MLflow"

    def __init__(self, mlflow_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mlflow_conn_id = mlflow_conn_id

    def environment(self) -> dict[str, str]:
        """Return the `MLFLOW_*` variables of the connection, credentials included, for the process of a stage.

        Raises:
            SpecError: there is no such connection, or it names no host.
        """
        conn = self._connection()
        extra = conn.extra_dejson
        token = extra.get("token") or ("" if conn.login else conn.password)
        found = {
            "MLFLOW_TRACKING_URI": tracking_uri(conn),
            "MLFLOW_TRACKING_USERNAME": conn.login or "",
            "MLFLOW_TRACKING_PASSWORD": conn.password if conn.login else "",
            "MLFLOW_TRACKING_TOKEN": token,
            "MLFLOW_UI_URL": extra.get("ui_url") or "",
        }
        return {name: str(value) for name, value in found.items() if value}

    def get_conn(self) -> MlflowClient:
        """Return a client.

        MLflow reads credentials from the environment only, so this sets them for the process that it runs in.
        """
        from mlflow import MlflowClient

        from airflow_ml_provider.registry import _server

        env = self.environment()
        with _server.environment({}), _server.errors(env["MLFLOW_TRACKING_URI"]):
            os.environ.update(env)
            return MlflowClient(env["MLFLOW_TRACKING_URI"])

    def test_connection(self) -> tuple[bool, str]:
        """Ask the server for one experiment; what the button `Test` in the UI does."""
        from airflow_ml_provider.exceptions import MlError
        from airflow_ml_provider.registry import Registry, _server

        try:
            env = self.environment()
            # Somebody waits before the screen.
            quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
            Registry.from_env({**env, **quick}).ping()
        except MlError as error:
            return False, str(error)
        return True, f"MLflow at {_server.shown(env['MLFLOW_TRACKING_URI'])} answers"

    def _connection(self) -> Connection:
        from airflow.providers.common.compat.sdk import AirflowNotFoundException

        try:
            return self.get_connection(self.mlflow_conn_id)
        except AirflowNotFoundException as error:
            raise SpecError(
                f"connection {self.mlflow_conn_id!r} is not defined; create it with type mlflow and the tracking "
                "server as host, or set mlflow_conn_id=None to use the variable MLFLOW_TRACKING_URI"
            ) from error


def tracking_uri(conn: Connection) -> str:
    """Return the tracking URI that a connection means, without credentials.

    Raises:
        SpecError: it names no host, or one that MLflow cannot reach.
    """
    host = (conn.host or "").strip().rstrip("/")
    if not host:
        raise SpecError(
            f"connection {conn.conn_id!r} names no host; give the address of the tracking server, such as "
            "https://mlflow.example, or a database such as sqlite:////data/mlflow.db"
        )
    scheme, separator, rest = host.partition("://")
    if host.startswith("/"):  # a folder or file without a server
        return f"sqlite:///{host}" if host.endswith(".db") else f"file://{quote(host)}"
    if not separator:
        scheme, rest = conn.schema or "http", host
    elif scheme not in ("http", "https"):
        return host
    if "@" in rest.partition("/")[0]:
        raise invalid("host", f"{scheme}://…@…", "an address without credentials", "use login and password")
    name, slash, path = rest.partition("/")
    port = f":{conn.port}" if conn.port and ":" not in name else ""
    return f"{scheme}://{name}{port}{slash}{path}"
