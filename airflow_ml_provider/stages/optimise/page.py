"""The table of candidates as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from airflow_ml_provider.stages.evaluate.page import CSS, number, table

_QUIET = "<span class='quiet'>{}</span>"


def render(report: Mapping[str, Any]) -> str:
    """Return the page of a report."""
    policy, data, providers = report["policy"], report["dataset"], report["providers"]
    name = escape(report["model"]["name"])
    unusable = "".join(f"; not {name}: {why}" for name, why in providers["unusable"].items())
    facts = [
        ("Choice", f"<b>{escape(report['choice']['name'])}</b>: {escape(report['choice']['reason'])}"),
        ("Model", f"<code>{escape(report['model']['digest'])}</code>"),
        (
            "Rows",
            f"{data['rows']:,} from {data['start']} to {data['end']}; {data['older_rows']:,} older ones calibrate",
        ),
        ("Dataset", f"<code>{escape(data['digest'])}</code>, divided by {escape(data['divided_by'])}"),
        ("Operating point", f"score ≥ {report['operating_point']['threshold']:.4f}"),
        ("Policy", _policy(policy)),
        ("Providers", f"{escape(', '.join(providers['measured']))} (the first decides){escape(unusable)}"),
    ]
    measured = [c for c in report["candidates"] if "latency" in c]
    sizes = list(measured[0]["latency"][providers["decides"]])  # the model itself runs there
    head = (
        "candidate", policy["metric"], "loss", "worst slice", "bytes", *(f"p50 / p95 ms × {s}" for s in sizes),
        "max difference", "relative", "flips", "verdict",
    )  # fmt: skip
    decides = providers["decides"]
    lines = [_line(c, policy["metric"], sizes, decides) for c in measured]
    others = [_blank(c, len(head)) for c in report["candidates"] if "latency" not in c]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            f"<title>Optimisation of {name}</title><style>{CSS}</style><h1>Optimisation of {name}</h1>",
            table((), [[f"<b>{key}</b>", value] for key, value in facts]),
            f"<h2>Candidates, on {escape(decides)}</h2>",
            table(head, [*lines, *others]),
            *(_further(measured, sizes, provider) for provider in providers["measured"][1:]),
            "</html>\n",
        ]
    )


def _policy(policy: Mapping[str, Any]) -> str:
    what = f"median at {policy['batch_size']} rows" if policy["choose"] == "fastest" else "bytes"
    held = "upper bound of the loss" if policy["judge"] == "bound" else "loss"
    return escape(
        f"the {policy['choose']} ({what}) whose {held} of {policy['metric']} is at most {policy['max_loss']:g}, in "
        f"every slice at most {policy['max_slice_loss']:g}, with at most {policy['max_flips']:.2%} other decisions; "
        f"it must save {policy['min_gain']:.0%}"
    )


def _line(entry: Mapping[str, Any], metric: str, sizes: list[str], provider: str) -> list[str]:
    zeros = f"<br>{_QUIET.format(format(entry['zero_weights'], '.0%') + ' zeros')}" if entry["zero_weights"] else ""
    parity = entry["parity"]
    return [
        escape(entry["name"]),
        *_accuracy(entry, metric),
        f"{entry['bytes']:,}{zeros}",
        *(_times(entry, provider, size) for size in sizes),
        _short(parity["max_difference"]),
        _short(parity["max_relative_difference"]),
        f"{parity['flips']:,} ({parity['flip_share']:.2%})",
        f"<b>{entry['verdict']}</b> {escape(entry['why'])}",
    ]


def _accuracy(entry: Mapping[str, Any], metric: str) -> tuple[str, str, str]:
    """Return value with interval, loss with its bound, and the slice that loses most."""
    if "metrics" not in entry:
        return "–", "–", "–"
    body, loss = entry["metrics"][metric], entry["loss"]
    interval = _QUIET.format(f"({number(body['low'])} – {number(body['high'])})")
    value = f"{number(body['value'])} {interval}"
    lost = f"{number(loss['value'])} {_QUIET.format('≤ ' + number(loss['bound']))}"
    worst = max(entry["slice_losses"].items(), key=lambda item: item[1], default=None)
    return value, lost, f"{escape(worst[0])} {number(worst[1])}" if worst else "–"


def _times(entry: Mapping[str, Any], provider: str, size: str) -> str:
    body = entry["latency"].get(provider, {}).get(size)
    return "–" if body is None else f"{body['p50_ms']:.3f} / {body['p95_ms']:.3f}"


def _blank(entry: Mapping[str, Any], width: int) -> list[str]:
    return [escape(entry["name"]), *["–"] * (width - 2), f"<b>{entry['verdict']}</b> {escape(entry['why'])}"]


def _further(measured: list[Mapping[str, Any]], sizes: list[str], provider: str) -> str:
    rows = [[escape(e["name"]), *(_times(e, provider, size) for size in sizes)] for e in measured]
    head = ("candidate", *(f"p50 / p95 ms × {size}" for size in sizes))
    return f"<h2>Latency on {escape(provider)}</h2>{table(head, rows)}"


def _short(value: Any) -> str:
    return "–" if value is None else f"{value:.2g}"
