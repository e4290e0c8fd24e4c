"""Services on a real API server with KServe's real definition; its controller is the stand-in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from airflow_ml_provider.exceptions import Conflict, DataError, SpecError, Unavailable
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.kserve.abilities import Abilities
from airflow_ml_provider.stages.deploy.kserve.compare import same
from airflow_ml_provider.stages.deploy.kserve.manifest import manifest, record
from airflow_ml_provider.stages.deploy.server import Component, Placement, RequestLog, Scaling
from airflow_ml_provider.stages.deploy.service import FORMATS, Observed, Server, Service, Version

KIND = "inferenceservices.serving.kserve.io"
ROWS = {"hour": [6.0, 18.0], "carrier": ["UA", "DL"]}
Make = Callable[..., Any]


def version(name: str, **server: Any) -> Version:
    return Version(name, ModelRef("late", f"s3://models/late/{name}", f"sha256:{name}"), Server(**server))


V1, V2 = version("v1"), version("v2")
FULL = {
    "cpu": 0.3, "memory_gib": 1.5, "gpus": 1, "gpu_resource": "nvidia.com/mig-1g.10gb", "replicas": (2, 5),
    "timeout_s": 12.5, "env": {"A": "1"}, "service_account": "reader", "request_log": RequestLog("http://logs.ml"),
    "transformer": Component("words:2", args=("--lower",), env={"A": "1"}, cpu=0.5, memory_gib=1),
    "placement": Placement({"pool": "gpu"}, ({"key": "gpu", "operator": "Exists"},), {"nodeAffinity": {}}),
    "template": {"priorityClassName": "high"},
}  # fmt: skip
QUERY = {"query": "sum(waiting)", "address": "http://prometheus.monitoring:9090"}
SCALINGS = {
    "standard": [
        Scaling(metric="cpu", target=60), Scaling(by="hpa", metric="memory", target=70), Scaling(by="none"),
        Scaling(by="external"), Scaling(by="keda", metric="cpu", target=60),
        Scaling(by="keda", metric="query", target=5, **QUERY),
    ],
    "serverless": [Scaling(metric="rps", target=100), Scaling(metric="concurrency", target=4)],
}  # fmt: skip


def service(stable: Version = V1, candidate: Version | None = None, percent: float = 0, **other: Any) -> Service:
    return Service("late", stable, candidate, percent, **other)


@pytest.fixture
def until(wait: Callable[..., Any]) -> Callable[..., Observed]:
    """Return the function that waits until a service is as it shall be, and fails with what it is instead."""

    def until(hook: Any, phases: dict[str, str] | None = None, **percents: float) -> Observed:
        def fits() -> Observed | None:
            state = hook.look("late")
            seen.append(state)
            fit = (
                state is not None
                and all(state.states[name].phase == phase for name, phase in (phases or {}).items())
                and all(state.states[name].percent == percent for name, percent in percents.items())
            )
            return state if fit else None

        seen: list[Any] = []
        try:
            found: Observed = wait(fits, 90)
        except TimeoutError:
            raise AssertionError(f"it never was {phases} {percents}, but {seen[-1]}") from None
        return found

    return until


def uids(cluster: Any, name: str) -> set[str]:
    """Return the pods of a version."""
    return {
        one["metadata"]["uid"]
        for one in cluster.get("pods")
        if one["metadata"].get("annotations", {}).get("airflow-ml/version") == name
    }


def answers(hook: Any, times: int = 100) -> Counter[str]:
    return Counter(hook.predict("late", ROWS)[1] for _ in range(times))


class TestAccepted:
    """Everything that is rendered is taken by the server, and nothing is dropped from it."""

    @pytest.mark.parametrize("where", [Abilities(), Abilities(shape="serverless")], ids=lambda one: one.shape)
    @pytest.mark.parametrize("format", FORMATS)
    def test_formats(self, cluster: Any, definitions: None, where: Abilities, format: str) -> None:
        image = {"image": "late:1"} if format == "custom" else {}
        self.check(cluster, manifest(service(version("v1", format=format, **image, **FULL)), where))

    @pytest.mark.parametrize("where", [Abilities(), Abilities(shape="serverless")], ids=lambda one: one.shape)
    def test_scaling(self, cluster: Any, definitions: None, where: Abilities) -> None:
        for scaling in SCALINGS[where.shape]:
            self.check(cluster, manifest(service(version("v1", **FULL, scaling=scaling)), where))

    @pytest.mark.parametrize("where", [Abilities(), Abilities(shape="serverless")], ids=lambda one: one.shape)
    def test_explainer(self, cluster: Any, definitions: None, where: Abilities) -> None:
        explained = version("v1", **FULL, explainer=Component("shap:1", cpu=1, memory_gib=2))
        self.check(cluster, manifest(service(explained), where))

    def test_candidate(self, cluster: Any, definitions: None) -> None:
        self.check(cluster, manifest(service(version("v1", **FULL), version("v2", **FULL), 20), Abilities()))

    def test_candidate_of_ones_own(self, cluster: Any, definitions: None) -> None:
        own = {"format": "custom", "image": "late:1", **FULL}
        self.check(cluster, manifest(service(version("v1", **own), version("v2", **own), 20), Abilities()))

    def test_record(self, cluster: Any) -> None:
        made = record(service(version("v1", **FULL), V2, 20, rollout={"step": 1}))
        found = json.loads(
            cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(made))
        )
        assert found["data"] == made["data"]

    @staticmethod
    def check(cluster: Any, made: dict[str, Any]) -> None:
        found = json.loads(
            cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(made))
        )
        assert same(made, found)
        broken = json.loads(json.dumps(found))
        del broken["spec"]["predictor"]["nodeSelector"]
        assert not same(made, broken)


class TestPut:
    def test_the_same_again_changes_nothing(self, hook: Make, cluster: Any) -> None:
        asked = service(version("v1", cpu=0.25, memory_gib=2, template={"nodeSelector": {"a": "b"}}), rollout={"a": 1})
        revision = hook().put(asked)
        before = cluster.get(KIND)
        assert hook().put(asked, revision) == revision
        assert cluster.get(KIND) == before
        assert hook().look("late").wanted == asked
        assert hook().look("late").revision == revision

    def test_somebody_else_changed_it(self, hook: Make) -> None:
        one, two = hook(), hook()
        first = one.put(service())
        second = two.put(service(V1, V2), first)
        with pytest.raises(Conflict, match="service 'late' was changed by somebody else"):
            one.put(service(V1, V2, 10), first)
        with pytest.raises(Conflict, match="is there already"):
            one.put(service())
        assert one.look("late").wanted == service(V1, V2)
        two.remove("late")
        with pytest.raises(Conflict, match="is not there any more"):
            one.put(service(V1), second)

    def test_a_slow_writer_does_not_undo_a_later_one(self, hook: Make, cluster: Any) -> None:
        """It is between its record and its InferenceService when the other one writes both."""
        slow = hook()
        revision = slow.put(service())
        found = slow._found("late")
        kept = slow._keep(service(V1, V2, 10), slow._record("late"))
        hook().put(service(V1, V2, 20), kept["metadata"]["resourceVersion"])
        with pytest.raises(Conflict):
            slow._write(service(V1, V2, 10), found, kept)
        assert cluster.get(KIND)[0]["spec"]["canary"][0]["trafficPercent"] == 20
        assert revision != slow.look("late").revision

    def test_half_written(self, hook: Make, cluster: Any) -> None:
        """A writer died between its record and its InferenceService; whoever puts the service again completes it."""
        dead = hook()
        kept = dead._keep(service(), None)
        state = hook().look("late")
        assert state.states["v1"].phase == "waits"
        assert "put the service again" in state.states["v1"].why
        hook().put(service(), kept["metadata"]["resourceVersion"])
        assert len(cluster.get(KIND)) == 1

    def test_changed_by_hand(self, hook: Make, cluster: Any) -> None:
        revision = hook().put(service(V1, V2, 20))
        change = {"spec": {"canary": []}}
        cluster.kubectl("patch", KIND, "late", "--type=merge", "-p", json.dumps(change))
        assert "put the service again" in hook().look("late").states["v2"].why
        assert hook().put(service(V1, V2, 20), revision) == revision
        assert cluster.get(KIND)[0]["spec"]["canary"][0]["trafficPercent"] == 20

    def test_not_ours(self, hook: Make, cluster: Any) -> None:
        foreign = manifest(service(), Abilities())
        del foreign["metadata"]["labels"]
        cluster.kubectl("create", "-f", "-", stdin=json.dumps(foreign))
        assert hook().look("late") is None
        with pytest.raises(SpecError, match="InferenceService 'late' is not Airflow's; choose another name"):
            hook().put(service())
        with pytest.raises(SpecError, match="is not Airflow's, so it is not removed"):
            hook().remove("late")
        assert len(cluster.get(KIND)) == 1

    def test_deleted_by_others(self, hook: Make, cluster: Any, wait: Callable[..., Any]) -> None:
        hook().put(service())
        cluster.kubectl("delete", KIND, "late")
        assert hook().look("late") is None
        hook().put(service(V2))
        wait(lambda: [one["metadata"]["name"] for one in cluster.get("configmaps")].count("late-airflow-ml") == 1, 60)
        assert hook().look("late").wanted == service(V2)

    def test_remove(self, hook: Make, cluster: Any) -> None:
        hook().remove("late")
        hook().put(service())
        hook().remove("late")
        assert hook().look("late") is None
        assert cluster.get(KIND) == []

    def test_refused_before_anything_is_written(self, hook: Make, cluster: Any) -> None:
        with pytest.raises(SpecError, match="KServe cannot mirror"):
            hook().put(service(V1, V2, mirror=5))
        assert hook().look("late") is None

    def test_abilities(self, hook: Make) -> None:
        assert hook().abilities == Abilities()
        assert hook(mode="serverless").abilities == Abilities(shape="serverless")
        assert hook(mode="standard", system="nowhere").abilities == Abilities()
        with pytest.raises(SpecError, match="cannot read ConfigMap 'inferenceservice-config' in namespace 'nowhere'"):
            hook(system="nowhere").put(service())

    def test_no_answer(self, hook: Make, away: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", away)
        with pytest.raises(Unavailable, match="does not answer"):
            hook(timeout_s=1).look("late")


class TestStandard:
    def test_rollout(self, hook: Make, kserve: Make, cluster: Any, until: Callable[..., Observed]) -> None:
        one = hook(address=kserve().address)
        revision = one.put(service())
        until(one, {"v1": "ready"}, v1=100)
        assert one.predict("late", ROWS) == ({"score": [0.5, 0.5]}, "v1")

        revision = one.put(service(V1, V2, 0, rollout={"step": 0}), revision)  # warm, and without requests
        state = until(one, {"v1": "ready", "v2": "ready"}, v1=100, v2=0)
        assert state.wanted.rollout == {"step": 0}
        assert answers(one, 20) == {"v1": 20}
        assert one.predict("late", ROWS, "v2")[1] == "v2"
        pods = {name: uids(cluster, name) for name in ("v1", "v2")}

        revision = one.put(service(V1, V2, 20, rollout={"step": 1}), revision)
        until(one, {"v1": "ready", "v2": "ready"}, v1=80, v2=20)
        assert answers(one) == {"v1": 80, "v2": 20}

        revision = one.put(service(V1, V2, 100), revision)
        until(one, v1=0, v2=100)
        one.put(service(V2), revision)
        until(one, {"v2": "ready"}, v2=100)
        assert answers(one, 20) == {"v2": 20}
        assert uids(cluster, "v2") == pods["v2"]  # nothing of this has started a pod again

    def test_rolled_back(self, hook: Make, kserve: Make, cluster: Any, until: Callable[..., Observed]) -> None:
        one = hook(address=kserve().address)
        revision = one.put(service())
        until(one, {"v1": "ready"})
        pods = uids(cluster, "v1")
        revision = one.put(service(V1, V2, 50), revision)
        until(one, {"v2": "ready"}, v2=50)
        one.put(service(V1), revision)
        until(one, {"v1": "ready"}, v1=100)
        assert answers(one, 20) == {"v1": 20}
        assert uids(cluster, "v1") == pods

    def test_replaced_in_its_place(
        self, hook: Make, kserve: Make, cluster: Any, until: Callable[..., Observed]
    ) -> None:
        """The old pods answer until the new ones do."""
        one = hook(address=kserve().address)
        revision = one.put(service())
        until(one, {"v1": "ready"})
        one.put(service(V2), revision)
        assert one.look("late").states["v2"].phase == "waits"  # although KServe's `Ready` is still True
        seen = []

        def done() -> bool:
            seen.append(one.predict("late", ROWS)[1])
            return bool(one.look("late").states["v2"].phase == "ready")

        until_ready = 0
        while not done():
            until_ready += 1
            assert until_ready < 300, one.look("late")
        assert set(seen) <= {"v1", "v2"}
        assert one.predict("late", ROWS)[1] == "v2"

    @pytest.mark.parametrize(
        ("fault", "phase", "why"),
        [
            ("image", "failed", "ImagePullBackOff"),
            ("crash", "failed", "CrashLoopBackOff"),
            ("unready", "waits", "0 of 1 pods are ready"),
        ],
    )
    def test_candidate_fails(
        self, hook: Make, kserve: Make, until: Callable[..., Observed], wait: Any, fault: str, phase: str, why: str
    ) -> None:
        one = hook(address=kserve(faults={"v2": fault}).address)
        revision = one.put(service())
        until(one, {"v1": "ready"})
        one.put(service(V1, V2, 50), revision)
        wait(lambda: one.look("late").states["v2"].phase == phase and why in one.look("late").states["v2"].why, 90)
        state = one.look("late").states
        assert (state["v1"].phase, state["v1"].percent, state["v2"].percent) == ("ready", 100, 0)
        assert answers(one, 20) == {"v1": 20}

    def test_stable_version_fails(self, hook: Make, kserve: Make, until: Callable[..., Observed]) -> None:
        kserve(faults={"v1": "crash"})
        hook().put(service())
        assert "exit code 1" in until(hook(), {"v1": "failed"}).states["v1"].why

    def test_nobody_looks_after_it(self, hook: Make, kserve: Make) -> None:
        kserve(stuck=True)
        hook().put(service())
        state = hook().look("late").states["v1"]
        assert (state.phase, state.why) == ("waits", "KServe has made no Deployment 'late-v1-predictor' yet")

    def test_no_place(self, hook: Make, kserve: Make, wait: Callable[..., Any]) -> None:
        kserve(faults={"v1": "unplaced"})
        hook().put(service())
        wait(lambda: "Unschedulable" in hook().look("late").states["v1"].why, 60)
        assert hook().look("late").states["v1"].phase == "waits"


class TestServerless:
    def test_rollout(self, hook: Make, kserve: Make, cluster: Any, until: Callable[..., Observed]) -> None:
        one = hook(mode="serverless", address=kserve().address)
        revision = one.put(service())
        with pytest.raises(Unavailable, match="does not answer all requests yet"):
            one.put(service(V1, V2, 20), revision)
        until(one, {"v1": "ready"}, v1=100)
        revision = one.put(service(V1, V2, 0), revision)
        until(one, {"v1": "ready", "v2": "ready"}, v1=100, v2=0)
        assert answers(one, 20) == {"v1": 20}
        assert one.predict("late", ROWS, "v2")[1] == "v2"
        revision = one.put(service(V1, V2, 20), revision)
        until(one, v1=80, v2=20)
        assert answers(one) == {"v1": 80, "v2": 20}
        pods = uids(cluster, "v2")
        one.put(service(V2), revision)
        until(one, {"v2": "ready"}, v2=100)
        assert answers(one, 20) == {"v2": 20}
        assert uids(cluster, "v2") == pods

    def test_rolled_back(
        self, hook: Make, kserve: Make, cluster: Any, until: Callable[..., Observed], wait: Callable[..., Any]
    ) -> None:
        """Nothing is sent to the candidate any more, although it is the last revision that is ready."""
        one = hook(mode="serverless", address=kserve().address)
        revision = one.put(service())
        until(one, {"v1": "ready"}, v1=100)
        revision = one.put(service(V1, V2, 50), revision)
        until(one, v1=50, v2=50)
        revision = one.put(service(V1, V2, 0), revision)
        until(one, v1=100, v2=0)
        revision = one.put(service(V1), revision)
        for _ in range(20):
            assert answers(one, 5) == {"v1": 5}
        until(one, {"v1": "ready"}, v1=100)
        field = "canaryTrafficPercent"
        assert cluster.get(KIND)[0]["spec"]["predictor"][field] == 0

        def done() -> bool:  # the next put, once the new revision is ready
            one.put(service(V1), revision)
            return field not in cluster.get(KIND)[0]["spec"]["predictor"]

        until(one, {"v1": "ready"})
        wait(done, 60)
        assert answers(one, 20) == {"v1": 20}

    def test_rolled_back_from_all(self, hook: Make, kserve: Make, until: Callable[..., Observed]) -> None:
        one = hook(mode="serverless", address=kserve().address)
        revision = one.put(service())
        until(one, {"v1": "ready"}, v1=100)
        revision = one.put(service(V1, V2, 100), revision)
        until(one, v2=100)
        revision = one.put(service(V1, V2, 0), revision)
        until(one, v1=100, v2=0)
        one.put(service(V1), revision)
        until(one, {"v1": "ready"}, v1=100)

    @pytest.mark.parametrize(("fault", "phase"), [("image", "failed"), ("crash", "failed"), ("unready", "waits")])
    def test_candidate_fails(
        self, hook: Make, kserve: Make, until: Callable[..., Observed], fault: str, phase: str
    ) -> None:
        one = hook(mode="serverless", address=kserve(faults={"v2": fault}).address)
        revision = one.put(service())
        until(one, {"v1": "ready"}, v1=100)
        one.put(service(V1, V2, 50), revision)
        state = until(one, {"v1": "ready", "v2": phase}, v1=100)
        assert state.states["v2"].why
        assert answers(one, 20) == {"v1": 20}


def test_nothing_counts_requests(hook: Make) -> None:
    with pytest.raises(SpecError, match="nothing counts the requests of service 'late'"):
        hook().readings("late")


@pytest.mark.parametrize("mode", ["standard", "serverless"])
def test_each_version_has_its_own_transformer(
    hook: Make, kserve: Make, until: Callable[..., Observed], mode: str
) -> None:
    """Whichever version answers, its own transformer did it with it, in both shapes of a canary."""
    one = hook(mode=mode, address=kserve().address)
    first, second = (version(f"v{at}", transformer=Component(f"words:{at}")) for at in (1, 2))
    revision = one.put(service(first))
    until(one, {"v1": "ready"}, v1=100)
    one.put(service(first, second, 50), revision)
    until(one, {"v1": "ready", "v2": "ready"}, v1=50, v2=50)
    seen = set()
    for _ in range(10):
        outputs, by = one.predict("late", ROWS)
        assert set(outputs["transformed_by"]) == {f"words:{by[1]}"}
        seen.add(by)
    assert seen == {"v1", "v2"}
    with pytest.raises(DataError, match="does not take these rows: 400"):
        one.predict("late", {"bad": [1]})


class TestPredict:
    def test_errors(self, hook: Make, kserve: Make, until: Callable[..., Observed]) -> None:
        one = hook(address=kserve(faults={"v2": "unready"}).address)
        with pytest.raises(SpecError, match="no service 'late'"):
            one.predict("late", ROWS)
        revision = one.put(service())
        until(one, {"v1": "ready"})
        with pytest.raises(DataError, match=r"service 'late' does not take these rows: 400 .*unexpected input 'bad'"):
            one.predict("late", {"bad": [1]})
        with pytest.raises(DataError, match="does not take these rows: 400"):
            one.predict("late", {"bad": [1]}, "v1")
        with pytest.raises(SpecError, match="there is no version 'v9' of service 'late'"):
            one.predict("late", ROWS, "v9")
        with pytest.raises(Unavailable, match="does not answer"):
            hook(address="http://127.0.0.1:9").predict("late", ROWS)
        one.put(service(V1, V2), revision)
        until(one, {"v2": "waits"})
        with pytest.raises(Unavailable):
            one.predict("late", ROWS, "v2")

    def test_no_address_yet(self, hook: Make) -> None:
        hook().put(service())
        with pytest.raises(Unavailable, match="service 'late' has no address yet"):
            hook().predict("late", ROWS)


@pytest.mark.parametrize("mode", ["standard", "serverless"])
def test_rights(
    hook: Make, kserve: Make, limited: str, until: Callable[..., Observed], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The Roles of the documentation suffice for everything."""
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", limited)
    one = hook(mode="" if mode == "standard" else mode, address=kserve().address)
    revision = one.put(service())
    until(one, {"v1": "ready"}, v1=100)
    revision = one.put(service(V1, V2, 50), revision)
    until(one, {"v2": "ready"}, v2=50)
    assert one.predict("late", ROWS, "v2")[1] == "v2"
    one.put(service(V2), revision)
    until(one, {"v2": "ready"}, v2=100)
    one.remove("late")
    assert one.look("late") is None
