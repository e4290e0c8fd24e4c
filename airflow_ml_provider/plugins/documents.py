"""Which files the web server shows, and how a page keeps its styles and pictures. Knows neither Airflow nor FastAPI."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_INLINE = (".css", ".js", ".png", ".svg")
_LARGEST = 4 << 20  # bytes of a file that goes into a page
_REFERENCE = re.compile(r"(<(?:link|script|img)\b[^>]*?\s(?:href|src)=)([\"'])([^\"']+)\2", re.IGNORECASE)


def roots(setting: str) -> tuple[Path, ...]:
    """Return the folders that a setting names, separated by `os.pathsep` or commas, without their symbolic links.

    Relative paths and the root of the file system are no folders to be shown and are left out.
    """
    names = [name.strip() for name in re.split(f"[,{re.escape(os.pathsep)}]", setting)]
    found = [Path(os.path.realpath(name)) for name in names if os.path.isabs(name)]
    return tuple(path for path in found if path != Path(path.anchor))


def find(path: str, folders: Sequence[Path]) -> Path | None:
    """Return the file that may be shown under an absolute path; none for anything else, whether it exists or not.

    What counts is where the path leads in the end: neither `..` nor a symbolic link leads out of the folders.
    """
    if "\0" in path or Path(path).suffix.lower() not in TYPES:
        return None
    real = Path(os.path.realpath(path))
    if real.suffix.lower() not in TYPES or not real.is_file():
        return None
    return real if any(real.is_relative_to(folder) for folder in folders) else None


def self_contained(text: str, file: Path, folders: Sequence[Path]) -> str:
    """Return a page with the local styles, scripts and pictures that it refers to put inside it.

    A page is shown in a sandbox of its own, from which a browser sends no login: it could not fetch them itself.
    """

    def replaced(match: re.Match[str]) -> str:
        start, mark, address = match.groups()
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
            return match.group()
        found = find(str(file.parent / unquote(parts.path)), folders)
        if found is None or found.suffix.lower() not in _INLINE or found.stat().st_size > _LARGEST:
            return match.group()
        kind = TYPES[found.suffix.lower()].replace(" ", "")
        return f"{start}{mark}data:{kind};base64,{base64.b64encode(found.read_bytes()).decode()}{mark}"

    return _REFERENCE.sub(replaced, text)
