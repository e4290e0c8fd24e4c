"""The features stage on real flights and a real Feast store."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("feast")
pytest.importorskip("ibis")

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import Conflict, DataError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import protocol
from airflow_ml_provider.stages.features import repository
from airflow_ml_provider.stages.features.spec import FeaturesResult, FeaturesSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings(r"ignore:fetch_arrow_table\(\) is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Arrow output on a DB-API result:UserWarning"),
]

DAYS = ["2013-01-01", "2013-01-02", "2013-01-03"]
Run = Callable[..., FeaturesResult]


def contents(store: Path) -> dict[str, str]:
    """Return the digest of every data file and report of a store."""
    kinds = ("tables", "joined", "labels", "skew", "training")
    files = [f for kind in kinds for f in (store / kind).rglob("*") if f.is_file()]
    return {str(f.relative_to(store)): tables.file_digest(f) for f in files}


def online(store: Path) -> list[tuple[Any, ...]]:
    """Return everything in the online store."""
    with sqlite3.connect(store / "feast" / "online.db") as database:
        names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = "entity_key, feature_name, value, event_ts, created_ts"
        return sorted((name, *row) for name in names for row in database.execute(f'SELECT {columns} FROM "{name}"'))


class TestOneDay:
    def test_joined_rows_have_what_was_known_and_no_label(self, twelve_days: Path, read: Any) -> None:
        rows = read(twelve_days / "joined" / "interval=2013-01-05" / "data.parquet")
        assert len(rows) > 700
        first, last = rows[0]["event_timestamp"], rows[-1]["event_timestamp"]
        assert datetime(2013, 1, 5, tzinfo=timezone.utc) <= first <= last < datetime(2013, 1, 6, tzinfo=timezone.utc)
        assert list(rows[0])[:6] == ["flight_id", "event_timestamp", "carrier", "origin", "dest", "distance"]
        assert all(name.count("__") == 1 for name in list(rows[0])[6:])
        assert not {"label", "tailnum", "dep_delay"} & set(rows[0])
        known = [row for row in rows if row["origin_traffic__dep_delay_mean_24h"] is not None]
        assert len(known) == len(rows)

    def test_result_tells_what_was_made_of_what(self, run: Run, tmp_path: Path) -> None:
        result = run(tmp_path, DAYS[0])
        assert [ref.name for ref in result.tables] == [
            "origin_traffic", "carrier_arrivals", "route_arrivals", "aircraft_last_leg", "origin_weather",
        ]  # fmt: skip
        assert [ref.name for ref in result.outputs[-2:]] == ["joined", "labels"]
        assert [ref.name for ref in result.inputs] == ["flights", "weather"]
        assert result.skew is not None
        assert result.skew.passed is True
        lineage = result.facets["outputs"][result.dataset.uri]["column_lineage"]
        traffic = str(tmp_path / "tables" / "origin_traffic" / "interval=2013-01-01" / "data.parquet")
        assert lineage["origin_traffic__departures_3h"] == [[traffic, "departures_3h"]]
        assert lineage["distance"] == [[result.inputs[0].uri, "distance"]]
        table = result.facets["outputs"][traffic]["column_lineage"]
        assert table["dep_delay_mean_3h"] == [
            [result.inputs[0].uri, "dep_delay"], [result.inputs[0].uri, "actual_departure"]
        ]  # fmt: skip
        labels = result.facets["outputs"][result.labels.uri]["column_lineage"]
        assert [result.inputs[0].uri, "arr_delay"] in labels["label"]
        assert result.facets["run"]["provenance"].missing() == []
        codec.decode(FeaturesResult, json.loads(codec.canonical(result)))

    def test_a_departure_delay_cannot_get_in(self, run: Run, twelve_days: Path, sources: Any, read: Any) -> None:
        """Worsen every delay of flights that leave at noon or later: no feature of a flight before noon changes."""
        noon = "TIMESTAMPTZ '2013-01-05 17:00Z'"
        connection = tables.connect()
        changed = twelve_days.parent / "worse"
        root = Path(sources["flights"].root)
        for path in tables.partitions(str(root)):
            shift = f"CASE WHEN actual_departure >= {noon} THEN 600 ELSE 0 END"
            tables.write(
                connection,
                f"SELECT * REPLACE (dep_delay + {shift} AS dep_delay, arr_delay + {shift} AS arr_delay) FROM '{path}'",
                changed / "flights" / path.parent.name / path.name,
            )
        worse = {**sources, "flights": replace(sources["flights"], root=str(changed / "flights"))}
        for day in ("2013-01-04", "2013-01-05"):
            run(changed / "store", day, sources=worse, materialize=False)
        before = read(twelve_days / "joined" / "interval=2013-01-05" / "data.parquet")
        after = read(changed / "store" / "joined" / "interval=2013-01-05" / "data.parquet")
        limit = datetime(2013, 1, 5, 17, tzinfo=timezone.utc)
        early = [(a, b) for a, b in zip(before, after, strict=True) if a["event_timestamp"] <= limit]
        late = [(a, b) for a, b in zip(before, after, strict=True) if a["event_timestamp"] > limit + timedelta(hours=3)]
        skip = ("aircraft_last_leg",)  # only 4 and 5 January were computed, the aircraft's history began earlier
        names = [name for name in before[0] if not name.startswith(skip)]
        assert len(early) > 200
        assert all(a[name] == b[name] for a, b in early for name in names)
        assert any(a[name] != b[name] for a, b in late for name in names)

    def test_an_interval_without_rows(self, run: Run, tmp_path: Path, sources: Any, read: Any) -> None:
        empty = tmp_path / "flights" / "interval=2013-01-01" / "data.parquet"
        whole = tables.partition(sources["flights"].root, Interval.from_key("2013-01-01"))
        tables.write(tables.connect(), f"SELECT * FROM '{whole}' LIMIT 0", empty)
        nothing = {**sources, "flights": replace(sources["flights"], root=str(tmp_path / "flights"))}
        result = run(tmp_path / "store", "2013-01-01", sources=nothing)
        assert (result.status, result.dataset.rows, result.labels.rows) == ("ok", 0, 0)
        assert "origin_traffic__departures_3h" in result.dataset.columns
        skipped = run(tmp_path / "store", "2013-01-02", sources=nothing)
        assert skipped.reason == "no partition 2013-01-02 of flights"

    def test_without_a_spine_and_without_materialising(self, run: Run, tmp_path: Path) -> None:
        result = run(tmp_path, "2013-01-01", spine=None, materialize=False)
        assert (result.dataset, result.labels, result.skew) == (None, None, None)
        assert len(result.tables) == 5
        assert online(tmp_path) == []


class TestAgain:
    def test_running_twice_changes_nothing(self, run: Run, tmp_path: Path) -> None:
        first = [run(tmp_path, day) for day in DAYS[:2]]
        files, values = contents(tmp_path), online(tmp_path)
        registry = (tmp_path / "feast" / "registry.db").read_bytes()
        again = [run(tmp_path, day) for day in DAYS[:2]]
        assert contents(tmp_path) == files
        assert online(tmp_path) == values
        assert (tmp_path / "feast" / "registry.db").read_bytes() == registry
        assert [codec.canonical(r) for r in first] == [codec.canonical(r) for r in again]

    def test_the_order_of_the_days_does_not_matter(self, run: Run, tmp_path: Path) -> None:
        forward, back = tmp_path / "forward", tmp_path / "back"
        for day in DAYS:
            run(forward, day)
        for day in DAYS:  # the tables exist, as after an earlier backfill
            run(back, day, materialize=False)
        for day in reversed(DAYS):
            result = run(back, day)
        assert result.skew.summary == {"comparable": False}
        report = json.loads(Path(result.skew.uri).read_text())
        assert report["reason"] == "a later interval is in the online store already"
        assert online(back) == online(forward)

    def test_a_later_day_that_is_only_computed_yet_stays_out(self, run: Run, tmp_path: Path) -> None:
        """A concurrent run of the next day has written its tables when this one materialises."""
        run(tmp_path, DAYS[1], materialize=False)
        result = run(tmp_path, DAYS[0])
        assert (result.status, result.skew.summary) == ("ok", {"comparable": True, "share": 0.0})

    def test_an_old_interval_does_not_touch_newer_values(self, run: Run, tmp_path: Path) -> None:
        for day in (DAYS[0], DAYS[2]):
            run(tmp_path, day)
        before = {row[:3]: row for row in online(tmp_path)}
        run(tmp_path, DAYS[1])
        after = {row[:3]: row for row in online(tmp_path)}
        moments = {row[:3]: row[4] for row in before.values()}
        assert all(after[key][4] >= moments[key] for key in before)
        assert len(after) >= len(before)

    def test_a_value_that_somebody_else_wrote_for_later_stays(self, run: Run, tmp_path: Path) -> None:
        run(tmp_path, DAYS[0])
        with sqlite3.connect(tmp_path / "feast" / "online.db") as database:
            database.execute("UPDATE flight_delay_origin_traffic SET event_ts = 1893456000")
        before = [row for row in online(tmp_path) if row[0] == "flight_delay_origin_traffic"]
        run(tmp_path, DAYS[1], max_skew=1.0)
        assert [row for row in online(tmp_path) if row[0] == "flight_delay_origin_traffic"] == before

    def test_a_materialisation_far_into_the_future_breaks_nothing(self, run: Run, tmp_path: Path) -> None:
        run(tmp_path, DAYS[0])
        store = repository.open_store(Path(_repo()), tmp_path)
        store.materialize(datetime(2012, 1, 1), datetime(2999, 1, 1))
        result = run(tmp_path, DAYS[1])
        assert result.skew.summary == {"comparable": True, "share": 0.0}


class TestSkew:
    def test_values_that_differ_are_refused_with_numbers(self, run: Run, tmp_path: Path, monkeypatch: Any) -> None:
        from airflow_ml_provider.stages.features import online as module

        write = module._write

        def tampered(connection: Any, session: Any, view: Any) -> None:
            if view.name == "origin_traffic":
                connection.execute("UPDATE __newest SET dep_delay_mean_3h = 99 WHERE origin = 'EWR'")
            write(connection, session, view)

        monkeypatch.setattr(module, "_write", tampered)
        result = run(tmp_path, DAYS[0])
        assert result.status == "refused"
        assert "of the online values differ from the offline ones, at most 0.0000% are allowed" in result.reason
        report = json.loads(Path(result.skew.uri).read_text())
        view = report["views"]["origin_traffic"]
        assert (view["entities"], view["compared"], view["different"]) == (3, 18, 1)
        assert view["examples"][0]["online"] == "99.0"
        assert run(tmp_path, DAYS[0], max_skew=0.5).status == "ok"

    def test_equal_values_of_a_newer_day(self, twelve_days: Path) -> None:
        report = json.loads((twelve_days / "skew" / "interval=2013-01-12.json").read_text())
        assert report["share"] == 0.0
        assert report["views"]["aircraft_last_leg"]["compared"] > 800
        assert set(report["views"]) == set(report["tables"])


class TestFeast:
    def test_apply_only_when_definitions_changed(self, run: Run, tmp_path: Path) -> None:
        run(tmp_path, DAYS[0])
        applied = (tmp_path / "feast" / "applied.json").read_text()
        loaded = repository.load(Path(_repo()), tmp_path)
        assert applied == loaded.digest
        with repository.session(loaded) as session:
            assert session.apply() is False
        (tmp_path / "feast" / "applied.json").write_text("other")
        with repository.session(loaded) as session:
            assert session.apply() is True
            assert session.store.get_feature_view("origin_traffic").most_recent_end_time is not None

    def test_what_is_not_defined_any_more_is_removed(self, run: Run, tmp_path: Path) -> None:
        run(tmp_path, DAYS[0])
        loaded = repository.load(Path(_repo()), tmp_path)
        kept = [item for item in loaded.objects if item.name not in ("origin_weather", "flight_delay")]
        views = {name: view for name, view in loaded.views.items() if name != "origin_weather"}
        fewer = replace(loaded, objects=kept, views=views, digest="fewer")
        with repository.session(fewer) as session:
            session.apply()
        names = {view.name for view in repository.open_store(Path(_repo()), tmp_path).list_feature_views()}
        assert names == {"origin_traffic", "carrier_arrivals", "route_arrivals", "aircraft_last_leg"}

    def test_features_by_name_and_by_service(self, run: Run, tmp_path: Path) -> None:
        one = run(tmp_path, DAYS[0], features=("origin_weather:temp",)).dataset
        assert list(one.columns)[6:] == ["origin_weather__temp"]
        every = run(tmp_path, DAYS[0], features=("flight_delay",)).dataset
        assert len(every.columns) > 20
        with pytest.raises(SpecError, match="did you mean 'origin_weather'"):
            run(tmp_path, DAYS[0], features=("origin_wether:temp",))

    def test_definitions_that_do_not_work(self, run: Run, repository: Any, tmp_path: Path) -> None:
        repo = repository("from feast import Entity\nraise ValueError('no')", "tables: {}")
        with pytest.raises(SpecError, match=r"definitions\.py failed: ValueError: no"):
            run(tmp_path / "s", DAYS[0], repo=str(repo))
        repo = repository("x = 1", "tables: {}")
        with pytest.raises(SpecError, match="defines no feature view over files"):
            run(tmp_path / "s", DAYS[0], repo=str(repo))
        (repo / "definitions.py").unlink()
        with pytest.raises(SpecError, match=r"holds no definitions\.py"):
            run(tmp_path / "s", DAYS[0], repo=str(repo))

    def test_sql_that_does_not_fit_names_the_table(self, run: Run, repository: Any, tmp_path: Path) -> None:
        definitions = (Path(_repo()) / "definitions.py").read_text()
        features = (Path(_repo()) / "features.yaml").read_text()
        repo = repository(definitions, features.replace("avg(dep_delay)", "avg(carrier)", 1))
        with pytest.raises(SpecError, match="table 'origin_traffic': Binder Error: No function matches"):
            run(tmp_path / "s", DAYS[0], repo=str(repo))
        repo = repository(definitions, features.replace("temp: temp", "tmp: temp"))
        with pytest.raises(SpecError, match=r"column that feature view 'origin_weather' declares: 'temp'; did you"):
            run(tmp_path / "s", DAYS[0], repo=str(repo))

    def test_a_source_that_was_not_ingested(self, run: Run, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="source 'flights' has no partition up to 2012-12-31"):
            run(tmp_path, "2012-12-31")


class TestLabels:
    def test_outcomes_come_on_the_day_they_are_known(self, twelve_days: Path, read: Any) -> None:
        labels = twelve_days / "labels"
        rows = {day: read(labels / f"interval=2013-01-{day:02}" / "data.parquet") for day in (10, 11, 12)}
        assert list(rows[10][0]) == ["flight_id", "event_timestamp", "label", "label_known_at"]
        for day, found in rows.items():
            start = datetime(2013, 1, day, tzinfo=timezone.utc)
            assert all(start <= row["label_known_at"] < start + timedelta(days=1) for row in found)
            assert {row["label"] for row in found} == {0, 1}
        assert any(row["event_timestamp"].day == 10 for row in rows[11])  # it was in the air at midnight

    def test_corrected_outcomes_come_again(self, twelve_days: Path, read: Any) -> None:
        rows = read(twelve_days / "labels" / "interval=2013-01-12" / "data.parquet")
        corrected = {row["flight_id"]: row["label"] for row in rows if row["event_timestamp"].day == 10}
        assert len(corrected) == 40
        before = {}
        for day in (10, 11):
            for row in read(twelve_days / "labels" / f"interval=2013-01-{day}" / "data.parquet"):
                before[row["flight_id"]] = row["label"]
        assert set(corrected) <= set(before)
        assert any(corrected[name] != before[name] for name in corrected)


class TestProcesses:
    def test_concurrent_backfill_of_one_store(self, run: Run, spec: Any, tmp_path: Path) -> None:
        children = [_start(spec(tmp_path / "together", day), tmp_path / f"{day}.json") for day in DAYS]
        for child in children:
            out = child.communicate(timeout=300)[1]
            assert child.returncode == 0, out
        for day in DAYS:
            run(tmp_path / "in_order", day)
        for day in DAYS:  # a day that ran before an earlier one was there sees that one's tables now
            run(tmp_path / "together", day)
        assert online(tmp_path / "together") == online(tmp_path / "in_order")
        there = repository.open_store(Path(_repo()), tmp_path / "together")
        assert len(there.get_feature_view("origin_traffic").materialization_intervals) == 3

    def test_killed_at_any_moment_a_retry_ends_as_if_nothing_had_happened(
        self, run: Run, spec: Any, tmp_path: Path
    ) -> None:
        run(tmp_path / "calm", DAYS[0])
        run(tmp_path / "calm", DAYS[1])
        run(tmp_path / "killed", DAYS[0])
        for wait in (0.02, 0.1, 0.25, 0.45):
            child = _start(spec(tmp_path / "killed", DAYS[1]), tmp_path / "outcome.json")
            deadline = time.monotonic() + 60
            first = tmp_path / "killed" / "tables" / "origin_traffic" / f"interval={DAYS[1]}"
            while child.poll() is None and not first.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(wait)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            repository.open_store(Path(_repo()), tmp_path / "killed").list_feature_views()  # never a torn registry
        run(tmp_path / "killed", DAYS[1])
        assert contents(tmp_path / "killed") == contents(tmp_path / "calm")
        assert online(tmp_path / "killed") == online(tmp_path / "calm")
        left = [f.name for f in (tmp_path / "killed").rglob(".*.tmp")]
        assert left == []

    def test_a_lock_that_is_not_given_back_is_a_retryable_error(self, tmp_path: Path) -> None:
        with repository.locked(tmp_path / ".lock", 1.0):
            code = (
                "import sys; from pathlib import Path; from airflow_ml_provider.stages.features import repository\n"
                "with repository.locked(Path(sys.argv[1]), 0.2): pass"
            )
            command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
            child = subprocess.run(command, capture_output=True, text=True, env=_environment())
        assert "was locked by another run for more than 0.2 s" in child.stderr
        assert Conflict.verdict == "retryable"


def _repo() -> str:
    return str(Path(__file__).parents[3] / "dags" / "flight_delay" / "features")


def _start(spec: FeaturesSpec, outcome: Path) -> subprocess.Popen[str]:
    """Start the stage in a process of its own, as the runtime does."""
    call = outcome.with_suffix(".call")
    protocol.write_call(call, spec, RunInfo())
    command = [sys.executable, "-m", "airflow_ml_provider.runtime", "features", "--spec", str(call)]
    command += ["--result", str(outcome)]
    return subprocess.Popen(command, env=_environment(), text=True, stderr=subprocess.PIPE, start_new_session=True)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
