"""The first page of a batch's Data Docs: the decision and why, the scores, the expectations. Pure."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

from airflow_ml_provider.stages.validate.logic import Counts, Decision, Outcome

_DOES = {"block": "refuse", "quarantine": "set aside", "warn": "warn"}


def render(
    title: str,
    decision: Decision,
    counts: Counts,
    outcomes: Sequence[Outcome],
    quality: Mapping[str, float],
    minimum: Mapping[str, float],
    *,
    quarantined: int,
    results: Optional[str],
    suite: Optional[str],
) -> str:
    """Return the page; `results` and `suite` are the addresses of Great Expectations' own pages, if there are any."""
    admitted = counts.rows - quarantined if decision.admitted else 0
    verdict = '<b class="text-success">Admitted</b>' if decision.admitted else '<b class="text-danger">Refused</b>'
    remarks = "".join(f"<li>{_text(r)}</li>" for r in (*decision.reasons, *decision.notices))
    links = [
        f'<a href="{_text(address)}">{name}</a>'
        for name, address in (("Validation results", results), ("Expectation suite", suite))
        if address
    ]
    numbers = [("Rows read", counts.rows), ("Set aside", quarantined), ("Admitted", admitted)]
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="UTF-8"><title>{_text(title)}</title></head><body>
<nav class="navbar">Data Docs</nav><div class="container-fluid"><h1>{_text(title)}</h1>
<div class="alert">{verdict}<ul>{remarks}</ul></div>
<p>{" · ".join(links)}</p>
<h4>Rows</h4>{_table(("", "Rows"), [(name, str(n)) for name, n in numbers])}
<h4>Quality</h4>{_table(("Dimension", "Score", "Minimum"), _scores(quality, minimum))}
<h4>Expectations</h4>{_table(("", "Expectation", "On failure", "Seen"), map(_row, outcomes), raw=True)}
</div></body></html>
"""


def _scores(quality: Mapping[str, float], minimum: Mapping[str, float]) -> list[tuple[str, str, str]]:
    names = [*quality, *(name for name in minimum if name not in quality)]
    return [
        (n, f"{quality[n]:.4f}" if n in quality else "not measured", f"{minimum[n]:g}" if n in minimum else "")
        for n in names
    ]


def _row(outcome: Outcome) -> tuple[str, ...]:
    mark = '<i class="fas fa-check text-success"></i>' if outcome.passed else '<i class="fas fa-times text-danger"></i>'
    said = outcome.check.description or outcome.check.name
    return mark, _text(said), _DOES[outcome.severity], _text(outcome.seen)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], raw: bool = False) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{cell if raw else _text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    return html.escape(str(value))
