"""Seldon Core 2 on a real API server with the stand-in for its controller, by an identity with the documented Role."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.elsewhere import Seldon
from airflow_ml_provider.stages.deploy.service import Server, Service, Version
from airflow_ml_provider.testing.serving import ServingContract

ROWS = {"hour": [6.0, 18.0], "carrier": ["UA", "DL"]}
KINDS = ("models.mlops.seldon.io", "experiments.mlops.seldon.io", "configmaps")


def version(name: str, **server: Any) -> Version:
    return Version(name, ModelRef("late", f"s3://models/late/{name}", f"sha256:{name}"), Server(**server))


V1, V2 = version("v1"), version("v2")


@pytest.fixture(scope="module")
def seldon(cluster: Any) -> Iterator[Any]:
    from kubernetes.config import new_client_from_config

    from airflow_ml_provider.testing.seldon import Controller, definition

    for kind in ("Model", "Experiment"):
        made = definition(kind)
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(made))
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{made['metadata']['name']}")
    namespace = json.loads(cluster.kubectl("create", "configmap", "n", "--dry-run=client", "-o", "json"))
    with (
        new_client_from_config(cluster.kubeconfig) as api,
        Controller(api, namespace["metadata"]["namespace"]) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def limited(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    import importlib.util

    there = Path(__file__).resolve().parents[1] / "pods" / "conftest.py"
    spec = importlib.util.spec_from_file_location("pods_conftest_of_seldon", there)
    assert spec is not None
    assert spec.loader is not None
    pods = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pods)
    found: str = pods.limited_to(cluster, tmp_path_factory.mktemp("limited"), "role-seldon.yaml")
    return found


@pytest.fixture
def place(cluster: Any, seldon: Any, limited: str, wait: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from airflow_ml_provider.hooks._serving import serving
    from airflow_ml_provider.hooks.seldon import SeldonServing

    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", limited)
    seldon.faults.clear()
    found = serving(Seldon(seldon.address))
    assert isinstance(found, SeldonServing)
    found.settle_s = 0.3
    yield found
    for name in ("one", "late"):
        found.remove(name)
    wait(lambda: not left(cluster), 60, f"left behind: {left(cluster)}")


def left(cluster: Any) -> list[str]:
    found: str = cluster.kubectl("get", ",".join(KINDS), "-l", "airflow-ml/service", "-o", "name")
    return found.split()


class Contract(ServingContract):
    def __init__(self, seldon: Any) -> None:
        self.seldon = seldon

    def ready(self, place: Any, name: str) -> Any:
        """Wait for the mesh, too, since Seldon does not say when it has what an Experiment says."""
        found = super().ready(place, name)
        host, shares = f"{name}.experiment", sorted(one.percent for one in found.states.values() if one.percent)
        mirror = max(one.mirror for one in found.states.values())
        deadline = time.monotonic() + 10
        while True:
            mesh = self.seldon.mesh
            seen = sorted(percent for _, percent in mesh.routes.get(host, ()))
            models = {model for model, _ in mesh.routes.get(host, ())}
            if (seen, mesh.mirrors[host][1]) == (shares, mirror) and models <= self._models(place, name):
                return found
            assert time.monotonic() < deadline, (seen, shares)
            time.sleep(0.05)

    def _models(self, place: Any, name: str) -> set[str]:
        with place._explained():
            return {one["metadata"]["name"] for one in place._models(name)}


@pytest.fixture
def put(place: Any, seldon: Any) -> Callable[[Service], Any]:
    def make(wanted: Service) -> Any:
        seen = place.look(wanted.name)
        place.put(wanted, seen.revision if seen else None)
        return Contract(seldon).ready(place, wanted.name)

    return make


class TestContract(ServingContract):
    @pytest.fixture(autouse=True)
    def _waits(self, seldon: Any) -> None:
        self.ready = Contract(seldon).ready  # type: ignore[method-assign]

    @pytest.fixture
    def place(self, place: Any) -> Any:
        return place

    @pytest.fixture
    def version(self) -> Callable[[str], Version]:
        return version

    @pytest.fixture
    def rows(self) -> Any:
        return ROWS


def test_requests_are_split_and_mirrored(place: Any, put: Any, seldon: Any) -> None:
    put(Service("late", V1))
    put(Service("late", V1, V2, percent=12.5))
    assert [place.predict("late", ROWS)[1] for _ in range(8)].count("v2") in (1, 2)
    assert place.predict("late", ROWS, "v2") == ({"score": [0.5, 0.5]}, "v2")
    seen = put(Service("late", V1, V2, mirror=100))
    assert (seen.states["v1"].percent, seen.states["v2"].mirror) == (100, 100)
    seldon.mesh.asked.clear()
    assert {place.predict("late", ROWS)[1] for _ in range(4)} == {"v1"}
    assert sorted(seldon.mesh.asked.values()) == [4, 4]
    with pytest.raises(DataError, match="unexpected input"):
        place.predict("late", {"bad": [1.0]})
    with pytest.raises(SpecError, match="nothing counts the requests"):
        place.readings("late")


def test_faults(place: Any, put: Any, seldon: Any) -> None:
    put(Service("late", V1))
    seldon.faults |= {"v2": "unplaced"}
    place.put(Service("late", V1, V2), place.look("late").revision)
    state = _state(place, lambda one: "ScheduleFailed" in one.why)
    assert (state.phase, place.look("late").states["v1"].phase) == ("waits", "ready")
    seldon.faults["v2"] = "failed"
    assert _state(place, lambda one: one.phase == "failed").why.count("ModelFailed")


def _state(place: Any, until: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 10
    while not until(state := place.look("late").states["v2"]):
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return state


def test_a_writer_that_ended_half_way(place: Any, put: Any, cluster: Any) -> None:
    revision = put(Service("late", V1)).revision
    cluster.kubectl("delete", KINDS[0], "--all")
    seen = place.look("late")
    assert (seen.revision, seen.states["v1"].phase) == (revision, "waits")
    assert "put the service again" in seen.states["v1"].why
    assert put(seen.wanted).revision == revision


def test_what_is_not_ours_stays(place: Any, cluster: Any) -> None:
    theirs = {
        "apiVersion": "mlops.seldon.io/v1alpha1", "kind": "Experiment", "metadata": {"name": "late"},
        "spec": {"candidates": []},
    }  # fmt: skip
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(theirs))
    with pytest.raises(SpecError, match="not Airflow's"):
        place.put(Service("late", V1))
    cluster.kubectl("delete", KINDS[1], "late")


def test_one_server_that_changes_is_another_model(put: Any, cluster: Any) -> None:
    put(Service("late", V1))
    names = {one["metadata"]["name"] for one in cluster.get(KINDS[0])}
    put(Service("late", replace(V1, server=Server(memory_gib=0.5, template={"server": "mlserver"}))))
    (found,) = cluster.get(KINDS[0])
    assert found["metadata"]["name"] not in names
    assert found["spec"] == {
        "storageUri": "s3://models/late/v1", "requirements": ["onnx"], "replicas": 1, "memory": "512Mi",
        "server": "mlserver",
    }  # fmt: skip
