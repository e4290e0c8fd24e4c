"""A store with scored days, and champions in a real MLflow database."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("mlflow")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

from airflow_ml_provider import models, tables
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef, ModelRef
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.registry.mlflow import IDENTITY
from airflow_ml_provider.stages.monitor.sketch import Sketch, sketch_parquet
from airflow_ml_provider.stages.monitor.spec import DriftPolicy, MonitorSpec
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]

FIRST = packages.MIDNIGHT + timedelta(days=1)


@dataclass
class Store:
    root: Path
    champions: dict[str, ModelRef] = field(default_factory=dict)

    @property
    def output(self) -> str:
        return str(self.root / "monitor")

    def champion(self, name: str = "late", *, since: datetime = FIRST, seed: int = 0, segment=None) -> ModelRef:
        folder = self.root / "packages" / f"{name}-{seed}"
        ref = packages.package(folder, name, seed=seed, segment=segment)
        rows = packages.dataset(self.root / "training.parquet", packages.rows(4000, seed=1))
        inputs = models.read_manifest(folder).inputs
        training = sketch_parquet([Path(rows.uri)], inputs, segment)
        scores = self.scored(packages.rows(4000, seed=1), folder)
        columns = {**training.columns, "score": _sketch_of(scores, self.root).columns["score"]}
        (folder / models.REFERENCE).write_text(Sketch(training.rows, columns).to_json(), encoding="utf-8")
        registry = Registry.from_env()
        version = registry.register(name, folder, ref, {IDENTITY: f"i{seed}"}, "candidate")
        info = RunInfo(dag_id="train", task_id="promote", run_id=f"r-{name}-{seed}")
        before = registry.alias(name, "champion")
        registry.move(name, "champion", version, action="promote", info=info, effective_from=since, expected=before)
        self.champions[name] = version
        return version

    def scored(self, rows, folder=None):
        import pyarrow as pa

        folder = folder or Path(next(iter(self.champions.values())).uri)
        return pa.array(models.Scorer(folder).score(rows), pa.float32())

    def day(self, day: int, *, change=None, count: int = 800, labels: bool = True) -> DatasetRef:
        """Score a day and let its labels arrive a day later; `change` alters the rows."""
        interval = self.interval(day)
        rows = packages.rows(count, seed=100 + day, start=interval.start)
        rows = change(rows) if change else rows
        unlabelled = rows.drop_columns(["label"])
        dataset = packages.dataset(
            tables.partition(str(self.root / "joined"), interval), unlabelled, name="joined", interval=interval
        )
        predictions = rows.select(["flight_id", "event_timestamp"]).append_column("score", self.scored(rows))
        names = [["late"] * rows.num_rows, ["1"] * rows.num_rows]
        predictions = predictions.append_column("model_name", [names[0]]).append_column("model_version", [names[1]])
        packages.dataset(tables.partition(str(self.root / "predictions"), interval), predictions)
        if labels:
            arrived = rows.select(["flight_id", "event_timestamp", "label"])
            packages.dataset(tables.partition(str(self.root / "labels"), self.interval(day + 1)), arrived)
        return dataset

    def interval(self, day: int) -> Interval:
        return Interval.of_grain(FIRST + timedelta(days=day), "day")

    def spec(self, dataset: DatasetRef, **changes) -> MonitorSpec:
        body = {
            "name": "late",
            "dataset": dataset,
            "models": tuple(self.champions) or ("late",),
            "predictions": str(self.root / "predictions"),
            "output": self.output,
            "labels": str(self.root / "labels"),
            "key": ("flight_id",),
            "policy": DriftPolicy(window=2, needed=2, recover=2, cooldown=3),
            **changes,
        }
        return MonitorSpec(**body)


def _sketch_of(scores, root: Path) -> Sketch:
    import pyarrow as pa

    ref = packages.dataset(root / "scores.parquet", pa.table({"score": scores}))
    return sketch_parquet([Path(ref.uri)], {"score": "float"})


@pytest.fixture
def store(tmp_path, tracking_uri):
    return Store(tmp_path)


def night_shift(rows):
    """Every flight leaves three hours later, and UA is gone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = rows.filter(pc.not_equal(rows["carrier"], "UA"))
    later = pc.add(rows["hour"], pa.scalar(3.0))
    return rows.set_column(rows.schema.get_field_index("hour"), "hour", later)


@pytest.fixture
def drifted():
    return night_shift
