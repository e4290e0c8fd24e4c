from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features import logic
from airflow_ml_provider.stages.features.logic import Pick, View
from airflow_ml_provider.stages.features.spec import Split

TRAFFIC = View("traffic", "", "e", {"origin": "origin"}, {"mean": "mean", "n": "n"})
WEATHER = View("weather", "", "e", {"origin": "origin"}, {"temp": "temp"})
VIEWS = {"traffic": TRAFFIC, "weather": WEATHER}
SERVICES = {"small": [Pick(WEATHER, ("temp",), "there", {"origin": "dest"})]}
END = datetime(2013, 2, 5, tzinfo=timezone.utc)
WEEK = Interval(END - timedelta(days=7), END, "2013-01-29")


def columns(*wanted: str) -> list[str]:
    return [column for pick in logic.choose(wanted, VIEWS, SERVICES) for column in pick.columns()]


def test_which_features_are_meant() -> None:
    assert columns() == ["traffic__mean", "traffic__n", "weather__temp"]
    assert columns("weather:temp", "traffic:n") == ["weather__temp", "traffic__n"]
    assert columns("small") == ["there__temp"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("smal",), "unknown feature service 'smal'; did you mean 'small'"),
        (("trafic:n",), "unknown feature view 'trafic'; did you mean 'traffic'"),
        (("traffic:meen",), "unknown feature of view 'traffic': 'meen'; did you mean 'mean'"),
        (("small", "traffic:n"), "`view:feature` names or one feature service alone"),
    ],
)
def test_a_wrong_name_is_met_with_the_nearest(wanted: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        columns(*wanted)


def test_split_by_time() -> None:
    found = logic.windows(WEEK, Split(test_s=2 * 86400, gap_s=3600), None)
    assert found.test_end == END
    assert found.test_start == END - timedelta(days=2)
    assert found.train_end == END - timedelta(days=2, hours=1)
    with pytest.raises(SpecError, match="since must be before the end of the training rows"):
        logic.windows(WEEK, Split(), since=END - timedelta(days=7))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((99, 10, 0), "99 labelled training rows before 2013-01-29T00:00:00.*, at least 100 are needed"),
        ((100, 0, 0), "no labelled test rows from"),
        ((100, 10, 2), "2 labels are neither 0 nor 1"),
    ],
)
def test_too_few_rows(counts: tuple[int, int, int], message: str) -> None:
    split = Split()
    with pytest.raises(DataError, match=message):
        logic.check_counts(*counts, 100, split, logic.windows(WEEK, split, None))
    logic.check_counts(100, 10, 0, 100, split, logic.windows(WEEK, split, None))


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1.0, 1.0, True),
        (None, None, True),
        (float("nan"), float("nan"), True),
        (None, 1.0, False),
        (1, 2, False),
        ("a", "a", True),
    ],
)
def test_equal_values(left: Any, right: Any, equal: bool) -> None:
    assert logic.same(left, right) is equal


def test_skew_is_the_share_of_values_that_differ() -> None:
    offline = [{"origin": "EWR", "mean": 1.0, "n": 3}, {"origin": "JFK", "mean": None, "n": 0}]
    view = logic.compare(["origin"], ["mean", "n"], offline, {"mean": [1.0, 2.0], "n": [3, 0]}, 2)
    assert (view.entities, view.compared, view.different) == (2, 4, 1)
    assert view.examples == ({"origin": "JFK", "feature": "mean", "offline": "None", "online": "2.0"},)
    assert logic.skew_share({"a": view, "b": logic.ViewSkew(0, 0, 0)}) == 0.25
    assert logic.skew_share({}) == 0.0
