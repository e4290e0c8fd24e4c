"""The as-of join against Feast's own, on the same repository: equal where Feast looks at both timestamps."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("feast")
pytest.importorskip("ibis")

from airflow_ml_provider import tables
from airflow_ml_provider.stages.features import asof, compute, logic, repository

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings(r"ignore:fetch_arrow_table\(\) is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Arrow output on a DB-API result:UserWarning"),
]

DEFINITIONS = """
import os
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

DATA = os.environ["ML_FEATURE_STORE"]
customer = Entity(name="customer", value_type=ValueType.INT64)
shop = Entity(name="shop", value_type=ValueType.STRING)

def source(name, created="known"):
    return FileSource(name=name, path=f"{DATA}/{name}.parquet", timestamp_field="happened",
                      created_timestamp_column=created)

balance = FeatureView(name="balance", entities=[customer], schema=[Field(name="amount", dtype=Int64)],
                      source=source("balance"))
recent = FeatureView(name="recent", entities=[customer], ttl=timedelta(days=3),
                     schema=[Field(name="amount", dtype=Int64)], source=source("balance2"))
visits = FeatureView(name="visits", entities=[customer, shop], ttl=timedelta(days=9),
                     schema=[Field(name="spent", dtype=Float64), Field(name="count", dtype=Int64)],
                     source=source("visits"))
service = FeatureService(name="some", features=[balance, visits[["spent"]].with_name("shopping")])
"""
START = datetime(2023, 3, 1, tzinfo=timezone.utc)
COLUMNS = {"balance__amount": "balance:amount", "recent__amount": "recent:amount", "visits__spent": "visits:spent",
           "visits__count": "visits:count"}  # fmt: skip


def moment(rng: random.Random) -> datetime:
    return START + timedelta(seconds=rng.randrange(20 * 86400))


def history(rng: random.Random, rows: int) -> list[dict[str, Any]]:
    """Return rows of which a third are known late, some corrected: the same moment, known later, another value."""
    made = []
    for i in range(rows):
        happened = moment(rng)
        late = timedelta(seconds=rng.randrange(4 * 86400)) if rng.random() < 0.33 else timedelta(0)
        row = {"customer": rng.randrange(8), "shop": rng.choice("ab"), "happened": happened, "known": happened + late,
               "amount": i, "spent": i / 4, "count": i}  # fmt: skip
        made.append(row)
        if rng.random() < 0.1:
            made.append({**row, "known": row["known"] + timedelta(days=1), "amount": -i, "spent": -i / 4, "count": -i})
    return made


def brute_force(rows: list[dict[str, Any]], asked: dict[str, Any], keys: list[str], ttl: timedelta | None) -> Any:
    t = asked["event_timestamp"]
    usable = [r for r in rows if all(r[k] == asked[k] for k in keys) and r["happened"] <= t and r["known"] <= t]
    usable = [r for r in usable if ttl is None or r["happened"] + ttl >= t]
    return max(usable, key=lambda r: (r["happened"], r["known"])) if usable else None


@pytest.fixture(params=[1, 2, 3])
def world(request: Any, tmp_path: Path, repository: Any) -> dict[str, Any]:
    """Return random histories, rows to join to, and the repository, applied."""
    import pandas as pd

    rng = random.Random(request.param)
    store = tmp_path / "store"
    (store / "feast").mkdir(parents=True)
    rows = {name: history(rng, 300) for name in ("balance", "visits")}
    rows["balance2"] = rows["balance"]
    for name, made in rows.items():
        pd.DataFrame(made).to_parquet(store / f"{name}.parquet")
    asked = [{"customer": rng.randrange(10), "shop": rng.choice("ab"), "event_timestamp": moment(rng), "row": i}
             for i in range(400)]  # fmt: skip
    return {"repo": repository(DEFINITIONS, "tables: {}"), "store": store, "rows": rows, "asked": asked}


def ours(world: dict[str, Any], wanted: tuple[str, ...]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    loaded = repository.load(world["repo"], world["store"])
    picks = logic.choose(wanted, loaded.views, loaded.services)
    pq.write_table(pa.Table.from_pylist(world["asked"]), world["store"] / "asked.parquet")
    connection = tables.connect()
    connection.execute(f"CREATE TABLE asked AS FROM '{world['store']}/asked.parquet'")
    files = {pick.view.name: compute.matching(pick.view.path) for pick in picks}
    query = asof.join(connection, "asked", "event_timestamp", picks, files)
    found: list[dict[str, Any]] = connection.sql(f"FROM ({query}) ORDER BY row").to_arrow_table().to_pylist()
    return found


def theirs(world: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    import pandas as pd

    loaded = repository.load(world["repo"], world["store"])
    with repository.session(loaded) as session:
        session.apply()
        job = session.store.get_historical_features(
            pd.DataFrame(world["asked"]), list(COLUMNS.values()), full_feature_names=True, **options
        )
        found: list[dict[str, Any]] = job.to_arrow().sort_by("row").to_pylist()
    return found


def values(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in COLUMNS) for row in rows]


def test_equals_feast_with_its_created_filter_and_brute_force(world: dict[str, Any]) -> None:
    found = ours(world, tuple(COLUMNS.values()))
    assert values(found) == values(theirs(world, filter_by_created_timestamp=True))
    expected = []
    for asked in world["asked"]:
        balance = brute_force(world["rows"]["balance"], asked, ["customer"], None)
        recent = brute_force(world["rows"]["balance"], asked, ["customer"], timedelta(days=3))
        visit = brute_force(world["rows"]["visits"], asked, ["customer", "shop"], timedelta(days=9))
        expected.append((balance and balance["amount"], recent and recent["amount"], visit and visit["spent"],
                         visit and visit["count"]))  # fmt: skip
    assert values(found) == expected


def test_feast_by_default_uses_values_before_they_were_known(world: dict[str, Any]) -> None:
    exact, default = values(ours(world, tuple(COLUMNS.values()))), values(theirs(world))
    assert sum(a != b for a, b in zip(exact, default, strict=True)) > 50


def test_a_feature_service_with_an_alias(world: dict[str, Any]) -> None:
    rows = ours(world, ("some",))
    assert list(rows[0])[-2:] == ["balance__amount", "shopping__spent"]
    exact = values(ours(world, tuple(COLUMNS.values())))
    assert [(row["balance__amount"], row["shopping__spent"]) for row in rows] == [(v[0], v[2]) for v in exact]
