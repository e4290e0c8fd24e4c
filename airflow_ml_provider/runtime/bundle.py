"""The part of the package that travels: everything that neither needs nor knows Airflow, as one zip."""

from __future__ import annotations

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
    "stages",
    "lineage",
)


@lru_cache(maxsize=1)
def build() -> bytes:
    """Return the zip. The same files give the same bytes on every machine."""
    buffer = io.BytesIO()
    root = resources.files("airflow_ml_provider")
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in TRAVELS:
            _add(archive, root.joinpath(name), f"airflow_ml_provider/{name}")
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, item: Any, name: str) -> None:
    if item.is_dir():
        for child in sorted(item.iterdir(), key=lambda entry: str(entry.name)):
            if child.name != "__pycache__":
                _add(archive, child, f"{name}/{child.name}")
    elif item.is_file():
        archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), item.read_bytes())
