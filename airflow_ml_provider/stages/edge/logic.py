"""What a release over the air says, and what a device makes of it. Pure, standard library only."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Optional

from airflow_ml_provider.exceptions import Refused, invalid

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Artifact:
    """A model file, named by its content.

    Attributes:
        version: what people call it.
        digest: `sha256:…` of the file.
        size: of the file (bytes).
        runtime: what runs it, such as `onnxruntime`; empty for anything.
        minimum: lowest version of that which can.
    """

    version: str
    digest: str
    size: int
    runtime: str = ""
    minimum: str = ""

    def __post_init__(self) -> None:
        check_digest(self.digest)
        if self.size <= 0:
            raise invalid("size", self.size, "greater than 0")
        numbers(self.minimum)

    @property
    def path(self) -> str:
        """Where it is below the address of the releases."""
        return f"files/{self.digest.partition(':')[2]}"


@dataclass(frozen=True)
class Delta:
    """A patch (bsdiff) from one file to another one.

    Attributes:
        before: digest of the file that it applies to.
        digest: of the patch.
        size: of the patch (bytes).
    """

    before: str
    digest: str
    size: int

    def __post_init__(self) -> None:
        check_digest(self.before)
        check_digest(self.digest)

    @property
    def path(self) -> str:
        """Where it is below the address of the releases."""
        return f"files/{self.digest.partition(':')[2]}"


@dataclass(frozen=True)
class Release:
    """What all devices are told; it is signed as a whole.

    Attributes:
        name: of the model; a device only takes releases of its own.
        sequence: grows by one with each release; a device takes none that is older than what it has seen.
        expires: until when it may be believed, so that nobody can hold devices back with an old one for ever.
        target: what is rolled out.
        percent: share of the devices that get it.
        fallback: what the others have, and those on which the target cannot run or is not healthy; none leaves them
            with what they have.
        deltas: shorter ways to the target.
    """

    name: str
    sequence: int
    expires: datetime
    target: Artifact
    percent: float = 100.0
    fallback: Optional[Artifact] = None
    deltas: tuple[Delta, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise invalid("name", self.name, "the model's name")
        if self.sequence < 1:
            raise invalid("sequence", self.sequence, "at least 1")
        if not 0 <= self.percent <= 100:
            raise invalid("percent", self.percent, "in [0, 100]")


def check_digest(value: str) -> None:
    """Refuse what is no digest; it becomes a part of paths.

    Raises:
        SpecError: it is none.
    """
    if not _DIGEST.fullmatch(value):
        raise invalid("digest", value, "sha256: and 64 hexadecimal digits")


def share(name: str, digest: str, device: str) -> float:
    """Return where a device stands in the rollout of a file, in [0, 100): it takes part when `percent` is above that.

    The same device stands elsewhere in the next rollout, and a percentage that grows only adds devices.
    """
    first = hashlib.sha256("\0".join((name, digest, device)).encode()).digest()[:8]
    return int.from_bytes(first, "big") / 2**64 * 100


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without zeros at the end.

    Raises:
        SpecError: it is none such as `1.20` or `1.20.1`.

    >>> numbers("1.20.0") < numbers("1.21")
    True
    """
    if not re.fullmatch(r"(\d+(\.\d+)*)?", version):
        raise invalid("version of a runtime", version, "numbers with dots, such as 1.20.1")
    found = [int(part) for part in version.split(".") if part]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def runs(artifact: Artifact, runtime: str, version: str) -> bool:
    """Return whether a device with a runtime can run a file."""
    return not artifact.runtime or (artifact.runtime == runtime and numbers(version) >= numbers(artifact.minimum))


def chosen(
    release: Release, device: str, runtime: str, version: str, failed: frozenset[str] = frozenset()
) -> Optional[Artifact]:
    """Return what a device shall have; none leaves it with what it has.

    Parameters:
        release: the release.
        device: its name.
        runtime: what it runs models with.
        version: of that.
        failed: digests of files that were not healthy on it.
    """
    takes_part = share(release.name, release.target.digest, device) < release.percent
    wanted = [release.target] if takes_part else []
    for one in (*wanted, release.fallback):
        if one is not None and one.digest not in failed and runs(one, runtime, version):
            return one
    return None


def check(release: Release, name: str, seen: int, now: datetime) -> None:
    """Refuse a release that a device must not follow, however well it is signed.

    Parameters:
        release: the release.
        name: of the device's model.
        seen: the highest sequence number that the device has seen.
        now: the time.

    Raises:
        Refused: it is of another model, expired, or older than what was seen.
    """
    if release.name != name:
        raise Refused(f"the release is of {release.name!r}, not of {name!r}")
    if release.sequence < seen:
        raise Refused(f"the release has number {release.sequence}, but number {seen} was seen: it is replayed")
    if now >= release.expires:
        raise Refused(f"the release has expired at {release.expires.isoformat()}")
