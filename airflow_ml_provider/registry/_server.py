"""How a tracking server is reached, and its errors in this package's words."""

from __future__ import annotations

import importlib
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Optional

from airflow_ml_provider.exceptions import Conflict, DataError, MissingLibrary, MlError, SpecError, Unavailable

# A task that waits for a dead server holds a worker: MLflow's own patience adds up to more than ten minutes.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its own handler writes to stderr, which Airflow shows as errors
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")

_lock = threading.RLock()


@contextmanager
def environment(env: Mapping[str, str]) -> Iterator[None]:
    """Have MLflow see `env` for the time of a call; it reads addresses and credentials from nowhere else.

    Calls with an environment of their own take turns, so that no thread works with another one's credentials.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not env:
        yield
        return
    with _lock:
        before: dict[str, Optional[str]] = {name: os.environ.get(name) for name in env}
        os.environ.update(env)
        try:
            yield
        finally:
            for name, old in before.items():
                if old is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = old


def import_client() -> None:
    """Import MLflow's client without Feast, which has registered a plugin for the headers of MLflow's requests.

    The first request loads all such plugins, and this one brings all of Feast with it: several seconds in every task.
    Feast's own operations do not go through here.
    """
    header_plugins = "mlflow.tracking.request_header.registry"
    if header_plugins in sys.modules:
        return
    from mlflow.utils import plugins

    found = plugins.get_entry_points
    plugins.get_entry_points = lambda group: [entry for entry in found(group) if entry.name != "feast"]
    try:
        importlib.import_module(header_plugins)
    finally:
        plugins.get_entry_points = found


@contextmanager
def errors(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into this package's errors, which say whether trying again can help."""
    try:
        import requests

        import_client()
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise MissingLibrary(f"the model registry needs MLflow; run: pip install 'mlflow-skinny' ({error})") from error
    try:
        yield
    except MlError:
        raise
    except MlflowException as error:
        raise translated(error, uri) from _cause(error, uri)
    except (requests.exceptions.RequestException, ConnectionError, TimeoutError) as error:
        told = f"MLflow at {shown(uri)} did not answer: {_without(_credentials(uri), str(error))}"
        raise Unavailable(told) from _cause(error, uri)


def translated(error: Any, uri: str) -> MlError:
    """Return this package's error for one of MLflow's."""
    status, text = error.get_http_status_code(), _without(_credentials(uri), str(error))
    if error.error_code in ABSENT:
        return DataError(f"MLflow at {shown(uri)}: {text}")
    if status in (401, 403):
        return SpecError(
            f"MLflow at {shown(uri)} refused the credentials: {text}; mend login and password of the connection"
        )
    if status == 409:
        return Conflict(f"MLflow at {shown(uri)}: {text}")
    if status >= 500 or status in (408, 429):
        return Unavailable(f"MLflow at {shown(uri)} did not answer: {text}")
    return SpecError(f"MLflow at {shown(uri)} refused the request: {text}")


def is_absent(error: Exception) -> bool:
    """Whether one of MLflow's errors only says that there is no such thing."""
    return getattr(error, "error_code", None) in ABSENT


def shown(uri: str) -> str:
    """Return an address without the credentials that it may carry."""
    return _without(_credentials(uri), uri)


def _credentials(uri: str) -> str:
    """Return `login:password@` of an address; empty without."""
    rest = uri.partition("://")[2]
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in authority or re.fullmatch(r"[^:]*(:\d*)?|\[.*\](:\d*)?", authority):
        rest = authority  # a later @ is one of the path
    return rest[: rest.rfind("@") + 1]  # else of the password: a database's may hold a slash


def _without(credentials: str, text: str) -> str:
    return text.replace(credentials, "") if credentials else text


def _cause(error: BaseException, uri: str) -> Optional[BaseException]:
    """Return what an error is raised from: nothing that would bring credentials of the address into the log."""
    return None if _credentials(uri) else error
