from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.train.reader import Reader


@pytest.fixture
def files(tmp_path):
    for part in range(3):
        table = pa.table({"x": list(range(part * 100, part * 100 + 100)), "y": [0] * 100})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=17)
    return sorted(tmp_path.glob("*.parquet"))


def reader(files, rank=0, world_size=1, **settings):
    return Reader(files, ["x"], 12, window=2, seed=3, rank=rank, world_size=world_size, **{"shards": 2, **settings})


def drawn(batches):
    return [batch.column("x").to_pylist() for batch in batches]


def test_every_rank_gets_equally_many_and_no_row_comes_twice(files):
    ranks = [drawn(reader(files, rank, 2)) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == len(reader(files)) > 20
    rows = [row for rank in ranks for batch in rank for row in batch]
    assert len(set(rows)) == len(rows) == 12 * len(ranks[0])


def test_goes_on_in_the_middle_of_an_epoch(files):
    first = reader(files)
    whole = drawn(first) + drawn(first)
    for stop in (1, 9, len(first), len(first) + 5):
        before = reader(files)
        seen = []
        while len(seen) < stop:
            for batch in before:
                seen += drawn([batch])
                if len(seen) == stop:
                    break
        after = reader(files)
        after.load_state_dict(before.state_dict())
        rest = drawn(after)
        assert seen + rest == whole[: stop + len(rest)]


def test_one_rank_reads_the_batches_of_two(files):
    both = [drawn(reader(files, rank, 2)) for rank in (0, 1)]
    assert drawn(reader(files)) == [a + b for a, b in zip(*both, strict=True)]


def test_epochs_and_seeds_differ_and_runs_do_not(files):
    one = reader(files)
    first, second = drawn(one), drawn(one)
    assert one.state_dict() == {"epoch": 2, "position": 0}
    assert first != second
    assert drawn(reader(files)) == first


def test_in_order_without_shuffling(files):
    assert drawn(reader(files, shards=1, shuffle=False))[0] == list(range(12))


@pytest.mark.parametrize(
    ("settings", "message"), [({"shards": 5}, "multiple of the 5"), ({"shards": 60}, "row groups")]
)
def test_what_cannot_be(files, settings, message):
    with pytest.raises(SpecError, match=message):
        reader(files, **settings)
