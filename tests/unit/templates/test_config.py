"""One configuration: every key checked, environment filled in, schema shipped as it is."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import jsonschema
import pytest
import yaml

import airflow_ml_provider.templates.load as load
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.templates import PipelineConfig, load_config, scoring_dag

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "dags").glob("*/pipeline.yaml"))
FLIGHTS = ROOT / "dags" / "flight_delay" / "pipeline.yaml"


def changed(tmp_path, change):
    """Return the path of the flights' configuration with a change to its data."""
    data = yaml.safe_load(FLIGHTS.read_text())
    change(data)
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_examples_load_and_fit_the_shipped_schema(path, monkeypatch):
    config = load_config(path)
    assert isinstance(config, PipelineConfig)
    assert config.folder == str(path.parent)
    shipped = json.loads((ROOT / "airflow_ml_provider" / "templates" / "pipeline.schema.json").read_text())
    data = json.loads(json.dumps(yaml.safe_load(path.read_text()), default=lambda day: f"{day}T00:00:00Z"))
    jsonschema.Draft202012Validator(shipped).validate(data)


def test_shipped_schema_is_that_of_the_code():
    shipped = json.loads((ROOT / "airflow_ml_provider" / "templates" / "pipeline.schema.json").read_text())
    assert shipped == json.loads(json.dumps(load.json_schema())), (
        "write it again: run `python -m airflow_ml_provider.templates.load`"
    )


def _misspell(data):
    data["training"]["candidate"] = data["training"].pop("candidates")


def _nested(data):
    data["datasets"]["flights"]["profile"]["minimun"] = {}


def _wrong_type(data):
    data["training"]["seed"] = "seven"


def _column(data):
    data["datasets"]["flights"]["columns"]["distance"] = {"typ": "int"}


def _spine(data):
    data["features"]["spine"]["source"] = "flight"


def _stage(data):
    data["operations"]["runtimes"] = {"validation": "/x"}


def _fraction(data):
    data["datasets"]["flights"]["profile"]["minimum"] = {"overall": 90}


def _set(*path, to):
    """Return a change that sets one value."""

    def change(data):
        for name in path[:-1]:
            data = data[name]
        data[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("datasets", "flights", "source", to="/l/{partitoin}.csv"), "'partitoin'; did you mean 'partition'"),
        (_set("datasets", "flights", "wait_s", to=-5), "wait_s must be at least 0 (seconds), got -5"),
        (_set("datasets", "flights", "key", to=["flight", "fligth_id"]), "'fligth_id'; did you mean 'flight_id'"),
        (_set("datasets", "weather", "corrected_at", to="nope"), "unknown column in corrected_at 'nope'"),
        (_set("training", "metric", to="aucc"), "'aucc'; did you mean 'auc'"),
        (_set("training", "candidates", to=[{"engine": "function"}]), "a function of yours takes @task.train"),
        (_set("training", "timeout_s", to=0), "timeout_s must be greater than 0 (seconds), got 0"),
        (_set("operations", "timeout_s", to=0), "timeout_s must be greater than 0 (seconds), got 0"),
        (_set("training", "segments", "values", to=["EWR", "ewr"]), "give the same model name twice"),
        (_misspell, "unknown key in training 'candidate'; did you mean 'candidates'"),
        (_nested, "unknown key in datasets.flights.profile 'minimun'; did you mean 'minimum'"),
        (_wrong_type, "training.seed must be of type int, got 'seven'"),
        (_column, "unknown key in datasets.flights.columns.distance 'typ'; did you mean 'type'"),
        (_spine, "unknown spine.source 'flight'; did you mean 'flights'"),
        (_stage, "unknown stage 'validation'; did you mean 'validate'"),
        (_fraction, "give a fraction, not percent"),
    ],
)
def test_a_wrong_value_names_its_place_and_the_nearest_right_one(tmp_path, change, message):
    with pytest.raises(SpecError) as raised:
        load_config(changed(tmp_path, change))
    assert message in str(raised.value)
    assert str(tmp_path / "pipeline.yaml") in str(raised.value)


def test_environment_variables_are_filled_in_or_named(tmp_path, monkeypatch):
    path = changed(tmp_path, lambda data: data.update(store="${MY_STORE}"))
    monkeypatch.setenv("MY_STORE", "/data/store")
    assert load_config(path).place("raw", "flights") == "/data/store/raw/flights"
    monkeypatch.delenv("MY_STORE")
    with pytest.raises(SpecError, match="MY_STORE is not set"):
        load_config(path)


def test_relative_places_start_from_the_configuration(tmp_path):
    path = changed(
        tmp_path, lambda data: (data.update(store="store"), data["datasets"]["flights"].update(source="in/*"))
    )
    config = load_config(path)
    assert config.place("raw") == str(tmp_path / "store" / "raw")
    assert scoring_dag(config).get_task("ingest_flights").source == str(tmp_path / "in" / "*")
    assert load_config(path, store="s3://bucket/ml").place("raw") == "s3://bucket/ml/raw"


def test_a_key_that_is_there_twice_does_not_win_silently(tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text(FLIGHTS.read_text() + "operations: {retries: 9}\n")
    with pytest.raises(SpecError, match=r"key 'operations' is there twice, again in line \d+"):
        load_config(path)


def test_models_of_segments_have_the_names_that_training_gives_them(tmp_path):
    path = changed(tmp_path, _set("training", "segments", "values", to=["New York", "LGA"]))
    assert load_config(path).models == ("flight_delay_new_york", "flight_delay_lga")


def test_what_cannot_be_read_is_an_error_with_its_path(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    for path in (tmp_path / "absent.yaml", broken):
        with pytest.raises(SpecError, match=path.name):
            load_config(path)
    broken.write_text("- just\n- a list\n")
    with pytest.raises(SpecError, match="mapping"):
        load_config(broken)


def test_dates_are_midnight_utc_and_overrides_replace_top_level_keys():
    config = load_config(FLIGHTS, store="/elsewhere")
    assert config.schedule.start == datetime(2013, 1, 31, tzinfo=timezone.utc)
    assert config.table("flights") == "/elsewhere/valid/flights"
    assert config.table("weather") == "/elsewhere/raw/weather", "it is not validated"


def test_models_and_known_at_follow_from_the_configuration():
    config = load_config(FLIGHTS)
    assert config.models == ("flight_delay_ewr", "flight_delay_jfk", "flight_delay_lga")
    assert config.sources()["flights"].known_at["dep_delay"] == "actual_departure"
    assert config.path("gate.yaml") == str(FLIGHTS.parent / "gate.yaml")
