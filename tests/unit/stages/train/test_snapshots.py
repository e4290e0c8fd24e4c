from __future__ import annotations

import importlib.util
import json
import logging
import random
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import MissingLibrary, SpecError
from airflow_ml_provider.stages.train import randomness
from airflow_ml_provider.stages.train.snapshots import Snapshots

pytest.importorskip("safetensors")


@pytest.fixture
def snapshots(tmp_path):
    return Snapshots(tmp_path / "snapshots", "sha256:recipe", keep=2)


def names(snapshots):
    return sorted(p.name for p in snapshots.place.folder.iterdir())


STATE = {
    "epoch": 3,
    "rate": 0.1,
    "names": ["a", None, True],
    "pair": (1, (2.5, "x")),
    "numbered": {0: {"exp": np.arange(3.0)}, 7: {}},
    "$odd": {"$tensor": "1"},
    "nothing": {},
}


class TestState:
    def test_comes_back_as_it_was(self, snapshots):
        snapshots.save(5, STATE, wait=True)
        step, state = snapshots.load()
        assert step == 5
        np.testing.assert_array_equal(state["numbered"][0].pop("exp"), np.arange(3.0))
        assert state == {**STATE, "numbered": {0: {}, 7: {}}}

    @pytest.mark.parametrize("kind", ["float32", "float64", "int64", "uint8", "bool", "int16"])
    @pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
    def test_arrays(self, snapshots, kind, shape):
        array = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(kind)
        snapshots.save(1, {"x": array, "turned": array.T}, wait=True)
        _, state = snapshots.load()
        for found, wanted in ((state["x"], array), (state["turned"], array.T)):
            assert (np.asarray(found).dtype, np.shape(found)) == (wanted.dtype, wanted.shape)
            np.testing.assert_array_equal(found, wanted)

    @given(
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text()),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.tuples(inner, inner),
                st.dictionaries(st.one_of(st.text(max_size=8), st.integers(), st.just("$tuple")), inner, max_size=3),
            ),
            max_leaves=12,
        )
    )
    @settings(max_examples=100, deadline=None)
    def test_any_json_like_value(self, tmp_path_factory, value):
        snapshots = Snapshots(tmp_path_factory.mktemp("s"), "r")
        snapshots.save(0, {"value": value}, wait=True)
        assert snapshots.load() == (0, {"value": value})

    @pytest.mark.parametrize("value", [object(), {1, 2}, b"x", np.array(["text"]), np.array([object()])])
    def test_what_cannot_be_kept(self, snapshots, value):
        with pytest.raises(SpecError, match="snapshot value must be a tensor, an array of numbers, JSON"):
            snapshots.save(1, {"x": value}, wait=True)
        assert snapshots.load() is None

    def test_no_pickle_anywhere(self, snapshots):
        snapshots.save(1, STATE, wait=True)
        files = sorted(p.name for p in (snapshots.place.folder / "step=1").iterdir())
        assert files == ["snapshot.json", "state.json", "tensors.safetensors"]

    @pytest.mark.parametrize(("step", "state"), [(-1, {}), (1, {"step": 3})])
    def test_bad_call(self, snapshots, step, state):
        with pytest.raises(SpecError, match="a step of 0 or more, and no state called 'step'"):
            snapshots.save(step, state, wait=True)


class TestKeeping:
    def test_last_ones(self, snapshots):
        for step in (8, 9, 10, 11):
            snapshots.save(step, {"x": step}, wait=True)
        assert names(snapshots) == ["step=10", "step=11"]
        assert snapshots.load() == (11, {"x": 11})

    def test_same_snapshot_twice_is_the_same_bytes(self, snapshots):
        randomness.seed(0)
        snapshots.save(1, {"x": np.ones(3)}, wait=True)
        before = {p.name: p.read_bytes() for p in (snapshots.place.folder / "step=1").iterdir()}
        snapshots.save(1, {"x": np.ones(3)}, wait=True)
        assert {p.name: p.read_bytes() for p in (snapshots.place.folder / "step=1").iterdir()} == before

    def test_clear(self, snapshots):
        snapshots.clear()
        snapshots.save(1, {}, wait=True)
        snapshots.clear()
        assert snapshots.load() is None


class TestDamage:
    @pytest.fixture(autouse=True)
    def two(self, snapshots):
        snapshots.save(9, {"x": 9}, wait=True)
        snapshots.save(10, {"x": 10}, wait=True)

    @pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "snapshot.json"])
    @pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
    def test_previous_one_is_taken_with_a_warning(self, snapshots, caplog, name, how):
        path = snapshots.place.folder / "step=10" / name
        data = path.read_bytes()
        if how == "missing":
            path.unlink()
        elif how == "cut":
            path.write_bytes(data[: len(data) // 2])
        else:
            middle = len(data) // 2
            path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        with caplog.at_level(logging.WARNING):
            assert snapshots.load() == (9, {"x": 9})
        assert "step=10 is damaged, taking the one before" in caplog.text

    def test_claimed_to_be_a_later_step(self, snapshots):
        (snapshots.place.folder / "step=10").rename(snapshots.place.folder / "step=12")
        assert snapshots.load() == (9, {"x": 9})

    def test_both_damaged(self, snapshots):
        for step in (9, 10):
            (snapshots.place.folder / f"step={step}" / "state.json").write_text("{}")
        assert snapshots.load() is None

    def test_training_goes_over_the_damaged_one(self, snapshots):
        (snapshots.place.folder / "step=10" / "state.json").write_text("{}")
        snapshots.save(10, {"x": "again"}, wait=True)
        assert names(snapshots) == ["step=10", "step=9"]
        assert snapshots.load() == (10, {"x": "again"})

    def test_killed_while_writing(self, snapshots):
        """What a killed writer leaves has another name; the next one removes it."""
        left = snapshots.place.folder / ".step=11"
        left.mkdir()
        (left / "tensors.safetensors").write_bytes(b"half")
        assert snapshots.load() == (10, {"x": 10})
        snapshots.save(12, {"x": 12}, wait=True)
        assert names(snapshots) == ["step=10", "step=12"]

    @pytest.mark.parametrize("other", ["sha256:other", "sha256:third"])
    def test_another_training_s_are_ignored_and_then_removed(self, snapshots, caplog, other):
        mine = Snapshots(snapshots.place.folder, other)
        assert mine.load() is None
        assert "is of another training (settings or data): ignored" in caplog.text
        mine.save(1, {"x": 1}, wait=True)
        assert names(snapshots) == ["step=1"]


class TestRandomness:
    def draw(self):
        return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn())]

    def test_goes_on_where_it_was(self, snapshots):
        randomness.seed(3)
        self.draw()  # leaves half of a pair of normal numbers behind in both
        snapshots.save(1, {}, wait=True)
        expected = self.draw() + self.draw()
        randomness.seed(4)
        snapshots.load()
        assert self.draw() + self.draw() == expected

    def test_ranks_differ_and_runs_do_not(self):
        drawn = []
        for rank in (0, 1, 0):
            randomness.seed(3, rank)
            drawn.append(self.draw())
        assert drawn[0] == drawn[2] != drawn[1]

    def test_state_is_json_and_tensors(self, snapshots):
        snapshots.save(1, {}, wait=True)
        body = json.loads((snapshots.place.folder / "step=1" / "state.json").read_text())
        assert body["randomness"]["as"] == "numpy"


class TestWriter:
    def test_training_goes_on_meanwhile_with_what_the_state_was(self, snapshots, monkeypatch):
        gate, put = threading.Event(), snapshots.place.put
        monkeypatch.setattr(snapshots.place, "put", lambda *args: gate.wait(10) and put(*args))
        array = np.zeros(3)
        snapshots.save(1, {"x": array})
        array[:] = 9
        assert snapshots.place.steps() == []
        gate.set()
        assert snapshots.load()[1]["x"].tolist() == [0, 0, 0]

    def test_an_error_is_raised_by_the_next_call(self, snapshots, monkeypatch):
        def full(*args):
            raise OSError("no space left")

        monkeypatch.setattr(snapshots.place, "put", full)
        snapshots.save(1, {})
        with pytest.raises(OSError, match="no space left"):
            snapshots.save(2, {})
        snapshots.finish()


@pytest.mark.parametrize("change", [(2, 1), (1, 3)])
def test_another_number_of_ranks(tmp_path, caplog, change):
    before, after = change
    states = []
    for rank in range(before):
        randomness.seed(3, rank)
        states.append(randomness.capture())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randomness, "gathered", lambda world_size: np.stack(states))
        Snapshots(tmp_path, "r", world_size=before).save(4, {"x": 1}, wait=before == 1)
        Snapshots(tmp_path, "r").finish()
    wait_for(lambda: (tmp_path / "step=4").exists())
    drawn = []
    for rank in range(after):
        with caplog.at_level(logging.INFO):
            assert Snapshots(tmp_path, "r", rank=rank, world_size=after, seed=3).load() == (4, {"x": 1})
        drawn.append(random.random())
    randomness.seed(3, 0)
    assert drawn[0] == random.random()
    assert len(set(drawn)) == after
    assert f"the snapshot is of {before} ranks, now there are {after}" in caplog.text


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


class TestStores:
    @pytest.fixture
    def remote(self, tmp_path):
        pytest.importorskip("fsspec")
        return Snapshots(f"memory://{tmp_path.name}/snapshots", "r", keep=2)

    def test_last_ones_are_kept_and_damage_is_passed_over(self, remote, caplog):
        for step in (1, 2, 3):
            remote.save(step, {"x": np.full(3, step)}, wait=True)
        assert remote.place.steps() == [2, 3]
        fs, folder = remote.place._fs, remote.place._folder(3)
        fs.pipe_file(f"{folder}/state.json", b"{}")
        assert remote.load()[0] == 2
        assert "step=3 is damaged, taking the one before" in caplog.text
        remote.clear()
        assert remote.load() is None

    def test_without_its_seal_it_is_not_there(self, remote):
        for step in (1, 2):
            remote.save(step, {}, wait=True)
        remote.place._fs.rm(f"{remote.place._folder(2)}/snapshot.json")
        assert remote.place.steps() == [1]

    def test_file_uri_is_a_folder(self, tmp_path):
        Snapshots(f"file://{tmp_path}/a", "r").save(1, {}, wait=True)
        assert (tmp_path / "a" / "step=1" / "snapshot.json").exists()

    @pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
    def test_package_of_a_scheme_is_named(self):
        with pytest.raises(MissingLibrary, match="-m pip install fsspec s3fs"):
            Snapshots("s3://bucket/x", "r")
