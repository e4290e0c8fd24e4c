"""The DAG that brings champions to their users: the first one is deployed, each later one rolled out step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.operators.deploy import DeployOperator, RolloutOperator, RolloutOutcomeOperator
from airflow_ml_provider.templates._parts import asset, champion_asset, dag_arguments, serving_arguments

if TYPE_CHECKING:
    from airflow_ml_provider.templates.config import PipelineConfig, Serving

_DOC = """\
### {name}: the champions answer requests

Each model has a service of its own: {services}. A service that does not exist yet is deployed with the champion. Later
the champion is tried out beside the version that answers, gets its traffic step by step, and is taken away at the
first bad sign; what both did is in the evidence.{gate} How it ends updates the asset `SERVICE.rolled_out` or
`SERVICE.rolled_back`.

Starts when a champion was promoted (`{asset}`), or by hand; what serves already stays as it is.
"""


def rollout_dag(config: PipelineConfig, dag_id: str | None = None) -> DAG:
    """Return the DAG that rolls out a pipeline's champions; by default it is called `NAME_rollout`.

    Raises:
        SpecError: the configuration has no `serving`.
    """
    from airflow.sdk import task_group  # not above: not every DAG has groups

    serving = config.serving
    if serving is None:
        raise SpecError(f"pipeline {config.name!r} has no serving: add where its champions shall answer requests")
    services = {model: service_name(model) for model in config.models}
    started_by = champion_asset(config)
    doc = _DOC.format(
        name=config.name,
        services=", ".join(f"`{service}`" for service in services.values()),
        asset=started_by.name,
        gate=" Only what the gate let pass is served." if serving.gate == "required" else "",
    )
    with DAG(
        dag_id or f"{config.name}_rollout", schedule=[started_by], doc_md=doc, **dag_arguments(config, None, "rollout")
    ) as dag:
        for model, service in services.items():
            task_group(group_id=model)(_serve)(config, serving, model, service)
    return dag


def service_name(model: str) -> str:
    """Return the name of a model's service, a DNS label.

    >>> service_name("flight_delay_EWR")
    'flight-delay-ewr'
    """
    return model.lower().replace("_", "-")


def _serve(config: PipelineConfig, serving: Serving, model: str, service: str) -> None:
    from airflow_ml_provider.sensors.alias import ModelAliasSensor

    common = serving_arguments(config, serving, service)
    champion = ModelAliasSensor(
        task_id="champion", name=model, mlflow_conn_id=config.operations.mlflow_conn_id, deferrable=True
    )
    holder: Any = champion.output
    deploy = DeployOperator(task_id="deploy", model=holder, existing="keep", **common)
    rollout = RolloutOperator(
        task_id="rollout",
        model=holder,
        evidence=config.place("evidence"),
        policy=serving.policy,
        on_refusal=serving.on_refusal,
        **common,
    )
    deploy >> rollout
    ended: Any = rollout.output
    for task_id, outcome in (("rolled_out", "done"), ("rolled_back", "rolled_back")):
        outlet = asset(f"{service}.{task_id}")
        RolloutOutcomeOperator(
            task_id=task_id, rollout=ended, outcome=outcome, service=service, place=serving.place, outlets=[outlet],
            grain=config.grain,
        )  # fmt: skip
