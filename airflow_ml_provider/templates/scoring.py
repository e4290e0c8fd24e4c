"""The DAG that runs for every window: ingest, validate, features, score, monitor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import DAG

from airflow_ml_provider.operators.features import FeaturesOperator
from airflow_ml_provider.operators.ingest import IngestOperator
from airflow_ml_provider.operators.monitor import MonitorOperator
from airflow_ml_provider.operators.score import ScoreOperator
from airflow_ml_provider.operators.validate import ValidateOperator
from airflow_ml_provider.templates._parts import (
    asset,
    dag_arguments,
    interval_params,
    result,
    retrain_asset,
    stage_arguments,
    timetable,
)

if TYPE_CHECKING:
    from airflow_ml_provider.operators._base import StageOperator
    from airflow_ml_provider.templates.config import PipelineConfig

_DOC = """\
### {name}: from landing files to watched predictions

Every window is ingested, validated, turned into features, scored by the champions that held office when the window
began, and compared with what they were trained on. A run can be cleared, repeated or backfilled at any time: it
replaces its own window and nothing else. Files and rows that cannot be used are set aside with a reason under
`{store}`; after a fix, clear the run.

Sustained drift updates the asset `{retrain}`, which starts `{name}_training`.
"""


def scoring_dag(config: PipelineConfig, dag_id: str | None = None) -> DAG:
    """Return the scoring DAG of a pipeline; by default it is called `NAME_scoring`."""
    doc = _DOC.format(name=config.name, store=config.store, retrain=retrain_asset(config).name)
    with DAG(
        dag_id or f"{config.name}_scoring",
        schedule=timetable(config.schedule),
        params=interval_params(),
        doc_md=doc,
        **dag_arguments(config, config.schedule, "scoring"),
    ) as dag:
        tables = [_table(config, name) for name in config.datasets]
        features = FeaturesOperator(
            task_id="features",
            repo=config.path(config.features.repo),
            sources=config.sources(),
            store=config.place("features"),
            spine=config.features.spine,
            features=config.features.use,
            materialize=config.features.materialize,
            max_skew=config.features.max_skew,
            **stage_arguments(config, "features"),
        )
        score = ScoreOperator(
            task_id="score",
            dataset=result(features, "dataset"),
            models=config.models,
            target=config.place("predictions"),
            keep=(*config.features.spine.key, "event_timestamp"),
            outlets=[asset(f"{config.name}.predictions")],
            **stage_arguments(config, "score"),
        )
        monitor = MonitorOperator(
            task_id="monitor",
            name=config.name,
            dataset=result(features, "dataset"),
            models=config.models,
            predictions=config.place("predictions"),
            output=config.place("monitor"),
            labels=config.place("features", "labels"),
            key=config.features.spine.key,
            policy=config.monitor,
            retrain_asset=retrain_asset(config),
            **stage_arguments(config, "monitor"),
        )
        tables >> features >> score >> monitor
    return dag


def _table(config: PipelineConfig, name: str) -> StageOperator:
    """Add the tasks that bring one feed into its table; return the last one."""
    dataset = config.datasets[name]
    updated = [asset(f"{config.name}.{name}")]
    ingest = IngestOperator(
        task_id=f"ingest_{name}",
        name=name,
        source=config.path(dataset.source),
        target=config.place("raw", name),
        columns=dataset.typed_columns(),
        key=dataset.key,
        version=dataset.version,
        mode=dataset.mode,
        on_missing=dataset.on_missing,
        wait_s=dataset.wait_s,
        outlets=[] if dataset.validated else updated,
        **stage_arguments(config, "ingest"),
    )
    if not dataset.validated:
        return ingest
    validate = ValidateOperator(
        task_id=f"validate_{name}",
        dataset=result(ingest, "dataset"),
        target=config.table(name),
        reports=config.place("quality", name),
        suite=config.path(dataset.suite) if dataset.suite else None,
        profile=dataset.profile,
        allow_empty=dataset.allow_empty,
        outlets=updated,
        **stage_arguments(config, "validate"),
    )
    ingest >> validate
    return validate
