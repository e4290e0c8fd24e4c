"""Great Expectations' Data Docs of one batch, made to be looked at anywhere: no remote file, no foreign script.

Great Expectations builds the pages. They would load styles and scripts from half a dozen servers, and its templates
do not escape values of the data. So values are escaped before, what is remote is taken out, a small style and script
of our own go in, and a content policy in every page allows nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import tables
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.validate.expectations import Evaluation, settled

# Inline styles and scripts stay; the policy stops the latter.
_REMOTE = re.compile(
    r"<link\b[^>]*>|<script\b[^>]*\bsrc=[^>]*>\s*</script>|<img\b[^>]*>|url\(\s*['\"]?https?:[^)]*\)", re.IGNORECASE
)
# The same one in all ids of a page, which are different without it.
_RANDOM = re.compile(r"(?<=-collapse-body-)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Site:
    """Pages by their path below the site's folder.

    Attributes:
        pages: path to HTML.
        results: path of the page with the validation results.
        suite: path of the page with the suite.
    """

    pages: Mapping[str, str] = field(default_factory=dict)
    results: Optional[str] = None
    suite: Optional[str] = None


def build(interval: Interval, evaluation: Evaluation) -> Site:
    """Return Great Expectations' own pages on a batch; its index, which it draws by remote scripts, is left out."""
    with tempfile.TemporaryDirectory(prefix="data-docs-") as folder:
        _build(Path(folder), interval, evaluation)
        pages = {p.relative_to(folder).as_posix(): p.read_text("utf-8") for p in Path(folder).rglob("*.html")}
    pages.pop("index.html", None)
    results = next(name for name in sorted(pages) if name.startswith("validations/"))
    suite = next(name for name in sorted(pages) if name.startswith("expectations/"))
    return Site(pages, results, suite)


def publish(root: Path, site: Site, index: str) -> Path:
    """Replace the pages below `root` by those of `site`, `index` being the first; return its path.

    Every page is whole at any time, and the first one is replaced last.
    """
    written = {tables.write_text(root / name, _self_contained(text)) for name, text in sorted(site.pages.items())}
    first = tables.write_text(root / "index.html", _self_contained(index))
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_file() and path not in written and path != first:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return first


def _build(folder: Path, interval: Interval, evaluation: Evaluation) -> None:
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    context, results = evaluation.context, evaluation.results
    for result in results.results:
        # The templates put values of the data into the page as they are; the store takes plain JSON only.
        result.result, result.exception_info = _escaped(settled(result.result)), _escaped(result.exception_info)
    # The batch's own time instead of the clock's, so that the same batch gives the same pages.
    run = RunIdentifier(run_name=interval.key, run_time=interval.end)
    results.meta.update(run_id=run, validation_time=run.run_time)
    results.meta.get("batch_markers", {}).pop("ge_load_time", None)
    results.meta["batch_spec"] = {"data_asset_name": results.asset_name}
    identifier = ValidationResultIdentifier(
        expectation_suite_identifier=ExpectationSuiteIdentifier(evaluation.suite.name),
        run_id=run,
        batch_identifier=interval.key,
    )
    context.validation_results_store.set(identifier, results)
    site: dict[str, Any] = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
    context.add_data_docs_site("batch", site)
    context.build_data_docs(["batch"])


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value, quote=False)
    if isinstance(value, Mapping):
        return {_escaped(k): _escaped(v) for k, v in value.items()}
    return [_escaped(v) for v in value] if isinstance(value, (list, tuple)) else value


def _self_contained(page: str) -> str:
    style, script = _resource("data_docs.css"), _resource("data_docs.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    page = _RANDOM.sub("", _REMOTE.sub("", page))
    page = page.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">', 1)
    page = page.replace("</head>", f"<style>{style}</style></head>", 1)
    before, body, after = page.rpartition("</body>")
    return f"{before}<script>{script}</script>{body}{after}"


def _resource(name: str) -> str:
    return resources.files("airflow_ml_provider.stages.validate").joinpath(name).read_text(encoding="utf-8")
