from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.validate import suite

NOT_NULL = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "a"}}


def write(tmp_path: Path, text: Any, name: str = "s.yaml") -> str:
    path = tmp_path / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return str(path)


def test_yaml(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    found = suite.read(
        write(
            tmp_path,
            """
name: flights
suite_parameters: {limit: 3}
expectations:
  - type: expect_column_values_to_be_between
    kwargs: {column: day, min_value: 2013-01-01, max_value: 2013-01-02T03:00:00Z}
    meta: {severity: quarantine}
    notes: Before 2013 there is nothing.
  - type: expect_column_values_to_not_be_null
    kwargs: {column: a}
    severity: warning
  - type: expect_column_values_to_not_be_null
    kwargs: {column: a, mostly: 0.5}
    meta: {name: half of a}
""",
        )
    )
    assert (found.name, found.parameters) == ("flights", {"limit": 3})
    between, first, second = found.checks
    assert (between.severity, first.severity, second.severity) == ("quarantine", "warn", "block")
    # YAML reads dates; JSON, and so Great Expectations, has texts.
    assert between.kwargs["min_value"] == "2013-01-01"
    assert between.kwargs["max_value"] == "2013-01-02T03:00:00+00:00"
    assert between.notes == ("Before 2013 there is nothing.",)
    assert [c.name for c in found.checks] == [
        "expect_column_values_to_be_between(day)", "expect_column_values_to_not_be_null(a)", "half of a",
    ]  # fmt: skip
    assert (between.column, second.column) == ("day", "a")


def test_json_without_a_name(tmp_path: Path) -> None:
    found = suite.read(write(tmp_path, {"expectations": [NOT_NULL]}, "flights.json"))
    assert found.name == "flights"
    assert found.digest.startswith("sha256:")
    assert suite.read(write(tmp_path, {"expectations": [NOT_NULL]}, "other.json")).digest == found.digest


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a mapping with name and expectations"),
        ({"expectation": []}, "unknown key in suite s.json 'expectation'; did you mean 'expectations'"),
        ({"name": "x"}, "expectations in suite s.json must be a list, got None"),
        ({"expectations": [3]}, "expectation 1 of suite s.json must be a mapping"),
        ({"expectations": [{**NOT_NULL, "kwarg": {}}]}, "did you mean 'kwargs'"),
        ({"expectations": [{"kwargs": {}}]}, "type of expectation 1 of suite s.json must be the name"),
        ({"expectations": [{**NOT_NULL, "kwargs": 3}]}, "kwargs of expectation 1 of suite s.json must be a mapping"),
        ({"expectations": [{**NOT_NULL, "severity": "fatal"}]}, "expectation 1 of suite s.json: severity must be"),
        ({"expectations": [NOT_NULL, NOT_NULL]}, "repeats"),
    ],
)
def test_bad_suite(tmp_path: Path, body: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        suite.read(write(tmp_path, body, "s.json"))


def test_bad_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none.yaml cannot be read: .*; give the absolute path"):
        suite.read(str(tmp_path / "none.yaml"))
    pytest.importorskip("yaml")
    with pytest.raises(SpecError, match="is not YAML"):
        suite.read(write(tmp_path, "a: [1"))
