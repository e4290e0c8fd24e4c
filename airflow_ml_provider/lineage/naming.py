"""What a dataset is called in lineage events. The same thing has the same name in every stage, so the graph connects.

| what | namespace | name |
| --- | --- | --- |
| file, folder, table | `file` | absolute path |
| partition of a table | `file` | absolute path of its folder, `…/flights/interval=2013-01-05` |
| object in a store | `s3://bucket` | path within it |
| registered model version | `mlflow` | `flight_delay_ewr/3` |
| model package before registration | `file` | absolute path of its folder |
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any, Optional
from urllib.parse import unquote, urlsplit

from airflow_ml_provider import __version__
from airflow_ml_provider.refs import ModelRef, Ref
from airflow_ml_provider.tables import DATA

# `.invalid` never resolves (RFC 2606): the addresses identify, and the schemas themselves are part of the package.
HOME = "https://airflow-ml-provider.invalid"
PRODUCER = f"{HOME}/{__version__}"
SCHEMA_VERSION = "1-0-0"
OWN_FACETS = ("MlProvenanceRunFacet", "MlModelDatasetFacet", "MlModelRunFacet", "MlGateRunFacet")

FILE, MLFLOW = "file", "mlflow"
_PARTITION = re.compile(r"(?P<table>.+)/interval=(?P<key>[^/]+)\Z")
_VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[^/]+)\Z")


@dataclass(frozen=True, order=True)
class Dataset:
    """The identity of a dataset in lineage events."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}:{self.name}"

    @property
    def partition(self) -> Optional[tuple[str, str]]:
        """The table's name and the key, when this is one partition of a table."""
        found = _PARTITION.match(self.name) if self.namespace != MLFLOW else None
        return (found["table"], found["key"]) if found else None


def of_uri(uri: str) -> Dataset:
    """Return the dataset that a path or URI names; the file of a table or partition and its folder are one dataset.

    >>> str(of_uri("/store/flights/interval=2013-01-05/data.parquet"))
    'file:/store/flights/interval=2013-01-05'
    >>> str(of_uri("models:/flight_delay_ewr/3"))
    'mlflow:flight_delay_ewr/3'
    """
    if found := _VERSION.match(uri):
        return of_version(found["name"], found["version"])
    parts = urlsplit(uri)
    if "://" in uri and parts.scheme != "file":
        return Dataset(f"{parts.scheme}://{parts.netloc}", _folder(parts.path.strip("/")) or "/")
    path = unquote(parts.path) if parts.scheme == "file" else uri
    return Dataset(FILE, _folder(os.path.abspath(path)))


def of_version(name: str, version: str) -> Dataset:
    """Return the dataset of a registered model version."""
    return Dataset(MLFLOW, f"{name}/{version}")


def of_ref(ref: Ref) -> Dataset:
    """Return the dataset that a ref names: a model is its registered version once there is one."""
    if isinstance(ref, ModelRef) and ref.version:
        return of_version(ref.name, ref.version)
    return of_uri(ref.uri)


def parse(text: str) -> Dataset:
    """Return the dataset that a user means: `namespace:name`, a path, `models:/NAME/VERSION` or a URI."""
    namespace, colon, name = text.partition(":")
    if colon and namespace in (FILE, MLFLOW) and not name.startswith("//"):
        return of_uri(name) if namespace == FILE else Dataset(MLFLOW, name)
    return of_uri(text)


def schema_url(facet: str) -> str:
    """Return the `_schemaURL` of one of this package's own facets."""
    return f"{HOME}/lineage/schemas/{SCHEMA_VERSION}/{_file(facet)}#/$defs/{facet}"


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schemas of this package's own facets by the name of their file."""
    folder = resources.files("airflow_ml_provider.lineage").joinpath("schemas")
    names = sorted({_file(facet) for facet in OWN_FACETS})
    return {name: json.loads(folder.joinpath(name).read_text(encoding="utf-8")) for name in names}


def _file(facet: str) -> str:
    return "MlModelFacet.json" if facet.startswith("MlModel") else f"{facet}.json"


def _folder(name: str) -> str:
    head, _, tail = name.rpartition("/")
    return head if head and tail == DATA else name
