"""The DAGs that the templates make: shape, arguments, triggers."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.sdk import AssetOrTimeSchedule

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.runtime import InProcess, Pod
from airflow_ml_provider.stages.load_test.spec import LoadProfile
from airflow_ml_provider.stages.optimise.spec import OptimisePolicy
from airflow_ml_provider.templates import (
    load_config,
    maintenance_dag,
    rollback_dag,
    rollout_dag,
    scoring_dag,
    training_dag,
)
from airflow_ml_provider.templates.config import LoadTesting, Optimisation, Serving

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def config():
    return load_config(ROOT / "dags" / "flight_delay" / "pipeline.yaml", store="/store")


def edges(dag):
    return {(task.task_id, other) for task in dag.tasks for other in task.downstream_task_ids}


def test_scoring_goes_from_feeds_to_monitor(config):
    dag = scoring_dag(config)
    assert edges(dag) == {
        ("ingest_flights", "validate_flights"),
        ("validate_flights", "features"),
        ("ingest_weather", "features"),
        ("features", "score"),
        ("features", "monitor"),
        ("score", "monitor"),
    }
    assert dag.max_active_runs == 1
    assert {"ml", "flight_delay", "flights"} <= dag.tags
    assert "flight_delay.retrain" in dag.doc_md


def test_every_task_retries_with_growing_waits_and_ends_some_time(config):
    for dag in (scoring_dag(config), training_dag(config), rollback_dag(config)):
        for task in dag.tasks:
            arguments = task.partial_kwargs if task.is_mapped else vars(task)
            assert arguments["retries"] == 2, task.task_id
            assert arguments["retry_exponential_backoff"], task.task_id
            assert arguments["execution_timeout"] <= timedelta(hours=6), task.task_id


def test_training_maps_candidates_and_decides_per_winner(config):
    dag = training_dag(config)
    train = dag.get_task("train")
    assert train.is_mapped
    assert len(train.expand_input.value) == 6, "three airports, two candidates"
    assert {c["runtime"] for c in train.expand_input.value if c["engine"] == "lightgbm"} == {None}
    assert {"decide.register", "decide.gate", "decide.promote"} <= set(dag.task_ids)
    assert ("decide.gate", "decide.promote") in edges(dag)


def test_winners_can_be_made_smaller_before_they_are_registered(config):
    from airflow.serialization.serialized_objects import DagSerialization

    asked = Optimisation(recipes=("graph", "distill+int8_dynamic"), policy=OptimisePolicy(choose="smallest"))
    operations = replace(config.operations, runtimes={"optimise": "/opt/torch/bin/python"})
    smaller = replace(config, operations=operations, training=replace(config.training, optimise=asked))
    dag = training_dag(smaller, "smaller")
    assert {("decide.optimise", "decide.evaluate_optimised"), ("decide.evaluate_optimised", "decide.register")} <= (
        edges(dag)
    )
    optimise = dag.get_task("decide.optimise")
    assert optimise.recipes == ["graph", "distill+int8_dynamic"]
    assert optimise.policy["choose"] == "smallest"
    assert optimise.slices == config.training.slices
    assert "smaller or faster where that costs little" in dag.doc_md
    DagSerialization.to_dict(dag)
    assert "decide.optimise" not in training_dag(config).task_ids


def test_winners_can_be_asked_by_many_before_the_gate_decides(config):
    from airflow.serialization.serialized_objects import DagSerialization

    asked = LoadTesting(LoadProfile(rate=50), budget={"model": 20})
    dag = training_dag(replace(config, training=replace(config.training, load_test=asked)), "loaded")
    assert {("decide.register", "decide.load_test"), ("decide.load_test", "decide.gate")} <= edges(dag)
    load_test = dag.get_task("decide.load_test")
    assert (load_test.profile["rate"], load_test.budget) == (50, {"model": 20})
    assert load_test.on_refusal == config.training.on_refusal
    DagSerialization.to_dict(dag)
    assert "decide.load_test" not in training_dag(config).task_ids


def test_training_starts_by_time_and_by_assets(config):
    timetable = training_dag(config).timetable
    assert isinstance(timetable, AssetOrTimeSchedule)
    names = {asset.name for asset in timetable.asset_condition.objects}
    assert names == {"flight_delay.retrain", "flight_delay.history"}
    by_hand = replace(config, training=replace(config.training, schedule=None))
    assert not isinstance(training_dag(by_hand, "no_time").timetable, AssetOrTimeSchedule)


def test_assets_of_other_dags_are_meant_by_their_names(config):
    """Airflow matches assets by name and address; only who defines one knows its address."""
    starts = replace(config.training, on_assets=("orders", "flight_delay.by_hand"))
    condition = training_dag(replace(config, training=starts), "others").timetable.asset_condition
    retrain, orders, own = condition.objects
    assert (type(orders).__name__, orders.name) == ("AssetNameRef", "orders")
    assert (retrain.uri, own.uri) == ("x-airflow-ml://flight_delay/retrain", "x-airflow-ml://flight_delay/by_hand")


def test_parameters_are_typed_and_described(config):
    for dag in (scoring_dag(config), training_dag(config), rollback_dag(config)):
        for name in dag.params:
            param = dag.params.get_param(name)
            assert param.schema.get("type") or param.schema.get("enum"), name
            assert param.description, name


def test_rollback_is_one_task_for_runs_by_hand(config):
    dag = rollback_dag(replace(config, serving=None))
    assert dag.task_ids == ["rollback"]
    assert dag.params.get_param("model").schema["enum"] == list(config.models)
    assert type(dag.timetable).__name__ == "NullTimetable"


def test_a_rollback_takes_the_service_with_it(config):
    dag = rollback_dag(config)
    assert edges(dag) == {("rollback", "serve")}
    serve = dag.get_task("serve")
    assert (serve.existing, serve.gate) == ("interrupt", "required")
    context = {"params": {"model": "flight_delay_EWR"}}
    assert serve.render_template(serve.service, context) == "flight-delay-ewr"


def test_one_model_without_segments(config):
    whole = replace(config, training=replace(config.training, segments=None))
    assert whole.models == ("flight_delay",)
    train = training_dag(whole, "whole").get_task("train")
    assert [c["segment"] for c in train.expand_input.value] == [{}, {}]


def test_stages_run_in_the_pods_of_the_configuration(config):
    from airflow.serialization.serialized_objects import DagSerialization

    pod = Pod("ml/torch:3", gpus=1, volumes={"/store": "ml"}, pod_template={"spec": {"priorityClassName": "high"}})
    operations = replace(config.operations, runtimes={"train": pod, "features": pod})
    scoring = scoring_dag(replace(config, operations=operations), "in_pods_scoring")
    assert scoring.get_task("features")._active == pod
    assert scoring.get_task("score")._active == InProcess()
    training = training_dag(replace(config, operations=operations), "in_pods_training")
    given = training.get_task("train").expand_input.value
    assert [codec.decode(Pod, c["runtime"]) for c in given if c["engine"] == "lightgbm"] == [pod] * 3
    for dag in (scoring, training):
        DagSerialization.to_dict(dag)


def test_maintenance_begins_paused_and_only_lists():
    dag = maintenance_dag()
    assert dag.is_paused_upon_creation
    assert not dag.catchup
    assert dag.start_date, "without one it is never scheduled"
    assert dag.params["delete"] is False
    (task,) = dag.tasks
    assert task.delete == "{{ params.delete }}"


def test_maintenance_can_be_told_to_remove():
    dag = maintenance_dag("other", schedule=None, namespace="ml", older_than_min=60, delete=True)
    assert dag.params["delete"] is True
    task = dag.get_task("reap")
    assert (task.namespace, task.older_than_min) == ("ml", 60)


def test_champions_are_rolled_out_when_one_was_promoted(config):
    place = {"local": {"root": "/services"}}
    served = replace(config, serving=Serving(place, policy={"bake_s": 60}, server={"max_batch": 8}, on_refusal="skip"))
    dag = rollout_dag(served)
    promote = training_dag(served, "promoting").get_task("decide.promote")
    (asset,) = promote.outlets
    assert [one.name for one in dag.timetable.asset_condition.objects] == [asset.name]
    for model in served.models:
        deploy, rollout = dag.get_task(f"{model}.deploy"), dag.get_task(f"{model}.rollout")
        assert deploy.existing == "keep"
        assert deploy.downstream_task_ids == {rollout.task_id}
        assert (deploy.gate, rollout.gate) == ("required", "required")
        service = model.lower().replace("_", "-")
        assert {deploy.service, rollout.service} == {service}
        told = {outlet.name: task.trigger_rule for task in dag.tasks for outlet in task.outlets}
        assert told[f"{service}.rolled_out"] == "all_success"
        assert told[f"{service}.rolled_back"] == "all_done"
        assert rollout.downstream_task_ids == {f"{model}.rolled_out", f"{model}.rolled_back"}
        assert (rollout.place, rollout.policy, rollout.on_refusal) == (place, {"bake_s": 60}, "skip")


def test_the_gate_can_be_waived_for_a_pipeline(config):
    serving = Serving({"local": {"root": "/services"}}, gate="waived")
    dag = rollout_dag(replace(config, serving=serving), "waived")
    operators = [task for task in dag.tasks if hasattr(task, "gate")]
    assert len(operators) == 2 * len(config.models)
    assert {task.gate for task in operators} == {"waived"}
    assert "Only what the gate let pass" not in dag.doc_md


def test_who_serves_nothing_rolls_out_nothing(config):
    with pytest.raises(SpecError, match="has no serving: add where its champions shall answer requests"):
        rollout_dag(replace(config, serving=None))
    with pytest.raises(SpecError, match="place must be"):
        Serving({"heroku": {}})
