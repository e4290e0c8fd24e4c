"""An environment repository that is followed on a real API server, where Airflow's connection may only read."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.service import Server, Service, Version
from airflow_ml_provider.testing.serving import ServingContract


def made(name: str) -> Version:
    return Version(name, ModelRef("late", f"s3://models/late/{name}", f"sha256:{name}"), Server())


ROWS = {"hour": [6.0, 18.0]}


@pytest.mark.skipif(
    not os.environ.get("ML_PROVIDER_WHOLE_CONTRACT"), reason="a minute; set ML_PROVIDER_WHOLE_CONTRACT to run it"
)
class TestContract(ServingContract):
    @pytest.fixture
    def place(self, gitops: Callable[..., Any]) -> Any:
        return gitops("argocd")

    @pytest.fixture
    def version(self) -> Callable[[str], Version]:
        return made

    @pytest.fixture
    def rows(self) -> Mapping[str, Sequence[Any]]:
        return ROWS


def test_a_candidate_becomes_the_stable_version_with_argo_cd(gitops: Callable[..., Any]) -> None:
    ServingContract().test_a_candidate_becomes_the_stable_version(gitops("argocd"), made, ROWS)


def test_a_rollout_and_its_revert_with_flux(gitops: Callable[..., Any], cluster: Any) -> None:
    place, contract = gitops("flux"), ServingContract()
    place.put(Service("late", made("v1")))
    seen = contract.ready(place, "late")
    rollout = {"identity": "0123456789abcdef", "dag_id": "d", "task_id": "t", "run_id": "r"}
    place.put(Service("late", made("v1"), made("v2"), 20, rollout=rollout), seen.revision)
    place.put(Service("late", made("v1")), contract.ready(place, "late").revision)
    assert set(contract.ready(place, "late").states) == {"v1"}
    log = subprocess.run(
        ["git", "--git-dir", place.repository.url, "log", "--format=%s"], check=True, capture_output=True, text=True
    )
    assert log.stdout.splitlines()[0] == 'Revert "late: rollout of v2"'
    (service,) = cluster.get("inferenceservices.serving.kserve.io")
    assert "canary" not in service["spec"]
