from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.monitor import logic
from airflow_ml_provider.stages.monitor.logic import ColumnDrift, Entry, Performance, judge_batch, judge_column
from airflow_ml_provider.stages.monitor.sketch import Numbers, Texts
from airflow_ml_provider.stages.monitor.spec import DriftPolicy, Levels, MonitorSpec

POLICY = DriftPolicy()


def whole_numbers(counts, nulls=0):
    """A sketch of values 1, 2, 3 …, so often each."""
    import struct

    codes = [struct.unpack("<I", struct.pack("<f", float(i + 1)))[0] + 0x80000000 for i in range(len(counts))]
    total = sum((i + 1) * c for i, c in enumerate(counts))
    return Numbers(sum(counts), nulls, 1.0, float(len(counts)), float(total), 0, dict(zip(codes, counts, strict=True)))


def texts(nulls=0, **counts):
    return Texts(sum(counts.values()), nulls, counts)


class TestJudgeColumn:
    def test_the_same_distribution(self):
        found = judge_column("x", whole_numbers([1000] * 10), whole_numbers([50] * 10), POLICY, 1)
        assert (found.severity, found.psi, found.js, found.ks, found.w1) == ("none", 0.0, 0.0, 0.0, 0.0)
        assert found.p_value == 1.0

    def test_a_moved_distribution(self):
        found = judge_column("x", whole_numbers([1000] * 10), whole_numbers([0] * 5 + [100] * 5), POLICY, 20)
        assert found.severity == "significant"
        assert found.ks == 0.5
        assert found.w1 == pytest.approx(2.5)

    def test_levels_count_only_when_the_test_is_significant(self):
        reference, few = whole_numbers([1000] * 10), whole_numbers([2, 1, 1, 1, 1, 1, 1, 1, 1, 4])
        found = judge_column("x", reference, few, POLICY, 1)
        assert found.psi > POLICY.psi.warn
        assert (found.severity, found.p_value > POLICY.alpha) == ("none", True)

    def test_correction_for_many_columns(self):
        reference, current = whole_numbers([1000] * 10), whole_numbers([37, 22, 22, 22, 22, 22, 15, 15, 15, 10])
        one, many = (judge_column("x", reference, current, POLICY, tests) for tests in (1, 1000))
        assert 1e-5 < one.p_value < 0.01
        assert (one.severity, many.severity) == ("warn", "none")

    @pytest.mark.parametrize("kind", ["numbers", "texts"])
    def test_missing_values_that_appear(self, kind):
        make = {"numbers": lambda c, n: whole_numbers([c] * 4, n), "texts": lambda c, n: texts(n, a=c, b=c, c=c, d=c)}[
            kind
        ]
        found = judge_column("x", make(1000, 0), make(100, 200), POLICY, 10)
        assert found.severity == "significant"
        assert found.missing == (0.0, pytest.approx(1 / 3))

    def test_nothing_but_missing_values(self):
        found = judge_column("x", whole_numbers([500, 500]), Numbers(0, 300), POLICY, 10)
        assert (found.severity, found.ks, found.w1) == ("significant", 0.0, None)

    def test_unseen_values(self):
        found = judge_column("carrier", texts(UA=6000, AA=4000), texts(UA=240, AA=160, XX=60, YY=40), POLICY, 10)
        assert found.severity == "significant"
        assert found.unseen == pytest.approx(0.2)
        assert found.unseen_values == ("XX", "YY")

    @pytest.mark.parametrize("ignore", ["weekday", "week*"])
    def test_ignored_columns_are_measured_and_not_judged(self, ignore):
        policy = replace(POLICY, ignore=(ignore,))
        found = judge_column("weekday", whole_numbers([1000] * 7), whole_numbers([0, 500]), policy, 1)
        assert (found.severity, found.ignored, found.psi > 1) == ("none", True, True)
        batch = judge_batch([found, column("significant", "hour")], 500, Performance(), policy)
        assert (batch.drift_share, batch.reason) == (1.0, "1 of 1 columns drifted (hour)")

    def test_small_change_of_a_text(self):
        found = judge_column("carrier", texts(UA=5000, AA=5000), texts(UA=700, AA=300), POLICY, 1)
        assert found.severity == "warn"
        assert 0.1 <= found.psi < 0.25


def column(severity, name="x"):
    return ColumnDrift(name=name, kind="float", severity=severity, p_value=0.0, psi=0.0, js=0.0)


class TestJudgeBatch:
    @pytest.mark.parametrize(
        ("severities", "severity", "share"),
        [
            (["none"] * 10, "none", 0.0),
            (["none"] * 9 + ["warn"], "warn", 0.0),
            (["none"] * 8 + ["significant"] * 2, "warn", 0.2),
            (["none"] * 7 + ["significant"] * 3, "significant", 0.3),
        ],
    )
    def test_share_of_drifted_columns(self, severities, severity, share):
        batch = judge_batch([column(s) for s in severities], 500, Performance(), POLICY)
        assert (batch.judged, batch.severity, batch.drift_share) == (True, severity, share)

    def test_few_rows_are_not_judged(self):
        batch = judge_batch([column("significant")], 99, Performance(), POLICY)
        assert (batch.judged, batch.severity, batch.drift_share) == (False, "none", None)
        assert batch.reason == "99 rows, drift is judged from 100 on"

    @pytest.mark.parametrize(
        ("auc", "judged", "severity"), [(0.59, True, "significant"), (0.61, True, "none"), (0.5, False, "none")]
    )
    def test_performance_on_arrived_labels(self, auc, judged, severity):
        done = Performance(labels=400, rows=300, judged=judged, auc=auc)
        batch = judge_batch([column("none")], 500, done, replace(POLICY, min_auc=0.6))
        assert batch.severity == severity
        assert judge_batch([column("none")], 500, done, POLICY).severity == "none"

    def test_performance_is_judged_without_enough_rows(self):
        done = Performance(labels=400, rows=300, judged=True, auc=0.5)
        batch = judge_batch([column("none")], 5, done, replace(POLICY, min_auc=0.6))
        assert (batch.judged, batch.severity, batch.drift_share) == (True, "significant", None)
        assert batch.reason == "5 rows, drift is judged from 100 on; AUC 0.500 on 300 arrived labels, below 0.6"

    @pytest.mark.parametrize(
        ("other", "auc", "severity"),
        [("none", 0.8, "warn"), ("significant", 0.8, "significant"), ("none", 0.1, "significant")],
    )
    def test_scores_that_are_not_a_number_are_told(self, other, auc, severity):
        done = Performance(labels=400, rows=300, not_a_number=7, judged=True, auc=auc)
        batch = judge_batch([column(other)], 500, done, replace(POLICY, min_auc=0.6))
        assert batch.severity == severity
        assert batch.reason.endswith("; 7 scores of rows with labels are not a number")

    def test_nothing_but_scores_that_are_not_a_number(self):
        done = Performance(labels=400, not_a_number=400)
        batch = judge_batch([column("none")], 500, done, replace(POLICY, min_auc=0.6))
        assert (batch.severity, batch.judged) == ("warn", True)

    def test_drifted_columns_are_named(self):
        batch = judge_batch([column("significant", "hour"), column("none")], 500, Performance(), POLICY)
        assert batch.reason == "1 of 2 columns drifted (hour)"


class Simulated:
    """A series as the stage keeps it, day by day in any order."""

    def __init__(self, policy):
        self.policy, self.entries, self.starts = policy, {}, []

    def run(self, day, severity, judged=True, **info):
        run = RunInfo(**{"run_id": f"scheduled-{day}", "reason": "schedule", **info})
        key = f"{day:04d}"
        now = Entry(interval=key, judged=judged, severity=severity)
        self.entries[key], starts, why_not = logic.decide(list(self.entries.values()), now, run, self.policy)
        if starts:
            self.starts.append(day)
        return starts, self.entries[key].called, why_not

    def days(self, pattern, first=0, **info):
        for i, mark in enumerate(pattern):
            self.run(first + i, {"x": "significant", ".": "none", "?": "none"}[mark], judged=mark != "?", **info)
        return self.starts


SHORT = replace(POLICY, window=3, needed=2, recover=2, cooldown=4)
patterns = st.text("x.?", max_size=40)
policies = st.builds(
    lambda window, needed, recover, cooldown: DriftPolicy(
        window=window, needed=min(needed, window), recover=recover, cooldown=cooldown
    ),
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 6),
)  # fmt: skip


def distance(series, a, b):
    """Judged batches between two starts, and the longest run of calm ones among them."""
    between = [e for k, e in sorted(series.entries.items()) if f"{a:04d}" < k < f"{b:04d}" and e.judged]
    calm = longest = 0
    for e in between:
        calm = 0 if e.significant else calm + 1
        longest = max(longest, calm)
    return len(between), longest


class TestStarts:
    @pytest.mark.parametrize(
        ("pattern", "starts"),
        [
            ("....x....", []),  # one bad day
            ("....xx...", [5]),
            ("..x.x....", [4]),  # two of three
            ("..x..x...", []),
            ("xxxxxxxxx", [1]),  # once per episode
            ("xx.xx.xx.xx", [1]),  # one calm day does not end it
            ("xx..xx....xx", [1, 11]),  # it ends, but the cool-down does not
            ("xx.....xx", [1, 8]),
            ("x?x", [2]),  # what was not judged is passed over
            ("xx????????xx", [1]),
            ("x.x.x.x.x.x.x.x", [2]),  # alternating days are one episode
        ],
    )
    def test_by_hand(self, pattern, starts):
        assert Simulated(SHORT).days(pattern) == starts

    @given(policies, patterns)
    def test_one_bad_day_alone_never_starts_more_than_one(self, policy, pattern):
        calm = pattern.replace("x", ".")
        for at in range(len(calm)):
            assert len(Simulated(policy).days(f"{calm[:at]}x{calm[at + 1 :]}")) <= 1

    @given(policies, st.integers(1, 60))
    def test_alternating_days(self, policy, days):
        starts = Simulated(policy).days(("x." * days)[:days])
        assert len(starts) <= (1 if policy.recover > 1 else 1 + days // (policy.cooldown + 1))

    @given(policies, patterns)
    def test_starts_keep_their_distance(self, policy, pattern):
        series = Simulated(policy)
        starts = series.days(pattern)
        for a, b in pairwise(starts):
            between, calm = distance(series, a, b)
            assert between >= policy.cooldown
            assert calm >= policy.recover

    @settings(deadline=None)
    @given(policies, patterns, st.randoms(use_true_random=False))
    def test_out_of_order_backfill_keeps_the_cool_down(self, policy, pattern, rng: random.Random):
        series = Simulated(replace(policy, backfill=True))
        days = list(enumerate(pattern))
        rng.shuffle(days)
        for day, mark in days:
            severity = "significant" if mark == "x" else "none"
            series.run(day, severity, judged=mark != "?", reason="backfill")
        starts = sorted(series.starts)
        for a, b in pairwise(starts):
            assert distance(series, a, b)[0] >= policy.cooldown

    @given(policies, patterns)
    def test_running_every_day_twice_starts_nothing_more(self, policy, pattern):
        series = Simulated(policy)
        first = list(series.days(pattern))
        entries = dict(series.entries)
        series.days(pattern, cleared=True)
        assert series.starts == first
        assert series.entries == entries

    @given(patterns)
    def test_a_day_is_judged_by_earlier_days_only(self, pattern):
        whole, half = Simulated(SHORT), Simulated(SHORT)
        whole.days(pattern)
        half.days(pattern[: len(pattern) // 2])
        keys = list(half.entries)
        assert [whole.entries[k] for k in keys] == [half.entries[k] for k in keys]


class TestRuns:
    def test_backfilled_and_cleared_runs_start_nothing(self):
        series = Simulated(SHORT)
        assert series.days("xxx", reason="backfill") == []
        assert series.run(2, "significant", cleared=True) == (False, True, "a cleared run does not start training")
        assert series.run(2, "significant", reason="backfill")[2] == "a backfilled run does not start training"

    def test_the_first_scheduled_day_after_a_backfill_starts(self):
        series = Simulated(SHORT)
        series.days("xx", reason="backfill")
        assert series.days("xx", first=2) == [2]

    def test_policy_lets_backfills_start(self):
        assert Simulated(replace(SHORT, backfill=True)).days("xxx", reason="backfill") == [1]

    def test_a_retry_of_the_very_task_says_it_again(self):
        series = Simulated(SHORT)
        series.days("xx")
        assert series.run(1, "significant") == (True, True, "")

    def test_another_run_of_the_same_day_does_not(self):
        series = Simulated(SHORT)
        series.days("xx")
        again = series.run(1, "significant", run_id="manual", reason="manual")
        assert again == (False, True, "training was started for this interval before")

    def test_clearing_the_day_that_started_does_not_even_if_backfills_may(self):
        series = Simulated(replace(SHORT, backfill=True))
        series.days("xx")
        assert series.run(1, "significant", cleared=True)[2] == "training was started for this interval before"

    def test_reason_names_the_start(self):
        series = Simulated(SHORT)
        series.days("xx")
        assert series.run(2, "significant")[2] == "training was started on 0001, in the same episode"
        series = Simulated(SHORT)
        series.days("xx..x")
        assert series.run(5, "significant")[2] == "training was started on 0001, 3 of 4 cool-down batches apart"


class TestSpec:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("share", 30, "share must be in"),
            ("alpha", 1.0, "alpha must be in"),
            ("min_auc", 60, "min_auc must be in"),
            ("needed", 4, "needed must be between 1 and window"),
            ("recover", 0, "recover, cooldown must be at least 1 and 0 batches"),
            ("min_rows", 0, "min_rows must be at least 1"),
        ],
    )
    def test_policy(self, field, value, message):
        with pytest.raises(SpecError, match=message):
            DriftPolicy(**{field: value})

    def test_levels(self):
        with pytest.raises(SpecError, match="0 <= warn <= significant"):
            Levels(0.3, 0.1)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": "a/b"}, "name must be letters, digits"),
            ({"models": ()}, "models must be at least one registered name"),
            ({"labels": "/labels"}, "key must be given when labels are"),
            ({}, "interval must be given"),
        ],
    )
    def test_spec(self, changes, message):
        body = {
            "name": "late", "dataset": DatasetRef(name="rows", uri="/rows", digest="sha256:0"), "models": ("late",),
            "predictions": "/predictions", "output": "/monitor", **changes,
        }  # fmt: skip
        with pytest.raises(SpecError, match=message):
            MonitorSpec(**body)
