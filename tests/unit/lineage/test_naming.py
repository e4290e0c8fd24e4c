"""The same thing has one name, whichever stage speaks of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airflow_ml_provider.lineage import naming
from airflow_ml_provider.lineage.naming import Dataset, of_ref, of_uri, parse
from airflow_ml_provider.refs import DatasetRef, ModelRef, ReportRef


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/store/flights/interval=2013-01-05/data.parquet", "file:/store/flights/interval=2013-01-05"),
        ("/store/flights/interval=2013-01-05/", "file:/store/flights/interval=2013-01-05"),
        ("file:///store/flights", "file:/store/flights"),
        ("file:///store/my%20flights", "file:/store/my flights"),
        ("/store/merged/data.parquet", "file:/store/merged"),
        ("/landing/../landing/a.csv.gz", "file:/landing/a.csv.gz"),
        ("s3://bucket/flights/interval=2013-01-05/data.parquet", "s3://bucket:flights/interval=2013-01-05"),
        ("s3://bucket", "s3://bucket:/"),
        ("models:/delay/3", "mlflow:delay/3"),
    ],
)
def test_uris(uri: str, expected: str) -> None:
    assert str(of_uri(uri)) == expected


def test_relative_paths_become_absolute() -> None:
    assert of_uri("store/a.csv").name == os.path.abspath("store/a.csv")


def test_a_model_is_its_folder_until_it_is_registered() -> None:
    package = ModelRef("delay", "/store/models/delay", "sha256:0")
    version = ModelRef("delay", "/store/models/delay", "sha256:0", version="3")
    assert of_ref(package) == Dataset("file", "/store/models/delay")
    assert of_ref(version) == Dataset("mlflow", "delay/3")


def test_other_refs_are_their_files() -> None:
    assert of_ref(ReportRef("r", "/store/r.json", "sha256:0")).name == "/store/r.json"
    assert of_ref(DatasetRef("d", "/store/t/interval=2013/data.parquet", "sha256:0")).partition == ("/store/t", "2013")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mlflow:delay/3", Dataset("mlflow", "delay/3")),
        ("models:/delay/3", Dataset("mlflow", "delay/3")),
        ("file:/store/t/interval=2013-01-05", Dataset("file", "/store/t/interval=2013-01-05")),
        ("file:///store/t", Dataset("file", "/store/t")),
        ("/store/t/interval=2013-01-05/data.parquet", Dataset("file", "/store/t/interval=2013-01-05")),
        ("s3://bucket/t", Dataset("s3://bucket", "t")),
    ],
)
def test_what_a_user_types(text: str, expected: Dataset) -> None:
    assert parse(text) == expected


def test_every_own_facet_has_a_shipped_schema_that_defines_it() -> None:
    schemas = naming.schemas()
    for facet in naming.OWN_FACETS:
        base, _, fragment = naming.schema_url(facet).partition("#")
        (body,) = [b for b in schemas.values() if b["$id"] == base]
        assert fragment == f"/$defs/{facet}"
        assert facet in body["$defs"]


def test_no_schema_lies_around_unused() -> None:
    folder = Path(naming.__file__).parent / "schemas"
    assert sorted(p.name for p in folder.iterdir()) == sorted(naming.schemas())
