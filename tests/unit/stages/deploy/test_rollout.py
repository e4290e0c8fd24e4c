"""The state machine, by hand: one decision after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.stages.deploy.analysis import Windows, judge
from airflow_ml_provider.stages.deploy.policy import Agreement, ErrorRate, Latency, RolloutPolicy
from airflow_ml_provider.stages.deploy.rollout import advance, begin
from airflow_ml_provider.stages.deploy.state import RolloutState, Seen
from airflow_ml_provider.stages.deploy.stats import Histogram, VersionStats
from airflow_ml_provider.stages.deploy.strategies import ADVANCED
from airflow_ml_provider.stages.gate import page

QUICK = RolloutPolicy(steps=(10.0, 100.0), bake_s=60.0, min_samples=100, max_wait_s=300.0, checks=(ErrorRate(),))


class Rollout:
    """A rollout whose back end obeys at once unless told otherwise."""

    def __init__(self, policy=QUICK, *, stable="sha256:old", **seen):
        self.policy, self.now = policy, 1000.0
        self.counted = {"stable": VersionStats(), "candidate": VersionStats()}
        self.seen = Seen(**{"health": "ready", **seen})
        self.state = begin(policy, self.seen, self.now, candidate="sha256:new", stable=stable)

    def count(self, version, requests, errors=0):
        self.counted[version] += VersionStats(requests, errors)

    def look(self, seconds=0.0, *, obey=True, requests=0, errors=0, **seen):
        """Pass time and traffic, look, do what is asked."""
        self.now += seconds
        self.count("candidate", requests, errors)
        self.count("stable", 10 * requests)
        readings = {name: {"server": stats} for name, stats in self.counted.items()}
        self.seen = replace(self.seen, **{**readings, **seen})
        decision = advance(self.state, self.policy, self.seen, self.now)
        self.state = decision.state
        if obey and decision.action in ("set_traffic", "roll_back"):
            self.seen = replace(self.seen, percent=decision.percent, mirror_percent=decision.mirror_percent)
        if obey and decision.action == "promote":
            self.seen = replace(self.seen, promoted=True)
        return decision

    def looks(self, *times, **seen):
        return [(d.action, d.percent) for d in (self.look(seconds, **seen) for seconds in times)]


def test_a_good_candidate_goes_all_the_way():
    rollout = Rollout()
    assert rollout.looks(1, 1, 59, requests=100) == [("set_traffic", 10), ("wait", 10), ("wait", 10)]
    assert rollout.looks(1, 1, 60, 1, requests=100) == [
        ("set_traffic", 100),
        ("wait", 100),
        ("promote", 100),
        ("done", 100),
    ]
    assert rollout.look(1000).action == "done"
    assert [record["decision"] for record in rollout.state.evidence] == ["passed", "passed"]
    assert [record["percent"] for record in rollout.state.evidence] == [10, 100]


def test_the_evidence_of_a_step_is_of_the_gates_kind():
    rollout = Rollout()
    rollout.looks(1, 1, 60, requests=200)
    (record,) = rollout.state.evidence
    assert record["kind"] == "airflow_ml.rollout/1"
    assert record["reason"] == "all 2 criteria are met at 10 %"
    assert record["window_s"] == 60
    assert record["digests"] == {"stable": "sha256:old", "candidate": "sha256:new"}
    assert record["policy"] == {"digest": codec.digest(QUICK), "body": codec.encode(QUICK)}
    assert record["criteria"][0] == {
        "name": "requests", "passed": True, "observed": 400, "threshold": {"at_least": 100}, "interval": None,
        "rows": None, "note": "",
    }  # fmt: skip
    rate = record["criteria"][1]
    assert (rate["name"], rate["verdict"], rate["rows"], rate["stable_rows"]) == (
        "error_rate.increase",
        "pass",
        400,
        4000,
    )
    assert rate["threshold"] == {"at_most": 0.005}
    assert rate["interval"][0] < 0 < rate["interval"][1]
    assert "error_rate.increase" in page._criterion(rate)


def test_failing_checks_roll_back_long_before_the_end_of_the_bake():
    rollout = Rollout()
    rollout.looks(1, 1, requests=100)
    decision = rollout.look(1, requests=20, errors=10)
    assert (decision.action, decision.percent) == ("roll_back", 0)
    assert decision.reason.startswith("error_rate.increase is 0.08333 [")
    assert decision.evidence["decision"] == "refused"
    assert decision.state.reason == decision.evidence["reason"] == decision.reason
    assert rollout.looks(1, 1) == [("failed", 0), ("failed", 0)]


@pytest.mark.parametrize(
    ("health", "reason"),
    [("failed", "the candidate has failed: out of memory"), ("gone", "the candidate is gone: out of memory")],
)
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_candidate_that_dies_is_rolled_back_in_every_phase(health, reason, after):
    rollout = Rollout()
    rollout.looks(*[1] * after, requests=100)
    decision = rollout.look(1, health=health, reason="out of memory")
    assert (decision.action, decision.reason) == ("roll_back", reason)
    assert decision.evidence["reason"] == reason
    assert rollout.look(1, health="ready").action == "failed"


def test_a_candidate_that_dies_before_it_is_seen_promoted_is_rolled_back_later_not():
    rollout = Rollout()
    rollout.looks(1, 1, 60, 1, requests=100)
    assert rollout.look(60, requests=100, obey=False).action == "promote"
    dead = replace(rollout.seen, health="failed")
    assert advance(rollout.state, QUICK, dead, rollout.now).action == "roll_back"
    assert advance(rollout.state, QUICK, replace(dead, promoted=True), rollout.now).action == "done"


def test_promotion_is_repeated_until_it_is_seen():
    rollout = Rollout()
    rollout.looks(1, 1, 60, 1, requests=100)
    assert rollout.looks(60, 1, obey=False, requests=100) == [("promote", 100), ("promote", 100)]
    assert rollout.look(1, obey=False, settled=False).action == "wait"
    assert rollout.look(1, settled=True).action == "promote"
    assert rollout.look(1).action == "done"


def test_alpha_is_shared_among_the_steps():
    rollout = Rollout()
    rollout.looks(1, 1, 60, requests=200)
    window = rollout.state.evidence[0]["criteria"][1]
    alone = Windows(VersionStats(4000), VersionStats(400), QUICK.alpha / 2, QUICK.min_samples)
    assert window["interval"] == list(judge(QUICK.checks, alone)[0].interval)


def test_checks_go_on_until_the_candidate_is_seen_promoted():
    rollout = Rollout()
    rollout.looks(1, 1, 60, 1, requests=100)
    assert rollout.look(60, requests=100, obey=False).action == "promote"
    assert rollout.look(1, requests=100, errors=50).action == "roll_back"


def test_what_somebody_else_promotes_is_taken_back():
    rollout = Rollout()
    rollout.looks(1, 1, requests=100)
    decision = rollout.look(1, promoted=True)
    assert (decision.action, decision.reason) == ("roll_back", "the candidate was promoted by somebody else")
    assert rollout.look(1).action == "roll_back"
    assert rollout.look(1, promoted=False).action == "failed"


def test_traffic_that_was_there_before_is_taken_away_until_the_candidate_is_ready():
    rollout = Rollout(health="pending")
    assert rollout.look(1, percent=50.0).action == "set_traffic"
    assert rollout.seen.percent == 0
    assert rollout.look(1).action == "wait"


def test_nothing_gives_traffic_back_after_a_roll_back():
    rollout = Rollout()
    rollout.looks(1, 1, requests=100)
    assert rollout.look(1, requests=20, errors=20, obey=False).action == "roll_back"
    assert rollout.look(1, obey=False).action == "roll_back"  # lost: asked for again
    assert rollout.look(1, percent=0.0).action == "failed"
    assert rollout.look(1, percent=100.0, obey=False).action == "roll_back"  # an older action takes effect late
    assert rollout.look(1, percent=0.0, settled=False).action == "roll_back"
    assert rollout.look(1, settled=True).action == "failed"


def test_a_candidate_must_get_ready_in_time():
    rollout = Rollout(replace(QUICK, max_start_s=100.0), health="pending", reason="pulling the image")
    decision = rollout.look(99)
    assert (decision.action, decision.reason) == ("wait", "the candidate is not ready yet: pulling the image")
    decision = rollout.look(1)
    assert decision.action == "roll_back"
    assert decision.reason == "the candidate was not ready within 100 s: pulling the image"


def test_lost_actions_are_repeated_and_lagging_ones_waited_for():
    rollout = Rollout()
    assert rollout.looks(1, 1, obey=False) == [("set_traffic", 10), ("set_traffic", 10)]
    assert rollout.look(1, obey=False, settled=False).action == "wait"
    assert rollout.look(1, obey=False, settled=True).action == "set_traffic"
    assert rollout.look(1, percent=10.0).action == "wait"
    assert rollout.state.phase == "baking"


def test_traffic_that_cannot_be_set_in_time_is_a_failure():
    rollout = Rollout()
    rollout.look(1, obey=False)
    decision = rollout.look(300, obey=False)
    assert decision.action == "roll_back"
    assert decision.reason == "the traffic could not be held at 10 % for 300 s"


def test_the_bake_begins_again_when_somebody_moves_the_traffic_or_the_candidate_is_not_ready():
    rollout = Rollout()
    rollout.looks(1, 1, 50, requests=100)
    assert rollout.look(1, percent=0.0).action == "set_traffic"
    assert rollout.looks(1, 59, requests=100) == [("wait", 10), ("wait", 10)]
    assert rollout.look(1, health="pending", requests=100).action == "wait"
    assert rollout.looks(1, 59, health="ready") == [("wait", 10), ("wait", 10)]
    assert rollout.look(1).action == "set_traffic"


def test_a_clock_that_runs_backwards_takes_no_time_and_makes_none():
    rollout = Rollout()
    rollout.looks(1, 1, 30, requests=100)
    assert rollout.looks(-10000, 29, requests=100) == [("wait", 10), ("wait", 10)]
    assert rollout.look(1).action == "set_traffic"


@pytest.mark.parametrize(
    ("on_unsure", "action"), [("rollback", "roll_back"), ("hold", "wait"), ("advance", "set_traffic")]
)
def test_too_few_requests_in_time(on_unsure, action):
    rollout = Rollout(replace(QUICK, on_unsure=on_unsure))
    rollout.look(1)
    rollout.looks(1, 60, requests=20)
    assert rollout.look(238).action == "wait"
    decision = rollout.look(1)
    assert decision.action == action
    assert "only 40 of 100 requests" in decision.reason
    if on_unsure == "advance":
        assert (decision.percent, decision.evidence["decision"]) == (100, ADVANCED)


@pytest.mark.parametrize(
    ("on_unsure", "action"), [("rollback", "roll_back"), ("hold", "wait"), ("advance", "roll_back")]
)
def test_numbers_beyond_the_threshold_by_chance_or_not(on_unsure, action):
    """Two errors in 200 requests prove nothing; traffic does not grow on them either."""
    rollout = Rollout(replace(QUICK, on_unsure=on_unsure))
    rollout.look(1)
    rollout.look(1, requests=200, errors=2)
    assert rollout.look(60).action == "wait"
    decision = rollout.look(240)
    assert decision.action == action
    assert "error_rate.increase is 0.01 [" in decision.reason


@pytest.mark.parametrize("on_unsure", ["rollback", "advance"])
def test_a_step_that_began_too_late_is_not_gone_on_from(on_unsure):
    rollout = Rollout(replace(QUICK, on_unsure=on_unsure))
    rollout.look(1, obey=False)
    rollout.look(280, percent=10.0, requests=100)
    decision = rollout.look(20, requests=100)
    assert decision.action == "roll_back"
    assert decision.reason == "no clear answer within 300 s: 10 % since 20 of 60 s"


def test_more_requests_may_acquit():
    rollout = Rollout()
    rollout.look(1)
    rollout.look(1, requests=200, errors=2)
    assert rollout.look(60).action == "wait"
    assert rollout.look(1, requests=1000).action == "set_traffic"


def test_what_was_counted_before_the_step_takes_no_part_in_it():
    rollout = Rollout()
    rollout.count("candidate", 50, errors=50)  # while it warmed up
    assert rollout.looks(1, 1, 60, requests=100)[-1] == ("set_traffic", 100)


def test_a_new_server_counts_in_full_and_one_that_is_away_is_not_counted_twice():
    rollout = Rollout()
    rollout.look(1, requests=100)
    one, two = {"server": VersionStats(150)}, {"server": VersionStats(160), "other": VersionStats(40)}
    for candidate, counted in ((one, 50), (two, 100), ({}, 100), (two, 100), ({"other": VersionStats(45)}, 105)):
        rollout.state = advance(rollout.state, QUICK, replace(rollout.seen, candidate=candidate), rollout.now).state
        assert rollout.state.candidate.window.requests == counted


def test_a_server_that_starts_anew_loses_one_look_and_the_record_says_so():
    rollout = Rollout()
    rollout.looks(1, 1, requests=100)
    rollout.counted["candidate"] = VersionStats(30)  # restarted
    rollout.look(1)
    assert (rollout.state.candidate.window.requests, rollout.state.candidate.restarts) == (130, 1)
    record = rollout.look(60).evidence
    assert record["restarts"] == {"stable": 0, "candidate": 1}


def test_a_window_is_kept_in_moments_of_a_twelfth_of_the_bake_time():
    rollout, sizes = Rollout(replace(QUICK, bake_s=120.0)), []
    rollout.look(1)
    for count in range(1, 61):
        rollout.now += 4
        seen = replace(rollout.seen, candidate={"server": VersionStats(count, 0, Histogram((1.0,), (count, 0)))})
        rollout.state = advance(rollout.state, rollout.policy, seen, rollout.now).state
        sizes.append([sum(counts) for counts in rollout.state.candidate.moments])
    assert sizes[4] == [3, 2]  # one of 12 s, for looks every 4 s, and one that goes on
    assert sizes[35] == [3] * 12
    assert max(map(len, sizes)) == 12
    assert [sum(each) for each in sizes] == list(range(1, 61))
    assert sizes[59] == [6] * 8 + [3] * 4
    assert rollout.state.candidate.anew().moments == ()


def test_servers_with_other_buckets_are_an_error():
    rollout = Rollout()
    rollout.look(1)
    for bounds in ((0.1, 1.0), (0.2, 1.0)):
        stats = {"server": VersionStats(3, 0, Histogram(bounds, (1, 1, 1)))}
        seen = replace(rollout.seen, candidate=stats)
        if bounds[0] == 0.2:
            with pytest.raises(DataError, match="different bounds"):
                advance(rollout.state, QUICK, seen, rollout.now)
        else:
            rollout.state = advance(rollout.state, QUICK, seen, rollout.now).state


class TestBlueGreen:
    policy = replace(QUICK, strategy="blue_green", smoke_samples=5)

    def test_the_switch_waits_for_smoke_and_for_something_to_compare_with(self):
        rollout = Rollout(self.policy)
        assert rollout.look(1).action == "set_traffic"
        rollout.count("stable", 99)
        rollout.count("candidate", 5)
        assert rollout.look(1).reason == "0 % since 0 of 0 s; requests.stable is 99 and must be at least 100"
        rollout.count("stable", 1)
        decision = rollout.look(1)
        assert (decision.action, decision.percent) == ("set_traffic", 100)
        assert [c["name"] for c in decision.evidence["criteria"]] == ["requests", "requests.stable"]

    def test_a_failing_smoke_test_is_never_seen_by_users(self):
        rollout = Rollout(self.policy)
        rollout.look(1)
        rollout.count("stable", 2000)
        rollout.count("candidate", 20, errors=20)
        assert rollout.look(1).action == "roll_back"

    def test_the_old_version_is_kept_warm_and_compared_with_from_before_the_switch(self):
        rollout = Rollout(self.policy)
        rollout.look(1)
        rollout.count("stable", 2000, errors=2)
        rollout.count("candidate", 5)
        rollout.look(1)
        rollout.count("candidate", 100)
        assert rollout.look(1).action == "wait"
        assert rollout.state.stable.window == VersionStats(2000, 2)
        rollout.count("candidate", 20, errors=20)
        assert rollout.look(1).action == "roll_back"  # back at once

    def test_it_is_promoted_after_the_bake(self):
        rollout = Rollout(self.policy)
        rollout.look(1)
        rollout.look(1, requests=100)
        assert rollout.looks(1, 60, 1, requests=100) == [("wait", 100), ("promote", 100), ("done", 100)]


class TestShadow:
    policy = replace(QUICK, strategy="shadow", checks=(ErrorRate(), Agreement()))

    def run(self, policy, agreed):
        rollout = Rollout(policy)
        decision = rollout.look(1)
        assert (decision.action, decision.percent, decision.mirror_percent) == ("set_traffic", 0, 100)
        rollout.look(1)
        rollout.count("stable", 500)
        rollout.counted["candidate"] += VersionStats(500, compared=500, agreed=agreed)
        return rollout, rollout.look(60)

    def test_it_ends_with_a_verdict_and_no_traffic(self):
        rollout, decision = self.run(self.policy, agreed=495)
        assert (decision.action, decision.percent, decision.mirror_percent) == ("set_traffic", 0, 0)
        assert decision.evidence["decision"] == "passed"
        decision = rollout.look(1)
        assert (decision.action, decision.reason) == ("done", "all 3 criteria are met at a copy of 100 %")

    def test_other_answers_than_the_stable_version_are_a_failure(self):
        rollout, decision = self.run(self.policy, agreed=250)
        assert decision.action == "roll_back"
        assert "agreement is 0.5 [" in decision.reason
        assert rollout.look(1).action == "failed"

    def test_it_goes_on_as_a_canary_if_told_to(self):
        rollout, decision = self.run(replace(self.policy, after_shadow="canary"), agreed=500)
        assert (decision.action, decision.percent, decision.mirror_percent) == ("set_traffic", 10, 0)
        assert rollout.looks(1, 60, requests=200) == [("wait", 10), ("set_traffic", 100)]

    def test_the_mirroring_is_seen_to_end(self):
        rollout, _ = self.run(self.policy, agreed=500)
        assert rollout.look(1, mirror_percent=100.0, obey=False).action == "set_traffic"
        assert rollout.look(1, mirror_percent=0.0).action == "done"


def test_a_first_version_gets_all_traffic_and_is_judged_alone():
    policy = replace(QUICK, checks=(ErrorRate(max=0.02), Latency()))
    rollout = Rollout(policy, stable=None)
    assert rollout.look(1).percent == 100
    rollout.looks(1, requests=100)
    decision = rollout.look(60)
    assert decision.action == "promote"
    notes = {c["name"]: c["note"] for c in decision.evidence["criteria"]}
    assert notes["error_rate.increase"] == notes["latency.p99.ratio"] == "there is no stable version to compare with"
    assert decision.evidence["digests"] == {"stable": None, "candidate": "sha256:new"}
    rollout = Rollout(policy, stable=None)
    rollout.looks(1, 1)
    assert rollout.look(1, requests=200, errors=50).action == "roll_back"


def test_there_must_be_two_versions_to_compare():
    with pytest.raises(SpecError, match="another version than the stable one"):
        begin(QUICK, Seen("ready"), 0.0, candidate="sha256:a", stable="sha256:a")
    with pytest.raises(SpecError, match="a version whose requests can be mirrored"):
        begin(replace(QUICK, strategy="shadow"), Seen("ready"), 0.0, candidate="sha256:a", stable=None)


def test_the_policy_cannot_change_on_the_way():
    rollout = Rollout()
    with pytest.raises(SpecError, match="but the rollout began with"):
        advance(rollout.state, replace(QUICK, alpha=0.5), rollout.seen, 2000.0)


def test_a_crash_loses_nothing_that_was_kept():
    rollout = Rollout()
    for seconds in (1, 1, 30, 30, 1, 30, 30, 1):
        rollout.look(seconds, requests=100)
        rollout.state = codec.decode(RolloutState, codec.encode(rollout.state))
    assert rollout.state.phase == "done"
