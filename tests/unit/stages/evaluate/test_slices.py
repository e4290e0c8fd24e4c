from __future__ import annotations

import pytest

from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.stages.evaluate import slices
from airflow_ml_provider.stages.evaluate.metrics import Rows, measure
from airflow_ml_provider.stages.evaluate.slices import Groups, group, judge

np = pytest.importorskip("numpy")
pa = pytest.importorskip("pyarrow")


def chunked(values, type_=None):
    half = len(values) // 2
    return pa.chunked_array([pa.array(values[:half], type_), pa.array(values[half:], type_)])


def named(groups):
    return [groups.names[c] for c in groups.codes.tolist()]


class TestGroup:
    def test_texts(self):
        groups = group("carrier", chunked(["UA", None, "AA", "UA"], pa.string()))
        assert groups.names == ["carrier=AA", "carrier=UA", "carrier=(missing)"]
        assert named(groups) == ["carrier=UA", "carrier=(missing)", "carrier=AA", "carrier=UA"]

    def test_few_different_numbers_stay_as_they_are(self):
        groups = group("hour", chunked([7, 23, 7, None], pa.int64()))
        assert named(groups) == ["hour=7", "hour=23", "hour=7", "hour=(missing)"]
        assert group("x", chunked([0.5, 0.25])).names == ["x=0.25", "x=0.5"]

    def test_many_different_numbers_become_quartiles(self):
        groups = group("distance", chunked([float(i) for i in range(100)]))
        assert groups.names == ["distance=[0, 24)", "distance=[24, 49)", "distance=[49, 74)", "distance=[74, 99]"]
        assert np.bincount(groups.codes).tolist() == [24, 25, 25, 26]

    def test_quartiles_of_a_column_that_is_mostly_one_value(self):
        values = [0.0] * 90 + [float(i) for i in range(1, 41)]
        groups = group("precip", chunked(values))
        assert sum(np.bincount(groups.codes)) == 130
        assert named(groups)[0] != named(groups)[-1]

    def test_bools_and_dictionaries(self):
        assert group("b", chunked([True, False])).names == ["b=false", "b=true"]
        assert group("d", chunked(["x", "y"], pa.dictionary(pa.int8(), pa.string()))).names == ["d=x", "d=y"]

    def test_an_identifier_is_no_slice(self):
        with pytest.raises(DataError, match="'flight_id' has 5001 different values, at most 5000"):
            group("flight_id", chunked([str(i) for i in range(5001)]))

    def test_cross(self):
        a, b = group("a", chunked(["x", "y", "x"])), group("b", chunked(["1", "2", "2"]))
        both = a.cross(b)
        assert both.names == ["a=x*b=1", "a=x*b=2", "a=y*b=2"]
        assert named(both) == ["a=x*b=1", "a=y*b=2", "a=x*b=2"]

    def test_too_many_pairs(self, monkeypatch):
        monkeypatch.setattr(slices, "MAX_SLICES", 3)
        a = Groups(["a", "b"], np.array([0, 0, 1, 1]))
        with pytest.raises(DataError, match="4 slices of one kind are too many"):
            a.cross(Groups(["c", "d"], np.array([0, 1, 0, 1])))


class TestJudge:
    def judged(self, **changes):
        rng = np.random.default_rng(0)
        scores = rng.random(600)
        labels = (rng.random(600) < scores).astype(float)
        labels[:50] = 0.0
        codes = np.repeat([0, 1, 2, 3], [50, 20, 230, 300])
        order = np.argsort(-scores, kind="stable")
        rows = Rows.of(labels[order], scores[order])
        groups = Groups(["one label", "small", "c", "d"], codes[order])
        options = {"min_rows": 50, "resamples": 100, "confidence": 0.9, "seed": 0, **changes}
        return judge(rows, groups, 0.5, **options), labels, scores, codes

    def test_every_slice_is_listed_and_measured_exactly(self):
        found, labels, scores, codes = self.judged()
        assert [(e["slice"], e["rows"], e["judged"]) for e in found] == [
            ("one label", 50, False), ("small", 20, False), ("c", 230, True), ("d", 300, True),
        ]  # fmt: skip
        for code, e in enumerate(found):
            here = codes == code
            assert e["base_rate"] == pytest.approx(labels[here].mean())
            if e["judged"]:
                want = measure(Rows.of(labels[here], scores[here]), 0.5)
                assert {n: m["value"] for n, m in e["metrics"].items()} == pytest.approx(want)
            else:
                assert e["metrics"] == {}

    def test_a_slice_does_not_depend_on_its_neighbours(self):
        first, labels, scores, codes = self.judged()
        here = codes == 3
        order = np.argsort(-scores[here], kind="stable")
        alone = judge(
            Rows.of(labels[here][order], scores[here][order]), Groups(["d"], np.zeros(300, int)), 0.5,
            min_rows=50, resamples=100, confidence=0.9, seed=0,
        )  # fmt: skip
        assert alone == first[3:]
