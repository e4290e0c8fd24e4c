"""The report of a load test as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Optional

_CSS = """\
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #8884;font-variant-numeric:tabular-nums}
th:first-child,td:first-child,.facts td{text-align:left}code{overflow-wrap:anywhere}.quiet{opacity:.65}
.bad{color:#c22;font-weight:600}"""


def render(report: Mapping[str, Any]) -> str:
    """Return the page of a report (the JSON form)."""
    model, judged, knee = report["model"], report["judged"], report["knee"]
    profile, where = report["settings"]["profile"], report["target"]
    title = f"Load test of {escape(model['name'])} at {report['rate']:g} requests/s"
    server = f"a server that the test started ({where['protocol']})" if where["own"] else escape(where["url"])
    facts = [
        ("Verdict", "passed" if report["passed"] else f'<span class="bad">{escape(report["reason"])}</span>'),
        ("Model", f"{escape(str(model['version'] or ''))} <code>{escape(model['digest'])}</code>"),
        ("Server", f"{server} {escape(', '.join(where['versions']))}"),
        ("Requests", f"{judged['requests']:,}, {escape(profile['arrivals'])} arrivals; {_errors(judged['errors'])}"),
        ("Cold start", _seconds(report["metrics"].get("cold_start_s", {}).get("value"))),
        ("Knee", f"{_rate(knee['rate'])} {escape(knee['note'])}"),
        ("Generator", f"late by {_lag(judged['lag_ms'])}"),
    ]
    confidence = f"{report['settings']['confidence']:.0%}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            f"<title>{title}</title><style>{_CSS}</style><h1>{title}</h1>",
            _table((), [[f"<b>{name}</b>", text] for name, text in facts]),
            f"<h2>Latency, from the moment at which a request was due, with {confidence} intervals</h2>",
            _table(("", "value", "low", "high"), [_figure(n, e) for n, e in report["metrics"].items()]),
            "<h2>Where the time goes, 99th percentiles (ms)</h2>",
            _table(("part", "value", "low", "high", "budget"), [_part(part) for part in report["parts"]]),
            '<p class="quiet">Parts that the server does not tell are missing. Percentiles do not add up.</p>',
            "<h2>Ramp</h2>",
            _table(
                ("requests/s", "answered/s", "p50 ms", "p95 ms", "p99 ms", "errors", "generator late, p99 ms"),
                [_step(step) for step in report["ramp"]],
            ),
            "</html>\n",
        ]
    )


def _figure(name: str, body: Mapping[str, Any]) -> list[str]:
    return [escape(name), *(_number(body[key]) for key in ("value", "low", "high"))]


def _part(body: Mapping[str, Any]) -> list[str]:
    limit = _number(body["limit"]) if body["limit"] is not None else ""
    return [*_figure(body["name"], body["estimate"]), limit if body["met"] else f'<span class="bad">{limit}</span>']


def _step(body: Mapping[str, Any]) -> list[str]:
    figures = [_number(body["figures"][name]["value"]) for name in ("p50_ms", "p95_ms", "p99_ms")]
    errors = f"{body['figures']['error_rate']['value']:.2%}"
    return [f"{body['rate']:g}", f"{body['completed']:.1f}", *figures, errors, _number(body["lag_ms"]["p99"])]


def _errors(errors: Mapping[str, int]) -> str:
    return escape(", ".join(f"{count:,} × {why}" for why, count in errors.items())) or "no errors"


def _lag(lag: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g} ms" for name, value in lag.items())


def _seconds(value: Optional[float]) -> str:
    return "not measured" if value is None else f"{value:.3g} s to the first answer"


def _rate(value: Optional[float]) -> str:
    return "" if value is None else f"{value:g} requests/s"


def _number(value: Optional[float]) -> str:
    return "–" if value is None else f"{value:.4g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the cells are HTML already."""
    top = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table{'' if head else ' class=facts'}>{top}<tbody>{body}</tbody></table>"
