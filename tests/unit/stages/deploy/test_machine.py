"""What must hold of a rollout whatever happens: crashes, lost and late actions, dying servers, clocks that jump.

`Cluster` is the world outside: it obeys when it likes. The machine checks every decision against what it has seen for
itself, not against the state of the rollout.
"""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airflow_ml_provider import codec
from airflow_ml_provider.stages.deploy.bandit import BanditPolicy
from airflow_ml_provider.stages.deploy.experiment import ExperimentPolicy
from airflow_ml_provider.stages.deploy.policy import ErrorRate, RolloutPolicy
from airflow_ml_provider.stages.deploy.rollout import advance, begin
from airflow_ml_provider.stages.deploy.state import Decision, RolloutState, Seen
from airflow_ml_provider.stages.deploy.stats import VersionStats

BAKE_S = 60.0
POLICY = RolloutPolicy(
    steps=(1.0, 10.0, 50.0, 100.0), bake_s=BAKE_S, min_samples=20, max_wait_s=600.0, max_start_s=300.0,
    checks=(ErrorRate(max_increase=0.02, max=0.5),), smoke_samples=3,
)  # fmt: skip
POLICIES = [
    replace(POLICY, strategy=strategy, on_unsure=on_unsure, after_shadow=after)
    for strategy, after in (("canary", "stop"), ("blue_green", "stop"), ("shadow", "stop"), ("shadow", "canary"))
    for on_unsure in ("rollback", "hold", "advance")
]
TRIALS = [
    ExperimentPolicy("spring", "success", 0.02, min_s=BAKE_S, max_wait_s=600.0, key="", on_better="keep_stable"),
    ExperimentPolicy("spring", "success", 0.02, 0.2, max_s=900.0, key="", on_no_difference="promote"),
    BanditPolicy("success", period_s=BAKE_S, max_s=600.0, share=0.2, draws=100, max_loss=0.001),
    BanditPolicy("success", period_s=BAKE_S, max_s=600.0, on_limit="best", draws=100),
]


class Cluster:
    """The back end: two versions with servers that count, and traffic that follows orders with some delay."""

    def __init__(self) -> None:
        self.health, self.promoted = "pending", False
        self.traffic = (0.0, 0.0)
        self.asked = self.applied = 0
        self.servers = {"stable": {"stable-0": VersionStats(1000, 5)}, "candidate": {}}
        self.orders: list[Decision] = []

    def order(self, decision: Decision) -> None:
        self.orders.append(decision)
        self.asked += 1

    def obey(self) -> None:
        decision = self.orders.pop(0)
        self.applied += 1
        if decision.action == "promote":
            self.promoted = True
        else:
            self.traffic = (decision.percent, decision.mirror_percent)
            self.promoted = self.promoted and decision.action != "roll_back"

    def forget(self) -> None:
        """The order never arrived."""
        self.orders.pop(0)
        self.asked -= 1

    def look(self) -> Seen:
        readings = {name: dict(servers) for name, servers in self.servers.items()}
        return Seen(self.health, "", *self.traffic, self.promoted, self.applied >= self.asked, **readings)


class RolloutMachine(RuleBasedStateMachine):
    @initialize(policy=st.sampled_from(POLICIES + TRIALS))
    def start(self, policy):
        self.policy, self.cluster, self.now = policy, Cluster(), 1e6
        self.kept = codec.canonical(begin(policy, self.cluster.look(), self.now, candidate="new", stable="old"))
        self.target = (0.0, 0.0)
        self.given_up = self.ended = False
        self.records = 0
        self.held_s: dict[tuple[float, float], float] = {}

    @rule(
        seconds=st.one_of(st.floats(0, 120), st.just(BAKE_S), st.just(700.0)),
        requests=st.integers(0, 3000),
        share=st.sampled_from([0] * 6 + [0.01, 0.3, 1]),
        jump_s=st.sampled_from([0.0] * 4 + [-1e5]),
    )
    def users_come(self, seconds, requests, share, jump_s=0.0):
        """Time passes with the traffic as it is; sometimes the clock is put back."""
        self.now += seconds + jump_s
        self.held_s[self.cluster.traffic] = self.held_s.get(self.cluster.traffic, 0.0) + seconds
        percent, mirror = self.cluster.traffic
        to_candidate = round(requests * percent / 100)
        copies = round((requests - to_candidate) * mirror / 100)
        self.count("stable", requests - to_candidate, 0)
        self.count("candidate", to_candidate + copies, round((to_candidate + copies) * share))

    def count(self, version, requests, errors):
        servers = self.cluster.servers[version]
        for name in list(servers)[:1]:
            servers[name] += VersionStats(requests, errors)

    @rule(errors=st.integers(0, 3))
    def smoke_test(self, errors):
        self.count("candidate", 3, errors)

    @rule()
    def candidate_gets_ready(self):
        self.cluster.health = "ready"
        self.cluster.servers["candidate"].setdefault("candidate-0", VersionStats())

    @rule(health=st.sampled_from(["pending"] * 6 + ["failed", "gone"]))
    def candidate_falters(self, health):
        self.cluster.health = health

    @rule(version=st.sampled_from(["stable", "candidate"]), name=st.sampled_from("ab"))
    def server_comes(self, version, name):
        self.cluster.servers[version] = {name: VersionStats(), **self.cluster.servers[version]}

    @rule(version=st.sampled_from(["stable", "candidate"]))
    def server_restarts(self, version):
        servers = self.cluster.servers[version]
        for name in list(servers)[:1]:
            servers[name] = VersionStats()

    @precondition(lambda self: self.cluster.orders)
    @rule()
    def order_takes_effect(self):
        self.cluster.obey()

    @precondition(lambda self: self.cluster.orders)
    @rule()
    def order_is_lost(self):
        self.cluster.forget()

    @rule(percent=st.sampled_from([0.0, 5.0, 100.0]))
    def somebody_moves_the_traffic(self, percent):
        self.cluster.traffic = (percent, 0.0)

    @rule(crash=st.sampled_from(["no", "no", "no", "before keeping", "before acting"]), promptly=st.booleans())
    def look(self, crash, promptly):
        """One turn of the loop, which may die at either point."""
        seen, state = self.cluster.look(), codec.decode(RolloutState, json.loads(self.kept))
        decision = advance(state, self.policy, seen, self.now)
        self.check(state, seen, decision)
        self.check_repetition(seen, decision)
        if crash == "before keeping":
            return
        self.note(decision)
        if crash == "before acting" or decision.over or decision.action == "wait":
            return
        self.cluster.order(decision)
        while promptly and self.cluster.orders:
            self.cluster.obey()

    @rule()
    def all_is_well(self):
        """Without this, hardly a rollout would get far."""
        self.candidate_gets_ready()
        while self.cluster.orders:
            self.cluster.obey()
        self.look("no", True)
        self.users_come(BAKE_S, 3000, 0)
        self.smoke_test(0)
        self.look("no", True)

    def note(self, decision):
        self.kept = codec.canonical(decision.state)
        target = self.target_of(decision)
        if target != self.target or decision.evidence:
            self.held_s = {}
        self.target = target
        self.records = len(decision.state.evidence)
        self.given_up = self.given_up or decision.action == "roll_back"
        self.ended = self.ended or decision.action == "done"

    def target_of(self, decision):
        if decision.action in ("set_traffic", "promote"):
            return decision.percent, decision.mirror_percent
        return (0.0, 0.0) if decision.action == "roll_back" else self.target

    def check(self, state, seen, decision):
        records = decision.state.evidence
        if self.given_up:
            assert decision.action in ("roll_back", "failed")
            assert (decision.percent, decision.mirror_percent) == (0, 0)
            assert decision.action == "roll_back" or (seen.settled and not seen.exposed and not seen.promoted)
        if self.ended:
            assert decision.action == "done"
        elif decision.action == "done":
            trial = self.policy in TRIALS
            stops = not decision.state.promotes if trial else self.policy.plan[-1].mirror_percent > 0
            assert seen.settled
            assert not seen.exposed if stops else seen.promoted
        if seen.health in ("failed", "gone") and not seen.promoted and not self.given_up and not self.ended:
            assert decision.action == "roll_back"
        if self.target_of(decision)[0] > self.target[0] or decision.action == "promote":
            self.check_growth(decision, records)
        assert len(records) - self.records == (decision.evidence is not None)
        assert decision.reason

    def check_growth(self, decision, records):
        """More traffic, or the end, stands on the record of the step before and on time that it really took."""
        if self.policy in TRIALS:
            self.check_trial(decision, records)
            return
        plan = self.policy.plan
        index = decision.state.step + (decision.action == "promote" or decision.state.phase == "finishing")
        assert len(records) == index
        if not records:
            return
        last, before = records[-1], plan[index - 1]
        assert (last["percent"], last["mirror_percent"]) == (before.percent, before.mirror_percent)
        assert last["decision"] == "passed" or self.policy.on_unsure == "advance"
        assert last["decision"] == "advanced" or all(criterion["passed"] for criterion in last["criteria"])
        assert all(criterion.get("verdict") != "fail" for criterion in last["criteria"])
        if decision.evidence:
            held_s = self.held_s.get((before.percent, before.mirror_percent), 0.0)
            assert held_s >= before.bake_s - 1e-6

    def check_trial(self, decision, records):
        """Other shares, and the end, stand on the record of a full period, or of an experiment that has spoken."""
        assert len(records) == decision.state.step + (decision.state.phase == "finishing")
        if not records:
            assert decision.percent == 100 * self.policy.share
            return
        last, least_s = records[-1], getattr(self.policy, "period_s", None) or self.policy.min_s
        assert last["decision"] in ("passed", "reallocated")
        assert last["window_s"] >= least_s - 1e-3
        assert all(criterion.get("verdict") != "fail" for criterion in last["criteria"])
        if isinstance(self.policy, BanditPolicy) and decision.action != "promote":
            assert 5 <= decision.percent <= 95
            assert abs(decision.percent - last["percent"]) <= 20.5
        if isinstance(self.policy, ExperimentPolicy) and decision.action == "promote":
            assert last["verdict"]["outcome"] == "no_difference" or self.policy.on_better == "promote"

    def check_repetition(self, seen, decision):
        """Seeing the same again asks for the same again."""
        again = advance(decision.state, self.policy, seen, self.now)
        assert again.evidence is None
        assert again.state.evidence == decision.state.evidence
        if decision.action in ("set_traffic", "roll_back", "promote"):
            assert again.action in {"set_traffic": ("set_traffic", "wait")}.get(
                decision.action, (decision.action, "failed", "done", "wait")
            )
            if again.action == "set_traffic":
                assert (again.percent, again.mirror_percent) == (decision.percent, decision.mirror_percent)
        third = advance(again.state, self.policy, seen, self.now)
        assert (third.action, third.state) == (again.action, again.state)

    @invariant()
    def what_is_kept_can_be_read(self):
        if hasattr(self, "kept"):
            state = codec.decode(RolloutState, json.loads(self.kept))
            assert codec.canonical(state) == self.kept


RolloutMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRollout = RolloutMachine.TestCase
