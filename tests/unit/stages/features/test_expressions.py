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
