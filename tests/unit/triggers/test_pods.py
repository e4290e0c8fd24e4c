"""What the trigger of pods makes of what it sees."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from airflow_ml_provider.triggers.pods import PodsTrigger, log_lines, nanoseconds, new_lines


def trigger(**changes):
    return PodsTrigger(**{"namespace": "n", "identity": "i", "uids": ["u"], "conn_id": "c", **changes})


def pod(phase="Running", age_s=0, deleted_s=None):
    now = datetime.now(timezone.utc)
    meta = SimpleNamespace(
        creation_timestamp=now - timedelta(seconds=age_s),
        deletion_timestamp=None if deleted_s is None else now - timedelta(seconds=deleted_s),
    )
    return {"u": SimpleNamespace(metadata=meta, status=SimpleNamespace(phase=phase))}


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        ({}, ""),
        ({"phase": "Pending"}, ""),
        (None, "changed"),
        ({"phase": "Succeeded"}, "changed"),
        ({"phase": "Failed"}, "changed"),
        ({"phase": "Pending", "age_s": 700}, "late"),
        ({"deleted_s": 5}, ""),  # it has time to end
        ({"deleted_s": 300}, "changed"),  # its node does not answer
        ({"phase": "Pending", "age_s": 700, "deleted_s": 5}, ""),
    ],
)
def test_what_there_is_to_tell(seen, told):
    assert trigger()._judge({} if seen is None else pod(**seen)) == told


def test_the_task_s_time_may_be_over():
    assert trigger(deadline=time.time() - 1)._judge(pod()) == "timeout"


def test_it_is_made_again_as_it_was():
    path, arguments = trigger(deadline=1.5).serialize()
    assert path == "airflow_ml_provider.triggers.pods.PodsTrigger"
    assert PodsTrigger(**arguments).serialize() == (path, arguments)


def test_lines_are_given_once_and_of_rank_0_alone():
    text = (
        "2026-01-01T00:00:01.1Z INFO\ta.b\t[rank 0] mine\n"
        "2026-01-01T00:00:01.12Z INFO\ta.b\t[rank 1] another's\n"
        "2026-01-01T01:00:01.2+01:00 plain\n"
        "no time at all\n"
    )
    everything = new_lines(text, "")
    assert [line for _, line in everything] == ["INFO\ta.b\t[rank 0] mine", "plain"]
    assert [line for _, line in new_lines(text, everything[0][0])] == ["plain"]
    assert new_lines(text, everything[1][0]) == []


@pytest.mark.parametrize(
    ("stamp", "found"),
    [("1970-01-01T00:00:01Z", 10**9), ("1970-01-01T01:00:01.5+01:00", 1_500_000_000), ("", -1), ("yesterday", -1)],
)
def test_times(stamp, found):
    assert nanoseconds(stamp) == found


def test_a_line_is_logged_with_its_time_and_at_the_level_that_it_names():
    stamps = [f"1970-01-01T01:00:0{n}.123456789+01:00" for n in range(3)]
    with capture_logs() as logged:
        lines = zip(stamps, ["WARNING\ta.b\tlook", "100 % plain", "tab\tseparated"], strict=True)
        assert log_lines(list(lines), "t0") == stamps[-1]
    assert logged == [
        {"log_level": "warning", "event": "a.b\tlook", "timestamp": "1970-01-01T00:00:00.123456+00:00"},
        {"log_level": "info", "event": "100 % plain", "timestamp": "1970-01-01T00:00:01.123456+00:00"},
        {"log_level": "info", "event": "tab\tseparated", "timestamp": "1970-01-01T00:00:02.123456+00:00"},
    ]
    assert log_lines([], "t0") == "t0"
