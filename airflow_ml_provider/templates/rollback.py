"""The DAG behind one button: give the alias back to the last healthy champion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import DAG, Param

from airflow_ml_provider.operators.promote import RollbackOperator
from airflow_ml_provider.templates._parts import dag_arguments, result, serving_arguments, stage_arguments

if TYPE_CHECKING:
    from airflow_ml_provider.templates.config import PipelineConfig, Serving


_DOC = "Moves the champion alias of one model back to its last healthy holder and writes it to the journal."
_SERVED = """ Its
service answers with that version as soon as it is ready; a rollout that is under way there ends."""


def rollback_dag(config: PipelineConfig, dag_id: str | None = None) -> DAG:
    """Return the rollback DAG of a pipeline, for runs by hand; by default it is called `NAME_rollback`."""
    with DAG(
        dag_id or f"{config.name}_rollback",
        schedule=None,
        params={
            "model": Param(config.models[0], enum=list(config.models), description="Which model to roll back."),
            "reason": Param("", type="string", description="Why; it is written to the journal."),
            "effective_from": Param(
                None,
                type=["null", "string"],
                format="date-time",
                description="Data from this moment on is scored with the earlier version; empty means from now on.",
            ),
            "to": Param(
                None, type=["null", "string"], description="Version to go back to; empty takes the last healthy one."
            ),
        },
        doc_md=_DOC + (_SERVED if config.serving else ""),
        **dag_arguments(config, None, "rollback"),
    ) as dag:
        rollback = RollbackOperator(
            task_id="rollback",
            name="{{ params.model }}",
            reason="{{ params.reason }}",
            to="{{ params.to or '' }}",
            effective_from="{{ params.effective_from or '' }}",
            **stage_arguments(config, "rollback"),
        )
        if config.serving:
            _serve(config, config.serving, rollback)
    return dag


def _serve(config: PipelineConfig, serving: Serving, rollback: RollbackOperator) -> None:
    """Have the model's service answer with the holder that the alias was given back to, at once."""
    from airflow_ml_provider.operators.deploy import DeployOperator  # only pipelines that serve pay for it

    DeployOperator(
        task_id="serve",
        model=result(rollback, "model"),
        existing="interrupt",
        **serving_arguments(config, serving, "{{ params.model | lower | replace('_', '-') }}"),
    )
