"""Counting."""

from __future__ import annotations

from itertools import pairwise

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.serving.place import counted
from airflow_ml_provider.serving.stats import (
    LATENCY_BOUNDS_MS,
    Answers,
    Latency,
    Scores,
    VersionStats,
    count_scores_anew,
)
from airflow_ml_provider.stages.deploy.stats import Histogram


def test_bounds_are_even_on_a_log_scale() -> None:
    ratios = [b / a for a, b in pairwise(LATENCY_BOUNDS_MS)]
    assert ratios == pytest.approx([2**0.5] * len(ratios), rel=1e-3)
    assert (LATENCY_BOUNDS_MS[0], LATENCY_BOUNDS_MS[-1]) == (0.25, 16384.0)


@pytest.mark.parametrize(("milliseconds", "at"), [(0.1, 0), (0.25, 0), (0.26, 1), (16384.0, 32), (1e9, 33)])
def test_latency(milliseconds: float, at: int) -> None:
    latency = Latency()
    latency.add(milliseconds)
    assert latency.counts[at] == sum(latency.counts) == 1
    assert latency.sum_ms == milliseconds


def test_scores() -> None:
    scores = Scores((0.0, 0.5, 1.0))
    scores.add([-0.1, 0.0, 0.4, 0.5, 1.0, 1.1, None, float("nan")])
    assert scores.counts == [1, 2, 2, 1]
    assert scores.not_a_number == 2


def test_answers() -> None:
    answers = Answers(Scores((0.0, 1.0)))
    answers.answered(200, 1.0, [0.5, 0.6])
    answers.answered(400, 1.0)
    answers.answered(500, 1.0)
    answers.failed("timeout")
    answers.failed("connection")
    assert answers.requests == 5
    assert answers.errors == {"5xx": 1, "timeout": 1, "connection": 1}
    assert answers.rejected == 1
    assert sum(answers.latency.counts) == 3
    assert answers.scores.counts == [0, 2, 0]


def test_other_edges_begin_anew() -> None:
    stats = VersionStats.empty((0.0, 1.0))
    stats.live.answered(200, 1.0, [0.5])
    count_scores_anew([stats], (0.0, 1.0))
    assert sum(stats.live.scores.counts) == 1
    count_scores_anew([stats], (0.0, 0.5, 1.0))
    assert stats.live.scores == Scores((0.0, 0.5, 1.0))
    assert stats.live.requests == 1


def test_a_rollout_reads_users_requests_and_copies() -> None:
    stats = VersionStats.empty((0.0, 0.5, 1.0))
    stats.live.answered(200, 1.0, [0.1, 0.9])
    stats.mirror.answered(500, 20_000.0)
    stats.mirror.failed("timeout")
    stats.direct.answered(200, 1.0, [0.1])
    stats.compared, stats.agreed = 3, 2
    found = counted(codec.encode(stats))
    assert (found.requests, found.errors, found.compared, found.agreed) == (3, 2, 3, 2)
    assert found.latency_s.bounds[0] == LATENCY_BOUNDS_MS[0] / 1000
    assert (found.latency_s.total, found.latency_s.counts[-1]) == (2, 1)
    assert found.scores == Histogram((0.0, 0.5, 1.0), (0, 1, 1, 0))
