"""The DAG that makes champions: training set, candidates, evaluation, registration, gate, promotion."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Param

from airflow_ml_provider import codec
from airflow_ml_provider.operators.evaluate import EvaluateOperator
from airflow_ml_provider.operators.features import TrainingSetOperator
from airflow_ml_provider.operators.gate import GateOperator
from airflow_ml_provider.operators.optimise import OptimiseOperator
from airflow_ml_provider.operators.promote import PromoteOperator
from airflow_ml_provider.operators.register import RegisterOperator
from airflow_ml_provider.operators.train import TrainOperator
from airflow_ml_provider.templates._parts import (
    champion_asset,
    dag_arguments,
    interval_params,
    result,
    retrain_asset,
    stage_arguments,
    starter,
    timetable,
)

if TYPE_CHECKING:
    from airflow_ml_provider.templates.config import LoadTesting, Optimisation, PipelineConfig

_DOC = """\
### {name}: from labelled rows to the champion

The rows before the end of the window, joined to what was known at their time, are divided by time; the newest are
locked away as the test set. Every candidate is trained per segment and measured on it, the best one per
segment{smaller} is registered, and the gate (`{gate}`) decides with evidence whether it becomes champion. A backfilled
run never promotes unless `allow_backfill_promotion` is set.

Starts by schedule, backfill, hand, sustained drift (`{retrain}`){assets}; the reason is recorded with every model.
"""


def training_dag(config: PipelineConfig, dag_id: str | None = None) -> DAG:
    """Return the training DAG of a pipeline; by default it is called `NAME_training`."""
    from airflow_ml_provider.sensors.partition import PartitionSensor  # no other template waits for data

    training = config.training
    assets = "".join(f", or an update of `{name}`" for name in training.on_assets)
    smaller = ", made\nsmaller or faster where that costs little," if training.optimise else ""
    doc = _DOC.format(
        name=config.name, gate=training.gate, retrain=retrain_asset(config).name, assets=assets, smaller=smaller
    )
    with DAG(
        dag_id or f"{config.name}_training",
        schedule=_schedule(config),
        params={**interval_params(), **_params()},
        doc_md=doc,
        **dag_arguments(config, training.schedule, "training"),
    ) as dag:
        labels = PartitionSensor(
            task_id="wait_for_labels",
            table=config.place("features", "labels"),
            need="reached",
            grain=config.grain,
            timeout=timedelta(hours=12).total_seconds(),
            poke_interval=20,
            deferrable=True,
        )
        rows = _training_set(config)
        labels >> rows
        _decide(config, rows, _best(config, rows))
    return dag


def _schedule(config: PipelineConfig) -> Any:
    from airflow.sdk import AssetAny

    try:
        from airflow.sdk import AssetOrTimeSchedule
    except ImportError:  # before Airflow 3.2
        from airflow.timetables.assets import AssetOrTimeSchedule  # type: ignore[assignment]

    starts = AssetAny(retrain_asset(config), *(starter(config, name) for name in config.training.on_assets))
    if config.training.schedule is None:
        return starts
    return AssetOrTimeSchedule(timetable=timetable(config.training.schedule), assets=starts)


def _params() -> dict[str, Any]:
    return {
        "allow_backfill_promotion": Param(
            False,
            type="boolean",
            description="Let this backfilled or cleared run promote models that are newer than the champion.",
        ),
        "approved_by": Param([], type="array", items={"type": "string"}, description="People who approved this run."),
    }


def _training_set(config: PipelineConfig) -> TrainingSetOperator:
    training = config.training
    return TrainingSetOperator(
        task_id="training_set",
        name=config.name,
        repo=config.path(config.features.repo),
        sources=config.sources(),
        store=config.place("features"),
        spine=config.features.spine,
        history_days=training.history_days,
        features=config.features.use,
        split=training.split,
        min_rows=training.min_rows,
        **stage_arguments(config, "training_set"),
    )


def _best(config: PipelineConfig, rows: TrainingSetOperator) -> Any:
    """Add training and evaluation of all candidates; return the best of each segment."""
    from airflow.sdk import task  # not above: it brings two dozen modules, and not every DAG is a training

    training = config.training
    experiment = training.experiment or config.name
    train = TrainOperator.partial(
        task_id="train",
        name=config.name,
        dataset=result(rows, "train"),
        output=config.place("models"),
        exclude=(*config.features.spine.key, *training.exclude),
        seed=training.seed,
        experiment=experiment,
        pool=training.pool,
        execution_timeout=timedelta(seconds=training.timeout_s),
        map_index_template="{{ task.title }}",
        **{k: v for k, v in stage_arguments(config, "train").items() if k != "runtime"},
    ).expand_kwargs(_candidates(config))
    evaluate = EvaluateOperator.partial(task_id="evaluate", experiment=experiment, **_evaluation(config, rows)).expand(
        model=train.output
    )

    @task
    def winners(evaluations: Any, metric: str) -> list[dict[str, Any]]:
        from airflow_ml_provider.stages.evaluate.logic import winners

        return winners(list(evaluations), metric)

    return winners(evaluate.output, training.metric)


def _evaluation(config: PipelineConfig, rows: TrainingSetOperator) -> dict[str, Any]:
    """Return what every evaluation of this pipeline takes."""
    training = config.training
    return {
        "test": result(rows, "test"),
        "output": config.place("evaluations"),
        "key": config.features.spine.key,
        "slices": training.slices,
        "min_rows": training.min_slice_rows,
        "operating_point": training.operating_point,
        **stage_arguments(config, "evaluate"),
    }


def _candidates(config: PipelineConfig) -> list[dict[str, Any]]:
    """Return the mapped arguments: every candidate for every segment."""
    segments = config.training.segments
    values = [{segments.column: value} for value in segments.values] if segments else [{}]
    return [
        {
            "segment": segment,
            "engine": candidate.engine,
            "engine_params": dict(candidate.params),
            "launch": codec.encode(candidate.launch),
            "runtime": codec.encode(candidate.runtime or config.operations.runtime_of("train")) or None,
        }
        for segment in values
        for candidate in config.training.candidates
    ]


def _decide(config: PipelineConfig, rows: TrainingSetOperator, best: Any) -> None:
    """Add registration, gate and promotion of each winner, with optimisation and a load test if asked for."""
    from airflow.sdk import task_group

    training = config.training

    @task_group
    def decide(winner: Any) -> None:
        if training.optimise:
            winner = _smaller(config, training.optimise, rows, winner)
        register = RegisterOperator(
            task_id="register", model=winner, evaluation=winner, **stage_arguments(config, "register")
        )
        tested = _tested(config, training.load_test, register) if training.load_test else None
        gate = GateOperator(
            task_id="gate",
            model=result(register, "model"),
            evaluation=winner,
            parity=result(register, "parity"),
            load_test=tested,
            policy=config.path(training.gate),
            output=config.place("evidence"),
            test=result(rows, "test"),
            quality=tuple(config.place("quality", name) for name, d in config.datasets.items() if d.validated),
            approved_by="{{ params.approved_by }}",
            on_refusal=training.on_refusal,
            **stage_arguments(config, "gate"),
        )
        promote = PromoteOperator(
            task_id="promote",
            model=result(gate, "model"),
            backfill=f"{{{{ 'newer' if params.allow_backfill_promotion else '{training.promote_backfills}' }}}}",
            on_refusal="skip",
            outlets=[champion_asset(config)],
            **stage_arguments(config, "promote"),
        )
        register >> gate >> promote

    decide.expand(winner=best)


def _smaller(config: PipelineConfig, how: Optimisation, rows: TrainingSetOperator, winner: Any) -> Any:
    """Add optimisation of a winner and the evaluation of what came of it; return the latter's result."""
    training = config.training
    optimise = OptimiseOperator(
        task_id="optimise",
        model=winner,
        dataset=result(rows, "train"),
        output=config.place("optimised"),
        slices=training.slices,
        min_rows=training.min_slice_rows,
        operating_point=training.operating_point,
        **codec.encode(how),
        **stage_arguments(config, "optimise"),
    )
    measured = EvaluateOperator(
        task_id="evaluate_optimised", model=result(optimise, "model"), **_evaluation(config, rows)
    )
    return measured.output


def _tested(config: PipelineConfig, how: LoadTesting, register: RegisterOperator) -> Any:
    """Add a load test of what was registered; return its result."""
    from airflow_ml_provider.operators.load_test import LoadTestOperator  # only pipelines that test load pay for it

    return LoadTestOperator(
        task_id="load_test",
        model=result(register, "model"),
        output=config.place("load_tests"),
        on_refusal=config.training.on_refusal,
        **codec.encode(how),
        **stage_arguments(config, "load_test"),
    ).output
