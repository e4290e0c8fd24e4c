"""Runs at the same time: a stage that looks at earlier windows waits for the run before, in the triggerer."""

from __future__ import annotations

import time

DAG = "ordered"


def test_a_later_window_waits_for_the_one_before(flights):
    landing = flights.stack.landing
    (landing / "ordered_2013-01-02.csv").write_text("id\n2\n")  # the first day is late
    flights.api.backfill(DAG, "2013-01-01T00:00:00Z", "2013-01-02T00:00:00Z", parallel=2)

    def tasks() -> list[dict]:
        runs = flights.api.runs(DAG)  # oldest window first
        return [task for run in runs for task in flights.api.tasks(DAG, run["dag_run_id"])]

    deadline = time.monotonic() + 180
    while [task["state"] for task in tasks()] != ["deferred", "deferred"]:
        assert time.monotonic() < deadline, tasks()
        time.sleep(1)
    second = tasks()[1]
    assert second["trigger"]["classpath"].endswith("PreviousRunTrigger"), second

    (landing / "ordered_2013-01-01.csv").write_text("id\n1\n")
    runs = flights.api.wait(DAG, at_least=2, timeout_s=180)
    assert [run["state"] for run in runs] == ["success", "success"], flights.why(DAG, runs[1])
    first, second = tasks()
    assert first["end_date"] <= second["end_date"]
