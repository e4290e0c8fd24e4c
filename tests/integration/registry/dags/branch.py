"""A gate that branches, once by itself and once per model in a mapped task group."""

from __future__ import annotations

import json
import os
from pathlib import Path

from airflow.sdk import DAG, task, task_group

from airflow_ml_provider.operators.gate import GateOperator
from airflow_ml_provider.operators.promote import PromoteOperator

FOLDER = Path(os.environ["ML_TEST_FOLDER"])

with DAG("branch", schedule=None):

    @task
    def candidates():
        return json.loads((FOLDER / "candidates.json").read_text())

    @task(trigger_rule="all_done")
    def first(found):
        return found[0]

    @task
    def tell():
        return "told"

    @task_group
    def decide(winner):
        gate = GateOperator(
            task_id="gate", model=winner, evaluation=winner, parity=winner, policy=str(FOLDER / "gate.yaml"),
            output=str(FOLDER / "out"), on_refusal="branch", on_pass="promote", on_refuse="tell",
        )  # fmt: skip
        gate >> [PromoteOperator(task_id="promote", model=gate.output["model"]), tell()]

    found = candidates()
    decided = decide.expand(winner=found)

    one = first(found)
    alone = GateOperator(
        task_id="alone", model=one, evaluation=one, parity=one, policy=str(FOLDER / "strict.yaml"),
        output=str(FOLDER / "out"), on_refusal="branch", on_pass="go_on", on_refuse="stop",
    )  # fmt: skip
    alone >> [tell.override(task_id="go_on")(), tell.override(task_id="stop")()]
    # It refuses what the group has let pass, and the newest evidence counts: never before the group's promotion.
    decided >> one
