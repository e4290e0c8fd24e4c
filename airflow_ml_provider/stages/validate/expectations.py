"""A suite judged by Great Expectations on one batch in memory: no project, no telemetry, no network."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from airflow_ml_provider.exceptions import SpecError, unknown_name
from airflow_ml_provider.stages.validate.logic import Check, Outcome
from airflow_ml_provider.stages.validate.suite import Suite

log = logging.getLogger(__name__)

_NATIVE = {"block": "critical", "quarantine": "warning", "warn": "warning"}
_ON_FAILURE = {
    "block": "On failure the batch is refused.",
    "quarantine": "On failure its rows are set aside.",
    "warn": "On failure the batch passes with a warning.",
}
# Fields of every expectation that are not arguments of its own.
_NOT_KWARGS = {"id", "meta", "notes", "description", "rendered_content", "severity"}
# On pandas these look at the type of a whole column and name no rows.
_WITHOUT_ROWS = ("expect_column_values_to_be_of_type", "expect_column_values_to_be_in_type_list")
_EXACT_IN_FLOAT = 2**53


@dataclass(frozen=True)
class Evaluation:
    """What Great Expectations said.

    Attributes:
        outcomes: per expectation, in the order of the suite.
        context: the data context, which knows the suite.
        suite: its own suite.
        results: its own validation result.
    """

    outcomes: tuple[Outcome, ...]
    context: Any
    suite: Any
    results: Any


def evaluate(suite: Suite, table: Any, *, name: str, parameters: Mapping[str, Any]) -> Evaluation:
    """Judge an Arrow table by a suite.

    Parameters:
        suite: the expectations.
        table: the rows; their position is how rows are named in the outcomes.
        name: name of the data.
        parameters: values for `$PARAMETER`, beside the suite's own.

    Raises:
        SpecError: the suite has an unknown expectation, argument or parameter, or asks for rows of an expectation
            that names none.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # before the import, for older versions
    import great_expectations as gx
    from great_expectations.exceptions import SuiteParameterError

    compiled = gx.ExpectationSuite(_safe(suite.name), [_compile(check, i) for i, check in enumerate(suite.checks)])
    known = {**parameters, **suite.parameters}
    for option in compiled.suite_parameter_options:
        if option.isidentifier() and option not in known:
            raise unknown_name("$PARAMETER", option, known)
    context = _context(gx)
    compiled = context.suites.add(compiled)
    asset = context.data_sources.add_pandas("batches").add_dataframe_asset(_safe(name))
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": to_pandas(table)})
    try:
        results = batch.validate(compiled, result_format="SUMMARY", expectation_parameters=known)
        for result in results.results:
            result.success = bool(result.success)  # numpy's bools are neither `True` nor JSON
        outcomes = _outcomes(suite.checks, results)
        outcomes = _with_rows(outcomes, compiled, batch, known)
    except SuiteParameterError as error:
        raise SpecError(f"a $PARAMETER of suite {suite.name!r} has no value: {error}") from error
    return Evaluation(tuple(outcomes), context, compiled, results)


def to_pandas(table: Any) -> Any:
    """Return an Arrow table as a DataFrame. Whole numbers beside nulls become floats, unless that would change them.

    Integers above 2**53 stay Python integers: as floats, different ids would look equal.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    frame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns):
        if pa.types.is_integer(column.type) and column.null_count:
            ends = pc.min_max(column).as_py()
            if max(abs(ends["min"] or 0), abs(ends["max"] or 0)) > _EXACT_IN_FLOAT:
                frame[name] = column.to_pandas(integer_object_nulls=True)
    return frame


def _context(gx: Any) -> Any:
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _compile(check: Check, position: int) -> Any:
    """Return the expectation object; `meta.position` is how its result is found again, since results are reordered."""
    from great_expectations.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.registry import (
        get_expectation_impl,
        list_registered_expectation_implementations,
    )

    known = list_registered_expectation_implementations()
    if check.type not in known:
        raise unknown_name("expectation", check.type, known)
    implementation = get_expectation_impl(check.type)
    arguments = set(implementation.__fields__) - _NOT_KWARGS
    for argument in check.kwargs:
        if argument not in arguments:
            raise unknown_name(f"argument of {check.name}", argument, arguments)
    if check.severity == "quarantine" and not _names_rows(implementation, check.type):
        raise SpecError(
            f"{check.name} has severity 'quarantine' but names no rows; "
            "use block or warn, or an expectation about the values of rows"
        )
    try:
        return ExpectationConfiguration(
            type=check.type,
            kwargs={**check.kwargs},
            meta={"position": position},
            description=check.description or None,
            notes=[_ON_FAILURE[check.severity], *check.notes],
            severity=_NATIVE[check.severity],
        ).to_domain_obj()
    except (ValueError, TypeError, GreatExpectationsError) as error:
        raise SpecError(f"{check.name} has a bad argument: {_first_line(error)}") from error


def _names_rows(implementation: type, type_: str) -> bool:
    from great_expectations.expectations.expectation import (
        ColumnMapExpectation,
        ColumnPairMapExpectation,
        MulticolumnMapExpectation,
    )

    kinds = (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)
    return issubclass(implementation, kinds) and type_ not in _WITHOUT_ROWS


def _outcomes(checks: Sequence[Check], results: Any) -> list[Outcome]:
    by_position = {r.expectation_config.meta["position"]: r.to_json_dict() for r in results.results}
    found = []
    for position, check in enumerate(checks):
        body = by_position.get(position)
        if body is None:
            found.append(Outcome(check, False, error="Great Expectations gave no result"))
            continue
        error = _exception(body.get("exception_info") or {})
        passed = body["success"] is True and not error
        found.append(Outcome(check, passed, error, settled(body.get("result") or {})))
    return found


def _with_rows(outcomes: Iterable[Outcome], compiled: Any, batch: Any, parameters: Mapping[str, Any]) -> list[Outcome]:
    """Ask again for the rows that broke `quarantine` expectations: only these may cost a list of all rows."""
    found = []
    for position, outcome in enumerate(outcomes):
        if outcome.passed or outcome.severity != "quarantine":
            found.append(outcome)
            continue
        expectation = next(e for e in compiled.expectations if e.meta["position"] == position)
        full = batch.validate(expectation, result_format="COMPLETE", expectation_parameters=parameters)
        rows = full.result.get("unexpected_index_list")
        if rows:
            found.append(replace(outcome, rows=tuple(sorted(int(row) for row in rows))))
        else:
            found.append(replace(outcome, error="its rows cannot be told"))
    return found


def _exception(info: Mapping[str, Any]) -> str:
    """Return the message of what an expectation raised; the details stand alone, or per metric that failed."""
    parts = [info] if "raised_exception" in info else [i for i in info.values() if isinstance(i, Mapping)]
    messages = [str(p.get("exception_message") or "unknown error") for p in parts if p.get("raised_exception")]
    return "; ".join(dict.fromkeys(_first_line(m) for m in messages))


def _first_line(error: object) -> str:
    text = str(error).strip().removeprefix("Error: ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Pydantic's first line only counts the errors of the model.
    if len(lines) > 1 and re.match(r"\d+ validation error", lines[0]):
        lines = lines[1:]
        return f"{lines[0]}: {lines[1]}" if len(lines) > 1 else lines[0]
    return lines[0] if lines else type(error).__name__


def _safe(name: str) -> str:
    """Return a name that can be part of the paths of Data Docs."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)


def settled(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an expectation observed as plain JSON in which nothing depends on chance."""
    body: dict[str, Any] = _plain(result)
    if "partial_missing_list" in body:
        # The first ones out of a set, whose order differs from process to process: no choice can be told again.
        missing = body.pop("partial_missing_list")
        if len(missing) == body.get("missing_count"):
            body["partial_missing_list"] = sorted(missing, key=lambda value: (type(value).__name__, value))
    return body


def _plain(value: Any) -> Any:
    """Return `value` as JSON knows it: numpy's scalars as Python's, anything unknown as its text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, type):
        return _plain(value.item())
    if isinstance(value, datetime):
        return value.isoformat()
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)
