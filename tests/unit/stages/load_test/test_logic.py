from __future__ import annotations

import asyncio
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.load_test import generator, logic
from airflow_ml_provider.stages.load_test.logic import Sample
from airflow_ml_provider.stages.load_test.spec import LoadProfile, LoadTestSpec

MODEL = ModelRef("late", "/models/late", "sha256:m")


def samples(*latencies_ms, lag_ms=0.0, gap_s=0.01):
    return [Sample(i * gap_s, lag_ms / 1000, 0.0, ms / 1000) for i, ms in enumerate(latencies_ms)]


class TestArrivals:
    @given(rate=st.floats(1, 500), seconds=st.floats(0.1, 10), seed=st.integers(0, 9))
    def test_they_are_in_order_within_the_time_and_the_same_again(self, rate, seconds, seed):
        for kind in ("poisson", "constant"):
            due = logic.arrivals(rate, seconds, kind, seed)
            assert due == sorted(due) == logic.arrivals(rate, seconds, kind, seed)
            assert due[0] >= 0
            assert len(due) == 1 or due[-1] < seconds + 1 / rate

    def test_poisson_arrivals_have_the_rate_and_the_spread_of_independent_users(self):
        due = logic.arrivals(200, 100, "poisson")
        gaps = [b - a for a, b in itertools.pairwise(due)]
        mean = sum(gaps) / len(gaps)
        assert mean == pytest.approx(1 / 200, rel=0.03)
        assert math.sqrt(sum((g - mean) ** 2 for g in gaps) / len(gaps)) == pytest.approx(mean, rel=0.05)

    def test_a_replay_keeps_the_gaps_divided_by_the_speed(self):
        assert logic.replayed([100.0, 101.0, 103.0, 190.0], 10, 2) == [0.0, 0.5, 1.5]


class TestQuantiles:
    @pytest.mark.parametrize(("n", "q", "bounds"), [(100, 0.5, (40, 61)), (100, 0.99, (97, None)), (10, 0.5, (2, 9))])
    def test_order_statistics_of_the_textbook(self, n, q, bounds):
        assert logic.order_bounds(n, q, 0.95) == bounds

    @settings(max_examples=30)
    @given(n=st.integers(30, 3000), q=st.sampled_from([0.5, 0.95, 0.99]))
    def test_the_interval_covers_as_often_as_it_says(self, n, q):
        low, high = logic.order_bounds(n, q, 0.95)
        probabilities = dict(logic._binomial(n, q))
        covered = sum(p for k, p in probabilities.items() if (low or 0) <= k < (high or n + 1))
        assert covered >= 0.95 - 1e-9

    def test_intervals_cover_the_true_quantile_of_drawn_values(self):
        draw, hits = random.Random(1), 0
        for _ in range(300):
            found = logic.quantile(sorted(draw.expovariate(1) for _ in range(400)), 0.95, 0.9)
            hits += found.low <= -math.log(0.05) <= found.high
        assert 0.85 <= hits / 300 <= 0.98

    def test_failed_requests_are_slow_ones(self):
        found = logic.measured([*samples(*[1.0] * 97), *(Sample(1, 0, 0, 0.001, "status 500"),) * 3], 100, 1, 10, 0.95)
        assert found.figures["p95_ms"].value == pytest.approx(1)
        assert found.figures["p99_ms"].value is None
        assert found.figures["error_rate"].value == 0.03
        assert found.errors == {"status 500": 3}

    def test_no_error_in_few_requests_is_no_proof(self):
        assert logic.share(0, 50, 0.95).high > 0.05
        assert logic.share(0, 5000, 0.95).high < 0.001


class TestCoordinatedOmission:
    def test_a_stall_shows_in_all_requests_that_were_due_meanwhile(self):
        """A server that answers at once but stalls for 0.3 s: of 100 requests in a second 30 are due meanwhile."""

        async def test():
            free = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.call_later(0.1, free.clear)
            loop.call_later(0.4, free.set)
            free.set()

            async def send(at):
                await free.wait()
                return "", {}

            due = logic.arrivals(100, 1.0, "constant")
            return await generator.drive(due, send, connections=1, timeout_s=10)

        found = asyncio.run(test())
        late = [s for s in found if s.latency > 0.02]
        # With one connection a closed loop sends one request into the stall, and would call the 29 others fast.
        assert 20 <= len(late) <= 60
        assert max(s.latency for s in found) > 0.25
        step = logic.measured(found, 100, 1.0, 1000, 0.95)
        assert step.figures["p95_ms"].value > 150

    def test_a_request_without_an_answer_is_a_timeout_and_ends(self):
        async def test():
            async def send(at):
                await asyncio.Event().wait()

            return await generator.drive([0.0, 0.01, 0.02], send, connections=2, timeout_s=0.1)

        assert [s.error for s in asyncio.run(test())] == ["timeout"] * 3

    def test_being_cancelled_by_others_is_no_timeout(self):
        async def test():
            async def send(at):
                await asyncio.Event().wait()

            task = asyncio.create_task(generator.drive([0.0], send, connections=1, timeout_s=60))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(test())


class TestTrust:
    def test_a_generator_that_fell_behind_says_so(self):
        found = logic.measured(samples(*[1.0] * 50, lag_ms=20), 100, 1, 10, 0.95)
        assert found.problem.startswith("the generator fell behind at 100 requests/s")
        assert not logic.measured(samples(*[1.0] * 50, lag_ms=2), 100, 1, 10, 0.95).problem

    def test_its_lag_is_part_of_the_latency(self):
        assert logic.measured(samples(1.0, lag_ms=20), 1, 1, 10, 0.95).figures["p50_ms"].value == pytest.approx(21)


def step(rate, ms, *, lag_ms=0.0, failed=0):
    seconds = 100 / rate
    good = samples(*[ms] * (100 - failed), lag_ms=lag_ms, gap_s=seconds / 100)
    return logic.measured([*good, *[Sample(0, 0, 0, None, "timeout")] * failed], rate, seconds, 10, 0.95)


class TestKnee:
    def test_it_is_the_highest_rate_below_the_first_that_was_not_sustained(self):
        found = logic.knee([step(10, 2), step(20, 3), step(40, 5.9), step(80, 9)])
        assert (found.rate, found.beyond) == (40, 80)

    def test_errors_and_answers_that_come_too_slowly_are_not_sustained(self):
        assert logic.knee([step(10, 2), step(20, 2, failed=5)]).rate == 10
        queueing = [Sample(i / 100, 0, 0, 0.002 if i < 60 else i / 50) for i in range(100)]
        assert logic.knee([step(10, 2), logic.measured(queueing, 100, 1, 10, 0.95)]).rate == 10

    def test_where_there_is_none(self):
        assert "higher" in logic.knee([step(10, 2), step(20, 2)]).note
        assert logic.knee([step(10, 2, failed=50)]).rate is None
        assert logic.knee([]).rate is None

    def test_a_generator_that_fell_behind_ends_the_search(self):
        found = logic.knee([step(10, 2), step(20, 2, lag_ms=30), step(40, 2)])
        assert (found.rate, found.beyond) == (10, None)
        assert "fell behind" in found.note


class TestBudget:
    def told(self, **parts):
        return [Sample(0, 0.001, 0.002, 0.02, "", {name: ms / 1000 for name, ms in parts.items()})] * 10

    def test_the_network_is_what_the_server_does_not_account_for(self):
        found = {p.name: p for p in logic.parts(self.told(queue=2, model=10), ("wait", "network", "model"), {}, 0.95)}
        assert found["network"].estimate.value == pytest.approx(8)
        assert found["wait"].estimate.value == pytest.approx(3)
        assert found["model"].met

    def test_what_exceeds_it_or_is_not_told_is_not_met(self):
        found = logic.parts(self.told(model=10), ("model", "queue", "post"), {"model": 5, "queue": 1}, 0.95)
        assert [p.name for p in found] == ["model", "queue"]
        assert logic.over_budget(found) == (
            "model takes 10 ms at the 99th percentile, 5 ms are allowed; "
            "queue is not told by the server at the 99th percentile, 1 ms are allowed"
        )

    def test_a_server_that_tells_nothing(self):
        assert logic.server_timing("") == logic.server_timing("cache, db;dur=x") == {}
        assert not logic.over_budget(logic.parts(self.told(), ("network", "model"), {}, 0.95))


class TestSpec:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({}, "rate must be greater than 0"),
            ({"rate": 5, "arrivals": "recorded"}, "and 0 with arrivals"),
            ({"rate": 5, "arrivals": "uniform"}, "poisson, constant or recorded"),
            ({"rate": 5, "ramp": (5, 5)}, "increasing"),
            ({"rate": 5, "connections": 5000}, r"in \[1, 900\]"),
            ({"rate": 5, "seconds": 0}, "seconds must be greater than 0"),
        ],
    )
    def test_profiles(self, changes, message):
        with pytest.raises(SpecError, match=message):
            LoadProfile(**changes)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"url": "127.0.0.1:80"}, "an address such as http"),
            ({"url": "http://late:80", "protocol": "grpc"}, "an address such as grpc://"),
            ({"url": "grpc://late", "protocol": "grpc"}, "an address such as grpc://"),
            ({"url": "grpc://late:80"}, "an address such as http"),
            ({"protocol": "soap"}, "protocol must be rest or grpc"),
            ({"budget": {"modle": 5}}, "did you mean 'model'"),
            ({"budget": {"model": 0}}, "greater than 0"),
            ({"scaled_to_zero": True}, "False without a url"),
            ({"profile": LoadProfile(arrivals="recorded")}, "a prediction log"),
        ],
    )
    def test_specs(self, changes, message):
        with pytest.raises(SpecError, match=message):
            LoadTestSpec(**{"model": MODEL, "output": "/out", "profile": LoadProfile(rate=5), **changes})
