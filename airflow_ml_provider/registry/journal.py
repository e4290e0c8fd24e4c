"""The journal of an alias: who held it for data of which time, as a chain of entries, and who holds it now. Pure.

An entry carries the digest of the entry before it, so that one that was removed or altered later shows. Entries are
never changed; what was decided wrongly is answered by a further entry.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import IntegrityError, SpecError
from airflow_ml_provider.refs import ModelRef

Action = Literal["promote", "rollback"]


@dataclass(frozen=True)
class JournalEntry:
    """One move of an alias.

    Attributes:
        seq: position in the journal, from 1.
        action: what moved it.
        version: the version that holds the alias from here on.
        model: digest of that version.
        effective_from: data from this moment on is scored by it.
        recorded_at: when the entry was written.
        previous: version that held the alias before; none for the first.
        evidence: digest of the evidence that the move stands on.
        threshold: operating point of the version.
        reason: why.
        dag_id: the workflow that moved it.
        run_id: its run.
        identity: equal for all tries of one task; one task moves an alias to one version once.
        prev: digest of the entry before; empty for the first.
    """

    seq: int
    action: Action
    version: str
    model: str
    effective_from: datetime
    recorded_at: datetime
    previous: Optional[str] = None
    evidence: str = ""
    threshold: Optional[float] = None
    reason: str = ""
    dag_id: str = ""
    run_id: str = ""
    identity: str = ""
    prev: str = ""

    @property
    def digest(self) -> str:
        """`sha256:…` of the entry, the digest of the one before it included."""
        return codec.digest(self)


@dataclass(frozen=True)
class Holders:
    """Who holds an alias now.

    Attributes:
        models: the version that MLflow's alias points to and, where that is another one, the last holder by the
            journal; none before the first promotion.
        agreed: alias and journal name the same version. They do not after a move that was not completed, or was made
            by hand.
    """

    models: tuple[ModelRef, ...] = ()
    agreed: bool = True

    def besides(self, model: ModelRef) -> tuple[ModelRef, ...]:
        """Return the holders that are other models: whom `model` would replace."""
        return tuple(holder for holder in self.models if holder.digest != model.digest)


def parse(texts: Mapping[str, str], where: str) -> tuple[JournalEntry, ...]:
    """Return the entries in `texts` (sequence number to JSON text) in order.

    Raises:
        IntegrityError: one of them is not an entry.
    """
    import json

    entries = []
    for key in sorted(texts):
        try:
            entry = codec.decode(JournalEntry, json.loads(texts[key]), f"{where} entry {key}")
        except (ValueError, SpecError) as error:
            raise IntegrityError(f"journal of {where}: entry {key} cannot be read, it was changed: {error}") from error
        entries.append(entry)
    return tuple(entries)


def faults(entries: Sequence[JournalEntry]) -> list[str]:
    """Return what is wrong with the chain; nothing is wrong when the list is empty."""
    found, before = [], ""
    for position, entry in enumerate(entries, start=1):
        if entry.seq != position:
            found.append(f"entry {position} is missing: the next one there is has number {entry.seq}")
            return found
        if entry.prev != before:
            found.append(
                f"entry {position} names {entry.prev or 'none'} as the digest of the entry before it, "
                f"which is {before or 'none'}: entry {max(position - 1, 1)} was altered or replaced"
            )
        before = entry.digest
    return found


def held(entries: Iterable[JournalEntry], at: datetime, before: Optional[int] = None) -> Optional[JournalEntry]:
    """Return the entry that rules data of the moment `at`: the last with `effective_from` not after it.

    Parameters:
        before: number of the entry that ruled this data when it was used first, 0 if none did. Later promotions do not
            rewrite what was done by then; later rollbacks do, since they are about what was wrong with it.
    """
    known = [entry for entry in entries if before is None or entry.seq <= before or entry.action == "rollback"]
    ruling = [entry for entry in known if entry.effective_from <= at]
    return ruling[-1] if ruling else None


def rolled_back(entries: Iterable[JournalEntry]) -> set[str]:
    """Return the versions that were rolled back from and have not been brought back since."""
    bad: set[str] = set()
    for entry in entries:
        if entry.action == "rollback" and entry.previous:
            bad.add(entry.previous)
        bad.discard(entry.version)
    return bad


def last_healthy(
    entries: Sequence[JournalEntry], current: Optional[str], there: Optional[Collection[str]] = None
) -> Optional[JournalEntry]:
    """Return the newest entry whose version is not `current`, which holds the alias, and was not rolled back from.

    Parameters:
        there: versions that were not deleted since; none is all.
    """
    bad = rolled_back(entries) | {current}
    for entry in reversed(entries):
        if entry.version not in bad and (there is None or entry.version in there):
            return entry
    return None


def of_run(
    entries: Iterable[JournalEntry], identity: str, action: Action, version: Optional[str] = None
) -> Optional[JournalEntry]:
    """Return the entry that the task of `identity` wrote (about `version`, if given); none if it wrote none."""
    for entry in entries:
        if identity and (entry.identity, entry.action) == (identity, action) and version in (None, entry.version):
            return entry
    return None


def promoted_by(
    entries: Iterable[JournalEntry], dag_id: str, run_id: str, version: Optional[str]
) -> Optional[JournalEntry]:
    """Return the entry by which a run promoted a version; none if it did not."""
    for entry in entries:
        if (entry.action, entry.dag_id, entry.run_id, entry.version) == ("promote", dag_id, run_id, version):
            return entry
    return None


def chained(entries: Sequence[JournalEntry], entry: JournalEntry) -> JournalEntry:
    """Return `entry` as the next one after `entries`."""
    return replace(entry, seq=len(entries) + 1, prev=entries[-1].digest if entries else "")
