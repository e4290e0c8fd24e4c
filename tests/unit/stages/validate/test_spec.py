from __future__ import annotations

from datetime import datetime, timezone

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.validate.spec import ProfileSpec, ValidateSpec

DAY = Interval.from_key("2013-01-05")
BATCH = DatasetRef("flights", "/data/raw", "sha256:0", interval=DAY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"minimum": {"completness": 0.9}}, "did you mean 'completeness'"),
        ({"minimum": {"overall": 90}, "key": ("id",)}, r"minimum.overall must be in \[0, 1\], got 90"),
        ({"minimum": {"accuracy": 0.9}}, "minimum.accuracy can never be met: nothing says how accuracy is measured"),
        ({"minimum": {"overall": 0.9}}, "minimum.overall can never be met"),
        ({"event_time": "t"}, "event_time and known_time go together"),
        ({"max_delay_s": -1}, "max_delay_s must be at least 0"),
    ],
)
def test_bad_profile(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ProfileSpec(**arguments)  # type: ignore[arg-type]


def test_measured() -> None:
    assert ProfileSpec().measured() == ()
    assert ProfileSpec(key=("id",), required=("a",)).measured() == ("completeness", "uniqueness")


def test_interval_comes_from_the_batch() -> None:
    spec = ValidateSpec(BATCH, "/data/valid", "/data/reports")
    assert spec.interval == DAY
    assert spec.quarantine_root == "/data/valid_quarantine"
    other = Interval.of(datetime(2013, 2, 1, tzinfo=timezone.utc), datetime(2013, 2, 2, tzinfo=timezone.utc))
    assert ValidateSpec(BATCH, "/data/valid", "/data/reports", interval=other).interval == other


def test_bad_spec() -> None:
    with pytest.raises(SpecError, match="interval must be given"):
        ValidateSpec(DatasetRef("x", "/x", "sha256:0"), "/t", "/r")
    with pytest.raises(SpecError, match=r"dataset\.format must be 'parquet', got 'csv'"):
        ValidateSpec(DatasetRef("x", "/x", "sha256:0", format="csv", interval=DAY), "/t", "/r")
    with pytest.raises(SpecError, match="quarantine must be another folder than target"):
        ValidateSpec(BATCH, "/t", "/r", quarantine="/t")
    with pytest.raises(SpecError, match="quarantine must be another folder than target"):
        ValidateSpec(BATCH, "/t", "/r", quarantine="file:///t/")


def test_libraries() -> None:
    assert set(ValidateSpec(BATCH, "/t", "/r").requires()) == {"duckdb", "pyarrow"}
    assert "yaml" not in ValidateSpec(BATCH, "/t", "/r", suite="/s.json").requires()
    assert ValidateSpec(BATCH, "/t", "/r", suite="/s.yaml").requires()["yaml"] == "PyYAML"
