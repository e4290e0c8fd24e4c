"""The reference client of a device: look for a release, verify it, swap the model atomically, fall back.

It needs the standard library and `cryptography`, and `bsdiff4` to use deltas; without that it takes whole files.
Whatever happens in between, `current` is a whole model file that was verified, or is not there yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import IntegrityError, Refused, Unavailable, invalid
from airflow_ml_provider.stages.edge import logic, sign
from airflow_ml_provider.stages.edge.logic import Artifact, Release

MANIFEST = "release.json"
_LONGEST = 1 << 20  # bytes of a manifest


@dataclass(frozen=True)
class State:
    """What a device remembers.

    Attributes:
        sequence: the highest number of a release that it has seen.
        release: digest of that release, so that there are not two of the same number.
        pending: digest of a file that is swapped in and not known to be healthy yet.
        before: digest of the file before that; empty when there was none.
        failed: digests of the files that were not healthy here.
    """

    sequence: int = 0
    release: str = ""
    pending: str = ""
    before: str = ""
    failed: tuple[str, ...] = field(default=())


class Client:
    """One device.

    Parameters:
        url: address of the releases: `https:`, `http:` or `file:`; what is fetched is verified whatever the way.
        root: folder of the models on the device, on one file system.
        name: of the model.
        device: name of the device, which decides in which share of a rollout it is.
        keys: public keys (PEM) that are trusted.
        runtime: what models are run with.
        version: of that.
        healthy: whether the model in a file works, asked after each swap; an error counts as no.
        cafile: certificates (PEM) that the one of the server must follow from, in place of the system's.
        timeout_s: a request fails after so many seconds.
        now: gives the time.
    """

    def __init__(
        self,
        url: str,
        root: Path,
        *,
        name: str,
        device: str,
        keys: Sequence[str],
        healthy: Callable[[Path], bool],
        runtime: str = "",
        version: str = "",
        cafile: str = "",
        timeout_s: float = 30.0,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        if url.partition(":")[0] not in ("https", "http", "file"):
            raise invalid("url", url, "an address by https, http or file")
        self.url, self.root, self.name, self.device, self.keys = url.rstrip("/"), root, name, device, list(keys)
        self.healthy, self.runtime, self.version = healthy, runtime, version
        self.timeout_s, self.now = timeout_s, now
        self._tls = ssl.create_default_context(cafile=cafile or None)
        (root / "files").mkdir(parents=True, exist_ok=True)

    @property
    def current(self) -> Optional[Path]:
        """The model file to use; none before the first release."""
        link = self.root / "current"
        return link.resolve() if link.is_symlink() else None

    def update(self) -> bool:
        """Do what the release says; return whether the model has changed.

        Raises:
            IntegrityError: manifest or file are not what was signed.
            Refused: the release is expired, replayed or of another model, or the new model is not healthy here.
            Unavailable: the server does not answer, or not wholly.
        """
        self.recover()
        envelope = self._fetch(MANIFEST, _LONGEST)
        release, state = sign.verify(envelope, self.keys), self._state()
        digest = codec.digest(release)
        logic.check(release, self.name, state.sequence, self.now())
        if release.sequence == state.sequence and digest != state.release:
            raise Refused(f"there are two releases with the number {release.sequence}: the signing key is misused")
        self._remember(replace(state, sequence=release.sequence, release=digest))
        wanted = logic.chosen(release, self.device, self.runtime, self.version, frozenset(state.failed))
        if wanted is None or wanted.digest == self._digest():
            return False
        self._have(wanted, release)
        return self._swap(wanted.digest, release)

    def recover(self) -> None:
        """Finish what an interruption has left: a model that was swapped in is asked for its health now.

        Raises:
            Refused: it is not healthy; the one before is back.
        """
        for left in (self.root / "files").glob(".*"):
            left.unlink()
        state = self._state()
        if state.pending and self._digest() == state.pending:
            self._judge(state)
        elif state.pending:
            self._remember(replace(state, pending="", before=""))

    def _swap(self, digest: str, release: Release) -> bool:
        """Make a file the current one, unless it is not healthy: then the one before is, or the fallback."""
        # What is about to happen is written first, so that whoever comes after an interruption knows.
        self._remember(replace(self._state(), pending=digest, before=self._digest()))
        self._point(digest)
        try:
            self._judge(self._state())
        except Refused:
            if not self._digest():  # a new device, with none from before
                self._fall_back(release)
            raise
        return True

    def _fall_back(self, release: Release) -> None:
        one = release.fallback
        if one and one.digest not in self._state().failed and logic.runs(one, self.runtime, self.version):
            self._have(one, release)
            self._swap(one.digest, replace(release, fallback=None))

    def _judge(self, state: State) -> None:
        try:
            good = self.healthy(self._path(state.pending))
            why = "says no"
        except Exception as error:  # noqa: BLE001 - a model may fail in any way
            good, why = False, f"{type(error).__name__}: {error}"
        if good:
            self._remember(replace(state, pending="", before=""))
            return
        if state.before:
            self._point(state.before)
        else:
            (self.root / "current").unlink()
            _sync(self.root)
        failed = (*state.failed, state.pending)[-20:]
        self._remember(replace(state, pending="", before="", failed=failed))
        raise Refused(f"model {state.pending} is not healthy on {self.device!r} ({why}); the one before is back")

    def _have(self, wanted: Artifact, release: Release) -> None:
        """Have a file here, by a delta if there is one for what is here, and verified."""
        path = self._path(wanted.digest)
        if path.is_file() and _digest_of(path.read_bytes()) == wanted.digest:
            return
        data = self._patched(wanted, release)
        if data is None:
            data = self._fetch(wanted.path, wanted.size)
            _check(data, wanted.digest, wanted.size)
        _write(path, data)

    def _patched(self, wanted: Artifact, release: Release) -> Optional[bytes]:
        here, now = self._digest(), self.current
        delta = next((one for one in release.deltas if one.before == here), None)
        if delta is None or now is None or wanted != release.target or find_spec("bsdiff4") is None:
            return None
        import bsdiff4

        patch = self._fetch(delta.path, delta.size)
        _check(patch, delta.digest, delta.size)
        data = bytes(bsdiff4.patch(now.read_bytes(), patch))
        _check(data, wanted.digest, wanted.size)
        return data

    def _fetch(self, path: str, size: int) -> bytes:
        """Return at most `size` bytes, so that no server can fill the memory."""
        address = f"{self.url}/{path}"
        try:
            with urllib.request.urlopen(  # noqa: S310 - checked above
                address, timeout=self.timeout_s, context=self._tls
            ) as answer:
                found: bytes = answer.read(size + 1)
        except OSError as error:
            raise Unavailable(f"{address} cannot be had: {error}") from error
        if len(found) > size:
            raise IntegrityError(f"{address} is longer than {size} bytes")
        return found

    def _path(self, digest: str) -> Path:
        return self.root / "files" / digest.partition(":")[2]

    def _digest(self) -> str:
        now = self.current
        return f"sha256:{now.name}" if now else ""

    def _point(self, digest: str) -> None:
        aside = self.root / ".current"
        aside.unlink(missing_ok=True)
        aside.symlink_to(Path("files") / digest.partition(":")[2])
        os.replace(aside, self.root / "current")
        _sync(self.root)

    def _state(self) -> State:
        path = self.root / "state.json"
        return codec.decode(State, json.loads(path.read_text()), "state") if path.exists() else State()

    def _remember(self, state: State) -> None:
        _write(self.root / "state.json", codec.canonical(state).encode())


def _check(data: bytes, digest: str, size: int) -> None:
    if len(data) < size:
        raise Unavailable(f"{digest} has {len(data)} of {size} bytes: the transfer was cut")
    if _digest_of(data) != digest:
        raise IntegrityError(f"what was sent for {digest} is something else")


def _digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _write(path: Path, data: bytes) -> None:
    """Write a file in one step that lasts: its bytes are on the disk before its name is."""
    handle, aside = tempfile.mkstemp(prefix=".", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
