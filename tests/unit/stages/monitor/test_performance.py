from __future__ import annotations

from datetime import timedelta

import pytest

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.monitor import performance
from airflow_ml_provider.stages.monitor.logic import Performance
from airflow_ml_provider.stages.monitor.performance import measure_arrived
from airflow_ml_provider.stages.monitor.spec import DriftPolicy

np = pytest.importorskip("numpy")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("duckdb")

POLICY = DriftPolicy(min_labels=4)
NAN = float("nan")
DAYS = [Interval.from_key(f"2013-01-{d:02d}") for d in range(1, 10)]


class Store:
    def __init__(self, folder):
        self.predictions, self.labels = str(folder / "predictions"), str(folder / "labels")

    def put(self, root, day, columns):
        path = tables.partition(root, DAYS[day])
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        return path

    def predict(self, day, scores, version="1", model="late"):
        columns = {"id": list(scores), "score": pa.array(scores.values(), pa.float32())}
        rows = len(scores)
        return self.put(
            self.predictions, day, {**columns, "model_name": [model] * rows, "model_version": [version] * rows}
        )

    def label(self, day, labels, **more):
        columns = {"id": list(labels), "label": pa.array(labels.values(), pa.int32()), **more}
        return self.put(self.labels, day, columns)

    def measure(self, day, labels="", **changes):
        options = {"key": ("id",), "interval": DAYS[day], "policy": POLICY, **changes}
        return measure_arrived(self.labels if labels == "" else labels, self.predictions, **options)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_labels_meet_predictions_of_earlier_days(store):
    first = store.predict(0, {"a": 0.9, "b": 0.2})
    second = store.predict(1, {"c": 0.8, "d": 0.4})
    arrived = store.label(1, {"a": 1, "b": 0, "c": 0, "d": 1})
    found = store.measure(1)
    done = found.performance
    assert (done.labels, done.rows, done.judged, done.base_rate) == (4, 4, True, 0.5)
    assert done.auc == 0.75  # a > b, a > c, d > b, d < c
    assert done.log_loss == pytest.approx(-np.log([0.9, 0.8, 0.2, 0.4]).mean(), rel=1e-6)
    assert found.read == (arrived, first, second)


def test_the_newest_prediction_of_a_row_counts(store):
    store.predict(0, {"a": 0.1, "b": 0.9}, version="1")
    store.predict(1, {"a": 0.9, "b": 0.1}, version="2")
    store.label(2, {"a": 1, "b": 0})
    done = store.measure(2).performance
    assert done.auc == 1.0
    assert done.models["late"]["versions"] == ["2"]


def test_later_predictions_stay_unseen(store):
    store.predict(0, {"a": 0.1, "b": 0.9})
    store.label(1, {"a": 1, "b": 0})
    before = store.measure(1)
    store.predict(3, {"a": 0.9, "b": 0.1})
    assert store.measure(1) == before


def test_newest_label_of_a_row_counts(store):
    store.predict(0, {"a": 0.9, "b": 0.2})
    times = [DAYS[0].start + timedelta(hours=h) for h in (1, 3, 2)]
    columns = {"id": ["a", "a", "b"], "label": [0, 1, 0], "label_known_at": times}
    store.put(store.labels, 1, columns)
    done = store.measure(1).performance
    assert (done.labels, done.rows, done.auc) == (2, 2, 1.0)


def test_by_model(store):
    store.predict(0, {"a": 0.9, "b": 0.2}, model="late_ewr", version="3")
    store.predict(1, {"c": 0.2, "d": 0.6}, model="late_jfk", version="5")
    store.label(1, {"a": 1, "b": 0, "c": 1, "d": 0})
    models = store.measure(1).performance.models
    assert list(models) == ["late_ewr", "late_jfk"]
    assert [(m["versions"], m["rows"], m["auc"]) for m in models.values()] == [(["3"], 2, 1.0), (["5"], 2, 0.0)]


def test_rows_that_were_never_scored_are_counted_only(store):
    store.predict(0, {"a": 0.9, "b": None})
    store.label(1, {"a": 1, "b": 0, "x": 0, "n": None})
    done = store.measure(1).performance
    assert (done.labels, done.rows, done.judged, done.auc) == (3, 1, False, None)


def test_scores_that_are_not_a_number_are_told(store):
    """The newest prediction counts even then: an older one would hide that the model is broken."""
    store.predict(0, {"a": 0.9, "b": 0.2, "c": 0.9, "d": 0.1}, version="1")
    store.predict(1, {"c": NAN, "d": NAN, "e": NAN}, model="late_jfk", version="2")
    store.label(2, dict.fromkeys("ac", 1) | dict.fromkeys("bde", 0))
    done = store.measure(2).performance
    assert (done.labels, done.rows, done.not_a_number, done.judged, done.auc) == (5, 2, 3, False, 1.0)
    told = {name: (m["rows"], m["not_a_number"], m["auc"]) for name, m in done.models.items()}
    assert told == {"late": (2, 0, 1.0), "late_jfk": (0, 3, None)}


@pytest.mark.parametrize("missing", [[NAN], [NAN, None], [NAN] * 400])
def test_labels_that_are_not_a_number_are_missing(store, missing):
    """With a null among them, or without: DuckDB reads the two differently."""
    store.predict(0, {"0": 0.9, "1": 0.2, "2": 0.3, "3": 0.8})
    labels = [1.0, 0.0, *missing]
    store.put(store.labels, 1, {"id": [str(i) for i in range(len(labels))], "label": labels})
    done = store.measure(1).performance
    assert (done.labels, done.rows, done.auc, done.base_rate) == (2, 2, 1.0, 0.5)


def test_nothing_but_labels_that_are_not_a_number(store):
    store.predict(0, {"a": 0.9, "b": 0.2})
    store.put(store.labels, 1, {"id": ["a", "b"], "label": [NAN, NAN]})
    assert store.measure(1).performance == Performance()


def test_a_label_that_is_not_a_number_replaces_no_known_one(store):
    store.predict(0, {"a": 0.9, "b": 0.2})
    times = [DAYS[0].start + timedelta(hours=h) for h in (1, 3, 2)]
    store.put(store.labels, 1, {"id": ["a", "a", "b"], "label": [1.0, NAN, 0.0], "label_known_at": times})
    assert store.measure(1).performance.auc == 1.0


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([1, 2, 0, 2], "got 2 in 2 rows"),
        ([1.0, 0.0, 0.5, None], "got 0.5 in 1 rows"),
        ([1.0, NAN, float("inf"), 0.0], "got inf in 1 rows"),
        (["1", "0", "late", None], "got late in 1 rows"),
        ([[1], [0], None, None], r"got \[0\] in 2 rows"),
    ],
)
def test_labels_that_are_no_labels(store, labels, told):
    store.predict(0, {"a": 0.9, "b": 0.2})
    path = store.put(store.labels, 1, {"id": list("abcd"), "label": labels})
    with pytest.raises(DataError, match=rf"label in {path} must be 0 or 1, {told}"):
        store.measure(1)


@pytest.mark.parametrize("labels", [[True, False, None], ["1", "0", None], [1.0, 0.0, None]])
def test_labels_of_any_type(store, labels):
    store.predict(0, {"a": 0.9, "b": 0.2, "c": 0.1})
    store.put(store.labels, 1, {"id": list("abc"), "label": labels})
    assert store.measure(1).performance.auc == 1.0


def test_predictions_may_carry_columns_of_any_name(store):
    carried = {"label": [0, 1], "filename": ["x", "y"], "file": [1, 2], "score": [0.9, 0.1]}
    path = store.put(store.predictions, 0, {"id": ["a", "b"], **carried})
    arrived = store.label(1, {"a": 1, "b": 0})
    found = store.measure(1)
    assert (found.performance.rows, found.performance.auc) == (2, 1.0)
    assert found.read == (arrived, path)


def test_few_labels_are_not_judged(store):
    store.predict(0, {"a": 0.9, "b": 0.2, "c": 0.1})
    store.label(1, {"a": 1, "b": 0, "c": 0})
    done = store.measure(1).performance
    assert (done.rows, done.judged, done.auc) == (3, False, 1.0)


def test_many_partitions_are_read_in_portions(store, monkeypatch):
    monkeypatch.setattr(performance, "_AT_ONCE", 2)
    for day in range(7):
        store.predict(day, {f"r{day}": day / 10, "again": day / 10})
    store.label(7, {"r0": 0, "r1": 0, "r6": 1, "again": 1, "never": 1})
    found = store.measure(7)
    assert found.performance.rows == 4
    assert found.performance.auc == 1.0
    assert [path.parent.name for path in found.read[1:]] == [f"interval={DAYS[d].key}" for d in (0, 1, 6)]


def test_nothing_arrived(store):
    store.predict(0, {"a": 0.9})
    assert store.measure(0).performance == Performance()
    assert store.measure(0, labels=None).performance == Performance()
    store.label(1, {})
    assert store.measure(1).performance == Performance()


def test_labels_without_any_prediction(store):
    store.label(1, {"a": 1})
    done = store.measure(1).performance
    assert (done.labels, done.rows, done.models) == (1, 0, {})


def test_several_key_columns_and_odd_names(store):
    store.put(store.predictions, 0, {"flight no": [1, 2], "day": ["x", "x"], "score": [0.9, 0.1]})
    store.put(store.labels, 1, {"flight no": [1, 2], "day": ["x", "x"], "label": [1, 0]})
    done = store.measure(1, key=("flight no", "day")).performance
    assert (done.rows, done.auc) == (2, 1.0)


def test_missing_columns(store):
    store.predict(0, {"a": 0.9})
    store.label(1, {"a": 1})
    with pytest.raises(DataError, match="lacks column flight_id; there are id, label"):
        store.measure(1, key=("flight_id",))
    store.put(store.predictions, 0, {"id": ["a"], "probability": [0.5]})
    with pytest.raises(DataError, match="lacks column score"):
        store.measure(1)
