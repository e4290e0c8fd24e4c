"""Publish a release: files by their digests first, the signed manifest last and in one step."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Optional

from airflow_ml_provider import models, tables
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ReportRef
from airflow_ml_provider.stages.edge import sign
from airflow_ml_provider.stages.edge.client import MANIFEST
from airflow_ml_provider.stages.edge.logic import Artifact, Delta, Release
from airflow_ml_provider.stages.edge.spec import KEY, OtaResult, OtaSpec


def run(spec: OtaSpec, info: RunInfo) -> OtaResult:
    """Publish the model of `spec`.

    Raises:
        SpecError: there is no signing key.
        IntegrityError: the package is not the model, or the manifest that is there was signed by another key.
        DataError: the package lacks the file.
    """
    return publish(spec, _key(), datetime.now(timezone.utc))


def publish(spec: OtaSpec, key: str, now: datetime) -> OtaResult:
    """Publish the model of `spec`, signed by a key, at a time; see `run`."""
    folder, target = tables.local_path(spec.model.uri), tables.local_path(spec.target)
    before = current(target, sign.public_key(key))
    models.verify(folder, spec.model)
    artifact = _put(spec, folder, target)
    made = _next(spec, artifact, before, now)
    if before is not None and _same(made, before) and (before.expires - now).days >= spec.valid_days / 2:
        return _result(spec, target, before, f"release {before.sequence} says so already")
    if before is not None and spec.deltas:
        made = replace(made, deltas=_deltas(target, made, before))
    tables.write_text(target / MANIFEST, sign.sign(made, key).decode())
    return _result(spec, target, made, "")


def current(target: Path, public_pem: str) -> Optional[Release]:
    """Return the release that devices find now; none before the first one.

    Raises:
        IntegrityError: it is not signed by this key.
    """
    path = target / MANIFEST
    return sign.verify(path.read_bytes(), [public_pem]) if path.exists() else None


def _put(spec: OtaSpec, folder: Path, target: Path) -> Artifact:
    source = folder / spec.file
    if not source.is_file():
        raise DataError(f"model package {folder} has no file {spec.file!r}")
    version = spec.model.version or spec.model.digest.partition(":")[2][:12]
    digest = tables.file_digest(source)
    made = Artifact(version, digest, source.stat().st_size, spec.runtime, spec.minimum)
    if not (target / made.path).exists():
        (target / made.path).parent.mkdir(parents=True, exist_ok=True)
        with tables.replacing(target / made.path) as aside:
            shutil.copyfile(source, aside)
    return made


def _next(spec: OtaSpec, artifact: Artifact, before: Optional[Release], now: datetime) -> Release:
    """Return the release after another one; its fallback is what all devices had."""
    expires = now + timedelta(days=spec.valid_days)
    if before is None:
        return Release(spec.model.name, 1, expires, artifact, spec.percent)
    if before.name != spec.model.name:
        raise SpecError(f"target holds releases of {before.name!r}, not of {spec.model.name!r}; take another folder")
    fallback, deltas = before.fallback, before.deltas
    if artifact.digest != before.target.digest:
        deltas = ()
        if before.percent == 100 or fallback is None:
            fallback = before.target
    # Back to what all had: there is nothing to fall back to but itself.
    fallback = None if fallback is not None and fallback.digest == artifact.digest else fallback
    return Release(spec.model.name, before.sequence + 1, expires, artifact, spec.percent, fallback, deltas)


def _same(made: Release, before: Release) -> bool:
    return replace(made, sequence=before.sequence, expires=before.expires) == before


def _deltas(target: Path, made: Release, before: Release) -> tuple[Delta, ...]:
    """Make a delta from each file that devices may have, where it is shorter than the file."""
    import bsdiff4

    found = {one.before: one for one in made.deltas}
    new = (target / made.target.path).read_bytes()
    for old in filter(None, (before.target, before.fallback)):
        if old.digest in (made.target.digest, *found):
            continue
        patch = bsdiff4.diff((target / old.path).read_bytes(), new)
        delta = Delta(old.digest, f"sha256:{hashlib.sha256(patch).hexdigest()}", len(patch))
        if delta.size < made.target.size:
            found[old.digest] = delta
            with tables.replacing(target / delta.path) as aside:
                aside.write_bytes(patch)
    return tuple(found.values())


def _result(spec: OtaSpec, target: Path, release: Release, reason: str) -> OtaResult:
    path = target / MANIFEST
    summary = {"sequence": release.sequence, "percent": release.percent, "version": release.target.version}
    report = ReportRef(spec.model.name, str(path), tables.file_digest(path), summary=summary)
    numbers = {"sequence": float(release.sequence), "percent": release.percent, "bytes": float(release.target.size)}
    if release.deltas:
        numbers["delta_bytes"] = float(min(one.size for one in release.deltas))
    return OtaResult(
        reason=reason, inputs=(spec.model,), outputs=(report,), metrics=numbers, model=spec.model, release=report
    )


def _key() -> str:
    key = os.environ.get(KEY, "")
    if not key:
        raise SpecError(f"there is no signing key in {KEY}; give signing_conn_id a connection with it as its password")
    return key
