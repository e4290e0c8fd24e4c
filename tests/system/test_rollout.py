"""The champions of the flights pipeline answer requests once the rollout DAG has run."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_ml_provider import models
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.serving import launch
from airflow_ml_provider.serving.place import LocalServing
from airflow_ml_provider.stages.deploy.place import Local

DAG = "flight_delay_rollout"


@pytest.fixture
def served(flights):
    flights.api.wait_for_dags([DAG])
    flights.api.pause(DAG, False)
    yield flights
    flights.api.pause(DAG, True)
    for name in flights.stack.served():
        launch.stop(flights.stack.serving, name)


def test_every_champion_has_a_service_and_running_again_changes_nothing(served):
    revisions = []
    for _ in range(2):
        run = served.run(DAG)
        assert run["state"] == "success", served.why(DAG, run)
        place = LocalServing(Local(str(served.stack.serving)))
        seen = {name: place.look(name) for name in served.stack.served() if name.startswith("flight-delay")}
        revisions.append({name: service.revision for name, service in seen.items()})
        for name, service in seen.items():
            model: ModelRef = service.wanted.stable.model
            inputs = models.read_manifest(Path(model.uri)).inputs
            rows = {column: [0.0, 1.0] if kind == "float" else ["", "UA"] for column, kind in inputs.items()}
            outputs, by = place.predict(name, rows)
            assert by == service.wanted.stable.name == f"v{model.version}"
            assert all(0 <= score <= 1 for score in outputs["score"])
    assert len(revisions[0]) == 3
    assert revisions[0] == revisions[1]
