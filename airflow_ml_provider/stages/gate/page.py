"""The evidence as a page for humans: one file, no scripts, every value escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --good: #1a7f37; --bad: #b42318; --line: #8884; --soft: #8881 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line) }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap }
.verdict { border-left: .4rem solid; padding: .6rem 1rem; background: var(--soft) }
.passed { border-color: var(--good) } .refused { border-color: var(--bad) }
.yes { color: var(--good); font-weight: 600 } .no { color: var(--bad); font-weight: 600 }
code { font-size: .85em; overflow-wrap: anywhere } pre { background: var(--soft); padding: .8rem; overflow-x: auto }
"""
_WORDS = {"at_least": "≥", "at_most": "≤"}


def render(body: Mapping[str, Any], digest: str) -> str:
    """Return the page of an evidence record."""
    model, run = body["model"], body["run"]
    title = f"{model['name']} version {model['version']}: {body['decision']}"
    segment = ", ".join(f"{k} = {v}" for k, v in model["segment"].items()) or "all rows"
    champion = body["champion"]
    facts = {
        "Model": f"{model['name']} version {model['version']} ({model['engine']}; {segment})",
        "Trained until": model["trained_until"],
        "Operating point": f"{_number(body['operating_point'].get('threshold'))}",
        "Champion": f"version {champion['version']}" if champion else "none to compare with",
        "Run": f"{run['dag_id']} · {run['run_id']} · {run['reason']}{_of(run['trigger'])}",
        "Approved by": ", ".join(body["approved_by"]) or "nobody had to",
        "Not checked": ", ".join(body["unchecked"]) or "nothing: the policy asks for every criterion",
    }
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<div class="verdict {escape(body["decision"])}"><h1>{escape(title)}</h1>{escape(body["reason"])}</div>
{_pairs(facts)}
<h2>Criteria</h2>
<table><tr><th>Criterion<th>Met<th>Observed<th>Interval<th>Threshold<th>Sample<th>Note</tr>
{"".join(_criterion(c) for c in body["criteria"])}</table>
<h2>Digests</h2>
{_pairs({"evidence": digest, **_flat(body["digests"])}, code=True)}
<h2>Policy</h2>
<pre>{escape(_indented(body["policy"]["body"]))}</pre>
<h2>Provenance</h2>
<pre>{escape(_indented(body["provenance"]))}</pre>
</body></html>
"""


def _criterion(body: Mapping[str, Any]) -> str:
    met = '<span class="yes">yes</span>' if body["passed"] else '<span class="no">no</span>'
    bounds = " ".join(f"{_WORDS.get(side, side)} {_number(bound)}" for side, bound in body["threshold"].items())
    interval = " – ".join(_number(bound) for bound in body["interval"] or ())
    cells = [
        f"<td>{escape(body['name'])}", f"<td>{met}", f'<td class="n">{_number(body["observed"])}',
        f'<td class="n">{interval}', f'<td class="n">{escape(bounds)}', f'<td class="n">{_number(body["rows"])}',
        f"<td>{escape(body['note'])}",
    ]  # fmt: skip
    return f"<tr>{''.join(cells)}</tr>\n"


def _pairs(values: Mapping[str, Any], *, code: bool = False) -> str:
    tag, end = ("<code>", "</code>") if code else ("", "")
    rows = (f"<tr><th>{escape(k)}<td>{tag}{escape(str(v))}{end}</tr>" for k, v in values.items())
    return f"<table>{''.join(rows)}</table>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        found.update(_flat(value, f"{prefix}{key}: ") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)})
    return found


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _indented(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def _of(trigger: str) -> str:
    return f" ({trigger})" if trigger else ""
