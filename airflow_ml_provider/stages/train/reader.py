"""Rows from Parquet files that do not fit into memory: to every rank its part, shuffled, and resumable at any batch.

Row groups are the unit. Their sizes stand in the files' footers, so every rank knows without reading which batches
there are, and a resumed reader goes to its place without replaying what came before. That is why this is not
torchdata's StatefulDataLoader, which keeps the state of its workers, and of one number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from airflow_ml_provider.exceptions import invalid

# File, row group, rows.
Group = tuple[int, int, int]


class Reader:
    """Iterates over the batches of an epoch, then of the next one; users get one from `run.reader`.

    There are as many shards as ranks when none is missing; with fewer ranks, each reads several. A batch then holds the
    same rows, whoever reads them.

    Parameters:
        files: Parquet files.
        columns: which are read.
        batch_size: rows per batch, of all ranks together; a multiple of the shards.
        shuffle: row groups by seed and epoch, and the rows of every `window` of them.
        window: row groups of a shard that are in memory at once.
    """

    def __init__(
        self, files: Sequence[Union[str, Path]], columns: Sequence[str], batch_size: int, *, shuffle: bool = True,
        window: int = 4, seed: int = 0, rank: int = 0, world_size: int = 1, shards: int = 1,
    ) -> None:  # fmt: skip
        import pyarrow.parquet as pq

        self._files = [str(path) for path in files]
        footers = [pq.read_metadata(path) for path in self._files]
        self._groups: list[Group] = [
            (f, g, footer.row_group(g).num_rows)
            for f, footer in enumerate(footers)
            for g in range(footer.num_row_groups)
        ]
        if len(self._groups) < shards:
            raise invalid(
                "row groups", len(self._groups), f"at least {shards}, one per rank", "write smaller row groups"
            )
        if batch_size < shards or batch_size % shards:
            raise invalid("batch_size", batch_size, f"a multiple of the {shards} ranks")
        if window < 1:
            raise invalid("window", window, "at least 1")
        self._columns, self._size, self._window = list(columns), batch_size // shards, window
        self._shuffle, self._seed, self._shards = shuffle, seed, shards
        self._mine = range(rank, shards, world_size)
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        """Return how many batches this epoch has: as many for every rank; rows that fill none are left out."""
        return min(sum(rows for _, _, rows in shard) for shard in self._assigned()) // self._size

    def __iter__(self) -> Iterator[Any]:
        """Give the rest of this epoch as Arrow tables; after the last one the next epoch is at its beginning."""
        import pyarrow as pa

        assigned, end = self._assigned(), len(self)
        parts = [self._shard(index, assigned[index], self.position) for index in self._mine]
        while self.position < end:
            tables = [next(part) for part in parts]
            self.position += 1  # before the batch is used: a snapshot after it goes on with the next one
            yield pa.concat_tables(tables)
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return where the reader is."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where a reader was."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _order(self, count: int, *key: int) -> Any:
        import numpy as np

        if not self._shuffle:
            return np.arange(count)
        return np.random.Generator(np.random.PCG64([self._seed, self.epoch, *key])).permutation(count)

    def _assigned(self) -> list[list[Group]]:
        """Return the row groups of each shard: each goes to the shard with the fewest rows so far."""
        shards: list[list[Group]] = [[] for _ in range(self._shards)]
        counts = [0] * self._shards
        for index in self._order(len(self._groups)):
            poorest = counts.index(min(counts))
            shards[poorest].append(self._groups[index])
            counts[poorest] += self._groups[index][2]
        return shards

    def _shard(self, shard: int, groups: list[Group], position: int) -> Iterator[Any]:
        """Give the batches of one shard from a position on; windows before it are not read."""
        import pyarrow as pa

        skip, rest = position * self._size, None
        for number, start in enumerate(range(0, len(groups), self._window)):
            window = groups[start : start + self._window]
            rows = sum(group[2] for group in window)
            if skip >= rows:
                skip -= rows
                continue
            order = self._order(rows, shard, number)
            table = pa.concat_tables([self._read(group) for group in window])
            table = table.take(pa.array(order)).slice(skip) if self._shuffle else table.slice(skip)
            skip = 0
            rest = table if rest is None else pa.concat_tables([rest, table])
            while rest.num_rows >= self._size:
                yield rest.slice(0, self._size)
                rest = rest.slice(self._size)

    def _read(self, group: Group) -> Any:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._files[group[0]]) as file:
            return file.read_row_group(group[1], columns=self._columns)
