"""What a stage needs to know of the Airflow run that it works for. Nothing else reads dates from the context."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.intervals import Grain, Interval
from airflow_ml_provider.provenance import Reason, RunInfo

if TYPE_CHECKING:
    from airflow.sdk import Context

_REASONS: dict[str, Reason] = {"scheduled": "schedule", "backfill": "backfill", "asset_triggered": "asset"}


def resolve_interval(context: Context | Mapping[str, Any], grain: Grain, given: Any = None) -> Interval:
    """Return the window of data that a run is about; every kind of run has one.

    The first of these that exists: the operator's own `interval`; the run's parameters `interval_start` and
    `interval_end`; the partition key (one that says only when a window begins means a window of `grain`); a data
    interval that is not empty; the interval in the extra of the newest triggering asset event; the last complete
    `grain` before the logical date, or before `run_after` without one. (`@daily` has an empty data interval in
    Airflow 3: its run at midnight is about the day before.)

    Raises:
        SpecError: one of them exists but is not a window of time.
    """
    ctx: Mapping[str, Any] = context
    if given:
        return _given(given)
    params = ctx.get("params") or {}
    if found := _from_bounds(params, "the run's parameters"):
        return found
    dag_run = ctx.get("dag_run")
    if key := ctx.get("partition_key") or getattr(dag_run, "partition_key", None):
        return Interval.from_key(key, grain)
    start, end = ctx.get("data_interval_start"), ctx.get("data_interval_end")
    if start and end and start < end:
        return Interval.of(start, end)
    if found := _from_asset_events(ctx):
        return found
    anchor = ctx.get("logical_date") or getattr(dag_run, "run_after", None)
    if anchor is None:
        raise invalid("interval", None, "given when the run has neither a logical date nor run_after")
    return _last_complete(anchor, grain)


def run_info(context: Context | Mapping[str, Any], interval: Interval) -> RunInfo:
    """Return the identity and the reason of the running task instance, without its try number."""
    ctx: Mapping[str, Any] = context
    ti, dag_run = ctx["ti"], ctx.get("dag_run")
    run_type = str(getattr(getattr(dag_run, "run_type", ""), "value", getattr(dag_run, "run_type", "")))
    bundle = getattr(ti, "bundle_instance", None)
    dag_version = getattr(ti, "dag_version_id", None)
    return RunInfo(
        dag_id=ti.dag_id,
        task_id=ti.task_id,
        run_id=ti.run_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        interval=interval,
        reason=_REASONS.get(run_type, "manual"),
        trigger=_trigger(ctx, run_type),
        cleared=bool(getattr(dag_run, "clear_number", 0)),
        clear_number=int(getattr(dag_run, "clear_number", 0) or 0),
        code_version=str(bundle.version) if bundle is not None and bundle.version else None,
        dag_version=str(dag_version) if dag_version else None,
    )


def unfinished_predecessor(context: Context | Mapping[str, Any]) -> tuple[str, bool] | None:
    """Return the run before this one, by logical date, whose task of this name has not ended: its id, and if it runs.

    Of a mapped task all instances must have ended. A run that does not run is queued. None when there is nothing to
    wait for.
    """
    ti = context["ti"]
    before = ti.get_previous_dagrun()
    if before is None or (state := str(getattr(before.state, "value", before.state))) not in ("queued", "running"):
        return None
    from airflow_ml_provider.triggers.previous import has_ended

    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[before.run_id])
    return None if has_ended(states, before.run_id) else (str(before.run_id), state == "running")


def _given(value: Any) -> Interval:
    if isinstance(value, Interval):
        return value
    if isinstance(value, Mapping) and {"start", "end"} <= set(value):
        start, end = _moment(value["start"]), _moment(value["end"])
        return Interval(start, end, value["key"]) if value.get("key") else Interval.of(start, end)
    if isinstance(value, str):
        start_text, slash, end_text = value.partition("/")
        return Interval.of(_moment(start_text), _moment(end_text)) if slash else Interval.from_key(value)
    raise invalid("interval", value, "an Interval, START/END, a partition key, or a mapping with start and end")


def _moment(value: Any) -> datetime:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        raise invalid("interval bound", value, "an ISO 8601 time such as 2013-01-05T00:00:00+00:00") from None
    if moment.tzinfo is None:
        raise invalid("interval bound", value, "a time with a time zone", "append Z or an offset")
    return moment


def _from_bounds(values: Mapping[str, Any], where: str) -> Interval | None:
    """Return the window between `interval_start` and `interval_end`; none without them."""
    bounds = {name: values.get(name) for name in ("interval_start", "interval_end")}
    missing = [name for name, value in bounds.items() if not value]
    if len(missing) == 1:
        raise SpecError(f"{where} have only one bound of the window, {missing[0]} is missing: give both, or neither")
    return None if missing else Interval.of(*map(_moment, bounds.values()))


def _last_complete(anchor: datetime, grain: Grain) -> Interval:
    current = Interval.of_grain(anchor, grain)
    return Interval.of_grain(current.start - timedelta(seconds=1), grain)


def _asset_events(ctx: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return (asset name, event) of what triggered the run, each event once though an alias may list it again."""
    triggering = ctx.get("triggering_asset_events") or {}
    seen: dict[tuple[Any, ...], tuple[str, Any]] = {}
    for asset, events in triggering.items():
        for event in events:
            source = (event.source_dag_id, event.source_task_id, event.source_run_id, event.source_map_index)
            identity = (*source, str(event.timestamp))
            name = getattr(asset, "name", str(asset))
            if identity not in seen or hasattr(asset, "uri"):
                seen[identity] = (name, event)
    return list(seen.values())


def _from_asset_events(ctx: Mapping[str, Any]) -> Interval | None:
    found = []
    for _, event in _asset_events(ctx):
        if window := _from_bounds(event.extra or {}, "the extra of an asset event"):
            found.append(window)
    return max(found, key=lambda interval: interval.end, default=None)


def _trigger(ctx: Mapping[str, Any], run_type: str) -> str:
    if run_type == "asset_triggered":
        return ", ".join(sorted({name for name, _ in _asset_events(ctx)}))
    if run_type == "manual":
        return str(getattr(ctx.get("dag_run"), "triggering_user_name", None) or "")
    return ""
