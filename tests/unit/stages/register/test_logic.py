"""Parity: by hand, and for all."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.models import Manifest
from airflow_ml_provider.provenance import Provenance, RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.register.logic import compare, description, mlmodel, version_tags

scores = st.floats(0, 1, width=32)


def parity(native, exported, threshold=0.5, max_difference=1e-4, max_flips=0.0):
    return compare(native, exported, threshold=threshold, max_difference=max_difference, max_flips=max_flips)


def test_by_hand():
    found = parity([0.2, 0.5, 0.9, 0.6], [0.25, 0.5, 0.8, 0.45], max_difference=0.2, max_flips=0.25)
    assert found.rows == 4
    assert found.max_difference == pytest.approx(0.15)
    assert (found.flips, found.flip_share) == (1, 0.25)  # 0.6 -> 0.45
    assert found.nearest == 0
    assert found.worst_flip == pytest.approx(0.1)
    assert found.passed
    assert found.reason == ""


def test_a_score_at_the_operating_point_is_flagged():
    assert parity([0.5], [0.5 - 1e-4]).flips == 1
    assert parity([0.5 - 1e-4], [0.5]).flips == 1


def test_rounding_of_a_row_that_is_the_operating_point_is_no_flip():
    """The highest score that still flags a fifth of the rows is the score of a row."""
    found = parity([0.310018, 0.9], [0.310018 - 3e-8, 0.9], threshold=0.310018)
    assert (found.flips, found.ties, found.passed) == (0, 1, True)
    assert parity([0.31, 0.31], [0.31 - 2e-6, 0.31], threshold=0.31).flips == 1


def test_both_tolerances_are_named_when_exceeded():
    found = parity([0.1, 0.9], [0.9, 0.9], max_difference=0.01)
    assert not found.passed
    assert found.reason == (
        "the scores differ by up to 0.8; at most 0.01 is allowed; 1 of 2 sample rows (50 %) would be decided "
        "differently at 0.5; at most 0 % may"
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_never_near_enough(bad):
    for native, exported in (([bad, 0.1], [0.2, 0.1]), ([0.2, 0.1], [bad, 0.1]), ([bad], [bad])):
        found = parity(native, exported, max_difference=10, max_flips=1)
        assert not found.passed
        assert found.max_difference is None


def test_an_empty_sample_proves_nothing():
    assert parity([], []).reason == "the sample has no rows to compare"
    assert not parity([], []).passed


@given(st.lists(scores, min_size=1), scores)
def test_equal_scores_always_pass(values, threshold):
    found = parity(values, values, threshold, max_difference=0.0)
    assert found.passed
    assert (found.flips, found.max_difference) == (0, 0)


@given(st.lists(st.tuples(scores, scores), min_size=1), scores)
def test_a_flip_needs_a_difference_at_least_as_large_as_the_distance_to_the_operating_point(pairs, threshold):
    found = parity([a for a, _ in pairs], [b for _, b in pairs], threshold)
    assert found.worst_flip <= found.max_difference
    if found.flips:
        assert found.max_difference >= found.nearest


MANIFEST = Manifest(
    name="late",
    engine="sklearn",
    inputs={"hour": "float", "carrier": "string"},
    label="late",
    training=DatasetRef("flights", "/t", "sha256:d", rows=12345),
    trained_until=datetime(2013, 1, 7, tzinfo=timezone.utc),
    segment={"origin": "EWR"},
    provenance=Provenance(code={"package": "1"}, environment={"digest": "sha256:e"}),
)


def test_the_tags_tell_where_the_version_comes_from():
    info = RunInfo(dag_id="d", task_id="t", run_id="r", reason="asset", trigger="drift")
    tags = version_tags(MANIFEST, info, threshold=0.25, evaluation="sha256:v", parity="sha256:p")
    assert tags["airflow_ml.identity"] == info.identity
    assert tags["airflow_ml.dataset"] == "sha256:d"
    assert tags["airflow_ml.environment"] == "sha256:e"
    assert float(tags["airflow_ml.threshold"]) == 0.25
    assert (tags["airflow_ml.reason"], tags["airflow_ml.trigger"]) == ("asset", "drift")
    assert json.loads(tags["airflow_ml.provenance"])["code"] == {"package": "1"}
    assert "airflow_ml.evaluation" not in version_tags(MANIFEST, info, threshold=0.25, evaluation="", parity="")


def test_the_description_says_what_the_score_means():
    assert description(MANIFEST, 0.25) == (
        "P(late = 1) for origin = EWR by sklearn, trained on 12,345 rows of `flights` until 2013-01-07 00:00 UTC; "
        "operating point 0.25."
    )


def test_the_mlmodel_file_has_a_signature_and_no_flavour_that_unpickles():
    body = json.loads(mlmodel(MANIFEST, "sha256:" + "a" * 64, {"onnx": "1.2", "mlflow": "3.4"}))
    assert list(body["flavors"]) == ["onnx"]
    assert json.loads(body["signature"]["inputs"])[0] == {"type": "float", "name": "hour", "required": True}
