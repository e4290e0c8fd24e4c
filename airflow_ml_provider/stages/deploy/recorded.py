"""Places that can neither keep what a service shall be, nor be changed by one who has seen the last change only.

What it shall be is an object in a bucket, which is written if it is the one that was seen (compare and swap). What
serves follows from it: such systems take one change at a time, for minutes, so whoever looks brings it a step nearer.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional, Protocol

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import Conflict
from airflow_ml_provider.stages.deploy.service import Observed, Service, VersionState


class Records(Protocol):
    """Texts by the names of services. Each method raises `Unavailable` when the bucket does not answer."""

    def read(self, name: str) -> Optional[tuple[str, str]]:
        """Return the text and its revision, or none."""
        ...

    def write(self, name: str, text: str, revision: Optional[str]) -> str:
        """Write a text instead of that revision, with none where there is no text; return the new revision.

        Raises:
            Conflict: another revision is there.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete a text; none is no error."""
        ...


@dataclass(frozen=True)
class Record:
    """What is kept of a service.

    Attributes:
        service: what it shall be.
        since: seconds since 1970 when these versions came together; what they did is counted from then on.
    """

    service: Service
    since: int


class RecordedServing(ABC):
    """A place with such a record; fulfils `stages.deploy.service.Serving` but for readings and predictions.

    Parameters:
        records: the bucket.
    """

    def __init__(self, records: Records) -> None:
        self.records = records

    def look(self, name: str) -> Optional[Observed]:
        """Return a service as it is, or none. What serves is first brought a step nearer to what it shall be."""
        found = self.records.read(name)
        if found is None:
            return None
        wanted = _decoded(found[0]).service
        states, address = self.bring(wanted)
        return Observed(wanted, found[1], states, address)

    def put(self, wanted: Service, revision: Optional[str] = None) -> str:
        """Make a service what it shall be, without waiting; return the new revision. The same again changes nothing.

        Raises:
            Conflict: it has another revision, or is there already: somebody else changed it.
            SpecError: the place cannot do this, or serves something of this name that is not ours.
            Unavailable: the place does not answer.
        """
        self.check(wanted)
        found = self.records.read(wanted.name)
        if (found[1] if found else None) != revision:
            raise Conflict(f"service {wanted.name!r} was changed by somebody else, or is there already")
        before = _decoded(found[0]) if found else None
        if before is None:
            self.claim(wanted.name)
        if before is None or before.service != wanted:
            same = before is not None and dict(before.service.versions) == dict(wanted.versions)
            since = before.since if before is not None and same else int(time.time())
            revision = self.records.write(wanted.name, codec.canonical(Record(wanted, since)), revision)
        self.bring(wanted, anew=True)
        assert revision is not None
        return revision

    def remove(self, name: str) -> None:
        """Remove a service; none is no error. The record goes first, so that nobody brings back the rest."""
        self.records.delete(name)
        self.end(name)

    def record(self, name: str) -> Optional[Record]:
        """Return what is kept of a service, or none."""
        found = self.records.read(name)
        return _decoded(found[0]) if found else None

    @abstractmethod
    def check(self, wanted: Service) -> None:
        """Raise `SpecError` for what the place cannot do."""

    @abstractmethod
    def claim(self, name: str) -> None:
        """Raise `SpecError` if something of this name serves there that is not ours."""

    @abstractmethod
    def bring(self, wanted: Service, anew: bool = False) -> tuple[Mapping[str, VersionState], str]:
        """Bring what serves a step nearer to what it shall be; return what has become of the versions, and the address.

        Parameters:
            wanted: what it shall be.
            anew: try again what has failed before.
        """

    @abstractmethod
    def end(self, name: str) -> None:
        """Remove what serves; none is no error."""


def _decoded(text: str) -> Record:
    record: Record = codec.decode(Record, json.loads(text), "record")
    return record
