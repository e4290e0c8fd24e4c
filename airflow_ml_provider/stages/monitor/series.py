"""The series of a monitor: one small file per interval, in the order of their keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.monitor.logic import Entry

_PREFIX, _SUFFIX = "interval=", ".json"


def folder(root: str, name: str) -> Path:
    """Return where the series of a monitor lies."""
    return tables.local_path(root) / name / "series"


def read_series(root: str, name: str, until: Optional[Union[Interval, str]] = None) -> list[dict[str, Any]]:
    """Return the entries of a series in the order of their intervals, as plain mappings (see `logic.Entry`).

    Parameters:
        root: the monitor's `output`.
        name: the monitor's `name`.
        until: last interval, or its key; none gives all.
    """
    last = until.key if isinstance(until, Interval) else until
    return [codec.encode(entry) for entry in read(folder(root, name)) if last is None or entry.interval <= last]


def read(place: Path) -> list[Entry]:
    """Return the entries in a folder in the order of their intervals.

    Raises:
        DataError: a file is no entry.
    """
    entries = []
    for path in place.glob(f"{_PREFIX}*{_SUFFIX}"):
        try:
            entries.append(codec.decode(Entry, json.loads(path.read_text(encoding="utf-8")), path.name))
        except ValueError as error:  # SpecError is one, too
            raise DataError(f"{path} is no entry of a monitor's series: {error}") from error
    return sorted(entries, key=lambda entry: entry.interval)


def write(place: Path, entry: Entry) -> Path:
    """Replace the entry of its interval in one step."""
    text = json.dumps(codec.encode(entry), indent=1, sort_keys=True, ensure_ascii=False)
    return tables.write_text(place / f"{_PREFIX}{entry.interval}{_SUFFIX}", text)


@contextmanager
def deciding(place: Path) -> Iterator[None]:
    """Have others wait who decide about the same series, so that two days at once do not both start training."""
    import fcntl

    place.mkdir(parents=True, exist_ok=True)
    with open(place / ".lock", "w") as lock:  # the kernel lets go of it when its holder dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
