"""The window and the reason of every kind of run."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from airflow.sdk import Asset, AssetAlias

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators._context import resolve_interval, run_info

DAY = datetime(2013, 1, 5, tzinfo=timezone.utc)
NEXT = DAY + timedelta(days=1)


def context(**over):
    run = SimpleNamespace(
        run_type=over.pop("run_type", "scheduled"),
        run_after=over.pop("run_after", datetime(2013, 1, 7, 9, 30, tzinfo=timezone.utc)),
        partition_key=None,
        clear_number=over.pop("clear_number", 0),
        triggering_user_name=over.pop("user", None),
    )
    ti = SimpleNamespace(
        dag_id="d", task_id="t", run_id="r", map_index=-1, dag_version_id="v1",
        bundle_instance=SimpleNamespace(version=over.pop("bundle", None)),
    )  # fmt: skip
    return {"dag_run": run, "ti": ti, "params": {}, **over}


def event(start, end, run_id="src", second=0):
    return SimpleNamespace(
        extra={"interval_start": start, "interval_end": end},
        source_dag_id="p", source_task_id="q", source_run_id=run_id, source_map_index=-1,
        timestamp=NEXT + timedelta(seconds=second),
    )  # fmt: skip


def test_data_interval_is_the_window():
    found = resolve_interval(context(data_interval_start=DAY, data_interval_end=NEXT), "day")
    assert (found.start, found.end, found.key) == (DAY, NEXT, "2013-01-05")


def test_empty_data_interval_means_the_day_before():
    """Airflow 3's `@daily` run at midnight has start == end == logical date."""
    found = resolve_interval(context(data_interval_start=NEXT, data_interval_end=NEXT, logical_date=NEXT), "day")
    assert found.key == "2013-01-05"


def test_run_without_any_date_is_about_the_last_complete_grain():
    assert resolve_interval(context(), "day").key == "2013-01-06"
    assert resolve_interval(context(), "hour").key == "2013-01-07T08"
    assert resolve_interval(context(), "month").key == "2012-12"


def test_order_of_sources():
    full = context(
        data_interval_start=DAY,
        data_interval_end=NEXT,
        partition_key="2013-01-03",
        params={"interval_start": "2013-01-02T00:00:00Z", "interval_end": "2013-01-03T00:00:00Z"},
    )
    assert resolve_interval(full, "day", "2013-01-01").key == "2013-01-01"
    assert resolve_interval(full, "day").key == "2013-01-02"
    full["params"] = {"interval_start": None, "interval_end": None}
    assert resolve_interval(full, "day").key == "2013-01-03"
    del full["partition_key"]
    assert resolve_interval(full, "day").key == "2013-01-05"


@pytest.mark.parametrize(("grain", "key"), [("day", "2013-01-01"), ("hour", "2013-01-01T00"), ("month", "2013-01")])
def test_a_partition_that_says_only_when_it_begins_is_of_the_grain(grain, key):
    """`CronPartitionTimetable` writes full timestamps, whatever its schedule."""
    assert resolve_interval(context(partition_key="2013-01-01T00:00:00"), grain).key == key


@pytest.mark.parametrize("given", ["interval_start", "interval_end"])
def test_one_bound_alone_is_no_window(given):
    with pytest.raises(SpecError, match="have only one bound of the window, interval_"):
        resolve_interval(context(params={given: "2013-01-05T00:00:00Z"}), "day")


def test_newest_asset_event_gives_the_window_and_the_reason():
    older = event("2013-01-04T00:00:00+00:00", "2013-01-05T00:00:00+00:00", "one")
    newer = event(DAY.isoformat(), NEXT.isoformat(), "two", 5)
    drift, alias = Asset(name="drift", uri="x-ml://drift"), AssetAlias("drift-alias")
    ctx = context(run_type="asset_triggered", triggering_asset_events={alias: [newer, older], drift: [older, newer]})
    found = resolve_interval(ctx, "day")
    assert found.key == "2013-01-05"
    info = run_info(ctx, found)
    assert (info.reason, info.trigger) == ("asset", "drift")


@pytest.mark.parametrize(
    ("run_type", "reason"), [("scheduled", "schedule"), ("backfill", "backfill"), ("manual", "manual")]
)
def test_reason_of_a_run(run_type, reason):
    info = run_info(context(run_type=run_type, user="ann", clear_number=2, bundle="abc"), Interval.of(DAY, NEXT))
    assert info.reason == reason
    assert info.trigger == ("ann" if reason == "manual" else "")
    assert info.cleared
    assert (info.code_version, info.dag_version) == ("abc", "v1")


def test_identity_is_that_of_the_task_instance():
    interval = Interval.of(DAY, NEXT)
    first, second = run_info(context(), interval), run_info(context(clear_number=3), interval)
    assert first.identity == second.identity


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("2013-01-05T00:00:00/2013-01-06", "time zone"),
        ("last tuesday", "YYYY-MM-DD"),
        ("2013-01-06T00:00:00Z/2013-01-05T00:00:00Z", "after its start"),
        (17, "START/END"),
    ],
)
def test_bad_windows_are_named(given, message):
    with pytest.raises(SpecError, match=message):
        resolve_interval(context(), "day", given)


def test_window_can_be_given_in_four_forms():
    forms = [
        Interval.of(DAY, NEXT), "2013-01-05", "2013-01-05T00:00:00Z/2013-01-06T00:00:00Z", {"start": DAY, "end": NEXT}
    ]  # fmt: skip
    assert {resolve_interval(context(), "day", form).key for form in forms} == {"2013-01-05"}
