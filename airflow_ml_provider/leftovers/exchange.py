"""What stages in pods have left in the folder that workers and pods share."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from airflow_ml_provider.leftovers.logic import CALL, PACKAGE, Found, Task, task_of
from airflow_ml_provider.runtime import bundle

_IDENTITY = re.compile(r"[0-9a-f]{16}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\.zip\Z")


class ExchangePlace:
    """The calls and packages below one exchange folder. What has another form of name is not ours and is not seen.

    Parameters:
        folder: the exchange folder; there need be nothing yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: dict[str, Any] = {CALL: folder / "calls", PACKAGE: folder / "packages"}

    def look(self) -> list[Found]:
        """Return all calls, and the packages of other versions than this one."""
        calls = [self._call(path) for path in _within(self.kinds[CALL], _IDENTITY)]
        present = f"{bundle.digest()}.zip"
        packages = [path for path in _within(self.kinds[PACKAGE], _DIGEST) if path.name != present]
        return [thing for thing in (*calls, *map(_package, packages)) if thing]

    def remove(self, thing: Found) -> str:
        """Delete a call's folder or a package, unless it was written to since, and say what became of it."""
        path = self.kinds[thing.kind] / thing.name
        try:
            if str(_written_ns(path)) != thing.uid:
                return "kept: it was written to since"
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except FileNotFoundError:
            return "was gone already"
        return "deleted"

    def _call(self, folder: Path) -> Found | None:
        try:
            written = _written_ns(folder)
        except FileNotFoundError:  # its task has taken the outcome meanwhile
            return None
        return Found(CALL, folder.name, str(written), _moment(written), _task(folder / "call.json"))


def _within(folder: Path, form: re.Pattern[str]) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if form.match(path.name) and not path.is_symlink())


def _package(path: Path) -> Found | None:
    try:
        written = _written_ns(path)
    except FileNotFoundError:
        return None
    return Found(PACKAGE, path.name, str(written), _moment(written))


def _written_ns(path: Path) -> int:
    """Return when a file, or a folder or anything within it, was last written to."""
    within = path.rglob("*") if path.is_dir() else ()
    return max(int(one.lstat().st_mtime_ns) for one in (path, *within))


def _moment(written_ns: int) -> datetime:
    return datetime.fromtimestamp(written_ns / 1e9, timezone.utc)


def _task(call: Path) -> Task | None:
    """Return whose call it is. Only that is read: the rest may be of another version of this package."""
    try:
        body = json.loads(call.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return task_of(body.get("info")) if isinstance(body, dict) else None
