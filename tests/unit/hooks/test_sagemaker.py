"""SageMaker through Airflow's hooks, against moto with what that lacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("airflow.providers.amazon", reason="needs the Amazon provider")
pytest.importorskip("moto", reason="needs moto")

from airflow.sdk.exceptions import AirflowFailException

from airflow_ml_provider.exceptions import Conflict, DataError, SpecError, Unavailable
from airflow_ml_provider.hooks._serving import serving
from airflow_ml_provider.hooks.sagemaker import SageMakerServing
from airflow_ml_provider.operators.deploy import RolloutOperator
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.elsewhere import SageMaker
from airflow_ml_provider.stages.deploy.service import Server, Service, Version
from airflow_ml_provider.testing.context import context
from airflow_ml_provider.testing.sagemaker import REGION, AmazonAccount, amazon
from airflow_ml_provider.testing.serving import ServingContract

PLACE = SageMaker("arn:aws:iam::123456789012:role/models", "s3://models/records", "123.dkr.ecr/triton:1", region=REGION)
ROWS = {"hour": [6.0, 18.0]}


def version(name: str, **server: Any) -> Version:
    return Version(
        name, ModelRef("late", f"s3://models/late/{name}", f"sha256:{name}", version=name[1:]), Server(**server)
    )


V1, V2 = version("v1"), version("v2")


@pytest.fixture(scope="module")
def opened() -> Iterator[tuple[AmazonAccount, SageMakerServing]]:
    """One of each for all tests, since botocore takes its time to make clients."""
    with pytest.MonkeyPatch.context() as patch, amazon() as account:
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", "login": "a", "password": "b"}))
        yield account, SageMakerServing(PLACE)


@pytest.fixture
def account(opened: tuple[AmazonAccount, SageMakerServing]) -> AmazonAccount:
    opened[0].clear()
    return opened[0]


@pytest.fixture
def place(account: AmazonAccount, opened: tuple[AmazonAccount, SageMakerServing]) -> SageMakerServing:
    opened[1].patience_s, opened[1].poll_s = 0, 0.01
    opened[1]._tidied.clear()
    return opened[1]


class TestContract(ServingContract):
    ready_s = 5

    @pytest.fixture
    def place(self, place: SageMakerServing, account: AmazonAccount) -> Any:
        account.slow = 1
        return place

    @pytest.fixture
    def version(self) -> Callable[[str], Version]:
        return version

    @pytest.fixture
    def rows(self) -> Any:
        return ROWS


def test_the_place_is_opened_by_its_value(account: AmazonAccount) -> None:
    assert isinstance(serving(PLACE), SageMakerServing)


def put(place: SageMakerServing, wanted: Service) -> Any:
    seen = place.look(wanted.name)
    place.put(wanted, seen.revision if seen else None)
    return ServingContract().ready(place, wanted.name)


def test_traffic_moves_by_weights_alone(place: SageMakerServing, account: AmazonAccount) -> None:
    put(place, Service("late", V1))
    put(place, Service("late", V1, V2))
    config = account.endpoints["late"].endpoint_config_name
    for percent in (1, 33.5, 100, 0):
        assert put(place, Service("late", V1, V2, percent=percent)).states["v2"].percent == percent
        assert account.endpoints["late"].endpoint_config_name == config
    assert place.predict("late", ROWS) == ({"score": [0.5, 0.5]}, "v1")
    assert place.predict("late", ROWS, "v2")[1] == "v2"


def test_a_shadow_gets_copies_and_answers_nobody(place: SageMakerServing, account: AmazonAccount) -> None:
    put(place, Service("late", V1))
    seen = put(place, Service("late", V1, V2, mirror=40))
    assert (seen.states["v1"].percent, seen.states["v2"].mirror, seen.states["v2"].percent) == (100, 40, 0)
    assert {place.predict("late", ROWS)[1] for _ in range(5)} == {"v1"}
    with pytest.raises(SpecError, match="a shadow"):
        place.predict("late", ROWS, "v2")
    account.serve("late", 100, {"v2": 3})
    found = place.readings("late")
    assert [one.requests for one in found["v1"].values()] == [100]
    assert [(one.requests, one.errors) for one in found["v2"].values()] == [(40, 3)]


def test_requests_are_counted_from_when_the_versions_came_together(
    place: SageMakerServing, account: AmazonAccount
) -> None:
    assert place.readings("late") == {}
    put(place, Service("late", V1, V2, percent=25))
    assert {len(one) for one in place.readings("late").values()} == {1}
    for _ in range(2):
        account.serve("late", 200, {"v2": 5})
    found = {name: next(iter(one.values())) for name, one in place.readings("late").items()}
    assert {name: (one.requests, one.errors) for name, one in found.items()} == {"v1": (300, 0), "v2": (100, 10)}


def test_who_looks_goes_on_with_what_could_not_be_done_at_once(place: SageMakerServing, account: AmazonAccount) -> None:
    account.slow = 8
    place.put(Service("late", V1))
    place.put(Service("late", V2), place.look("late").revision)  # type: ignore[union-attr]
    assert account.endpoints["late"].endpoint_status == "Creating"
    assert place.look("late").states["v2"].phase == "waits"  # type: ignore[union-attr]
    assert ServingContract().ready(place, "late").states["v2"].percent == 100


def test_who_puts_waits_a_little(place: SageMakerServing, account: AmazonAccount) -> None:
    put(place, Service("late", V1))
    account.slow = 2
    place.patience_s = 5
    revision = place.put(Service("late", V1, V2), place.look("late").revision)  # type: ignore[union-attr]
    place.put(Service("late", V2), revision)
    assert {one["VariantName"] for one in account.endpoints["late"].production_variants} == {"v1", "v2"}


def test_a_version_that_does_not_start(place: SageMakerServing, account: AmazonAccount) -> None:
    account.broken = {"v2"}
    put(place, Service("late", V1))
    place.put(Service("late", V1, V2), place.look("late").revision)  # type: ignore[union-attr]
    place.look("late")
    seen = place.look("late")
    assert seen is not None
    assert (seen.states["v2"].phase, seen.states["v1"].phase) == ("failed", "ready")
    assert "ping health check" in seen.states["v2"].why
    assert put(place, Service("late", V1)).states["v1"].percent == 100
    account.broken.clear()
    assert put(place, Service("late", V1, V2)).states["v2"].phase == "ready", "it may be tried again"


def test_a_first_version_that_does_not_start(place: SageMakerServing, account: AmazonAccount) -> None:
    account.broken = {"v1"}
    place.put(Service("late", V1))
    seen = place.look("late")
    assert seen is not None
    assert seen.states["v1"].phase == "failed"
    place.put(Service("late", V1), seen.revision)
    account.broken.clear()
    assert ServingContract().ready(place, "late").states["v1"].phase == "ready", "it may be tried again"


def test_another_version_instead_of_one_that_never_started(place: SageMakerServing, account: AmazonAccount) -> None:
    account.broken = {"v1"}
    place.put(Service("late", V1))
    place.look("late")
    assert put(place, Service("late", V2)).states["v2"].phase == "ready"


def test_somebody_else_was_quicker(
    place: SageMakerServing, account: AmazonAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = put(place, Service("late", V1))
    stale = place._endpoint("late")
    account.slow = 9
    place.put(Service("late", V1, V2), seen.revision)
    monkeypatch.setattr(place, "_endpoint", lambda _: stale)
    with pytest.raises(Unavailable, match="in-progress"):
        place.bring(Service("late", V2))


def test_nothing_is_left(place: SageMakerServing, account: AmazonAccount) -> None:
    put(place, Service("late", V1))
    put(place, Service("late", V1, V2, percent=50))
    put(place, Service("late", V2))
    place.look("late")
    assert len(account.names) == 3, "the endpoint, its configuration and its model"
    place.remove("late")
    assert account.names == []
    assert place.records.read("late") is None


def test_what_is_not_ours_stays(place: SageMakerServing, account: AmazonAccount) -> None:
    put(place, Service("late", V1))
    place.records.delete("late")
    put(place, Service("late", V2))  # of a writer that ended half-way
    place.remove("late")
    put(place, Service("late", V1))
    place.records.delete("late")
    account.endpoints["late"].tags.clear()
    for change in (lambda: place.put(Service("late", V2)), lambda: place.remove("late")):
        with pytest.raises(SpecError, match="not Airflow's"):
            change()
    assert "late" in account.endpoints


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Service("late", V1, V2, percent=10, mirror=10), "either answer requests or mirror"),
        (Service("late", version("v1", gpus=1)), "gpus of the server of 'v1' cannot be had on SageMaker"),
        (Service("late", version("v1", replicas=(1, 2))), r"replicas must be \(n, n\)"),
        (Service("late", version("v1", storage="gs://b/m")), "storage must be in S3"),
        (Service("late", version("v1", template={"instance": 1})), "template must be laid over model and variant"),
        (Service("late", version("v1", timeout_s=61)), "timeout_s must be at most 60"),
    ],
)
def test_what_it_cannot_do_is_refused(place: SageMakerServing, wanted: Service, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        place.put(wanted)
    assert place.look("late") is None


def test_an_image_is_needed(account: AmazonAccount) -> None:
    with pytest.raises(SpecError, match="image must be the name"):
        SageMakerServing(replace(PLACE, image="")).put(Service("late", V1))


def test_what_is_asked_of_aws(place: SageMakerServing, account: AmazonAccount) -> None:
    server = {
        "template": {"variant": {"InstanceType": "ml.p2.xlarge"}},
        "storage": "s3://models/a.tar.gz",
        "env": {"A": "1"},
    }
    put(place, Service("late", version("v1", replicas=(2, 2), **server)))
    config = account.endpoints["late"].endpoint_config_name
    client = place._hook.get_conn()
    variant = client.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"][0]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.p2.xlarge", 2)
    model = client.describe_model(ModelName=variant["ModelName"])
    assert model["ExecutionRoleArn"] == PLACE.role
    container = model["PrimaryContainer"]
    assert container["ModelDataUrl"] == "s3://models/a.tar.gz"
    assert container["Environment"] == {"AIRFLOW_ML_VERSION": "v1", "A": "1"}


def test_rows_that_the_model_does_not_take(place: SageMakerServing) -> None:
    with pytest.raises(SpecError, match="no service 'late'"):
        place.predict("late", ROWS)
    put(place, Service("late", V1))
    with pytest.raises(DataError, match="unexpected input"):
        place.predict("late", {"bad": [1.0]})
    with pytest.raises(SpecError, match="no version 'v9'"):
        place.predict("late", ROWS, "v9")


def test_records_are_compared_and_swapped(place: SageMakerServing) -> None:
    records = place.records
    first = records.write("late", "1", None)
    with pytest.raises(Conflict):
        records.write("late", "2", None)
    second = records.write("late", "2", first)
    with pytest.raises(Conflict):
        records.write("late", "3", first)
    assert records.read("late") == ("2", second)
    records.delete("late")
    with pytest.raises(Conflict):
        records.write("late", "3", second)


def test_a_bucket_that_is_not_there(account: AmazonAccount) -> None:
    with pytest.raises(SpecError, match=r"S3 of connection 'aws_default' does not take this: .*NoSuchBucket"):
        SageMakerServing(replace(PLACE, records="s3://none/records"), patience_s=0).put(Service("late", V1))


def test_aws_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    with pytest.raises(Unavailable, match="S3 of connection 'aws_default' does not answer"):
        SageMakerServing(PLACE).look("late")


@pytest.mark.parametrize("strategy", ["canary", "shadow"])
@pytest.mark.parametrize("errors", [0, 400])
def test_a_rollout(place: SageMakerServing, account: AmazonAccount, rolled: Any, strategy: str, errors: int) -> None:
    models = [V1.model, V2.model]
    stable = "v2" if strategy == "canary" and not errors else "v1"
    assert rolled(PLACE, place, account.serve, models, strategy, errors) == stable
    assert set(put(place, place.look("late").wanted).states) == {stable}  # type: ignore[union-attr]


def test_the_default_checks_are_refused_before_anything_is_touched(place: SageMakerServing) -> None:
    put(place, Service("late", version("v1")))
    rollout = RolloutOperator(
        task_id="rollout", model=V2.model, evidence="/tmp", service="late", place=PLACE, gate="waived"
    )
    rollout.__dict__["serving"] = place
    with pytest.raises(AirflowFailException, match="checks latency, which nothing counts on SageMaker"):
        rollout.execute(context())
    assert place.look("late").wanted.candidate is None  # type: ignore[union-attr]
