from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.ingest.files import run
from airflow_ml_provider.stages.ingest.spec import Column, IngestSpec

DAY = Interval.from_key("2013-01-05")
COLUMNS = {
    "id": Column("string", required=True),
    "carrier": Column("string", required=True, aliases=("airline",)),
    "delay": Column("int"),
    "seen": Column("timestamp"),
}


class Landing:
    """A landing zone with a table behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "landing"
        self.target = folder / "table"
        self.folder.mkdir()

    def drop(self, name: str, body: str | bytes) -> Path:
        path = self.folder / name
        data = body.encode() if isinstance(body, str) else body
        path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") and isinstance(body, str) else data)
        return path

    def spec(self, **changes) -> IngestSpec:
        defaults = {
            "name": "flights",
            "source": f"{self.folder}/*",
            "target": str(self.target),
            "interval": DAY,
            "columns": COLUMNS,
            "key": ("id",),
            "version": "seen",
        }
        return IngestSpec(**{**defaults, **changes})

    def ingest(self, **changes):
        result = run(self.spec(**changes), RunInfo())
        counts = result.counts
        assert counts["read"] == counts["accepted"] + counts["duplicates"] + counts["quarantined"]
        return result

    def rows(self, interval: Interval = DAY) -> list[dict]:
        return parquet(self.target / f"interval={interval.key}" / "data.parquet")

    def dead(self, interval: Interval = DAY) -> list[dict]:
        return parquet(self.folder.parent / "table_quarantine" / f"interval={interval.key}" / "data.parquet")

    def state(self) -> dict[str, bytes]:
        """Every file below the tables with its bytes."""
        roots = (self.target, self.folder.parent / "table_quarantine")
        return {str(p.relative_to(self.folder.parent)): p.read_bytes() for r in roots for p in r.rglob("*.parquet")}


def parquet(path: Path) -> list[dict]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read().to_pylist()


@pytest.fixture
def landing(tmp_path):
    pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow")
    return Landing(tmp_path)
