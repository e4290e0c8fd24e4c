"""What all stage operators share: runtime, publishing, refusals, errors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import ClassVar

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from airflow_ml_provider.exceptions import DataError, SpecError, Unavailable
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.operators import _base
from airflow_ml_provider.operators._base import StageOperator, summary
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages import Result, Spec
from airflow_ml_provider.testing.context import context as fake_context

DAY = datetime(2013, 1, 5, tzinfo=timezone.utc)
ROWS = DatasetRef(name="rows", uri="/data/rows.parquet", digest="sha256:1", rows=3)


@dataclass(frozen=True)
class EchoResult(Result):
    dataset: DatasetRef | None = None


@dataclass(frozen=True)
class EchoSpec(Spec):
    """A stage that answers what it is asked to."""

    stage: ClassVar[str] = "echo"
    entry: ClassVar[str] = ""
    result: ClassVar[type[Result]] = EchoResult
    status: str = "ok"


class FakeRuntime:
    """A runtime that returns what the spec says, or raises."""

    def __init__(self, error: Exception | None = None):
        self.error, self.env, self.cancelled = error, None, False

    def call(self, spec, info, env):
        self.env = dict(env)
        if self.error:
            raise self.error
        return EchoResult(
            status=spec.status, reason="because", outputs=(ROWS,), dataset=ROWS, facets={"run": {"big": "x" * 10}}
        )

    def cancel(self):
        self.cancelled = True


class EchoOperator(StageOperator):
    def __init__(self, status="ok", **kwargs):
        self.status = status
        super().__init__(**kwargs)

    def build_spec(self, interval, context):
        return EchoSpec(status=self.status)


class Ti(SimpleNamespace):
    def xcom_push(self, key, value):
        self.pushed[key] = value


def context(outlets=()):
    ti = Ti(
        dag_id="d", task_id="t", run_id="r", map_index=None, dag_version_id=None, bundle_instance=None, pushed={}
    )  # fmt: skip
    run = SimpleNamespace(run_type="scheduled", run_after=DAY, clear_number=0)
    events = {asset: SimpleNamespace(extra={}) for asset in outlets}
    return {
        "ti": ti, "dag_run": run, "params": {}, "outlet_events": events,
        "data_interval_start": DAY, "data_interval_end": DAY + timedelta(days=1),
    }  # fmt: skip


def make(runtime=None, **kwargs):
    return EchoOperator(task_id="t", runtime=runtime or FakeRuntime(), **kwargs)


def test_result_goes_to_xcom_without_facets_and_refs_get_their_own_keys():
    ctx = context()
    value = make().execute(ctx)
    assert value["dataset"]["digest"] == "sha256:1"
    assert "facets" not in value
    assert ctx["ti"].pushed == {"dataset": value["dataset"]}


def test_outlets_learn_window_and_digests():
    asset = Asset(name="rows", uri="x-ml://rows")
    ctx = context([asset])
    make(outlets=[asset]).execute(ctx)
    extra = ctx["outlet_events"][asset].extra
    assert extra["partition"] == "2013-01-05"
    assert extra["digests"] == {"rows": "sha256:1"}


@pytest.mark.parametrize(
    ("status", "on_refusal", "raised"),
    [
        ("refused", "fail", AirflowFailException),
        ("refused", "skip", AirflowSkipException),
        ("skipped", "fail", AirflowSkipException),
    ],
)
def test_refusals_push_their_report_before_they_raise(status, on_refusal, raised):
    ctx = context()
    with pytest.raises(raised, match="because"):
        make(status=status, on_refusal=on_refusal).execute(ctx)
    assert ctx["ti"].pushed["return_value"]["status"] == status


def test_terminal_errors_are_not_retried_and_retryable_ones_are():
    with pytest.raises(AirflowFailException, match="bad rows"):
        make(FakeRuntime(DataError("bad rows"))).execute(context())
    with pytest.raises(Unavailable):
        make(FakeRuntime(Unavailable("away"))).execute(context())


def test_a_window_that_cannot_be_found_is_not_retried():
    with pytest.raises(AirflowFailException, match="partition key must be"):
        make(interval="the day before yesterday").execute(context())


def test_kill_reaches_the_runtime():
    runtime = FakeRuntime()
    make(runtime).on_kill()
    assert runtime.cancelled


def test_bad_arguments_fail_when_the_dag_is_parsed():
    with pytest.raises(SpecError, match="on_refusal must be one of fail, skip"):
        make(on_refusal="explode")
    with pytest.raises(SpecError, match="runtime"):
        make(runtime=42)


@pytest.mark.parametrize(
    ("given", "expected"), [("id", ("id",)), (["id", "day"], ("id", "day")), ("", ()), (None, ()), ((), ())]
)
def test_one_name_is_no_list_of_letters(given, expected):
    assert _base.names(given) == expected


def test_summary_is_plain_json():
    import json

    assert json.loads(json.dumps(summary(EchoResult(dataset=ROWS))))["dataset"]["rows"] == 3


def test_a_stage_that_waits_defers_and_goes_on_with_the_event(tmp_path):
    from airflow_ml_provider.stages.checks import LandingCheck

    class WaitingOperator(EchoOperator):
        def awaits(self, interval):
            return LandingCheck(str(tmp_path / f"{interval.key}*.csv")), 60.0

    operator = WaitingOperator(task_id="t", runtime=FakeRuntime())
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context())
    assert deferred.value.trigger.question == {"source": f"{tmp_path}/2013-01-05*.csv"}
    assert deferred.value.timeout == timedelta(seconds=60)
    assert operator.resume(context(), {"status": "done", "value": {}})["status"] == "ok"
    with pytest.raises(AirflowFailException, match="folder"):
        operator.resume(context(), {"status": "error", "message": "source is a folder"})
    (tmp_path / "2013-01-05.csv").write_text("x\n")
    assert operator.execute(context())["status"] == "ok", "what is there already is not waited for"


PREVIOUS = [
    (None, False),  # there is no run before
    (("queued", None), False),  # it waits for its turn, perhaps behind this one
    (("queued", "success"), False),
    (("failed", None), False),
    (("running", "success"), False),
    (("running", "upstream_failed"), False),
    (("running", None), True),
    (("running", "running"), True),
    (("running", "deferred"), True),
    (("running", "up_for_retry"), True),
    (("running", {"t_0": "success", "t_1": "failed"}), False),  # mapped
    (("running", {"t_0": "success", "t_1": "running"}), True),
    (("running", {}), False),  # the task is new in this version of the DAG
]


@pytest.mark.parametrize(("previous", "waits"), PREVIOUS)
def test_a_stage_that_looks_back_waits_for_the_run_before(monkeypatch, previous, waits):
    monkeypatch.setattr(_base, "_GRACE_S", 0.0)
    operator = make(after_previous=True)
    ctx = fake_context(Interval.from_key("2013-01-05"), task_id="t", previous=previous)
    if not waits:
        assert operator.execute(ctx)["status"] == "ok"
        return
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(ctx)
    body = deferred.value.trigger.serialize()[1]
    assert (body["run_id"], body["task_id"]) == ("previous", "t")
    assert getattr(operator, deferred.value.method_name)(ctx, {"status": "success"})["status"] == "ok"


def test_a_short_wait_needs_no_triggerer(monkeypatch):
    monkeypatch.setattr(_base, "_LOOK_S", 0.0)
    ctx = fake_context(Interval.from_key("2013-01-05"), task_id="t", previous=("running", "running"))
    states = iter(["running", "running", "success"])
    monkeypatch.setattr(ctx["ti"], "get_task_states", lambda **_: {"previous": {"t": next(states)}})
    assert make(after_previous=True).execute(ctx)["status"] == "ok"
    assert list(states) == []


def test_a_run_before_that_does_not_begin_is_not_waited_for_and_told(monkeypatch, caplog, capsys):
    monkeypatch.setattr(_base, "_GRACE_S", 0.0)
    ctx = fake_context(Interval.from_key("2013-01-05"), task_id="t", previous=("queued", None))
    assert make(after_previous=True).execute(ctx)["status"] == "ok"
    assert (
        "previous comes before this run and has not begun: t goes on without it"
        in capsys.readouterr().out + caplog.text
    )


def test_by_default_runs_at_the_same_time_do_not_wait():
    ctx = fake_context(Interval.from_key("2013-01-05"), task_id="t", previous=("running", "running"))
    assert make().execute(ctx)["status"] == "ok"
