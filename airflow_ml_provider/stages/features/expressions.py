"""SQL expressions from configuration, read by DuckDB's own parser: which columns they use, and what they may not do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_ml_provider.exceptions import SpecError, unknown_name

# What could reach other rows or tables than those the expression is about, or differ when it runs again.
_FORBIDDEN = {"SUBQUERY": "a subquery", "WINDOW": "a window function", "STAR": "* or COLUMNS(…)"}
# Of the clock, of the process or of chance, though DuckDB does not call them volatile; `age` has a second argument.
_VOLATILE = {
    "ago", "current_catalog", "current_localtime", "current_localtimestamp", "current_role", "current_time",
    "current_timestamp", "current_user", "getenv", "localtime", "localtimestamp", "pg_conf_load_time",
    "pg_postmaster_start_time", "reservoir_quantile", "session_user", "shuffle", "user",
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """An expression over the columns of one table.

    Attributes:
        text: the SQL, in parentheses.
        columns: the columns of the table that it uses.
    """

    text: str
    columns: tuple[str, ...]


def parse(connection: Any, text: str, columns: Iterable[str], what: str, *, aggregate: bool = False) -> Expression:
    """Return the expression `text` over a table with `columns`.

    Parameters:
        connection: DuckDB connection; only its parser is used.
        text: one SQL expression.
        columns: the columns that exist.
        what: names the expression in messages.
        aggregate: the expression is an aggregate over many rows.

    Raises:
        SpecError: it is no expression, names a column that does not exist, or reaches beyond its table's rows.
    """
    # The line breaks keep a comment at the end of the text from swallowing the parenthesis.
    wrapped = f"(\n{text}\n)"
    tree = _tree(connection, f"SELECT {wrapped} FROM t")  # noqa: S608 - it is parsed, not run
    if tree.get("error"):
        raise SpecError(f"{what} must be one SQL expression, got {text!r}: {tree['error_message']}")
    node = tree["statements"][0]["node"]
    if len(tree["statements"]) != 1 or len(node.get("select_list", ())) != 1:
        raise SpecError(f"{what} must be one SQL expression, got {text!r}")
    by_lower = {name.lower(): name for name in columns}
    rows = "its group of rows" if aggregate else "its own row"
    used: dict[str, None] = {}
    parameters: set[str] = set()
    volatile = _volatile(connection)
    for item in _nodes(node["select_list"][0]):
        kind = item["class"]
        if found := _FORBIDDEN.get(kind) or _changing(item, volatile):
            raise SpecError(
                f"{what} must use nothing but the columns of {rows}, got {text!r} with {found}; "
                "give it a table of its own in features.yaml"
            )
        if kind == "LAMBDA":
            parameters.update(_lambda_parameters(item))
        if kind == "COLUMN_REF":
            used.update({by_lower[n.lower()]: None for n in item["column_names"] if n.lower() in by_lower})
            _check_known(item["column_names"], by_lower, parameters, what)
    return Expression(wrapped, tuple(used))


def reads(
    connection: Any, query: str, sources: Mapping[str, tuple[str, ...]], what: str = "sql"
) -> list[tuple[str, str]]:
    """Return the (source, column) pairs that a query may read: every column it names, in every source it names.

    Raises:
        SpecError: it is no query, or would give another result when it runs again.
    """
    tree = _tree(connection, query)
    if tree.get("error") or len(tree["statements"]) != 1:
        raise SpecError(f"{what} must be one SELECT: {tree.get('error_message', 'there are several statements')}")
    volatile = _volatile(connection) - {"getvariable"}
    columns = {column.lower() for names in sources.values() for column in names}
    for item in _nodes(tree["statements"]):
        name = item["column_names"][-1].lower() if item["class"] == "COLUMN_REF" else ""
        word = name if name in volatile - columns and len(item["column_names"]) == 1 else ""
        if changing := word or _changing(item, volatile):
            raise SpecError(f"{what} must give the same whenever it runs, got {changing}; getvariable('h') is the time")
    found: dict[str, set[str]] = {"tables": set(), "columns": set()}
    _names(tree["statements"], found)
    return [(s, c) for s, columns in sources.items() if s in found["tables"] for c in columns if c in found["columns"]]


def _tree(connection: Any, query: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()[0][0])
    return tree


def _volatile(connection: Any) -> set[str]:
    """Return the functions that may give another result when they run again."""
    rows = connection.execute("SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'")
    return _VOLATILE | {name for (name,) in rows.fetchall()} - {"error"}


def _changing(item: Mapping[str, Any], volatile: set[str]) -> str:
    """Return the call in a node whose result may change from run to run; empty when there is none."""
    name = str(item.get("function_name", "")).lower()
    # `arguments` is DuckDB 2's name for them. `x.age()` has none: x is taken for a schema.
    if name == "age" and len(item.get("arguments", item.get("children", ()))) < 2:
        return "age() of one moment, which counts up to today"
    return f"{name}()" if name in volatile else ""


def _check_known(names: list[str], by_lower: Mapping[str, str], parameters: set[str], what: str) -> None:
    if not any(name.lower() in by_lower or name in parameters for name in names):
        raise unknown_name(f"column in {what}:", names[-1], by_lower.values())


def _lambda_parameters(item: Mapping[str, Any]) -> Iterator[str]:
    for node in _nodes(item.get("lhs")):
        if node["class"] == "COLUMN_REF":
            yield node["column_names"][-1]


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every node of a syntax tree, outer ones first."""
    if isinstance(value, dict):
        if "class" in value:
            yield value
        for child in value.values():
            yield from _nodes(child)
    elif isinstance(value, list):
        for child in value:
            yield from _nodes(child)


def _names(value: Any, found: dict[str, set[str]]) -> None:
    if isinstance(value, dict):
        if value.get("type") == "BASE_TABLE":
            found["tables"].add(value["table_name"])
        if value.get("class") == "COLUMN_REF":
            found["columns"].update(value["column_names"])
        for child in value.values():
            _names(child, found)
    elif isinstance(value, list):
        for child in value:
            _names(child, found)
