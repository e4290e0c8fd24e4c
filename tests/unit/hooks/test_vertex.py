"""Vertex AI through the clients of Airflow's hooks, against a project in memory that speaks Google's own messages."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("airflow.providers.google", reason="needs the Google provider")
pytest.importorskip("google.cloud.aiplatform_v1", reason="needs google-cloud-aiplatform")

from airflow_ml_provider.exceptions import Conflict, DataError, SpecError, Unavailable
from airflow_ml_provider.hooks._serving import serving
from airflow_ml_provider.hooks.vertex import VertexServing
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.elsewhere import VertexAI
from airflow_ml_provider.stages.deploy.service import Server, Service, Version
from airflow_ml_provider.testing.serving import ServingContract
from airflow_ml_provider.testing.vertex import GoogleProject, vertex

PLACE = VertexAI("company", "europe-west3", "gs://models/records", "triton:1", accelerator="NVIDIA_L4")
ROWS = {"hour": [6.0, 18.0]}


def version(name: str, **server: Any) -> Version:
    return Version(
        name, ModelRef("late", f"gs://models/late/{name}", f"sha256:{name}", version=name[1:]), Server(**server)
    )


V1, V2 = version("v1"), version("v2")


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleProject]:
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps({"conn_type": "google_cloud_platform"}))
    with vertex() as found:
        yield found


@pytest.fixture
def place(project: GoogleProject) -> Any:
    found = serving(PLACE)
    assert isinstance(found, VertexServing)
    return found


def put(place: Any, wanted: Service) -> Any:
    seen = place.look(wanted.name)
    place.put(wanted, seen.revision if seen else None)
    return ServingContract().ready(place, wanted.name)


class TestContract(ServingContract):
    ready_s = 5

    @pytest.fixture
    def place(self, place: Any, project: GoogleProject) -> Any:
        project.slow = 1
        return place

    @pytest.fixture
    def version(self) -> Callable[[str], Version]:
        return version

    @pytest.fixture
    def rows(self) -> Any:
        return ROWS


def test_traffic_is_split_in_whole_percents(place: Any, project: GoogleProject) -> None:
    put(place, Service("late", V1))
    for percent in (0, 1, 99, 100, 0):
        assert put(place, Service("late", V1, V2, percent=percent)).states["v2"].percent == percent
    with pytest.raises(SpecError, match="lets nobody ask version 'v2'"):
        place.predict("late", ROWS, "v2")
    assert place.predict("late", ROWS, "v1") == ({"score": [0.5, 0.5]}, "v1")
    with pytest.raises(DataError, match="unexpected input"):
        place.predict("late", {"bad": [1.0]})


def test_what_was_counted(place: Any, project: GoogleProject) -> None:
    assert place.readings("late") == {}
    put(place, Service("late", V1, V2, percent=25))
    for _ in range(2):
        project.serve("late", 200, {"v2": 5})
    found = {name: next(iter(one.values())) for name, one in place.readings("late").items()}
    assert {name: (one.requests, one.errors) for name, one in found.items()} == {"v1": (300, 0), "v2": (100, 10)}


def test_nothing_is_begun_twice(place: Any, project: GoogleProject) -> None:
    project.slow = 3
    place.put(Service("late", V1))
    for _ in range(4):
        place.look("late")
    assert len(project._operations) <= 2, "the Endpoint, and then the Model"
    assert ServingContract().ready(place, "late").states["v1"].percent == 100
    assert len(project._operations) == 3


def test_a_version_that_does_not_start(place: Any, project: GoogleProject) -> None:
    project.broken = {"v2"}
    put(place, Service("late", V1))
    place.put(Service("late", V1, V2), place.look("late").revision)
    seen = place.look("late")
    assert (seen.states["v2"].phase, seen.states["v1"].phase) == ("failed", "ready")
    assert "health check" in seen.states["v2"].why
    put(place, Service("late", V1))
    project.broken.clear()
    assert put(place, Service("late", V1, V2)).states["v2"].phase == "ready", "it may be tried again"


def test_somebody_else_was_quicker(place: Any, project: GoogleProject, monkeypatch: pytest.MonkeyPatch) -> None:
    put(place, Service("late", V1, V2))
    stale = place._endpoint("late")
    put(place, Service("late", V1, V2, percent=10))
    monkeypatch.setattr(place, "_endpoint", lambda _: stale)
    with pytest.raises(Unavailable, match="the etag is not that of the Endpoint"):
        place.bring(Service("late", V1, V2, percent=50))


def test_nothing_is_left(place: Any, project: GoogleProject) -> None:
    put(place, Service("late", V1))
    put(place, Service("late", V1, V2, percent=100))
    put(place, Service("late", V2))
    for _ in range(3):
        place.look("late")
    assert (len(project.models), [len(one.deployed_models) for one in project.endpoints.values()]) == (1, [1])
    place.remove("late")
    assert (project.models, project.endpoints, project.blobs) == ({}, {}, {})


def test_what_is_not_ours_stays(place: Any, project: GoogleProject) -> None:
    parent = PLACE.parent
    project.create_endpoint({"parent": parent, "endpoint": {"display_name": "theirs"}, "endpoint_id": "late"})
    for change in (lambda: place.put(Service("late", V2)), lambda: place.remove("late")):
        with pytest.raises(SpecError, match="not Airflow's"):
            change()
    assert len(project.endpoints) == 1


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Service("late", V1, V2, mirror=10), "cannot mirror requests"),
        (Service("late", V1, V2, percent=0.5), "percent must be a whole number"),
        (Service("late", version("v1", cpu=1)), "cpu of the server of 'v1' cannot be had on Vertex AI"),
        (Service("late", version("v1", replicas=(0, 2))), r"replicas must be at least \(1, 1\)"),
        (Service("late", version("v1", storage="s3://b/m")), "storage must be in Cloud Storage"),
        (Service("late", version("v1", template={"machine": 1})), "template must be laid over"),
    ],
)
def test_what_it_cannot_do_is_refused(place: Any, wanted: Service, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        place.put(wanted)
    assert place.look("late") is None


def test_what_is_asked_of_google(place: Any, project: GoogleProject) -> None:
    server = {"replicas": (1, 3), "gpus": 2, "env": {"A": "1"}, "service_account": "models@company"}
    put(place, Service("late", version("v1", **server)))
    (endpoint,), (model,) = project.endpoints.values(), project.models.values()
    (made,) = endpoint.deployed_models
    machine = made.dedicated_resources.machine_spec
    assert (machine.machine_type, machine.accelerator_type.name, machine.accelerator_count) == (
        "n1-standard-2", "NVIDIA_L4", 2,
    )  # fmt: skip
    assert (made.dedicated_resources.max_replica_count, made.service_account) == (3, "models@company")
    assert (model.artifact_uri, model.container_spec.image_uri) == ("gs://models/late/v1", "triton:1")
    assert {one.name: one.value for one in model.container_spec.env} == {"AIRFLOW_ML_VERSION": "v1", "A": "1"}
    assert dict(endpoint.traffic_split) == {made.id: 100}


@pytest.mark.parametrize("errors", [0, 400])
def test_a_rollout(place: Any, project: GoogleProject, rolled: Any, errors: int) -> None:
    project.slow = 1
    stable = "v1" if errors else "v2"
    assert rolled(PLACE, place, project.serve, [V1.model, V2.model], "canary", errors) == stable
    assert set(put(place, place.look("late").wanted).states) == {stable}


def test_records_are_compared_and_swapped(place: Any) -> None:
    records = place.records
    first = records.write("late", "1", None)
    for stale in (None, "999"):
        with pytest.raises(Conflict):
            records.write("late", "2", stale)
    assert records.read("late") == ("1", first)
    records.delete("late")
    records.delete("late")
    with pytest.raises(Conflict):
        records.write("late", "3", first)


def test_an_image_is_needed(project: GoogleProject) -> None:
    with pytest.raises(SpecError, match="image must be the name"):
        VertexServing(replace(PLACE, image="")).put(Service("late", V1))


def test_the_project_is_asked_as_the_real_clients_are() -> None:
    """Every method that the double has, but those for tests, is one of a client of Google's, called by `request`."""
    from google.cloud.aiplatform_v1 import EndpointServiceClient, ModelServiceClient, PredictionServiceClient
    from google.cloud.monitoring_v3 import MetricServiceClient

    clients = (EndpointServiceClient, ModelServiceClient, PredictionServiceClient, MetricServiceClient)
    for name in set(vars(GoogleProject)) - {"serve", "bucket"}:
        if not name.startswith("_"):
            found = [getattr(one, name) for one in clients if hasattr(one, name)]
            assert found, name
            assert "request" in inspect.signature(found[0]).parameters


def test_blobs_are_asked_as_the_real_ones_are(project: GoogleProject) -> None:
    from google.cloud.storage import Blob

    for name in ("download_as_bytes", "upload_from_string", "delete"):
        own = inspect.signature(getattr(project.bucket("b").blob("k"), name)).parameters
        assert set(own) <= set(inspect.signature(getattr(Blob, name)).parameters), name
