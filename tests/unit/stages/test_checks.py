"""What sensors wait on, without Airflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import ClassVar

import pytest

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import DataError, SpecError, Unavailable
from airflow_ml_provider.stages import checks
from airflow_ml_provider.stages.checks import AliasCheck, Answer, FreshnessCheck, LabelsCheck, PartitionCheck
from airflow_ml_provider.testing import tracking

UTC = timezone.utc


def put(root: Path, key: str, query: str = "SELECT 1 AS id") -> None:
    """Write one partition."""
    pytest.importorskip("duckdb")
    with tables.connect() as connection:
        tables.write(connection, query, root / f"interval={key}" / "data.parquet")


def touch(root: Path, *keys: str) -> None:
    """Write partitions that nobody reads."""
    for key in keys:
        folder = root / f"interval={key}"
        folder.mkdir(parents=True)
        (folder / "data.parquet").touch()


class TestPartition:
    def test_all_keys_must_be_there(self, tmp_path: Path) -> None:
        touch(tmp_path, "2013-01-01", "2013-01-03")
        check = PartitionCheck(str(tmp_path), ("2013-01-01", "2013-01-02", "2013-01-03"))
        answer = check.ask({})
        assert not answer.done
        assert "lacks 1 of 3: 2013-01-02" in answer.message
        touch(tmp_path, "2013-01-02")
        assert check.ask({}) == Answer(
            True, f"{tmp_path} is complete for 2013-01-01, 2013-01-02, 2013-01-03",
            {"table": str(tmp_path), "partitions": ["2013-01-01", "2013-01-02", "2013-01-03"]},
        )  # fmt: skip

    def test_a_half_written_partition_is_none(self, tmp_path: Path) -> None:
        folder = tmp_path / "interval=2013-01-01"
        folder.mkdir()
        (folder / ".data.parquet.abc.tmp").touch()
        assert not PartitionCheck(str(tmp_path), ("2013-01-01",)).ask({}).done

    def test_a_later_partition_answers_only_where_that_is_asked(self, tmp_path: Path) -> None:
        touch(tmp_path, "2013-01-08")
        assert not PartitionCheck(str(tmp_path), ("2013-01-07",)).ask({}).done
        assert PartitionCheck(str(tmp_path), ("2013-01-07",), later=True).ask({}).done
        assert not PartitionCheck(str(tmp_path), ("2013-01-09",), later=True).ask({}).done

    def test_rows_are_counted_over_all_partitions(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        for day, rows in (("01", 2), ("02", 3)):
            put(tmp_path, f"2013-01-{day}", f"SELECT * FROM range({rows})")
        keys = ("2013-01-01", "2013-01-02")
        answer = PartitionCheck(str(tmp_path), keys, min_rows=6).ask({})
        assert (answer.done, answer.value["rows"]) == (False, 5)
        assert "has 5 of at least 6 rows" in answer.message
        assert PartitionCheck(str(tmp_path), keys, min_rows=5).ask({}).done

    def test_one_partition_of_the_whole_window_answers_for_its_parts(self, tmp_path: Path) -> None:
        check = PartitionCheck(str(tmp_path), ("2013-01-07", "2013-01-08"), whole="2013-01-07--2013-01-09")
        assert not check.ask({}).done
        touch(tmp_path, "2013-01-07--2013-01-09")
        assert check.ask({}).value["partitions"] == ["2013-01-07--2013-01-09"]

    def test_no_table_yet(self, tmp_path: Path) -> None:
        assert not PartitionCheck(str(tmp_path / "none"), ("2013-01-01",)).ask({}).done


class TestLabels:
    @pytest.fixture
    def check(self, tmp_path: Path) -> LabelsCheck:
        put(tmp_path / "predictions", "2013-01-05", "SELECT i AS id, 0.5 AS score FROM range(10) t(i)")
        return LabelsCheck(
            str(tmp_path / "predictions"), str(tmp_path / "labels"), ("id",), "2013-01-05", min_share=0.5, min_labels=4
        )

    def test_no_predictions_yet(self, tmp_path: Path) -> None:
        answer = LabelsCheck(str(tmp_path), str(tmp_path), ("id",), "2013-01-05").ask({})
        assert (answer.done, answer.message) == (False, f"{tmp_path} has no predictions for 2013-01-05 yet")

    def test_no_labels_yet(self, check: LabelsCheck) -> None:
        answer = check.ask({})
        assert not answer.done
        assert answer.message == "0 of 10 predictions of 2013-01-05 have a label (0.0%)"

    def test_labels_of_several_days_count_once_each(self, check: LabelsCheck, tmp_path: Path) -> None:
        labels = tmp_path / "labels"
        put(labels, "2013-01-05", "SELECT i AS id, 1 AS label FROM range(3) t(i)")
        assert not check.ask({}).done
        # Arrived late, one again, one of another day, one without an outcome.
        put(labels, "2013-01-06", "SELECT * FROM (VALUES (2, 1), (3, 0), (4, 0), (99, 1), (5, NULL)) t(id, label)")
        answer = check.ask({})
        assert answer.done
        assert answer.value == {"interval": "2013-01-05", "predictions": 10, "labels": 5, "share": 0.5}

    def test_labels_that_became_known_before_the_interval_are_of_others(
        self, check: LabelsCheck, tmp_path: Path
    ) -> None:
        put(tmp_path / "labels", "2013-01-04", "SELECT i AS id, 1 AS label FROM range(10) t(i)")
        assert not check.ask({}).done

    def test_predictions_of_all_parts_of_a_window(self, check: LabelsCheck, tmp_path: Path) -> None:
        week = replace(check, interval="2013-01-05--2013-01-07", parts=("2013-01-05", "2013-01-06"))
        assert week.ask({}).message.endswith("no predictions for 2013-01-06 yet")
        put(tmp_path / "predictions", "2013-01-06", "SELECT i AS id, 0.5 AS score FROM range(10, 20) t(i)")
        put(tmp_path / "labels", "2013-01-06", "SELECT i AS id, 1 AS label FROM range(5, 20) t(i)")
        assert week.ask({}).value == {
            "interval": "2013-01-05--2013-01-07", "predictions": 20, "labels": 15, "share": 0.75,
        }  # fmt: skip

    def test_columns_that_are_missing_are_named(self, check: LabelsCheck, tmp_path: Path) -> None:
        put(tmp_path / "labels", "2013-01-06", "SELECT 1 AS id, 1 AS label")
        with pytest.raises(DataError, match="flight_id"):
            replace(check, key=("flight_id",)).ask({})

    def test_bad_share(self) -> None:
        with pytest.raises(SpecError, match=r"min_share must be in \[0, 1\], got 90; give a fraction"):
            LabelsCheck("p", "l", ("id",), "2013-01-05", min_share=90)


class TestFreshness:
    def test_age_is_seen_from_the_run(self, tmp_path: Path) -> None:
        touch(tmp_path, "2013-01-04", "2013-01-05", "2013-01-09")
        at = datetime(2013, 1, 7, tzinfo=UTC)
        answer = FreshnessCheck(str(tmp_path), at, max_age_s=86400).ask({})
        assert answer.done
        assert answer.value == {"table": str(tmp_path), "interval": "2013-01-05", "age_s": 86400.0}
        assert not FreshnessCheck(str(tmp_path), at, max_age_s=86399).ask({}).done

    def test_windows_of_any_length(self, tmp_path: Path) -> None:
        at = datetime(2013, 1, 14, tzinfo=UTC)
        touch(tmp_path, "2013-01-07--2013-01-14", "2013-01-05", "somebodys-own")
        assert FreshnessCheck(str(tmp_path), at, max_age_s=0).ask({}).value["interval"] == "2013-01-07--2013-01-14"
        touch(tmp_path / "hours", "2013-01-13--2013-01-13T06")
        answer = FreshnessCheck(str(tmp_path / "hours"), at, max_age_s=3600).ask({})
        assert (answer.done, answer.value["age_s"]) == (False, 18 * 3600.0)

    def test_nothing_yet(self, tmp_path: Path) -> None:
        answer = FreshnessCheck(str(tmp_path), datetime(2013, 1, 7, tzinfo=UTC)).ask({})
        assert "has no partition before 2013-01-07" in answer.message


class TestAlias:
    """Against a real MLflow database."""

    pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

    @pytest.fixture
    def registry(self, tmp_path: Path) -> object:
        pytest.importorskip("mlflow")
        from airflow_ml_provider.registry import Registry

        self.env = {"MLFLOW_TRACKING_URI": tracking.embedded(tracking.template(), tmp_path)}
        return Registry.from_env(self.env)

    def add(self, registry: object) -> str:
        with registry._client() as client:
            if not registry.alias("late", "no") and not client.search_registered_models():
                client.create_registered_model("late")
            tags = {"airflow_ml.digest": "sha256:" + "0" * 64}
            return str(client.create_model_version("late", "file:///nowhere", tags=tags).version)

    def point(self, registry: object, version: str) -> None:
        from airflow_ml_provider.provenance import RunInfo

        registry.move(
            "late", "champion", registry.get("late", version), action="promote", info=RunInfo(run_id=version),
            effective_from=datetime(2013, 1, 1, tzinfo=UTC) + timedelta(days=int(version)),
            expected=registry.alias("late", "champion"),
        )  # fmt: skip

    def test_existence_version_and_moves(self, registry: object) -> None:
        ask = lambda **kwargs: AliasCheck("late", **kwargs).ask(self.env)  # noqa: E731
        assert ask() == Answer(False, "late@champion points to no version yet")
        self.add(registry)
        self.add(registry)
        before = datetime.now(UTC)
        self.point(registry, "1")
        answer = ask()
        assert answer.done
        assert answer.value["model"]["version"] == "1"
        assert answer.value["model"]["kind"] == "model"
        assert not ask(version="2").done
        assert not ask(other_than="1").done
        assert ask(moved_after=before).done
        between = datetime.now(UTC)
        assert not ask(moved_after=between).done
        self.point(registry, "2")
        assert ask(version="2", other_than="1", moved_after=between).done


def test_checks_survive_json() -> None:
    for check in (
        PartitionCheck("/t", ("a", "b"), True, 3),
        LabelsCheck("/p", "/l", ("id",), "2013-01-05"),
        FreshnessCheck("/t", datetime(2013, 1, 7, tzinfo=UTC)),
        AliasCheck("late", moved_after=datetime(2013, 1, 7, tzinfo=UTC)),
        checks.DriftCheck("/m", "late", "2013-01-05", share=0.5),
    ):
        assert checks.load(check.check, json.loads(json.dumps(codec.encode(check)))) == check


def test_only_known_checks() -> None:
    with pytest.raises(SpecError, match=r"unknown check 'os\.system'"):
        checks.load("os.system", {})
    with pytest.raises(SpecError, match="unknown check 'partitions'; did you mean 'partition'"):
        checks.load("partitions", {})
    with pytest.raises(SpecError, match="unknown key in check 'partition' 'tabel'; did you mean 'table'"):
        checks.load("partition", {"tabel": "/t", "keys": ["a"]})


@dataclass(frozen=True)
class Failing(checks.Check):
    check: ClassVar[str] = "failing"
    error: Exception

    def ask(self, env: Mapping[str, str]) -> Answer:
        raise self.error


def test_a_system_that_is_away_means_not_yet() -> None:
    assert checks.poll(Failing(Unavailable("no route")), dict) == Answer(False, "no answer: no route")


def test_what_waiting_cannot_mend_is_raised() -> None:
    with pytest.raises(SpecError, match="bad"):
        checks.poll(Failing(SpecError("bad")), dict)
    with pytest.raises(SpecError, match="check 'failing' needs pyarrow; install it where sensors run"):
        checks.poll(Failing(ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")), dict)


class TestDrift:
    @pytest.fixture
    def series(self, tmp_path: Path) -> str:
        from airflow_ml_provider.stages.monitor.logic import Entry
        from airflow_ml_provider.stages.monitor.series import folder, write

        place = folder(str(tmp_path), "late")
        write(place, Entry("2013-01-04", severity="significant", drift_share=0.9))
        write(place, Entry("2013-01-05", severity="warn", drift_share=0.25))
        write(place, Entry("2013-01-06", severity="none"))
        return str(tmp_path)

    def test_severity_or_share_of_exactly_that_interval(self, series: str) -> None:
        ask = lambda day, **kwargs: checks.DriftCheck(series, "late", f"2013-01-{day}", **kwargs).ask({}).done  # noqa: E731
        assert ask("04")
        assert not ask("05")
        assert ask("05", severity="warn")
        assert ask("05", share=0.25)
        assert not ask("05", share=0.26)
        assert not ask("06", severity="warn", share=0.0)

    def test_drift_on_one_day_of_a_longer_window(self, series: str) -> None:
        days = tuple(f"2013-01-{day:02d}" for day in range(5, 12))
        ask = lambda days, **kwargs: checks.DriftCheck(series, "late", "w", parts=days, **kwargs).ask({})  # noqa: E731
        assert not ask(days).done
        assert ask(days, severity="warn").value["interval"] == "2013-01-05"
        assert ask(("2013-01-04", *days)).value["interval"] == "2013-01-04"

    def test_what_it_says(self, series: str) -> None:
        assert checks.DriftCheck(series, "late", "2013-01-05", "warn").ask({}) == Answer(
            True,
            "late 2013-01-05: severity warn, 25% of the columns drifted",
            {"interval": "2013-01-05", "severity": "warn", "drift_share": 0.25},
        )
        assert checks.DriftCheck(series, "late", "2013-01-07").ask({}).message.endswith("no point for 2013-01-07 yet")
