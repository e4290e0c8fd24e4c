"""Who answers: in proportion, and with a sticky key always the same."""

from __future__ import annotations

import pytest

from airflow_ml_provider.serving.spec import Version, Wanted
from airflow_ml_provider.serving.split import Split, sticky_point
from airflow_ml_provider.stages.deploy.experiment import assign
from airflow_ml_provider.stages.deploy.service import Sticky

DIGEST = "sha256:" + "a" * 64


def split(stable: str = "1", **percent: float) -> Split:
    versions = {name.strip("v"): Version("/m", DIGEST, percent=share) for name, share in percent.items()}
    return Split.of(Wanted(versions, stable=stable))


@pytest.mark.parametrize(
    ("point", "version"), [(0.0, "2"), (9.99, "2"), (10.0, "3"), (29.99, "3"), (30.0, "1"), (99.99, "1")]
)
def test_in_proportion(point: float, version: str) -> None:
    assert split(v1=70, v2=10, v3=20).choose(point) == version


def test_all_to_one() -> None:
    assert {split(v1=100, v2=0).choose(point) for point in (0.0, 50.0, 99.999)} == {"1"}
    assert {split(v1=0, v2=100).choose(point) for point in (0.0, 50.0, 99.999)} == {"2"}


def test_a_growing_candidate_only_takes_keys() -> None:
    points = [sticky_point("late", str(key)) for key in range(2000)]
    before = {at for at, point in enumerate(points) if split(v1=90, v2=10).choose(point) == "2"}
    after = {at for at, point in enumerate(points) if split(v1=60, v2=40).choose(point) == "2"}
    assert before < after
    assert 100 < len(before) < 300
    assert 650 < len(after) < 950


def test_an_experiment_assigns_its_users() -> None:
    versions = {"1": Version("/m", DIGEST, percent=70), "2": Version("/m", DIGEST, percent=30)}
    found = Split.of(Wanted(versions, stable="1", sticky=Sticky("x-user", "spring")))
    keys = [str(key) for key in range(2000)]
    assert [found.of_key("late", key) for key in keys] == [assign(key, "spring", {"1": 70, "2": 30}) for key in keys]
    other = Split.of(Wanted(versions, stable="1"))
    assert [other.of_key("late", key) for key in keys] == [other.choose(sticky_point("late", key)) for key in keys]


def test_a_point_is_the_key_s_and_the_service_s() -> None:
    assert sticky_point("late", "u1") == sticky_point("late", "u1")
    assert sticky_point("late", "u1") != sticky_point("rain", "u1")
    assert 0 <= sticky_point("late", "\udcff") < 100  # a header need not be UTF-8


def test_copies_go_to_others_only() -> None:
    versions = {
        "1": Version("/m", DIGEST, percent=100, mirror=100),
        "2": Version("/m", DIGEST, mirror=20),
    }
    found = Split.of(Wanted(versions, stable="1"))
    assert found.copies("1", 19.9) == ["2"]
    assert found.copies("1", 20.0) == []
    assert found.copies("2", 0.0) == ["1"]
