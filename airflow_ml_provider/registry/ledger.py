"""Where the journal of an alias is kept: as tags of the registered model, written by one task at a time."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import Conflict, IntegrityError
from airflow_ml_provider.registry import journal
from airflow_ml_provider.registry._server import is_absent
from airflow_ml_provider.registry.journal import JournalEntry

LEASE_S = 120.0
"""A claim older than this belongs to a task that was killed and not tried again."""


class Ledger:
    """The tags `airflow_ml.journal.ALIAS.000001` … of a registered model, and `airflow_ml.head.ALIAS`.

    MLflow can neither append nor compare-and-set a tag. So a writer first raises its claim, a tag of its own, and
    only then looks for the claims of others: of two writers at least one sees the other and gives way. The tries of one
    task share a tag: a retry takes the claim of a killed try over at once, and a try that was thought dead and is not
    finds a token in it that is not its own, and gives way.
    """

    def __init__(self, client: Any, name: str, alias: str) -> None:
        self._client, self._name, self._alias = client, name, alias
        self._entry = f"airflow_ml.journal.{alias}."
        self._claim = f"airflow_ml.claim.{alias}."
        self._head = f"airflow_ml.head.{alias}"
        self._where = f"{name}@{alias}"
        self._mine = self._token = ""
        self._since = float("-inf")

    def read(self) -> tuple[JournalEntry, ...]:
        """Return the entries in order.

        Raises:
            IntegrityError: an entry was removed or altered.
        """
        tags = self._tags()
        entries = self._parse(tags)
        if found := self._faults(tags, entries):
            raise IntegrityError(f"journal of {self._where}: {'; '.join(found)}")
        return entries

    def faults(self) -> list[str]:
        """Return what is wrong with the journal; nothing is when the list is empty."""
        tags = self._tags()
        try:
            return self._faults(tags, self._parse(tags))
        except IntegrityError as error:
            return [str(error)]

    def append(self, entry: JournalEntry, entries: tuple[JournalEntry, ...]) -> JournalEntry:
        """Write `entry` after `entries`; only while the claim is held.

        Raises:
            Conflict: somebody else wrote at the same time.
        """
        entry = journal.chained(entries, entry)
        key, text = f"{self._entry}{entry.seq:06d}", codec.canonical(entry)
        if key in self.confirm():
            raise Conflict(f"journal of {self._where}: entry {entry.seq} was written by somebody else meanwhile")
        self._client.set_registered_model_tag(self._name, key, text)
        if self.confirm().get(key) != text:
            raise Conflict(f"journal of {self._where}: entry {entry.seq} was overwritten by somebody else")
        return entry

    def write_head(self, entry: JournalEntry) -> JournalEntry:
        """Note which entry is the last, so that its removal shows; only while the claim is held. Return that entry.

        It is the one that stands where `entry` was written: an earlier try that gives way only now may have put its own
        there, which says the same but for the time.

        Raises:
            Conflict: another task's entry stands there.
        """
        while True:
            tags = self.confirm()
            stands = next((found for found in self._parse(tags) if found.seq == entry.seq), None)
            if stands is None or stands.identity != entry.identity:
                raise Conflict(f"journal of {self._where}: entry {entry.seq} was overwritten by somebody else")
            text = codec.canonical({"seq": stands.seq, "digest": stands.digest})
            if tags.get(self._head) == text:
                return stands
            self._client.set_registered_model_tag(self._name, self._head, text)

    def confirm(self) -> dict[str, str]:
        """Return the tags of the model as they are now; before every write.

        Raises:
            Conflict: the claim is not held any more.
        """
        tags = self._tags()
        if tags.get(self._mine) != self._token or time.monotonic() - self._since > LEASE_S / 2:
            raise Conflict(
                f"journal of {self._where}: the claim to write has lapsed, or another try of this task took it over; "
                "try again"
            )
        return tags

    @contextmanager
    def claim(self, identity: str) -> Iterator[None]:
        """Be the only writer.

        Raises:
            Conflict: another task writes; try again.
        """
        self._mine = f"{self._claim}{identity or uuid.uuid4().hex[:16]}"
        self._token = f"{time.time()} {uuid.uuid4().hex}"
        self._since = time.monotonic()
        self._client.set_registered_model_tag(self._name, self._mine, self._token)
        try:
            now = time.time()
            for key, text in self.confirm().items():
                if not key.startswith(self._claim) or key == self._mine:
                    continue
                if now - _seconds(text) < LEASE_S:
                    raise Conflict(f"journal of {self._where}: task {key[len(self._claim) :]} is writing; try again")
                self._client.delete_registered_model_tag(self._name, key)
            yield
        finally:
            if self._tags().get(self._mine) == self._token:
                self._client.delete_registered_model_tag(self._name, self._mine)

    def _tags(self) -> dict[str, str]:
        from mlflow.exceptions import MlflowException

        try:
            return dict(self._client.get_registered_model(self._name).tags)
        except MlflowException as error:
            if is_absent(error):
                return {}
            raise

    def _parse(self, tags: dict[str, str]) -> tuple[JournalEntry, ...]:
        texts = {key[len(self._entry) :]: text for key, text in tags.items() if key.startswith(self._entry)}
        return journal.parse(texts, self._where)

    def _faults(self, tags: dict[str, str], entries: tuple[JournalEntry, ...]) -> list[str]:
        found = journal.faults(entries)
        head: dict[str, Any] = json.loads(tags[self._head]) if self._head in tags else {"seq": 0, "digest": ""}
        # A writer that was killed leaves the head one behind its entry; the next one mends that.
        if not found and head["seq"] > len(entries):
            found.append(f"entry {head['seq']} is missing: it was the last one and was removed")
        elif not found and head["seq"] and entries[head["seq"] - 1].digest != head["digest"]:
            found.append(f"entry {head['seq']} was altered or replaced: its digest is not {head['digest']}")
        elif not found and head["seq"] < len(entries) - 1:
            found.append(f"the journal's head was set back to entry {head['seq']} of {len(entries)}")
        return found


def _seconds(claim: str) -> float:
    """Return when a claim was raised."""
    try:
        return float(claim.partition(" ")[0])
    except ValueError:
        return 0.0
