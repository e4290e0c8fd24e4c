from __future__ import annotations

from typing import Any

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.features import expressions

COLUMNS = ("origin", "dep_delay", "scheduled_departure", "Arr Delay")


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("hour(timezone('America/New_York', scheduled_departure))", ("scheduled_departure",)),
        ('DEP_DELAY + "arr delay"', ("dep_delay", "Arr Delay")),
        ("CASE WHEN origin = 'EWR' THEN 1 END -- a comment", ("origin",)),
        ("list_transform([1, 2], lambda x: x + dep_delay)", ("dep_delay",)),
        ("1", ()),
        ("age(scheduled_departure, TIMESTAMPTZ '2013-01-01')", ("scheduled_departure",)),
        ("CASE WHEN origin = '' THEN error('no origin') END", ("origin",)),
    ],
)
def test_columns_that_an_expression_uses(connection: Any, text: str, used: tuple[str, ...]) -> None:
    assert expressions.parse(connection, text, COLUMNS, "x").columns == used


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(SELECT max(dep_delay) FROM flights)", "a subquery"),
        ("origin IN (SELECT 1)", "a subquery"),
        ("lag(dep_delay) OVER ()", "a window function"),
        ("COLUMNS('dep.*')", r"\* or COLUMNS"),
        ("now() - scheduled_departure", r"now\(\)"),
        ("random()", r"random\(\)"),
        ("system.main.RANDOM()", r"random\(\)"),
        ("date_part('year', age(scheduled_departure))", r"age\(\) of one moment"),
        ("txid_current()", r"txid_current\(\)"),
        ("current_setting('TimeZone')", r"current_setting\(\)"),
        ("ago(INTERVAL 1 DAY)", r"ago\(\)"),
        ("reservoir_quantile(dep_delay, 0.5)", r"reservoir_quantile\(\)"),
        ("current_timestamp", "current_timestamp"),
        ("dep_delya", "did you mean 'dep_delay'"),
        ("dep_delay, origin) FROM t --", "must be one SQL expression"),
        ("1; DROP TABLE t", "must be one SQL expression"),
        ("dep_delay +", "must be one SQL expression"),
    ],
)
def test_what_reaches_beyond_its_row_is_refused(connection: Any, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        expressions.parse(connection, text, COLUMNS, "spine.where")


def test_what_a_query_reads(connection: Any) -> None:
    query = "SELECT f.origin, avg(dep_delay) FROM flights f JOIN planes USING (tailnum) GROUP BY ALL"
    known = {"flights": COLUMNS, "planes": ("tailnum", "seats"), "weather": ("origin",)}
    assert expressions.reads(connection, query, known) == [
        ("flights", "origin"), ("flights", "dep_delay")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT origin, now() AS t FROM flights", r"got now\(\)"),
        ("SELECT origin FROM flights WHERE scheduled_departure < current_date", "got current_date"),
        ("FROM (SELECT origin, random() AS r FROM flights)", r"got random\(\)"),
        ("SELECT origin, age(scheduled_departure) AS a FROM flights", "of one moment"),
        ("SELECT origin FROM", "t: sql must be one SELECT: "),
        ("SELECT 1; SELECT 2", "t: sql must be one SELECT: there are several"),
    ],
)
def test_a_query_gives_the_same_whenever_it_runs(connection: Any, query: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        expressions.reads(connection, query, {"flights": COLUMNS}, "t: sql")


def test_a_query_may_know_its_grid_point_and_columns_may_have_any_name(connection: Any) -> None:
    query = "SELECT user, current_date FROM logins WHERE scheduled < getvariable('h')"
    columns = ("user", "current_date", "scheduled")
    assert {c for _, c in expressions.reads(connection, query, {"logins": columns})} == {*columns}
