"""What may be wanted, and what may follow what."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.serving.spec import Version, Wanted, check_change, check_service

DIGEST = "sha256:" + "a" * 64
OLD = Version("/models/1", DIGEST, percent=90)
NEW = Version("/models/2", DIGEST, percent=10, mirror=5)


def test_json_and_back() -> None:
    wanted = Wanted({"1": OLD, "2": NEW}, stable="1", rollout={"step": 3, "since": ["x", None]}, generation=7)
    assert codec.decode(Wanted, json.loads(json.dumps(codec.encode(wanted)))) == wanted


def test_nothing_wanted_is_a_state() -> None:
    assert Wanted().versions == {}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"digest": "sha256:1"}, "digest must be sha256: and 64 hexadecimal digits, got 'sha256:1'"),
        ({"package": "models/1"}, "package must be an absolute path or a file:// URI, got 'models/1'"),
        ({"package": "s3://models/1"}, "location must be a path or a file:// URI"),
        ({"percent": 101}, r"percent must be in \[0, 100\], got 101"),
        ({"percent": float("nan")}, r"percent must be in \[0, 100\], got nan"),
        ({"mirror": -1}, r"mirror must be in \[0, 100\], got -1"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"max_delay_ms": 5000}, r"max_delay_ms must be in \[0, 1000\], got 5000"),
        ({"max_body_mib": 0}, r"max_body_mib must be in \(0, 1024\], got 0"),
    ],
)
def test_version(changes, says) -> None:
    with pytest.raises(SpecError, match=says):
        replace(OLD, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stable": "3"}, "unknown stable version '3'; Known: 1, 2"),
        ({"versions": {"1": OLD}}, r"percent of all versions must be 100 in total, got 90\.?0?; give what is left"),
        ({"versions": {"a/b": OLD}}, "name of a version must be"),
        ({"versions": {}}, "unknown stable version '1'"),
        ({"timeout_s": 0}, "timeout_s must be"),
        ({"timeout_s": float("nan")}, "timeout_s must be"),
        ({"log_percent": 200}, "log_percent must be"),
        ({"score_edges": ()}, "score_edges must be at least one number, increasing"),
        ({"score_edges": (0.0, 0.0)}, "score_edges must be at least one number, increasing"),
        ({"score_edges": (0.0, float("inf"))}, "score_edges must be"),
        ({"generation": -1}, "generation must be"),
    ],
)
def test_wanted(changes, says) -> None:
    with pytest.raises(SpecError, match=says):
        replace(Wanted({"1": OLD, "2": NEW}, stable="1"), **changes)


class TestChange:
    before = Wanted({"1": OLD, "2": NEW}, stable="1")

    def test_shares_may_change(self) -> None:
        after = replace(self.before, versions={"1": replace(OLD, percent=50), "2": replace(NEW, percent=50, mirror=0)})
        check_change(self.before, after)

    def test_a_name_may_go_and_come_back_as_another(self) -> None:
        check_change(self.before, Wanted({"2": replace(NEW, percent=100)}, stable="2"))
        check_change(Wanted(), Wanted({"1": replace(OLD, package="/other", percent=100)}, stable="1"))

    @pytest.mark.parametrize(
        "change", [{"digest": "sha256:" + "b" * 64}, {"max_batch": 1}, {"python": "/usr/bin/python"}]
    )
    def test_what_serves_stays_what_it_is(self, change) -> None:
        after = replace(self.before, versions={"1": OLD, "2": replace(NEW, **change)})
        with pytest.raises(SpecError, match=rf"{next(iter(change))} of version '2' must stay .* another name"):
            check_change(self.before, after)


@pytest.mark.parametrize("name", ["Late", "1late", "late/..", "..", "", "late-", "a" * 64, "late\n"])
def test_service_names(name: str) -> None:
    with pytest.raises(SpecError, match="name of a service must be"):
        check_service(name)
    assert check_service("flight-delay-2") == "flight-delay-2"
