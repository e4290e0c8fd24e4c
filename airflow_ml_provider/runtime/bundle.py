"""The part of the package that travels: everything that neither needs nor knows Airflow, as one zip."""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import lru_cache
from importlib import resources
from typing import Any

TRAVELS = (
    "__init__.py",
    "codec.py",
    "exceptions.py",
    "intervals.py",
    "models.py",
    "provenance.py",
    "refs.py",
    "tables.py",
    "registry",
    "runtime",
    "serving",
    "stages",
    "lineage",
)


_MAIN = """import sys

from airflow_ml_provider.runtime.__main__ import main

sys.exit(main())
"""


@lru_cache(maxsize=1)
def build() -> bytes:
    """Return the zip, which `python FILE STAGE …` runs. The same files give the same bytes on every machine."""
    buffer = io.BytesIO()
    root = resources.files("airflow_ml_provider")
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in TRAVELS:
            _add(archive, root.joinpath(name), f"airflow_ml_provider/{name}")
        _put(archive, "__main__.py", _MAIN.encode())
    return buffer.getvalue()


def digest() -> str:
    """Return the SHA-256 of the zip in hexadecimal digits."""
    return hashlib.sha256(build()).hexdigest()


def _add(archive: zipfile.ZipFile, item: Any, name: str) -> None:
    if item.is_dir():
        for child in sorted(item.iterdir(), key=lambda entry: str(entry.name)):
            if child.name != "__pycache__":
                _add(archive, child, f"{name}/{child.name}")
    elif item.is_file():
        _put(archive, name, item.read_bytes())


def _put(archive: zipfile.ZipFile, name: str, body: bytes) -> None:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED  # a ZipInfo does not take the archive's own
    archive.writestr(entry, body)
