"""What is carried over and what is said."""

from __future__ import annotations

import pytest

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef, ModelRef
from airflow_ml_provider.stages.score import logic
from airflow_ml_provider.stages.score.spec import ScoreSpec


def test_columns_to_carry_over():
    assert logic.carried((), ["a", "b"]) == ["a", "b"]
    assert logic.carried(("b",), ["a", "b"]) == ["b"]
    with pytest.raises(DataError, match="keep needs 'c'; the data has a, b"):
        logic.carried(("c",), ["a", "b"])
    with pytest.raises(SpecError, match="column 'score' is one that scoring adds"):
        logic.carried((), ["a", "score"])


def test_remarks():
    assert logic.remark({"rows": 9, "without_model": 0}, [], "champion") == ""
    assert logic.remark({"rows": 9, "without_model": 2, "not_a_number": 1}, ["late_lga"], "champion") == (
        "2 of 9 rows belong to no model and were left out; no champion yet: late_lga; 1 scores are not a number"
    )
    assert logic.nobody(["a", "b"], "champion", Interval.from_key("2013-01-05")) == (
        "no champion for data of 2013-01-05: nobody held it at 2013-01-05 00:00 UTC for a, b"
    )


def test_column_lineage():
    assert logic.column_lineage("/in", ["id"], ["x"], ["origin"]) == {
        "id": [["/in", "id"]],
        "score": [["/in", "x"], ["/in", "origin"]],
        "flagged": [["/in", "x"], ["/in", "origin"]],
        "model_name": [["/in", "origin"]],
        "model_version": [["/in", "origin"]],
        "model_digest": [["/in", "origin"]],
    }
    assert "model_name" not in logic.column_lineage("/in", [], ["x"], [])


def test_what_the_metadata_lists():
    ref = ModelRef("late", "", "sha256:1", version="3")
    assert logic.told([ref], [7]) == [{"name": "late", "version": "3", "digest": "sha256:1", "rows": 7}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ()}, "models must be at least one registered name"),
        ({"models": ("a", "b"), "version": "1"}, "version must be given only with a single model"),
        ({"batch_rows": 0}, "batch_rows must be at least 1"),
        ({"interval": None}, "interval must be given, or part of the dataset ref"),
    ],
)
def test_bad_values(values, message):
    body = {"models": ("late",), "interval": Interval.from_key("2013-01-05"), **values}
    with pytest.raises(SpecError, match=message):
        ScoreSpec(DatasetRef("rows", "/in", "sha256:0"), target="/out", **body)
