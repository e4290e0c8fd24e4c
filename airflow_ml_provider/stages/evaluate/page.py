"""The evaluation report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Optional

from airflow_ml_provider.stages.evaluate.metrics import METRICS

SHOWN_SLICES = 300
CSS = """\
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #8884;font-variant-numeric:tabular-nums}
th:first-child,td:first-child,.facts td{text-align:left}code{overflow-wrap:anywhere}.quiet{opacity:.65}
svg{max-width:26rem;height:auto}svg text{fill:currentColor;font-size:11px}"""


def render(report: Mapping[str, Any]) -> str:
    """Return the page of a report."""
    model, test, point = report["model"], report["test"], report["operating_point"]
    segment = ", ".join(f"{k} = {v}" for k, v in model["segment"].items()) or "all rows"
    confidence = f"{report['settings']['confidence']:.0%}"
    facts = [
        ("Model", f"<code>{escape(model['digest'])}</code>, for {escape(segment)}"),
        ("Test set", f"<code>{escape(test['digest'])}</code>"),
        ("Test rows", f"{test['rows']:,} from {escape(test['start'])} to {escape(test['end'])}"),
        ("Base rate", f"{test['base_rate']:.2%}"),
        (
            "Operating point",
            f"score ≥ {point['threshold']:.4f} (by {escape(point['by'])} {point['value']:g}, {point['chosen_on']})",
        ),
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            f"<title>Evaluation of {escape(model['name'])}</title><style>{CSS}</style>",
            f"<h1>Evaluation of {escape(model['name'])}</h1>",
            table((), [[f"<b>{k}</b>", v] for k, v in facts]),
            f"<h2>Metrics with {confidence} bootstrap intervals</h2>",
            table(("metric", "value", "low", "high", ""), [_metric_row(n, report["metrics"][n]) for n in METRICS]),
            "<h2>Calibration</h2>",
            _curve(report["calibration"]),
            "<h2>Worst slice by metric</h2>",
            table(
                ("metric", "slice", "rows", "value", "low", "high"),
                [_worst_row(name, body) for name, body in report["worst_slice"].items()],
            ),
            f"<h2>Slices of at least {report['settings']['min_rows']} rows, lowest AUC first</h2>",
            _slices(report["slices"]),
            "</html>\n",
        ]
    )


def _metric_row(name: str, body: Mapping[str, Any]) -> list[str]:
    direction = "higher" if METRICS[name].higher_is_better else "lower"
    text = f'<span class="quiet">{escape(METRICS[name].text)}; {direction} is better</span>'
    return [name, *(number(body[k]) for k in ("value", "low", "high")), text]


def _worst_row(name: str, body: Mapping[str, Any]) -> list[str]:
    return [name, escape(body["slice"]), f"{body['rows']:,}", *(number(body[k]) for k in ("value", "low", "high"))]


def _slices(entries: Iterable[Mapping[str, Any]]) -> str:
    every = list(entries)
    judged = sorted((e for e in every if e["judged"]), key=lambda e: (e["metrics"]["auc"]["value"], e["slice"]))
    rows = [
        [
            escape(e["slice"]), f"{e['rows']:,}", f"{e['base_rate']:.2%}", _with_interval(e["metrics"]["auc"]),
            *(number(e["metrics"][m]["value"]) for m in ("log_loss", "ece", "precision", "recall", "fpr")),
        ]
        for e in judged[:SHOWN_SLICES]
    ]  # fmt: skip
    head = ("slice", "rows", "base rate", "AUC", "log-loss", "ECE", "precision", "recall", "FPR")
    notes = [f"{len(every) - len(judged)} slices were too small or had one label only: listed in the JSON, not judged."]
    if len(judged) > SHOWN_SLICES:
        notes.append(f"{len(judged) - SHOWN_SLICES} further slices are in the JSON.")
    return f'{table(head, rows)}<p class="quiet">{" ".join(notes)}</p>'


def _with_interval(body: Mapping[str, Any]) -> str:
    return f"{number(body['value'])} <span class='quiet'>({number(body['low'])} – {number(body['high'])})</span>"


def number(value: Optional[float]) -> str:
    """Return a value with four digits after the point; a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the cells are HTML already."""
    top = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table{'' if head else ' class=facts'}>{top}<tbody>{body}</tbody></table>"


def _curve(bins: Sequence[Mapping[str, float]]) -> str:
    size, edge = 260, 30
    most = max(b["rows"] for b in bins)

    def at(x: float, y: float) -> str:
        return f"{edge + x * size:.1f},{edge + (1 - y) * size:.1f}"

    def dot(b: Mapping[str, float]) -> str:
        x, y = at(b["score"], b["frequency"]).split(",")
        text = f"{b['rows']:,} rows: mean score {b['score']:.3f}, frequency {b['frequency']:.3f}"
        return f'<circle cx="{x}" cy="{y}" r="{2 + 6 * (b["rows"] / most) ** 0.5:.1f}"><title>{text}</title></circle>'

    line = " ".join(at(b["score"], b["frequency"]) for b in bins)
    corner, far = at(0, 0).split(","), at(1, 1).split(",")
    return (
        f'<svg viewBox="0 0 {size + 2 * edge} {size + 2 * edge}" role="img" aria-label="calibration curve">'
        f'<rect x="{edge}" y="{edge}" width="{size}" height="{size}" fill="none" stroke="#8888"/>'
        f'<line x1="{corner[0]}" y1="{corner[1]}" x2="{far[0]}" y2="{far[1]}" stroke="#8888" stroke-dasharray="4"/>'
        f'<g fill="#1b6ac9" stroke="none">{"".join(dot(b) for b in bins)}</g>'
        f'<polyline points="{line}" fill="none" stroke="#1b6ac9"/>'
        f'<text x="{edge + size / 2}" y="{size + 2 * edge - 8}" text-anchor="middle">mean score</text>'
        f'<text x="12" y="{edge + size / 2}" text-anchor="middle" transform="rotate(-90 12 {edge + size / 2})">'
        "observed frequency</text></svg>"
    )
