"""The registry on MLflow: versions with aliases and tags, no stages, no pickle."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import models, tables
from airflow_ml_provider.exceptions import Conflict, DataError, IntegrityError, SpecError, invalid
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.registry import _server, journal, packages, runs
from airflow_ml_provider.registry.journal import Action, Holders, JournalEntry
from airflow_ml_provider.registry.ledger import Ledger
from airflow_ml_provider.registry.packages import TAG
from airflow_ml_provider.registry.runs import IDENTITY

__all__ = ["IDENTITY", "Registry"]

log = logging.getLogger(__name__)

EVIDENCE = TAG + "evidence."

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\- ]*\Z")


class Registry:
    """Models, their versions, who holds which alias, and on what evidence.

    Every method raises `Unavailable` when the server does not answer (trying again may help) and `SpecError` when it
    refuses the credentials.

    Parameters:
        uri: tracking URI; `sqlite:///…` works without a server.
        ui_url: address of MLflow's pages for humans; by default the tracking URI, if that is one.
        env: further `MLFLOW_*` variables (credentials) that only the calls of this object see.
    """

    def __init__(self, uri: str, *, ui_url: str = "", env: Optional[Mapping[str, str]] = None) -> None:
        self.uri = uri
        self.ui_url = _server.shown(ui_url or (uri if uri.startswith(("http://", "https://")) else "")).rstrip("/")
        self._env = dict(env or {})
        self._cached: Any = None

    @classmethod
    def from_env(cls, env: Optional[Mapping[str, str]] = None) -> Registry:
        """Return the registry that `MLFLOW_TRACKING_URI` names, in `env` or in the process's environment.

        Raises:
            SpecError: the variable is not set.
        """
        found = {**os.environ, **(env or {})}
        uri = found.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            raise SpecError(
                "MLFLOW_TRACKING_URI is not set: no model registry is known; set the operator's mlflow_conn_id to a "
                "connection of type mlflow (default mlflow_default), or the variable in the stage's environment"
            )
        return cls(uri, ui_url=found.get("MLFLOW_UI_URL", ""), env=env)

    def ping(self) -> None:
        """Raise unless the server answers and accepts the credentials."""
        with self._client() as client:
            client.search_experiments(max_results=1)

    def models(self) -> list[str]:
        """Return the names that this package has registered, sorted."""
        with self._client() as client:
            found = runs.pages(lambda token: client.search_registered_models(max_results=100, page_token=token))
        return sorted(model.name for model in found if model.tags.get(f"{TAG}managed"))

    def versions(self, name: str) -> list[ModelRef]:
        """Return the versions of a model, oldest first; those that this package did not register are left out."""
        return [packages.as_ref(version) for version in self._versions(name) if f"{TAG}digest" in version.tags]

    def get(self, name: str, version: str) -> ModelRef:
        """Return one version.

        Raises:
            DataError: there is none, or this package did not register it.
        """
        with self._client() as client:
            return packages.as_ref(client.get_model_version(_name(name), version))

    def alias(self, name: str, alias: str) -> Optional[str]:
        """Return the version that an alias points to now; none when there is no such model or alias."""
        from mlflow.exceptions import MlflowException

        with self._client() as client:
            try:
                version = client.get_registered_model(_name(name)).aliases.get(alias)
            except MlflowException as error:
                if _server.is_absent(error):
                    return None
                raise
        return None if version is None else str(version)

    def holder(self, name: str, alias: str, at: Optional[datetime] = None) -> Optional[ModelRef]:
        """Return who holds an alias: now, by the alias itself, or for data of the moment `at`, by the journal.

        Raises:
            IntegrityError: the journal was altered, or names another model than the version is.
        """
        if at is None:
            version = self.alias(name, alias)
            return None if version is None else self.get(name, version)
        entry = journal.held(self.journal(name, alias), at)
        return None if entry is None else self.held_by(name, entry)

    def holders(self, name: str, alias: str, entries: Sequence[JournalEntry]) -> Holders:
        """Return who holds an alias now, by MLflow and by the `entries` of its journal.

        Raises:
            DataError: the alias was moved by hand to a version that this package did not register.
            IntegrityError: the journal names another model than the version is.
        """
        current = self.alias(name, alias)
        if entries and entries[-1].version == current:
            return Holders((self.held_by(name, entries[-1]),))
        found = [self.get(name, current)] if current else []
        if entries:
            log.warning("%s: the alias points to version %s, the journal to %s", name, current, entries[-1].version)
            last = self.last_holder(name, entries)
            found += [last] if last is not None and last.version != current else []
        return Holders(tuple(found), agreed=False)

    def last_holder(
        self, name: str, entries: Sequence[JournalEntry], at: Optional[datetime] = None
    ) -> Optional[ModelRef]:
        """Return the last holder by the journal that was neither rolled back from nor deleted since.

        Parameters:
            at: of those that held the alias for data of this moment; none looks at all.
        """
        there, bad = self.present(name), journal.rolled_back(entries)
        for entry in reversed(entries):
            if entry.version in there - bad and (at is None or entry.effective_from <= at):
                return self.held_by(name, entry)
        return None

    def find(self, name: str, version: Optional[str]) -> Optional[ModelRef]:
        """Return one version; none when there is no such version, or not any more."""
        return self.get(name, version) if version is not None and version in self.present(name) else None

    def present(self, name: str) -> set[str]:
        """Return the versions of a model that were not deleted."""
        return {str(version.version) for version in self._versions(name)}

    def rolled_back(self, name: str, entries: Sequence[JournalEntry]) -> set[str]:
        """Return the digests of the models that were rolled back from, by the `entries` of a journal.

        The journal knows them, whether or not their versions are still there; it does not know those that held the
        alias by hand.
        """
        bad = journal.rolled_back(entries)
        known = {entry.version: entry.model for entry in entries}
        by_hand = bad - known.keys()
        found = {ref.digest for ref in self.versions(name) if ref.version in by_hand} if by_hand else set()
        return found | {known[version] for version in bad & known.keys()}

    def held_by(self, name: str, entry: JournalEntry) -> ModelRef:
        """Return the version that an entry of the journal names.

        Raises:
            IntegrityError: the version is not the model that the entry was written about.
        """
        ref = self.get(name, entry.version)
        for what, found, written in (
            ("digest", ref.digest, entry.model),
            ("operating point", self.threshold(ref), entry.threshold),
        ):
            if found != written:
                raise IntegrityError(
                    f"model {name!r} version {entry.version} has {what} {found}, the journal's entry {entry.seq} says "
                    f"{written}: its tags were changed"
                )
        return ref

    def journal(self, name: str, alias: str = "champion") -> tuple[JournalEntry, ...]:
        """Return the moves of an alias, oldest first.

        Raises:
            IntegrityError: an entry was removed or altered; `verify_journal` says what without raising.
        """
        with self._client() as client:
            return Ledger(client, _name(name), alias).read()

    def verify_journal(self, name: str, alias: str = "champion") -> list[str]:
        """Return what is wrong with a journal; nothing is when the list is empty."""
        with self._client() as client:
            found = Ledger(client, _name(name), alias).faults()
        if not found and (entries := self.journal(name, alias)) and self.alias(name, alias) != entries[-1].version:
            found.append(
                f"the alias points to version {self.alias(name, alias)}, the journal's last entry to "
                f"{entries[-1].version}: a move was not completed, or the alias was moved by hand"
            )
        return found

    def register(
        self, name: str, folder: Path, ref: ModelRef, tags: Mapping[str, str], alias: str, *, description: str = ""
    ) -> ModelRef:
        """Upload a package and make a version of it; the same task with the same model gets the version it made before.

        A version appears in one step, when everything is uploaded, so a killed task leaves none or a complete one.

        Parameters:
            tags: tags of the version; `airflow_ml.identity` says which task it is.
            alias: given to the version, unless a newer version has it.
        """
        models.verify(folder, ref)
        identity = tags.get(IDENTITY, "")
        with self._client() as client:
            found = self._registered(name, ref.digest, identity)
            if not found:
                runs.make_model(client, _name(name))
                run_id = ref.run_id or runs.of_untracked(client, self.uri, name, ref.digest, identity)
                path = f"model-{packages.hexadecimal(ref.digest)[:12]}"
                source = f"{client.get_run(run_id).info.artifact_uri}/{path}"
                for file in packages.uploads(folder):
                    client.log_artifact(run_id, str(file), path)
                body = {**tags, **packages.tags_of(ref, folder), f"{TAG}artifact_path": path}
                client.create_model_version(name, source, run_id, tags=body, description=description)
                found = self._registered(name, ref.digest, identity)
            # The client repeats a request that timed out, and the server may have done it twice.
            for double in found[1:]:
                client.delete_model_version(name, double.version)
            version = found[0]
            holder = self.alias(name, alias)
            if holder is None or int(holder) < int(version.version):
                client.set_registered_model_alias(name, alias, version.version)
        return packages.as_ref(version)

    def tag(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._client() as client:
            for key, value in tags.items():
                client.set_model_version_tag(_name(name), version, key, value)

    def tags(self, name: str, version: str) -> dict[str, str]:
        """Return the tags of a version."""
        with self._client() as client:
            return dict(client.get_model_version(_name(name), version).tags)

    def threshold(self, ref: ModelRef) -> Optional[float]:
        """Return the operating point that a version is used with; none when it says none."""
        text = self.tags(ref.name, ref.version or "").get(f"{TAG}threshold")
        return float(text) if text else None

    def move(
        self, name: str, alias: str, to: ModelRef, *, action: Action, info: RunInfo, effective_from: datetime,
        expected: Optional[str], after: Optional[int] = None, reason: str = "", evidence: str = "",
    ) -> JournalEntry:  # fmt: skip
        """Write an entry into the journal, then move the alias; return the entry.

        A task writes one entry about a version: when it is killed between the two steps its next try completes them.

        Parameters:
            expected: version that held the alias when the move was decided.
            after: number of the journal's last entry then; none does not look.

        Raises:
            Conflict: another task, or another try of this one, moves the alias, or has moved it since the decision.
        """
        if to.version is None:
            raise invalid("model", to.name, "a registered version", "register it first")
        with self._client() as client:
            ledger = Ledger(client, _name(name), alias)
            with ledger.claim(info.identity):
                entries = ledger.read()
                entry = journal.of_run(entries, info.identity, action, to.version)
                if entry is None:
                    current = self.alias(name, alias)
                    if current != expected:
                        raise Conflict(f"{name}@{alias} moved from version {expected} to {current} meanwhile")
                    if after not in (None, len(entries)):
                        raise Conflict(f"the journal of {name}@{alias} has entry {len(entries)} meanwhile; try again")
                    entry = JournalEntry(
                        seq=0, action=action, version=to.version, model=to.digest, previous=current, evidence=evidence,
                        threshold=self.threshold(to),
                        effective_from=effective_from.astimezone(timezone.utc), reason=reason,
                        recorded_at=datetime.now(timezone.utc), dag_id=info.dag_id, run_id=info.run_id,
                        identity=info.identity,
                    )  # fmt: skip
                    entry = ledger.append(entry, entries)
                elif entry.seq < len(entries):
                    return entry
                entry = ledger.write_head(entry)
                if self.alias(name, alias) != entry.version:
                    ledger.confirm()
                    client.set_registered_model_alias(name, alias, entry.version)
        return entry

    def fetch(self, ref: ModelRef) -> Path:
        """Return a local folder that holds exactly the model of `ref`: its own, else a cached download.

        Raises:
            IntegrityError: what the registry holds is not that model.
        """
        if ref.uri and packages.holds(tables.local_path(ref.uri), ref.digest):
            return tables.local_path(ref.uri)
        cached = packages.cache() / packages.hexadecimal(ref.digest)
        if not packages.holds(cached, ref.digest):
            cached.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cached.parent, prefix=f".{cached.name[:12]}-") as aside:
                folder = self.download(ref, Path(aside))
                if cached.exists():  # a damaged copy
                    shutil.rmtree(cached, ignore_errors=True)
                try:
                    os.rename(folder, cached)
                except OSError:
                    if not packages.holds(cached, ref.digest):  # nobody else put it there meanwhile
                        raise
        return cached

    def download(self, ref: ModelRef, into: Path) -> Path:
        """Return a folder with what the registry itself holds for a version, proven to be the model of `ref`.

        Raises:
            IntegrityError: it is not that model, or parts of it are missing.
        """
        if ref.version is None:
            raise DataError(f"model {ref.name!r} at {ref.uri} has changed or is gone, and it is not registered")
        with self._client() as client:
            version = client.get_model_version(_name(ref.name), ref.version)
            path = version.tags.get(f"{TAG}artifact_path", "")
            folder = runs.artifacts(client, self.uri, version.run_id, path, into)
        if not (folder / models.MANIFEST).exists() or not (folder / models.ONNX).exists():
            raise IntegrityError(f"model {ref.name!r} version {ref.version}: the registry's files are incomplete")
        return models.verify(folder, ref)

    def attach_evidence(self, ref: ModelRef, files: Iterable[Path], digest: str, decision: str, uri: str) -> None:
        """Put the evidence of a decision beside the model's run and point to it from the version."""
        if ref.version is None:
            raise invalid("model", ref.name, "a registered version", "register it first")
        with self._client() as client:
            run_id = client.get_model_version(_name(ref.name), ref.version).run_id
            for file in files:
                client.log_artifact(run_id, str(file), "evidence")
        self.tag(
            ref.name, ref.version,
            {f"{EVIDENCE}uri": uri, f"{EVIDENCE}decision": decision, f"{EVIDENCE}digest": digest},
        )  # fmt: skip

    def evidence(self, ref: ModelRef) -> Optional[dict[str, Any]]:
        """Return the evidence record that a version points to, proven by its digest; none when there is none.

        Raises:
            IntegrityError: the record is gone or was altered.
        """
        if ref.version is None:
            return None
        digest = self.tags(ref.name, ref.version).get(f"{EVIDENCE}digest")
        if not digest:
            return None
        with self._client() as client, tempfile.TemporaryDirectory() as aside:
            run_id = client.get_model_version(_name(ref.name), ref.version).run_id
            file = runs.artifacts(
                client, self.uri, run_id, f"evidence/{packages.hexadecimal(digest)}.json", Path(aside)
            )
            found = tables.file_digest(file) if file.is_file() else "none (the file is gone)"
            if found != digest:
                raise IntegrityError(
                    f"evidence of {ref.name!r} version {ref.version} has digest {found}, not {digest}: it was altered"
                )
            record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return record

    def run_url(self, run_id: Optional[str]) -> str:
        """Return the page of a tracking run; empty when there is none."""
        if not self.ui_url or not run_id:
            return ""
        with self._client() as client:
            experiment = client.get_run(run_id).info.experiment_id
        return f"{self.ui_url}/#/experiments/{experiment}/runs/{run_id}"

    def version_url(self, ref: ModelRef) -> str:
        """Return the page of a registered version; empty when there is none."""
        return f"{self.ui_url}/#/models/{ref.name}/versions/{ref.version}" if self.ui_url and ref.version else ""

    @contextmanager
    def _client(self) -> Iterator[Any]:
        with _server.environment(self._env), _server.errors(self.uri):
            if self._cached is None:
                from mlflow import MlflowClient

                self._cached = MlflowClient(self.uri, os.environ.get("MLFLOW_REGISTRY_URI") or self.uri)
            yield self._cached

    def _versions(self, name: str) -> list[Any]:
        query = f"name = '{_name(name)}'"
        with self._client() as client:
            found = runs.pages(lambda token: client.search_model_versions(query, max_results=200, page_token=token))
        return sorted(found, key=lambda version: int(version.version))

    def _registered(self, name: str, digest: str, identity: str) -> list[Any]:
        return [
            version
            for version in self._versions(name)
            if version.tags.get(f"{TAG}digest") == digest and version.tags.get(IDENTITY, "") == identity
        ]


def _name(name: str) -> str:
    if not _NAME.match(name):
        raise invalid("model name", name, "letters, digits, spaces and . _ -")
    return name
