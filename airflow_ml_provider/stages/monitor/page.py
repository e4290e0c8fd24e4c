"""The drift report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Optional

_ORDER = {"significant": 0, "warn": 1, "none": 2}
_CSS = """\
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #8884;font-variant-numeric:tabular-nums}
th:first-child,td:first-child,.facts td{text-align:left}code{overflow-wrap:anywhere}.quiet{opacity:.65}
.significant{color:#c22;font-weight:600}.warn{color:#a60;font-weight:600}svg{display:block;margin-left:auto}"""


def render(report: Mapping[str, Any]) -> str:
    """Return the page of a report (the JSON form)."""
    name, interval = escape(report["name"]), report["interval"]
    models = ", ".join(f"{escape(m['name'])} {escape(str(m['version']))}" for m in report["reference"]["models"])
    facts = [
        ("Verdict", f"{_severity(report['severity'])}: {escape(report['reason'])}"),
        ("Training", "called for by the data" if report["training_called"] else "not called for"),
        ("Interval", f"{escape(interval['start'])} to {escape(interval['end'])}"),
        ("Rows", f"{report['rows']:,}, compared with {report['reference']['rows']:,} training rows"),
        ("Models", f"{models} ({escape(report['reference']['alias'])})"),
    ]
    if report["reference"]["without_model"]:
        facts.append(("Without a model", escape(", ".join(report["reference"]["without_model"]))))
    columns = sorted(report["columns"], key=lambda c: (_ORDER[c["severity"]], -c["psi"], c["name"]))
    return "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            f"<title>Drift of {name} on {escape(interval['key'])}</title><style>{_CSS}</style>",
            f"<h1>Drift of {name} on {escape(interval['key'])}</h1>",
            _table((), [[f"<b>{k}</b>", v] for k, v in facts]),
            "<h2>Columns</h2>",
            '<p class="quiet">Grey: training rows. Blue: this batch. A level counts only when the test is significant '
            f"at {report['policy']['alpha']:g} divided by the number of columns.</p>",
            _table(
                ("column", "severity", "PSI", "JS", "KS", "p-value", "missing before", "now", "unseen", ""),
                [_column(c) for c in columns],
            ),
            "<h2>Performance on labels that arrived</h2>",
            _performance(report["performance"]),
            "</html>\n",
        ]
    )


def _column(column: Mapping[str, Any]) -> list[str]:
    before, now = column["missing"]
    unseen = f"{column['unseen']:.1%}"
    if column["unseen_values"]:
        unseen = f'<span title="{escape(", ".join(column["unseen_values"]), quote=True)}">{unseen}</span>'
    numbers = [_number(column[key]) for key in ("psi", "js", "ks")]
    verdict = "not judged" if column["ignored"] else _severity(column["severity"])
    return [
        escape(column["name"]), verdict, *numbers, f"{column['p_value']:.2g}", f"{before:.1%}",
        f"{now:.1%}", unseen, _bars(column["picture"]),
    ]  # fmt: skip


def _performance(body: Mapping[str, Any]) -> str:
    if not body["labels"]:
        return '<p class="quiet">No labels arrived in this interval.</p>'
    head = ("model", "versions", "labels", "base rate", "AUC", "log-loss")
    rows = [_performance_row("all", "", body)]
    rows += [_performance_row(n, ", ".join(map(str, m["versions"])), m) for n, m in body["models"].items()]
    notes = [f"{body['labels']:,} labels arrived, {body['rows']:,} of them for rows that had been scored."]
    if body["not_a_number"]:
        notes.append(f"{body['not_a_number']:,} further rows have a score that is not a number.")
    if not body["judged"]:
        notes.append("Too few to judge.")
    return f'{_table(head, rows)}<p class="quiet">{" ".join(notes)}</p>'


def _performance_row(name: str, versions: str, body: Mapping[str, Any]) -> list[str]:
    numbers = [_number(body[key]) for key in ("base_rate", "auc", "log_loss")]
    return [escape(name), escape(versions), f"{body['rows']:,}", *numbers]


def _severity(severity: str) -> str:
    return f'<span class="{severity}">{severity}</span>'


def _number(value: Optional[float]) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the cells are HTML already."""
    top = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table{'' if head else ' class=facts'}>{top}<tbody>{body}</tbody></table>"


def _bars(picture: Mapping[str, Any]) -> str:
    """Return both distributions as bars, the reference grey behind the batch in blue."""
    at, height, width = picture["at"], 34, 7
    if not at:
        return ""
    most = max([*picture["reference"], *picture["current"]]) or 1.0
    shapes = []
    for i, (place, a, b) in enumerate(zip(at, picture["reference"], picture["current"])):
        label = f"{place:.5g}" if isinstance(place, float) else str(place)
        tall, small = height * a / most, height * b / most
        shapes.append(
            f"<g><title>{escape(label)}: {a:.1%} before, {b:.1%} now</title>"
            f'<rect x="{i * width}" y="{height - tall:.1f}" width="{width - 1}" height="{tall:.1f}" fill="#8888"/>'
            f'<rect x="{i * width + 2}" y="{height - small:.1f}" width="{width - 4}" height="{small:.1f}" '
            'fill="#1b6ac9"/></g>'
        )
    size = f'width="{len(at) * width}" height="{height}" viewBox="0 0 {len(at) * width} {height}"'
    return f'<svg {size} role="img" aria-label="distribution before and now">{"".join(shapes)}</svg>'
