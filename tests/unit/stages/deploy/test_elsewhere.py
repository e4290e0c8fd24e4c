"""What places of others are told, and what they cannot do."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy import place as places
from airflow_ml_provider.stages.deploy import sagemaker, seldon, vertex
from airflow_ml_provider.stages.deploy.bandit import BanditPolicy
from airflow_ml_provider.stages.deploy.elsewhere import SageMaker, Seldon, VertexAI
from airflow_ml_provider.stages.deploy.policy import Business, ErrorRate, Latency, RolloutPolicy, ScoreShift
from airflow_ml_provider.stages.deploy.recorded import Record
from airflow_ml_provider.stages.deploy.service import Server, Service, Sticky, Version

PLACE = SageMaker("arn:aws:iam::1:role/models", "s3://models/records", "image:1")
SELDON = Seldon("http://mesh")
VERTEX = VertexAI("company", "europe-west3", "gs://models/records", "image:1")
PLACES = (PLACE, SELDON, VERTEX)


def version(name: str, **server: Any) -> Version:
    return Version(name, ModelRef("late", f"s3://models/{name}", f"sha256:{name}"), Server(**server))


V1, V2 = version("v1"), version("v2")


@pytest.mark.parametrize("place", PLACES)
def test_places_are_mappings_in_a_dag(place: Any) -> None:
    assert places.resolve(places.encode(place)) == place


@pytest.mark.parametrize(
    ("place", "checks", "unknown"),
    [
        (PLACE, (ErrorRate(), Latency()), "latency"),
        (PLACE, (ErrorRate(), ScoreShift(), Business("clicks")), "business, score"),
        (SELDON, (ErrorRate(), Latency()), "latency"),
        (VERTEX, (ErrorRate(), Latency()), "latency"),
    ],
)
def test_a_check_that_nobody_counts(place: Any, checks: Any, unknown: str) -> None:
    places.check(place, RolloutPolicy(checks=(ErrorRate(),)))
    with pytest.raises(SpecError, match=f"checks {unknown}.*, which nothing counts on {place.title}"):
        places.check(place, RolloutPolicy(checks=checks))


@pytest.mark.parametrize("place", PLACES)
def test_users_who_keep_their_version(place: Any) -> None:
    with pytest.raises(SpecError, match=f"but {place.title} splits every request by itself"):
        places.check(place, BanditPolicy("success", key="user"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"role": ""}, "role must be the ARN"),
        ({"records": "gs://a/b"}, "records must be s3://BUCKET/PREFIX"),
        ({"records": "s3://"}, "records must be s3://BUCKET/PREFIX"),
    ],
)
def test_wrong_settings(settings: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SageMaker(**{"role": "arn", "records": "s3://models", **settings})


def test_sticky_is_refused() -> None:
    with pytest.raises(SpecError, match="SageMaker splits every request"):
        sagemaker.check(PLACE, Service("late", V1, V2, sticky=Sticky("user", "salt")))


def test_names_are_of_what_they_are_made_of() -> None:
    def named(service: Service) -> str:
        return str(sagemaker.config(PLACE, service)["EndpointConfigName"])

    alone, split = named(Service("late", V1)), named(Service("late", V1, V2, percent=10))
    assert split == named(Service("late", V1, V2, percent=90)), "weights change without another one"
    other = version("v1", env={"A": "1"})
    shadows = [named(Service("late", V1, V2, mirror=mirror)) for mirror in (10, 50)]
    assert len({alone, split, named(Service("late", other)), named(Service("other", V1)), *shadows}) == 6
    long = Service("a" * 40, version("b" * 40), version("c" * 40))
    assert all(len(one["ModelName"]) <= 63 for one in sagemaker.models(PLACE, long).values())
    assert len(named(long)) <= 63


def test_configurations_of_other_services_are_kept() -> None:
    mine, other = (f"{sagemaker.prefix(name)}{'0' * 12}" for name in ("late", "late-x"))
    names = [mine, other, "late-xyz", f"a-{mine}"]
    assert sagemaker.obsolete("late", names, ()) == [mine]
    assert sagemaker.obsolete("late", names, (mine,)) == []


@pytest.mark.parametrize(
    ("status", "config", "failed", "phases"),
    [
        ("InService", "new", False, {"v1": "ready", "v2": "ready"}),
        ("SystemUpdating", "new", False, {"v1": "ready", "v2": "ready"}),
        ("Updating", "new", False, {"v1": "waits", "v2": "waits"}),
        ("InService", "old", False, {"v1": "waits", "v2": "waits"}),
        ("InService", "old", True, {"v1": "ready", "v2": "failed"}),
        ("Failed", "new", False, {"v1": "failed", "v2": "failed"}),
        ("UpdateRollbackFailed", "new", False, {"v1": "failed", "v2": "failed"}),
    ],
)
def test_statuses(status: str, config: str, failed: bool, phases: dict[str, str]) -> None:
    variants = [{"VariantName": "v1", "CurrentWeight": 0.699999988}, {"VariantName": "v2", "CurrentWeight": 0.3}]
    endpoint = {"EndpointStatus": status, "EndpointConfigName": config, "ProductionVariants": variants}
    found = sagemaker.states(Service("late", V1, V2, percent=30), "new", endpoint, failed)
    assert {name: state.phase for name, state in found.items()} == phases
    if config == "new" and set(phases.values()) == {"ready"}:
        assert [state.percent for state in found.values()] == [70, 30]


def test_an_update_that_was_taken_back_is_told_from_one_that_has_not_begun() -> None:
    early, late = (datetime(2026, 1, day, tzinfo=timezone.utc) for day in (1, 2))
    endpoint = {"EndpointStatus": "InService", "EndpointConfigName": "old", "LastModifiedTime": late}
    assert sagemaker.has_failed(endpoint, {"CreationTime": early}, "new")
    assert not sagemaker.has_failed({**endpoint, "LastModifiedTime": early}, {"CreationTime": late}, "new")
    assert not sagemaker.has_failed(endpoint, None, "new")
    assert not sagemaker.has_failed({**endpoint, "EndpointStatus": "Updating"}, {"CreationTime": early}, "new")


def test_sums_of_several_pages_and_late_requests() -> None:
    record = Record(Service("late", V1, V2), since=1767232800 + 1234)
    assert sagemaker.start(record) == datetime.fromtimestamp(1767232800, timezone.utc)
    pages = [
        {"Id": "requests0", "Values": [3.0, 4.0]},
        {"Id": "requests0", "Values": [1]},
        {"Id": "errors1", "Values": [2]},
    ]
    stats = {name: next(iter(one.values())) for name, one in sagemaker.readings(record, pages).items()}
    assert (stats["v1"].requests, stats["v2"].requests, stats["v2"].errors) == (8, 0, 0)


def test_a_histogram_of_ones_own_lets_latency_be_checked() -> None:
    own = {"base": "seldon", "latency_bucket": 'seconds_bucket{model="{workload}"}'}
    places.check(Seldon("http://mesh", metrics=own), RolloutPolicy())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Service("late", V1, V2, percent=0.005), "percent must be a multiple of 0.01"),
        (Service("late", V1, V2, mirror=0.5), "mirror must be a whole number"),
        (Service("late", V1, V2, percent=10, mirror=10), "either answer requests or mirror"),
        (Service("late", version("v1", replicas=(0, 1))), r"replicas must be at least \(1, 1\)"),
        (Service("late", version("v1", cpu=1)), "cpu of the server of 'v1' cannot be had on Seldon"),
        (Service("late", version("v1", format="mlflow", max_batch=4)), "max_batch of the server"),
        (Service("late", V1, V2, sticky=Sticky("user", "salt")), "Seldon splits every request"),
    ],
)
def test_what_seldon_cannot_do(wanted: Service, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        seldon.check(wanted)


def test_who_gets_no_requests_is_not_in_the_experiment() -> None:
    def weights(percent: float) -> list[int]:
        found = seldon.experiment(Service("late", V1, V2, percent=percent))
        return [one["weight"] for one in found["spec"]["candidates"]]

    assert [weights(percent) for percent in (0, 12.5, 100)] == [[10000], [8750, 1250], [10000]]
    long = seldon.model("a" * 40, version("b" * 40))["metadata"]["name"]
    assert len(long) <= 63


def ready(made: Any, **status: Any) -> dict[str, Any]:
    return {**made, "status": {"conditions": [{"type": "Ready", "status": "True"}], **status}}


def test_what_seldon_says_of_others_does_not_count() -> None:
    service = Service("late", V1, V2, percent=50)
    models = [ready(seldon.model("late", one)) for one in (V1, V2)]
    now = ready(seldon.experiment(service))
    assert [one.percent for one in seldon.states(service, models, now).values()] == [50, 50]
    before = ready(seldon.experiment(Service("late", V1, V2, percent=10)))
    for found in (None, before, {**now, "status": {}}):
        states = seldon.states(service, models, found)
        assert (states["v1"].phase, states["v2"].phase, states["v2"].percent) == ("waits", "ready", 0)
    late = {**ready(seldon.experiment(service), observedGeneration=1)}
    late["metadata"] = {**late["metadata"], "generation": 2}
    assert seldon.states(service, models, late)["v1"].why == "Seldon has not looked at the Experiment yet"
    assert seldon.states(service, models[1:], now)["v1"].phase == "waits"


def test_which_model_answered() -> None:
    service = Service("late", V1, V2)
    name = seldon.model("late", V2)["metadata"]["name"]
    assert seldon.answered(service, {"model_name": f"{name}_3"}) == "v2"
    assert seldon.answered(service, {"model_name": "other_1"}) == seldon.answered(service, {}) == ""


def test_a_shadow_where_nobody_mirrors() -> None:
    shadow = RolloutPolicy(strategy="shadow", checks=(ErrorRate(),))
    places.check(PLACE, shadow)
    places.check(SELDON, shadow)
    with pytest.raises(SpecError, match="strategy is 'shadow', but Vertex AI cannot mirror requests"):
        places.check(VERTEX, shadow)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"project": ""}, "project must be the name"),
        ({"location": "a/b"}, "location must be the name"),
        ({"records": "s3://a"}, "records must be gs://BUCKET/PREFIX"),
    ],
)
def test_wrong_settings_of_vertex(settings: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        VertexAI(**{"project": "a", "location": "b", "records": "gs://models", **settings})


def test_identities_of_vertex() -> None:
    service = Service("late", V1, V2, percent=30)
    ids = vertex.identities(VERTEX, service)
    assert all(len(one) == 10 and one.isdigit() for one in ids.values())
    assert vertex.split(VERTEX, service) == {ids["v1"]: 70, ids["v2"]: 30}
    assert vertex.identities(VERTEX, Service("late", version("v1", env={"A": "1"}))) != ids["v1"]
    long = Service("a" * 40, version("b" * 40))
    assert len(vertex.model_id(VERTEX, long.name, long.stable)) <= 63


def test_vertex_is_what_its_split_says() -> None:
    service = Service("late", V1, V2, percent=30)
    one, two = vertex.identities(VERTEX, service).values()
    good = vertex.states(VERTEX, service, (one, two), {one: 70, two: 30}, {})
    assert [(state.phase, state.percent) for state in good.values()] == [("ready", 70), ("ready", 30)]
    before = vertex.states(VERTEX, service, (one, two), {one: 100}, {})
    assert [(state.phase, state.percent) for state in before.values()] == [("waits", 100), ("ready", 0)]
    assert {state.phase for state in vertex.states(VERTEX, service, (), None, {}).values()} == {"waits"}
