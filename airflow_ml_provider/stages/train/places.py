"""Where snapshots lie: a folder of this machine, or any store that fsspec reaches. A snapshot is there whole or not."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Union

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import MissingLibrary

PREFIX, SEAL = "step=", "snapshot.json"
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}


class LocalPlace:
    """A folder with rename: a snapshot is written aside and renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Return the steps of which there is a snapshot, oldest first."""
        return sorted(_steps(path.name for path in self.folder.glob(f"{PREFIX}*")))

    def shown(self, step: int) -> str:
        """Return the address of a snapshot, for messages."""
        return str(self.folder / f"{PREFIX}{step}")

    @contextmanager
    def opened(self, step: int) -> Iterator[Path]:
        """Give a folder with the files of a snapshot."""
        yield self.folder / f"{PREFIX}{step}"

    def put(self, step: int, fill: Callable[[Path], None]) -> None:
        """Keep the snapshot that `fill` writes into the folder it is given."""
        for stale in self.folder.glob(f".{PREFIX}*"):
            shutil.rmtree(stale)
        aside = self.folder / f".{PREFIX}{step}"
        aside.mkdir(parents=True)
        fill(aside)
        for path in aside.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        self.remove(step)
        aside.rename(self.folder / f"{PREFIX}{step}")

    def remove(self, step: int) -> None:
        """Remove a snapshot, if it is there."""
        shutil.rmtree(self.folder / f"{PREFIX}{step}", ignore_errors=True)

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


class RemotePlace:
    """A folder of a store without rename: the seal is written last and removed first, and what has none is not there.

    Raises:
        MissingLibrary: fsspec, or its package for this scheme, is not installed.
    """

    def __init__(self, uri: str) -> None:
        self._fs, root = _filesystem(uri)
        self._root, self._uri = root.rstrip("/"), uri.rstrip("/")

    def steps(self) -> list[int]:
        """Return the steps of which there is a sealed snapshot, oldest first."""
        self._fs.invalidate_cache()
        try:
            names = [path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []
        return sorted(step for step in _steps(names) if self._fs.exists(f"{self._folder(step)}/{SEAL}"))

    def shown(self, step: int) -> str:
        """Return the address of a snapshot, for messages."""
        return f"{self._uri}/{PREFIX}{step}"

    @contextmanager
    def opened(self, step: int) -> Iterator[Path]:
        """Give a folder with copies of the files of a snapshot."""
        with tempfile.TemporaryDirectory(prefix="snapshot-") as folder:
            for path in self._fs.ls(self._folder(step), detail=False):
                self._fs.get_file(path, os.path.join(folder, path.rpartition("/")[2]))
            yield Path(folder)

    def put(self, step: int, fill: Callable[[Path], None]) -> None:
        """Keep the snapshot that `fill` writes into the folder it is given."""
        self.remove(step)
        with tempfile.TemporaryDirectory(prefix="snapshot-") as folder:
            fill(Path(folder))
            self._fs.makedirs(self._folder(step), exist_ok=True)
            for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == SEAL):
                self._fs.put_file(str(path), f"{self._folder(step)}/{path.name}")

    def remove(self, step: int) -> None:
        """Remove a snapshot, if it is there."""
        self._fs.invalidate_cache()
        for path in (f"{self._folder(step)}/{SEAL}", self._folder(step)):
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)

    def clear(self) -> None:
        """Remove everything."""
        self._fs.invalidate_cache()
        if self._fs.exists(self._root):
            self._fs.rm(self._root, recursive=True)

    def _folder(self, step: int) -> str:
        return f"{self._root}/{PREFIX}{step}"


Place = Union[LocalPlace, RemotePlace]


def place(uri: str) -> Place:
    """Return the place that a path, a `file://` URI or any URI of fsspec names.

    Raises:
        MissingLibrary: fsspec, or its package for this scheme, is not installed.
    """
    if re.match(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:", uri):
        return RemotePlace(uri)
    return LocalPlace(tables.local_path(uri))


def _steps(names: Any) -> list[int]:
    return [int(name[len(PREFIX) :]) for name in names if name.startswith(PREFIX) and name[len(PREFIX) :].isdigit()]


def _filesystem(uri: str) -> tuple[Any, str]:
    scheme = uri.partition(":")[0]
    package = _PACKAGES.get(scheme, "")
    try:
        import fsspec.core

        found: tuple[Any, str] = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        names = " ".join(name for name in ("fsspec", package) if name)
        raise MissingLibrary(
            f"snapshots at {scheme}:// need fsspec and its package for that scheme: {error}; "
            f"run: {sys.executable} -m pip install {names}"
        ) from error
    return found
