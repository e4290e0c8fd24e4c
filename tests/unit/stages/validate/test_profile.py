from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.stages.validate import logic, profile
from airflow_ml_provider.stages.validate.spec import ProfileSpec

pytest.importorskip("duckdb")

# Eight cells in `id` and `x` of which two are missing; `x` has one value of three out of bounds; one row in four has
# `until` before `since`, one cannot tell; of three rows with both times one came a day and a second late; two ids of
# four are one, and one is missing.
ROWS = """
SELECT * FROM (VALUES
  (1,    10,   'a', TIMESTAMPTZ '2013-01-01 00:00:00Z', TIMESTAMPTZ '2013-01-01 01:00:00Z'),
  (1,    -3,   'b', TIMESTAMPTZ '2013-01-01 02:00:00Z', TIMESTAMPTZ '2013-01-01 01:00:00Z'),
  (2,    7,    'c', TIMESTAMPTZ '2013-01-01 00:00:00Z', TIMESTAMPTZ '2013-01-02 00:00:01Z'),
  (NULL, NULL, 'd', TIMESTAMPTZ '2013-01-01 00:00:00Z', NULL)
) AS t(id, x, s, since, until)
"""
EVERYTHING = ProfileSpec(
    required=("id", "x"),
    valid={"x": "x >= 0 -- not below nought"},
    rules={"in order": "until >= since"},
    key=("id",),
    event_time="since",
    known_time="until",
)


@pytest.fixture
def connection() -> Iterator[Any]:
    found = tables.connect()
    found.execute(f"CREATE VIEW batch AS {ROWS}")
    yield found
    found.close()


def test_by_hand(connection: Any) -> None:
    measured = profile.measure(connection, EVERYTHING)
    assert measured.counts.rows == 4
    assert logic.scores(measured.counts) == pytest.approx(
        {
            "completeness": 6 / 8,
            "accuracy": 2 / 3,
            "consistency": 3 / 4,
            "timeliness": 2 / 3,
            "uniqueness": 2 / 4,
            "overall": (6 / 8 + 2 / 3 + 3 / 4 + 2 / 3 + 2 / 4) / 5,
        }
    )
    assert measured.details == {
        "completeness": {"id": 1, "x": 1},
        "accuracy": {"x": 1},
        "consistency": {"in order": 1},
        "timeliness": {"late": 1},
        "uniqueness": {"id": 2},
    }
    assert measured.columns["x"] == {"type": "INTEGER", "null_count": 1, "distinct_count": 3, "min": -3, "max": 10}
    assert measured.columns["s"] == {"type": "VARCHAR", "null_count": 0, "distinct_count": 4}
    assert measured.columns["until"]["max"] == "2013-01-02 00:00:01+00"


def test_only_what_is_asked_is_measured(connection: Any) -> None:
    measured = profile.measure(connection, ProfileSpec(key=("id", "x")))
    assert logic.scores(measured.counts) == {"uniqueness": 0.75, "overall": 0.75}
    assert logic.scores(profile.measure(connection, ProfileSpec()).counts) == {}


def test_counts_of_partitions_add_up(connection: Any) -> None:
    connection.execute("CREATE VIEW one AS SELECT * FROM batch WHERE s < 'c'")
    connection.execute("CREATE VIEW two AS SELECT * FROM batch WHERE s >= 'c'")
    parts = [profile.measure(connection, EVERYTHING, name).counts for name in ("one", "two")]
    whole = profile.measure(connection, EVERYTHING).counts
    assert {k: parts[0].good[k] + parts[1].good[k] for k in whole.good} == whole.good
    assert {k: parts[0].total[k] + parts[1].total[k] for k in whole.total} == whole.total


def test_empty_batch(connection: Any) -> None:
    connection.execute("CREATE VIEW nothing AS SELECT * FROM batch WHERE false")
    measured = profile.measure(connection, EVERYTHING, "nothing")
    assert logic.scores(measured.counts) == {}
    assert measured.columns["x"] == {"type": "INTEGER", "null_count": 0, "distinct_count": 0}


def test_columns_that_are_not_there(connection: Any) -> None:
    spec = ProfileSpec(required=("id", "nope"), valid={"gone": "true"}, key=("id",))
    measured = profile.measure(connection, spec)
    assert measured.counts.missing_columns == ("nope", "gone")
    assert logic.scores(measured.counts)["completeness"] == 3 / 8


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ProfileSpec(valid={"x": "x >"}), "profile valid 'x' is not SQL over the columns of the batch"),
        (ProfileSpec(rules={"r": "nope > 1"}), "profile rules 'r' is not SQL .*nope"),
        (ProfileSpec(rules={"r": "sum(x) > 1"}), "profile rules 'r' is not SQL"),
        (ProfileSpec(event_time="s", known_time="until"), "profile event_time, known_time: 'late' is not SQL"),
    ],
)
def test_bad_predicates(connection: Any, spec: ProfileSpec, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        profile.measure(connection, spec)


def test_a_predicate_that_fails_on_a_value(connection: Any) -> None:
    with pytest.raises(DataError, match="use TRY_CAST where a value may be malformed"):
        profile.measure(connection, ProfileSpec(rules={"r": "CAST(s AS INTEGER) > 1"}))
