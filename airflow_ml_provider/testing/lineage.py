"""Are these events valid OpenLineage? Needs the packages `jsonschema` and `referencing`; works without a network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_ml_provider.lineage import naming

_EVENT = "https://openlineage.io/spec/2-0-2/OpenLineage.json"


class EventValidator:
    """Check events and every facet in them against JSON Schemas.

    A facet is checked by the schema that its `_schemaURL` names. Facets that other producers took from another version
    of the specification are checked by the version at hand; unknown facets of others only for the base fields. This
    package's own facets must name a schema that exists.

    Parameters:
        specs: folder with `OpenLineage.json` and `facets/*.json`, as in the `spec` folder of OpenLineage.
    """

    def __init__(self, specs: Path) -> None:
        from referencing import Registry, Resource

        bodies = [json.loads(path.read_text(encoding="utf-8")) for path in (specs / "OpenLineage.json",)]
        bodies += [json.loads(path.read_text(encoding="utf-8")) for path in sorted((specs / "facets").glob("*.json"))]
        bodies += naming.schemas().values()
        self._registry: Any = Registry().with_resources((b["$id"], Resource.from_contents(b)) for b in bodies)
        self._by_file = {b["$id"].rpartition("/")[2]: b["$id"] for b in bodies}
        self._known = {b["$id"] for b in bodies}
        self._validators: dict[str, Any] = {}

    def errors(self, event: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with an event: the place and the reason, one line each."""
        found = list(self._check(_EVENT, event, "event"))
        for place, facet in _facets(event):
            found += self._check_facet(place, facet)
        return found

    def _check_facet(self, place: str, facet: Mapping[str, Any]) -> Iterable[str]:
        url = str(facet.get("_schemaURL", ""))
        base, _, fragment = url.partition("#")
        if base not in self._known:
            if url.startswith(naming.HOME) or urlsplit(url).netloc == urlsplit(naming.HOME).netloc:
                return [f"{place}: {url} names no schema of this package"]
            base = self._by_file.get(base.rpartition("/")[2], "") if "openlineage.io" in base else ""
        return self._check(f"{base}#{fragment}", facet, place) if base and fragment else []

    def _check(self, url: str, value: Any, place: str) -> Iterator[str]:
        if url not in self._validators:
            from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

            checker = Draft202012Validator.FORMAT_CHECKER
            self._validators[url] = Draft202012Validator({"$ref": url}, registry=self._registry, format_checker=checker)
        for error in self._validators[url].iter_errors(value):
            yield f"{place}{error.json_path.removeprefix('$')}: {error.message}"


def _facets(event: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give every facet of an event with its place."""
    for side in ("run", "job"):
        for key, facet in (event.get(side, {}).get("facets") or {}).items():
            yield f"{side}.facets.{key}", facet
    for side in ("inputs", "outputs"):
        for dataset in event.get(side) or ():
            for kind in ("facets", "inputFacets", "outputFacets"):
                for key, facet in (dataset.get(kind) or {}).items():
                    yield f"{side}[{dataset['name']}].{kind}.{key}", facet
