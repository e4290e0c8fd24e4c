"""What the page "ML" says: read from the registry, then rendered without any scripts."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow_ml_provider.exceptions import MlError, SpecError
from airflow_ml_provider.plugins import documents

if TYPE_CHECKING:
    from airflow_ml_provider.refs import ModelRef
    from airflow_ml_provider.registry import JournalEntry, Registry

CHAMPION = "champion"
_VERSIONS, _MOVES, _METRICS = 5, 10, 3
_EVIDENCE = "airflow_ml.evidence."


@dataclass(frozen=True)
class Version:
    """A registered version and what the last gate said of it.

    Attributes:
        ref: the version.
        decision: of the gate; empty when it has not been judged.
        evidence: file of the evidence record.
        url: its page in MLflow; empty when there is none.
    """

    ref: ModelRef
    decision: str = ""
    evidence: str = ""
    url: str = ""


@dataclass(frozen=True)
class Model:
    """A registered model.

    Attributes:
        name: its name.
        champion: who holds the alias.
        versions: the newest versions, newest first.
        moves: the newest moves of the alias, newest first.
        faults: what is wrong with its records.
    """

    name: str
    champion: ModelRef | None = None
    versions: tuple[Version, ...] = ()
    moves: tuple[JournalEntry, ...] = ()
    faults: tuple[str, ...] = ()


def read(mlflow_conn_id: str) -> tuple[list[Model], str]:
    """Return the models of the registry behind a connection, and why there are none if it cannot be read."""
    from airflow_ml_provider.hooks.mlflow import MlflowHook
    from airflow_ml_provider.registry import Registry

    # Somebody waits before the screen, and a thread of the web server with them.
    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    try:
        return collect(Registry.from_env({**MlflowHook(mlflow_conn_id).environment(), **quick})), ""
    except MlError as error:
        return [], str(error)


def collect(registry: Registry) -> list[Model]:
    """Return what the page shows of every model; a broken record is shown as such and hides no other."""
    return [_model(registry, name) for name in registry.models()]


def _model(registry: Registry, name: str) -> Model:
    faults: list[str] = []
    champion: ModelRef | None = None
    moves: tuple[JournalEntry, ...] = ()
    try:
        champion = registry.holder(name, CHAMPION)
    except SpecError:
        raise
    except MlError as error:
        faults.append(str(error))
    try:
        moves = tuple(reversed(registry.journal(name, CHAMPION)))[:_MOVES]
    except SpecError:
        raise
    except MlError as error:
        faults.append(str(error))
    versions = []
    for ref in reversed(registry.versions(name)[-_VERSIONS:]):
        tags = registry.tags(name, str(ref.version))
        decision, evidence = tags.get(f"{_EVIDENCE}decision", ""), tags.get(f"{_EVIDENCE}uri", "")
        versions.append(Version(ref, decision, evidence, registry.version_url(ref)))
    return Model(name, champion, tuple(versions), moves, tuple(faults))


def render(models: Sequence[Model], problem: str, folders: Sequence[Path]) -> str:
    """Return the page.

    Parameters:
        models: what the registry holds.
        problem: why nothing can be shown; empty when all is well.
        folders: folders whose files the web server shows; evidence elsewhere is named without a link.
    """
    style = resources.files("airflow_ml_provider.plugins").joinpath("page.css").read_text(encoding="utf-8")
    if problem:
        body = f'<p class="note">{_text(problem)}</p>'
    elif not models:
        body = '<p class="note">No model is registered yet: the first run of a training DAG does that.</p>'
    else:
        body = "".join(_section(model, folders) for model in models)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="UTF-8"><title>ML</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body><main><h1>Models</h1>{body}"
        '<p class="soft">All times are in UTC.</p></main></body></html>\n'
    )


def _section(model: Model, folders: Sequence[Path]) -> str:
    faults = "".join(f'<p class="fault">{_text(fault)}</p>' for fault in model.faults)
    champion = '<p class="soft">No champion yet.</p>'
    if model.champion is not None:
        entry = next((move for move in model.moves if move.version == model.champion.version), None)
        since = f"since {_moment(entry.recorded_at)}, for data from {_moment(entry.effective_from)} on" if entry else ""
        champion = (
            f'<p><b class="good">Champion: version {_text(model.champion.version)}</b> '
            f'<span class="soft">{since}</span></p>'
        )
    versions = _table(
        ("Version", "Engine", "Trained until", "Metrics", "Gate"), [_version(v, model, folders) for v in model.versions]
    )
    moves = _table(("When", "Move", "Data from", "Why", "By"), [_move(m) for m in model.moves])
    journal = f"<h3>Journal</h3>{moves}" if model.moves else ""
    return (
        f'<section id="{_text(quote(model.name))}"><h2>{_text(model.name)}</h2>'
        f"{faults}{champion}<h3>Versions</h3>{versions}{journal}</section>"
    )


def _version(version: Version, model: Model, folders: Sequence[Path]) -> tuple[str, ...]:
    ref = version.ref
    name = _link(_text(ref.version), version.url if version.url.startswith(("http://", "https://")) else "")
    if model.champion is not None and ref.version == model.champion.version:
        name += ' <span class="good">champion</span>'
    segment = ", ".join(f"{k} {v}" for k, v in ref.segment.items())
    metrics = ", ".join(f"{k} {v:.4g}" for k, v in list(ref.metrics.items())[:_METRICS])
    until = _moment(ref.trained_until) if ref.trained_until else ""
    return (
        name,
        _text(f"{ref.engine} ({segment})" if segment else ref.engine),
        until,
        _text(metrics),
        _decision(version, folders),
    )


def _decision(version: Version, folders: Sequence[Path]) -> str:
    if not version.decision:
        return '<span class="soft">not judged</span>'
    kind = "good" if version.decision == "passed" else "bad"
    # The record's page lies beside it.
    page = version.evidence.removesuffix(".json") + ".html"
    found = documents.find(page, folders) or documents.find(version.evidence, folders)
    # Relative to /ml/page, so that it is right wherever Airflow is mounted.
    address = f"files{quote(str(found))}" if found else ""
    evidence = f" · {_link('evidence', address)}" if address else ""
    return f'<span class="{kind}">{_text(version.decision)}</span>{evidence}'


def _move(entry: JournalEntry) -> tuple[str, ...]:
    way = f"{entry.previous} → {entry.version}" if entry.previous else f"→ {entry.version}"
    kind = "bad" if entry.action == "rollback" else "good"
    return (
        _moment(entry.recorded_at),
        f'<span class="{kind}">{_text(entry.action)}</span> {_text(way)}',
        _moment(entry.effective_from),
        _text(entry.reason),
        _text(f"{entry.dag_id} {entry.run_id}".strip()),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its cells are HTML already."""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr></thead><tbody>{body}</tbody></table>"


def _link(label: str, address: str) -> str:
    return f'<a href="{_text(address)}">{label}</a>' if address else label


def _moment(value: datetime) -> str:
    return value.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M")


def _text(value: object) -> str:
    return html.escape("" if value is None else str(value))
