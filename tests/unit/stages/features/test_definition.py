from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.features import definition

ROLLING = {
    "source": "flights", "entity": ["origin"], "known_at": "actual_departure", "every": "1h", "windows": ["3h", "7d"],
    "aggregates": {"mean": "avg(dep_delay)", "n": "count(*)"},
}  # fmt: skip
ROWS = {"source": "weather", "entity": ["origin"], "columns": {"temp": "temp"}, "event_timestamp": "observed_at"}
SNAPSHOT = {"sql": "SELECT origin, count(*) AS n FROM flights GROUP BY ALL", "entity": ["origin"], "every": "1d"}


def test_three_shapes_and_their_feature_names() -> None:
    parsed = definition.parse({"tables": {"a": ROLLING, "b": ROWS, "c": SNAPSHOT}}).tables
    assert [table.shape for table in parsed.values()] == ["rolling", "rows", "snapshot"]
    assert parsed["a"].feature_names() == ("mean_3h", "n_3h", "mean_7d", "n_7d")
    assert parsed["b"].feature_names() == ("temp",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agregates": {}}, "unknown key in features.yaml.tables.a 'agregates'; did you mean 'aggregates'?"),
        ({"entity": []}, "entity must be at least one column"),
        ({"entity": "origin"}, "features.yaml.tables.a.entity must be of type list, got 'origin'"),
        ({"known_at": None}, "known_at is missing; a table of shape 'rolling' needs"),
        ({"event_timestamp": "x"}, "event_timestamp does not go with a table of shape 'rolling'"),
        ({"windows": ["3 hours"]}, "duration must be a whole number above 0 and a unit s, m, h, d or w"),
        ({"every": "0h"}, "duration must be"),
        ({"aggregates": {"a b": "count(*)"}}, "name must be letters, digits and single _"),
        ({"aggregates": {"x": "count(*)"}, "windows": ["3h", "3h"]}, "name must be used once, got 'x_3h'"),
    ],
)
def test_a_mistake_is_named_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        definition.parse({"tables": {"a": {**ROLLING, **change}}})
    assert message in str(error.value)


def test_plain_and_snapshot_tables_refuse_what_is_not_theirs() -> None:
    with pytest.raises(SpecError, match="known_at does not go with a table of shape 'rows'"):
        definition.parse({"tables": {"b": {**ROWS, "known_at": "x"}}})
    with pytest.raises(SpecError, match="where does not go with a table of shape 'snapshot'"):
        definition.parse({"tables": {"c": {**SNAPSHOT, "where": "true"}}})


def test_file_that_is_missing_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"a feature repository needs features\.yaml"):
        definition.read(tmp_path)
    (tmp_path / "features.yaml").write_text("tables: [")
    with pytest.raises(SpecError, match="is not YAML"):
        definition.read(tmp_path)


def test_unknown_source_names_the_nearest() -> None:
    parsed = definition.parse({"tables": {"a": {**ROLLING, "source": "flihgts"}}})
    with pytest.raises(SpecError, match="did you mean 'flights'"):
        definition.check_sources(parsed, ["flights", "weather"])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("3h", 10800), ("7d", 604800), ("2w", 1209600)]
)
def test_durations(text: str, seconds: int) -> None:
    assert definition.seconds(text) == seconds
