"""Whether two answers are the same."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.serving.agreement import agree


def answer(*outputs: tuple[str, str, list[Any]], **more: Any) -> dict[str, Any]:
    body = [{"name": name, "datatype": kind, "shape": [len(data)], "data": data} for name, kind, data in outputs]
    return {"outputs": body, **more}


def scores(*values: Any) -> dict[str, Any]:
    return answer(("score", "FP32", list(values)))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (scores(0.5, 0.25), scores(0.5, 0.25), True),
        (scores(0.5), scores(0.509), True),
        (scores(0.5), scores(0.511), False),
        (scores(0.0), scores(0.009), True),
        (scores(1000.0), scores(1009.0), True),
        (scores(1000.0), scores(1011.0), False),
        (scores(0.5), scores(0.5, 0.5), False),
        (scores(None), scores(None), True),
        (scores(None), scores(0.0), False),
        (scores([0.5], [0.25]), scores(0.5, 0.25), True),
        (scores(0.5), answer(("score", "FP64", [0.505])), True),
        (answer(("label", "BYTES", ["late"])), answer(("label", "BYTES", ["late"])), True),
        (answer(("label", "BYTES", ["late"])), answer(("label", "BYTES", ["on time"])), False),
        (answer(("label", "INT64", [1000])), answer(("label", "INT64", [1001])), False),
        (answer(("label", "BOOL", [True])), answer(("label", "BOOL", [False])), False),
        (scores(0.5), answer(("label", "FP32", [0.5])), False),
        (
            answer(("a", "FP32", [1.0]), ("b", "BYTES", ["x"]), id="1"),
            answer(("b", "BYTES", ["x"]), ("a", "FP32", [1.0]), id="2"),
            True,
        ),
        (answer(("a", "FP32", [1.0]), ("b", "BYTES", ["x"])), answer(("a", "FP32", [1.0])), False),
    ],
)
def test_answers(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    assert agree(one, other, 0.01) is same
    assert agree(other, one, 0.01) is same


def test_no_tolerance_asks_for_equal_numbers() -> None:
    assert agree(scores(0.5), scores(0.5), 0)
    assert not agree(scores(0.5), scores(0.5000001), 0)


@pytest.mark.parametrize("body", [{}, {"outputs": 1}, {"outputs": [1]}, {"outputs": [{"name": "a"}]}])
def test_what_is_no_answer(body: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="not of the protocol"):
        agree(scores(0.5), body, 0.01)
