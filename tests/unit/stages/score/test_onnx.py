"""The score stage on a real MLflow database."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

import pyarrow.parquet as pq

from airflow_ml_provider import models, stages, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.stages.score.spec import ScoreSpec
from airflow_ml_provider.stages.score.stream import row_groups
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.contracts import assert_idempotent
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
    pytest.mark.usefixtures("tracking_uri"),
]

DAY = Interval.from_key("2013-01-07")


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.registry = Registry.from_env()
        self.rows = packages.rows(500, seed=3, start=DAY.start)
        path = tables.partition(str(root / "joined"), DAY)
        self.dataset = packages.dataset(path, self.rows, name="joined", interval=DAY)

    def champion(self, name: str, at: Interval, **kwargs: object) -> ModelRef:
        folder = self.root / f"{name}-{at.key}"
        ref = packages.package(folder, name, **kwargs)  # type: ignore[arg-type]
        registered = self.registry.register(name, folder, ref, {"airflow_ml.identity": at.key}, "candidate")
        self.registry.move(
            name, "champion", registered, action="promote", info=RunInfo("d", "promote", at.key),
            effective_from=at.start, expected=self.registry.alias(name, "champion"),
        )  # fmt: skip
        return registered

    def spec(self, *names: str, **changes: object) -> ScoreSpec:
        body = {"target": str(self.root / "predictions"), "keep": ("flight_id",), **changes}
        return ScoreSpec(self.dataset, names or ("late",), **body)  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_predictions_of_an_interval(world):
    ref = world.champion("late", DAY)
    first, second = assert_idempotent(world.spec(), RunInfo(interval=DAY))
    assert first.status == "ok"
    assert first.models == (ref,)
    assert first.counts == {"rows": 500, "scored": 500, "without_model": 0, "late": 500}
    assert first.dataset == second.dataset
    path = Path(first.dataset.uri)
    assert path == world.root / "predictions" / "interval=2013-01-07" / "data.parquet"
    assert first.dataset.interval == DAY
    assert [(g["model"], g["version"], g["rows"]) for g in row_groups(path)] == [("late", "1", 500)]
    origin = json.loads(pq.read_metadata(path).metadata[b"airflow_ml.provenance"])
    assert origin["data"] == {"joined": world.dataset.digest}
    assert origin["models"] == [{"name": "late", "version": "1", "digest": ref.digest, "threshold": 0.5}]


def test_another_run_writes_the_same_bytes(world):
    world.champion("late", DAY)
    one = stages.run(world.spec(), RunInfo(run_id="one", interval=DAY))
    two = stages.run(world.spec(), RunInfo(run_id="two", interval=DAY, cleared=True, code_version="abc"))
    assert one.dataset.digest == two.dataset.digest


def test_old_data_is_scored_by_who_held_the_alias_then(world):
    old = world.champion("late", DAY)
    one = stages.run(world.spec(), RunInfo(interval=DAY))
    new = world.champion("late", Interval.from_key("2013-01-08"), seed=5)
    assert new.version == "2"
    again = stages.run(world.spec(), RunInfo(interval=DAY, reason="backfill"))
    assert again.models == (old,)
    assert again.dataset.digest == one.dataset.digest
    world.dataset = replace(world.dataset, interval=Interval.from_key("2013-01-08"))
    assert stages.run(world.spec(), RunInfo(interval=DAY)).models == (new,)


def test_a_promotion_after_the_fact_does_not_rewrite_what_was_scored_but_a_rollback_does(world):
    """A training that took long is journalled for windows that the champion before it has scored by then."""
    first = world.champion("late", DAY)
    one = stages.run(world.spec("late", "absent"), RunInfo(interval=DAY))
    second = world.champion("late", Interval.of(DAY.start, DAY.start + timedelta(hours=1)), seed=5)
    again = stages.run(world.spec("late", "absent"), RunInfo(interval=DAY, cleared=True))
    assert (again.models, again.dataset.digest) == ((first,), one.dataset.digest)
    assert stages.run(world.spec("late", "absent", rescore=True), RunInfo(interval=DAY)).models == (second,)

    world.registry.move(
        "late", "champion", first, action="rollback", info=RunInfo("d", "rollback", "r"), effective_from=DAY.start,
        expected="2",
    )  # fmt: skip
    back = stages.run(world.spec("late", "absent"), RunInfo(interval=DAY))
    assert back.models == (first,)
    assert stages.run(world.spec("late", "absent"), RunInfo(interval=DAY)).dataset.digest == back.dataset.digest


def test_old_predictions_that_cannot_be_read_are_replaced(world):
    world.champion("late", DAY)
    one = stages.run(world.spec(), RunInfo(interval=DAY))
    Path(one.dataset.uri).write_bytes(b"PAR1 half a file")
    assert stages.run(world.spec(), RunInfo(interval=DAY)).dataset.digest == one.dataset.digest


def test_the_holder_when_the_interval_began_not_when_it_ended(world):
    world.champion("late", DAY)
    later = Interval.of(DAY.start + timedelta(hours=12), DAY.end)
    world.champion("late", later, seed=5)
    assert [ref.version for ref in stages.run(world.spec(), RunInfo(interval=DAY)).models] == ["1"]


def test_before_the_first_champion_there_is_nothing_to_do(world):
    world.champion("late", Interval.from_key("2013-01-08"))
    result = stages.run(world.spec(), RunInfo(interval=DAY))
    assert result.status == "skipped"
    assert result.reason == "no champion for data of 2013-01-07: nobody held it at 2013-01-07 00:00 UTC for late"
    assert not (world.root / "predictions").exists()
    assert stages.run(world.spec("unheard_of"), RunInfo(interval=DAY)).status == "skipped"


def test_rows_of_no_segment_and_names_without_champion_are_told(world):
    for origin in ("EWR", "JFK"):
        world.champion(f"late_{origin.lower()}", DAY, segment={"origin": origin})
    result = stages.run(world.spec("late_ewr", "late_jfk", "late_lga"), RunInfo(interval=DAY))
    without = world.rows.column("origin").to_pylist().count("LGA")
    assert result.status == "ok"
    assert result.counts["without_model"] == without > 0
    assert result.reason == (f"{without} of 500 rows belong to no model and were left out; no champion yet: late_lga")
    assert {g["model"] for g in row_groups(Path(result.dataset.uri))} == {"late_ewr", "late_jfk"}


def test_a_version_of_choice(world):
    world.champion("late", DAY)
    world.champion("late", Interval.from_key("2013-01-08"), seed=5)
    assert [ref.version for ref in stages.run(world.spec(version="2"), RunInfo(interval=DAY)).models] == ["2"]
    with pytest.raises(DataError, match="version=9"):
        stages.run(world.spec(version="9"), RunInfo(interval=DAY))


def test_rows_are_flagged_at_the_operating_point_of_the_version(world):
    folder = world.root / "p"
    ref = packages.package(folder)
    tags = {"airflow_ml.identity": "x", "airflow_ml.threshold": "0.8"}
    ref = world.registry.register("late", folder, ref, tags, "candidate")
    world.registry.move(
        "late", "champion", ref, action="promote", info=RunInfo(), effective_from=DAY.start, expected=None
    )  # fmt: skip
    result = stages.run(world.spec(), RunInfo(interval=DAY))
    table = pq.read_table(result.dataset.uri)
    expected = [score >= 0.8 for score in table.column("score").to_pylist()]
    assert table.column("flagged").to_pylist() == expected
    assert 0 < sum(expected) < 250
    world.registry.tag("late", "1", {"airflow_ml.threshold": "0.1"})
    with pytest.raises(IntegrityError, match=r"has operating point 0\.1, the journal's entry 1 says 0\.8"):
        stages.run(world.spec(), RunInfo(interval=DAY))


def test_a_model_whose_folder_is_gone_is_downloaded(world):
    ref = world.champion("late", DAY)
    one = stages.run(world.spec(), RunInfo(interval=DAY))
    shutil.rmtree(ref.uri)
    assert stages.run(world.spec(), RunInfo(interval=DAY)).dataset.digest == one.dataset.digest
    stored = next((world.root / "mlartifacts").rglob(models.ONNX))
    stored.write_bytes(b"tampered")
    shutil.rmtree(world.root / "cache")
    with pytest.raises(IntegrityError, match="it was changed"):
        stages.run(world.spec(), RunInfo(interval=DAY))


def test_rows_that_are_not_those_of_the_ref(world):
    world.champion("late", DAY)
    packages.dataset(Path(world.dataset.uri), packages.rows(10))
    with pytest.raises(IntegrityError, match=r"dataset 'joined' at .* has digest"):
        stages.run(world.spec(), RunInfo(interval=DAY))
    Path(world.dataset.uri).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        stages.run(world.spec(), RunInfo(interval=DAY))


def test_a_whole_table_gives_the_interval_s_partition(world):
    world.champion("late", DAY)
    world.dataset = replace(world.dataset, uri=str(world.root / "joined"), digest="sha256:of-the-table")
    assert stages.run(world.spec(), RunInfo(interval=DAY)).counts["scored"] == 500


def test_lineage_names_rows_models_and_columns(world):
    world.champion("late", DAY)
    result = stages.run(world.spec(), RunInfo(interval=DAY))
    assert [ref.kind for ref in result.inputs] == ["dataset", "model"]
    told = result.facets["outputs"][result.dataset.uri]
    assert told["column_lineage"]["flight_id"] == [[world.dataset.uri, "flight_id"]]
    assert [name for _, name in told["column_lineage"]["score"]] == ["distance", "hour", "carrier"]
    assert told["quality_metrics"]["row_count"] == 500
    assert result.facets["inputs"][world.dataset.uri] == {"input_rows": 500}
