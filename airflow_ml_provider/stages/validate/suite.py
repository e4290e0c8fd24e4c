"""The suite file of the user's repository, read and checked as far as that goes without Great Expectations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import SpecError, invalid, unknown_name
from airflow_ml_provider.stages.validate.logic import Check, check_repeats, named, severity_of, unique

# What Great Expectations writes beside these (ids, rendered texts) has no influence on the outcome.
_SUITE_KEYS = ("name", "expectations", "suite_parameters", "meta", "notes", "id")
_KEYS = (
    "type", "kwargs", "meta", "severity", "notes", "description", "id", "rendered_content", "expectation_context",
)  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """What a batch is expected to be like.

    Attributes:
        name: name of the suite; by default that of its file.
        checks: the expectations in their order.
        parameters: values for `$PARAMETER` references.
        digest: digest of the file.
    """

    name: str
    checks: tuple[Check, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""


def read(uri: str) -> Suite:
    """Return the suite in a JSON or YAML file, hand-written or serialised by Great Expectations 1.x.

    Raises:
        SpecError: the file cannot be read, or something in it has a wrong form; the message names the place.
    """
    path = tables.local_path(uri)
    data = _load(path)
    _keys(f"key in suite {path.name}", data, _SUITE_KEYS)
    expectations = data.get("expectations")
    if not isinstance(expectations, list):
        raise invalid(f"expectations in suite {path.name}", expectations, "a list")
    checks = [_check(f"expectation {number} of suite {path.name}", e) for number, e in enumerate(expectations, 1)]
    names = unique(check.name for check in checks)
    checks = [replace(check, name=name) for name, check in zip(names, checks)]
    check_repeats(checks)
    parameters = _mapping(f"suite_parameters in suite {path.name}", data.get("suite_parameters"))
    return Suite(str(data.get("name") or path.stem), tuple(checks), _plain(parameters), tables.file_digest(path))


def _load(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"suite file {path} cannot be read: {error}; give the absolute path of a suite") from error
    if path.suffix == ".json":
        try:
            data = json.loads(text)
        except ValueError as error:
            raise SpecError(f"suite file {path} is not JSON: {error}") from error
    else:
        import yaml

        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SpecError(f"suite file {path} is not YAML: {error}") from error
    if not isinstance(data, Mapping):
        raise invalid(f"suite file {path}", type(data).__name__, "a mapping with name and expectations")
    return data


def _check(where: str, data: Any) -> Check:
    if not isinstance(data, Mapping):
        raise invalid(where, data, "a mapping with type, kwargs and meta")
    _keys(f"key in {where}", data, _KEYS)
    kind = data.get("type")
    if not isinstance(kind, str):
        raise invalid(f"type of {where}", kind, "the name of an expectation")
    kwargs: dict[str, Any] = _plain(_mapping(f"kwargs of {where}", data.get("kwargs")))
    meta = _mapping(f"meta of {where}", data.get("meta"))
    try:
        severity = severity_of(meta, data.get("severity"))
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None
    notes = data.get("notes") or ()
    return Check(
        name=str(meta.get("name") or named(kind, kwargs)),
        type=kind,
        kwargs=kwargs,
        severity=severity,
        description=str(data.get("description") or ""),
        notes=(notes,) if isinstance(notes, str) else tuple(map(str, notes)),
    )


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise invalid(what, value, "a mapping")
    return value


def _keys(place: str, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in data:
        if key not in known:
            raise unknown_name(place, str(key), known)


def _plain(value: Any) -> Any:
    """Return `value` as JSON knows it; YAML makes dates of texts, which are written out again, in UTC."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, datetime):
        return value.replace(tzinfo=value.tzinfo or timezone.utc).astimezone(timezone.utc).isoformat()
    return value.isoformat() if isinstance(value, date) else value
