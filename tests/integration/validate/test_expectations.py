"""Every expectation that Great Expectations has for pandas, passing, failing, on rows without values and on no rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider import stages, tables
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.validate.spec import ValidateResult, ValidateSpec

pytest.importorskip("great_expectations")

DAY = Interval.from_key("2013-01-04")
TYPES = {
    "i": "BIGINT", "same": "BIGINT", "minus": "BIGINT", "f": "DOUBLE", "word": "VARCHAR", "few": "VARCHAR",
    "json": "VARCHAR", "day": "VARCHAR", "t": "TIMESTAMPTZ", "nothing": "VARCHAR",
}  # fmt: skip
ROWS = [
    {
        "i": i, "same": i, "minus": -i, "f": float(i % 3), "word": f"w{i}", "few": "ab"[i % 2],
        "json": f'{{"a": {i}}}', "day": f"2013-01-{i + 1:02}", "t": DAY.start + timedelta(hours=i), "nothing": None,
    }
    for i in range(12)
]  # fmt: skip

# Type (without `expect_`) to arguments with which it passes and with which it fails.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "column_distinct_values_to_be_in_set": (
        {"column": "few", "value_set": ["a", "b", "c"]}, {"column": "few", "value_set": ["a"]}
    ),
    "column_distinct_values_to_contain_set": (
        {"column": "few", "value_set": ["a"]}, {"column": "few", "value_set": ["z", "y", "a"]}
    ),
    "column_distinct_values_to_equal_set": (
        {"column": "few", "value_set": ["a", "b"]}, {"column": "few", "value_set": ["b", "c"]}
    ),
    "column_kl_divergence_to_be_less_than": (
        {"column": "few", "partition_object": {"values": ["a", "b"], "weights": [0.5, 0.5]}, "threshold": 0.1},
        {"column": "few", "partition_object": {"values": ["a", "b"], "weights": [0.99, 0.01]}, "threshold": 0.1},
    ),
    "column_max_to_be_between": (
        {"column": "i", "min_value": 11}, {"column": "t", "min_value": "2013-01-05T00:00:00Z"}
    ),
    "column_mean_to_be_between": ({"column": "f", "max_value": 5}, {"column": "f", "min_value": 5}),
    "column_median_to_be_between": ({"column": "i", "max_value": 6}, {"column": "i", "min_value": 6}),
    "column_min_to_be_between": ({"column": "t", "max_value": "2013-01-04T00:00:00Z"}, {"column": "i", "min_value": 1}),
    "column_most_common_value_to_be_in_set": (
        {"column": "few", "value_set": ["a"], "ties_okay": True}, {"column": "few", "value_set": ["z"]}
    ),
    "column_pair_values_a_to_be_greater_than_b": (
        {"column_A": "i", "column_B": "f", "or_equal": True}, {"column_A": "f", "column_B": "i"}
    ),
    "column_pair_values_to_be_equal": ({"column_A": "i", "column_B": "same"}, {"column_A": "i", "column_B": "f"}),
    "column_pair_values_to_be_in_set": (
        {"column_A": "i", "column_B": "few", "value_pairs_set": [[i, "ab"[i % 2]] for i in range(12)]},
        {"column_A": "i", "column_B": "few", "value_pairs_set": [[0, "a"]]},
    ),
    "column_proportion_of_non_null_values_to_be_between": (
        {"column": "i", "min_value": 1}, {"column": "nothing", "min_value": 0.5}
    ),
    "column_proportion_of_unique_values_to_be_between": (
        {"column": "word", "min_value": 1}, {"column": "few", "min_value": 0.5}
    ),
    "column_quantile_values_to_be_between": (
        {"column": "i", "quantile_ranges": {"quantiles": [0.1, 0.9], "value_ranges": [[0, 3], [8, None]]}},
        {"column": "i", "quantile_ranges": {"quantiles": [0.1, 0.9], "value_ranges": [[0, 3], [80, 90]]}},
    ),
    "column_stdev_to_be_between": ({"column": "f", "max_value": 2}, {"column": "f", "min_value": 2}),
    "column_sum_to_be_between": ({"column": "f", "max_value": 12}, {"column": "f", "min_value": 13}),
    "column_to_exist": ({"column": "i", "column_index": 0}, {"column": "none"}),
    "column_type_to_be": ({"column": "i", "type_": "int64"}, {"column": "i", "type_": "str"}),
    "column_unique_value_count_to_be_between": ({"column": "few", "max_value": 2}, {"column": "few", "min_value": 3}),
    "column_value_lengths_to_be_between": ({"column": "word", "max_value": 3}, {"column": "word", "max_value": 2}),
    "column_value_lengths_to_equal": ({"column": "few", "value": 1}, {"column": "word", "value": 2}),
    "column_value_z_scores_to_be_less_than": (
        {"column": "f", "threshold": 5, "double_sided": True}, {"column": "f", "threshold": 0.5, "double_sided": True}
    ),
    "column_values_to_be_between": ({"column": "i", "max_value": 11}, {"column": "i", "max_value": 10}),
    "column_values_to_be_dateutil_parseable": ({"column": "day"}, {"column": "word"}),
    "column_values_to_be_decreasing": ({"column": "minus"}, {"column": "i"}),
    "column_values_to_be_in_set": ({"column": "few", "value_set": ["a", "b"]}, {"column": "few", "value_set": ["b"]}),
    "column_values_to_be_in_type_list": (
        {"column": "i", "type_list": ["int64", "int"]}, {"column": "word", "type_list": ["int", "float"]}
    ),
    "column_values_to_be_increasing": ({"column": "i"}, {"column": "f"}),
    "column_values_to_be_json_parseable": ({"column": "json"}, {"column": "word"}),
    "column_values_to_be_null": ({"column": "nothing"}, {"column": "i"}),
    "column_values_to_be_of_type": ({"column": "i", "type_": "int64"}, {"column": "word", "type_": "int"}),
    "column_values_to_be_unique": ({"column": "word"}, {"column": "few"}),
    "column_values_to_match_json_schema": (
        {"column": "json", "json_schema": {"required": ["a"]}}, {"column": "json", "json_schema": {"required": ["b"]}}
    ),
    "column_values_to_match_regex": ({"column": "word", "regex": "^w"}, {"column": "word", "regex": "^x"}),
    "column_values_to_match_regex_list": (
        {"column": "word", "regex_list": ["^w", "^x"]}, {"column": "word", "regex_list": ["^x"]}
    ),
    "column_values_to_match_strftime_format": (
        {"column": "day", "strftime_format": "%Y-%m-%d"}, {"column": "day", "strftime_format": "%d.%m.%Y"}
    ),
    "column_values_to_not_be_in_set": ({"column": "few", "value_set": ["z"]}, {"column": "few", "value_set": ["a"]}),
    "column_values_to_not_be_null": ({"column": "i"}, {"column": "nothing"}),
    "column_values_to_not_be_outliers": (
        {"column": "f", "method": "iqr", "multiplier": 1.5}, {"column": "f", "method": "std", "multiplier": 0.5}
    ),
    "column_values_to_not_match_regex": ({"column": "word", "regex": "^x"}, {"column": "word", "regex": "^w"}),
    "column_values_to_not_match_regex_list": (
        {"column": "word", "regex_list": ["^x"]}, {"column": "word", "regex_list": ["^w"]}
    ),
    "compound_columns_to_be_unique": ({"column_list": ["i", "f"]}, {"column_list": ["f", "few"]}),
    "multicolumn_sum_to_equal": (
        {"column_list": ["i", "minus"], "sum_total": 0}, {"column_list": ["i", "f"], "sum_total": 3}
    ),
    "multicolumn_values_to_be_equal": ({"column_list": ["i", "same"]}, {"column_list": ["i", "f"]}),
    "select_column_values_to_be_unique_within_record": ({"column_list": ["few", "word"]}, {"column_list": ["i", "f"]}),
    "table_column_count_to_be_between": ({"min_value": len(TYPES)}, {"max_value": 1}),
    "table_column_count_to_equal": ({"value": len(TYPES)}, {"value": 1}),
    "table_columns_to_match_ordered_list": ({"column_list": list(TYPES)}, {"column_list": ["f", "i"]}),
    "table_columns_to_match_set": ({"column_set": sorted(TYPES)}, {"column_set": ["i", "x", "y", "z"]}),
    "table_row_count_to_be_between": ({"min_value": 12}, {"min_value": 13}),
    "table_row_count_to_equal": ({"value": 12}, {"value": 13}),
}  # fmt: skip
NOT_ON_PANDAS = {
    "expect_column_values_to_match_like_pattern", "expect_column_values_to_match_like_pattern_list",
    "expect_column_values_to_not_match_like_pattern", "expect_column_values_to_not_match_like_pattern_list",
    "expect_query_results_to_match_comparison", "expect_table_row_count_to_equal_other_table",
    "unexpected_rows_expectation",
}  # fmt: skip
PASSING, FAILING = ({f"expect_{name}": case[i] for name, case in CASES.items()} for i in (0, 1))


@pytest.fixture
def batch(tmp_path: Path) -> Callable[[list[dict[str, Any]]], DatasetRef]:
    def write(rows: list[dict[str, Any]]) -> DatasetRef:
        path, connection = tables.partition(str(tmp_path / "raw"), DAY), tables.connect()
        connection.execute(f"CREATE TABLE rows ({', '.join(f'{name} {kind}' for name, kind in TYPES.items())})")
        for row in rows:
            connection.execute(f"INSERT INTO rows VALUES ({', '.join('?' * len(TYPES))})", [row[c] for c in TYPES])
        tables.write(connection, "SELECT * FROM rows", path)
        connection.close()
        return tables.describe("t", path, interval=DAY)

    return write


@pytest.fixture
def validate(tmp_path: Path) -> Callable[..., ValidateResult]:
    def run(dataset: DatasetRef, cases: dict[str, Any], severity: Any = lambda kind: "warn") -> ValidateResult:
        return stages.run(spec_of(tmp_path, dataset, cases, severity), RunInfo())  # type: ignore[return-value]

    return run


def spec_of(
    root: Path, dataset: DatasetRef, cases: dict[str, Any], severity: Any = lambda kind: "warn"
) -> ValidateSpec:
    suite = root / "suite.json"
    expectations = [{"type": k, "kwargs": kwargs, "meta": {"severity": severity(k)}} for k, kwargs in cases.items()]
    suite.write_text(json.dumps({"name": "all", "expectations": expectations}))
    return ValidateSpec(
        dataset=dataset, target=str(root / "valid"), reports=str(root / "reports"), suite=str(suite), allow_empty=True
    )


def judged(result: ValidateResult) -> dict[str, dict[str, Any]]:
    assert result.report is not None
    assert "<html" in Path(result.links["data_docs"]).read_text()
    return {e["type"]: e for e in json.loads(Path(result.report.uri).read_text())["expectations"]}


def test_the_cases_are_complete() -> None:
    import great_expectations  # noqa: F401 - fills the registry
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    assert set(PASSING) | NOT_ON_PANDAS == set(list_registered_expectation_implementations())


def test_passing(batch: Any, validate: Any) -> None:
    result = validate(batch(ROWS), PASSING, lambda kind: "block")
    wrong = {kind: (e["error"], e["observed"]) for kind, e in judged(result).items() if not e["passed"]}
    assert (wrong, result.status, result.failed) == ({}, "ok", {})


def test_failing(batch: Any, validate: Any) -> None:
    result = validate(batch(ROWS), FAILING)
    wrong = {kind: (e["error"], e["observed"]) for kind, e in judged(result).items() if e["passed"] or e["error"]}
    assert wrong == {}
    assert (result.status, len(result.failed["warn"])) == ("ok", len(CASES))


def test_failing_rows_are_set_aside(batch: Any, validate: Any) -> None:
    from great_expectations.expectations.registry import get_expectation_impl

    from airflow_ml_provider.stages.validate.expectations import _names_rows

    def severity(kind: str) -> str:
        return "quarantine" if _names_rows(get_expectation_impl(kind), kind) else "warn"

    found = judged(validate(batch(ROWS), FAILING, severity))
    untold = {kind: e["error"] for kind, e in found.items() if severity(kind) == "quarantine" and not e["rows"]}
    assert untold == {}


@pytest.mark.parametrize("cases", [PASSING, FAILING], ids=["passing", "failing"])
def test_no_rows(batch: Any, validate: Any, cases: dict[str, Any]) -> None:
    result = validate(batch([]), cases)
    assert (result.status, result.reason, len(judged(result))) == ("ok", "the batch is empty", len(CASES))


@pytest.mark.parametrize("cases", [PASSING, FAILING], ids=["passing", "failing"])
@pytest.mark.parametrize("count", [1, 3])
def test_no_values(batch: Any, validate: Any, cases: dict[str, Any], count: int) -> None:
    assert len(judged(validate(batch([dict.fromkeys(TYPES)] * count), cases))) == len(CASES)


def test_what_is_seen_of_distinct_values(batch: Any, validate: Any) -> None:
    kinds = [f"expect_column_distinct_values_to_{name}" for name in ("be_in_set", "contain_set", "equal_set")]
    result = validate(batch(ROWS), {kind: FAILING[kind] for kind in kinds})
    assert result.reason == (
        "3 warnings: expect_column_distinct_values_to_be_in_set(few) (1 unexpected value), "
        "expect_column_distinct_values_to_contain_set(few) (2 missing values), "
        "expect_column_distinct_values_to_equal_set(few) (1 unexpected value and 1 missing value)"
    )


@pytest.mark.parametrize("missing", [9, 40])
def test_equal_bytes_whatever_the_hash_seed(batch: Any, tmp_path: Path, missing: int) -> None:
    """Great Expectations takes missing values out of a set, at most 20 of them."""
    from airflow_ml_provider import codec

    kind = "expect_column_distinct_values_to_contain_set"
    value_set = [f"other {i}" for i in range(missing)]
    spec = spec_of(tmp_path, batch(ROWS), {kind: {"column": "few", "value_set": value_set}})
    call = tmp_path / "call.json"
    call.write_text(json.dumps(codec.encode(spec)))
    code = (
        "import json, sys; from airflow_ml_provider import codec, stages; "
        "from airflow_ml_provider.provenance import RunInfo; "
        "from airflow_ml_provider.stages.validate.spec import ValidateSpec; "
        "stages.run(codec.decode(ValidateSpec, json.load(open(sys.argv[1]))), RunInfo())"
    )
    seen = []
    for seed in ("1", "2"):
        root = str(Path(__file__).parents[3])
        environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(call)], check=True, env=environment)
        seen.append({p: p.read_bytes() for p in (tmp_path / "reports").rglob("*") if p.is_file()})
    assert seen[0] == seen[1]
    (report,) = (tmp_path / "reports" / "reports").rglob("report.json")
    (found,) = json.loads(report.read_text())["expectations"]
    assert found["observed"]["missing_count"] == missing
    assert found["observed"].get("partial_missing_list") == (sorted(value_set) if missing == 9 else None)
