"""Training sets on real flights: what was known by when, and the locked test set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("feast")
pytest.importorskip("ibis")

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features.spec import Split, TrainingSetResult

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Train = Callable[..., TrainingSetResult]
END = datetime(2013, 1, 13, tzinfo=timezone.utc)
DAY = Interval.of_grain(END - timedelta(days=1), "day")  # its end is the cutoff
TEST_START, TRAIN_END = END - timedelta(days=2), END - timedelta(days=2, hours=1)


@pytest.fixture
def store(twelve_days: Path, tmp_path: Path) -> Path:
    """Return a store of its own with the feature tables of twelve days."""
    shutil.copytree(twelve_days / "tables", tmp_path / "store" / "tables")
    return tmp_path / "store"


def arrivals(sources: Any) -> dict[str, list[tuple[Any, ...]]]:
    """Return the versions of each flight: (label, known at, delivered on)."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    rows = tables.connect().execute(
        f"SELECT flight_id, CASE WHEN status = 'arrived' THEN (arr_delay >= 15)::INT END, "
        f"greatest(actual_arrival, corrected_at) FROM '{sources['flights'].root}/*/data.parquet' "
        f"WHERE status = 'arrived' ORDER BY recorded_at"
    )
    for name, label, known in rows.fetchall():
        found.setdefault(name, []).append((label, known))
    return found


def test_rows_and_their_order(store: Path, train: Train, read: Any) -> None:
    result = train(store, DAY)
    rows = read(result.train.uri)
    assert list(rows[0])[:6] == ["flight_id", "event_timestamp", "carrier", "origin", "dest", "distance"]
    assert list(rows[0])[-1] == "label"
    assert "origin_traffic__departures_3h" in rows[0]
    times = [(row["event_timestamp"], row["flight_id"]) for row in rows]
    assert times == sorted(times)
    assert times[-1][0] < TRAIN_END
    tested = read(result.test.uri)
    assert TEST_START <= tested[0]["event_timestamp"] <= tested[-1]["event_timestamp"] < END
    assert result.metrics == {
        "train_rows": len(rows), "train_positives": sum(r["label"] for r in rows),
        "test_rows": len(tested), "test_positives": sum(r["label"] for r in tested),
    }  # fmt: skip
    assert (result.train.interval.end, result.test.interval.start) == (TRAIN_END, TEST_START)


def test_labels_are_those_that_were_known_by_then(store: Path, train: Train, sources: Any, read: Any) -> None:
    result, known = train(store, DAY), arrivals(sources)
    for ref, limit in ((result.train, TRAIN_END), (result.test, END)):
        rows = {row["flight_id"]: row["label"] for row in read(ref.uri)}
        start, end = (
            (datetime(2013, 1, 1, tzinfo=timezone.utc), TRAIN_END) if ref is result.train else (TEST_START, END)
        )
        expected = {}
        spine = tables.connect().execute(
            f"SELECT DISTINCT flight_id FROM '{sources['flights'].root}/*/data.parquet' "
            f"WHERE scheduled_departure >= TIMESTAMPTZ '{start}' AND scheduled_departure < TIMESTAMPTZ '{end}'"
        )
        for (name,) in spine.fetchall():
            by_then = [label for label, moment in known.get(name, []) if moment <= limit]
            if by_then:
                expected[name] = by_then[-1]
        assert rows == expected


def test_a_correction_counts_only_once_it_was_known(store: Path, train: Train, sources: Any, read: Any) -> None:
    """Flights of the 10th were corrected on the 12th at 9:30."""
    corrected = {name: labels for name, labels in arrivals(sources).items() if len(labels) > 1}
    assert len(corrected) >= 40
    early = {r["flight_id"]: r["label"] for r in read(train(store, DAY, split=Split(test_s=86400)).train.uri)}
    late = {
        r["flight_id"]: r["label"] for r in read(train(store, DAY, split=Split(test_s=6 * 3600), name="l").train.uri)
    }
    changed = [name for name, labels in corrected.items() if labels[0][0] != labels[-1][0] and name in early]
    assert changed
    assert all(early[name] == corrected[name][0][0] and late[name] == corrected[name][-1][0] for name in changed)


def test_training_rows_equal_the_rows_that_were_scored(store: Path, twelve_days: Path, train: Train, read: Any) -> None:
    """No skew between training and serving: the same features as the daily runs had."""
    served = {}
    for path in tables.partitions(str(twelve_days / "joined")):
        served.update({row["flight_id"]: row for row in read(path)})
    trained = read(train(store, DAY).train.uri)
    assert len(trained) > 6000
    for row in trained:
        del row["label"]
        assert row == served[row["flight_id"]]


def test_since(store: Path, train: Train, read: Any) -> None:
    since = datetime(2013, 1, 8, 12, tzinfo=timezone.utc)
    result = train(store, DAY, since=since)
    assert read(result.train.uri)[0]["event_timestamp"] >= since
    assert result.train.interval.start == since


def test_running_again_changes_nothing(store: Path, train: Train) -> None:
    first = train(store, DAY)
    folder = Path(first.test.uri).parent
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    again = train(store, DAY)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert codec.canonical(first) == codec.canonical(again)
    lock = json.loads(before["lock.json"])
    assert lock["digest"] == first.test.digest
    assert lock["window"] == {"start": TEST_START.isoformat(), "end": END.isoformat()}


def test_later_deliveries_change_nothing(store: Path, train: Train, run: Any) -> None:
    first = train(store, DAY)
    run(store, "2013-01-13", materialize=False)
    assert train(store, DAY).test.digest == first.test.digest


def test_another_test_set_for_a_locked_interval_is_refused(store: Path, train: Train) -> None:
    first = train(store, DAY)
    with pytest.raises(IntegrityError, match=r"test set 'late' of 2013-01-12 was locked with digest sha256:.* remove"):
        train(store, DAY, split=Split(test_s=3 * 86400, gap_s=3600))
    assert tables.file_digest(Path(first.test.uri)) == first.test.digest
    assert not list(Path(first.test.uri).parent.glob(".*"))
    train(store, DAY, split=Split(test_s=3 * 86400, gap_s=3600), name="other")


def test_provenance_and_lineage(store: Path, train: Train, sources: Any) -> None:
    result = train(store, DAY)
    assert [ref.name for ref in result.views] == [
        "origin_traffic", "carrier_arrivals", "route_arrivals", "aircraft_last_leg", "origin_weather",
    ]  # fmt: skip
    assert result.inputs == (*result.views, result.inputs[-1])
    assert result.inputs[-1].uri == sources["flights"].root
    for ref in (result.train, result.test):
        lineage = result.facets["outputs"][ref.uri]["column_lineage"]
        assert lineage["origin_weather__temp"] == [[str(store / "tables" / "origin_weather"), "temp"]]
        assert [result.inputs[-1].uri, "arr_delay"] in lineage["label"]
    assert set(result.facets["run"]["provenance"].data) == {ref.name for ref in result.inputs}


def test_a_week_as_interval_sees_the_days_of_its_week(store: Path, train: Train, read: Any) -> None:
    monday = datetime(2013, 1, 7, tzinfo=timezone.utc)
    week = Interval(monday, monday + timedelta(days=6), "2013-01-07")
    assert read(train(store, week).test.uri)[-1]["event_timestamp"].day == 12


def test_too_few_rows(store: Path, train: Train) -> None:
    with pytest.raises(DataError, match=r"\d+ labelled training rows before 2013-01-10T23:00:00.*, at least 99999 are"):
        train(store, DAY, min_rows=99999)
    assert not (store / "training" / "late" / "interval=2013-01-12" / "train.parquet").exists()


def test_labels_that_are_neither_0_nor_1(store: Path, train: Train, spec: Any) -> None:
    spine = replace(spec(store, "2013-01-01").spine, label="CASE WHEN status = 'arrived' THEN arr_delay END")
    with pytest.raises(DataError, match="labels are neither 0 nor 1"):
        train(store, DAY, spine=spine)


def test_a_key_that_does_not_identify_the_rows(store: Path, train: Train, spec: Any) -> None:
    spine = replace(spec(store, "2013-01-01").spine, key=("carrier",), request={})
    with pytest.raises(DataError, match=r"spine\.key \['carrier'\] does not identify the rows"):
        train(store, DAY, spine=spine)


def test_feature_tables_that_were_never_computed(tmp_path: Path, train: Train) -> None:
    with pytest.raises(
        DataError, match=r"feature view 'origin_traffic' has no data at .* run the features stage first"
    ):
        train(tmp_path, DAY)


def test_nothing_left_for_training(store: Path, train: Train) -> None:
    with pytest.raises(SpecError, match="since must be before the end of the training rows"):
        train(store, DAY, since=END - timedelta(days=1))
