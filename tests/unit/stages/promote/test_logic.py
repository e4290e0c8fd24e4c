"""May it be promoted, who was healthy, from when on: by hand and for all."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import IntegrityError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.registry import JournalEntry, journal
from airflow_ml_provider.registry.journal import Holders
from airflow_ml_provider.stages.promote.logic import effective_from, judged_against_another, may_promote
from airflow_ml_provider.stages.promote.spec import PromoteSpec, RollbackSpec

JAN = datetime(2013, 1, 1, tzinfo=timezone.utc)
SCHEDULED = RunInfo(reason="schedule")


def model(version: int, day: int | None) -> ModelRef:
    until = None if day is None else JAN + timedelta(days=day)
    return ModelRef("late", "", f"sha256:{version}", version=str(version), trained_until=until)


def verdict(candidate, *holders, info=SCHEDULED, backfill="never", rolled_back=(), made_from=""):
    """Decide with one holder, or with that of the alias and that of the journal."""
    held = Holders(holders, agreed=len(holders) == 1)
    return may_promote(candidate, held, backfill=backfill, info=info, rolled_back=rolled_back, made_from=made_from)


def test_the_first_and_every_newer_one_move():
    assert verdict(model(1, 7)).outcome == "move"
    assert verdict(model(2, 14), model(1, 7)).outcome == "move"


def test_what_was_made_from_the_holder_may_replace_it_with_the_same_data():
    assert verdict(model(2, 7), model(1, 7), made_from="sha256:1").outcome == "move"
    assert verdict(model(2, 7), model(1, 7), made_from="sha256:3").outcome == "refuse"
    assert verdict(model(2, 6), model(1, 7), made_from="sha256:1").outcome == "refuse"


@pytest.mark.parametrize("day", [6, 7])
def test_older_and_equally_old_data_do_not(day):
    found = verdict(model(2, day), model(1, 7))
    assert found.outcome == "refuse"
    assert found.reason == (
        f"late version 2 is not newer than the champion: trained until 2013-01-0{day + 1} 00:00:00 UTC, "
        "version 1 until 2013-01-08 00:00:00 UTC"
    )


def test_it_must_be_newer_than_what_the_alias_and_what_the_journal_say():
    assert verdict(model(3, 10), model(1, 7), model(2, 14)).outcome == "refuse"


@pytest.mark.parametrize("info", [RunInfo(reason="backfill"), RunInfo(reason="schedule", cleared=True)])
def test_backfilled_and_cleared_runs_move_nothing_unless_told_to(info):
    assert verdict(model(2, 14), model(1, 7), info=info).outcome == "refuse"
    assert verdict(model(1, 7), info=info).outcome == "refuse"
    assert verdict(model(2, 14), model(1, 7), info=info, backfill="newer").outcome == "move"
    assert verdict(model(2, 7), model(1, 7), info=info, backfill="newer").outcome == "refuse"


@pytest.mark.parametrize("reason", ["schedule", "manual", "asset"])
def test_other_runs_may(reason):
    assert verdict(model(2, 14), model(1, 7), info=RunInfo(reason=reason)).outcome == "move"


def test_the_same_model_is_champion_already_even_in_a_backfill():
    again = replace(model(1, 7), version="5")
    found = verdict(again, model(1, 7), info=RunInfo(reason="backfill"))
    assert (found.outcome, found.reason) == ("already", "already champion: version 1 is this very model")


def test_a_move_that_alias_or_journal_lacks_is_completed():
    assert verdict(model(2, 14), model(1, 7), model(2, 14)).outcome == "move"  # the alias lacks it
    assert verdict(model(2, 14), model(2, 14), model(1, 7)).outcome == "move"  # the journal lacks it
    by_journal_alone = Holders((model(2, 14),), agreed=False)
    assert may_promote(model(2, 14), by_journal_alone, backfill="never", info=SCHEDULED).outcome == "move"
    found = verdict(model(2, 14), model(1, 20), model(2, 14))
    assert (found.outcome, "version 1 until 2013-01-21" in found.reason) == ("refuse", True)


def record(champion: ModelRef | None, *criteria: str) -> dict:
    """Evidence as far as the challenge goes."""
    judged = None if champion is None else {"version": champion.version, "digest": champion.digest}
    return {"champion": judged, "criteria": [{"name": name, "passed": True} for name in criteria]}


@pytest.mark.parametrize(
    ("champion", "holders", "reason"),
    [
        (model(1, 7), [model(1, 7)], ""),
        (model(1, 7), [model(2, 9)], "was judged against version 1, but the alias is held by version 2; let the gate"),
        (None, [model(2, 9)], "was judged against nobody, but the alias is held by version 2;"),
        (None, [], ""),
        (model(1, 7), [], ""),  # nobody is replaced
        (model(1, 7), [model(1, 7), model(2, 9)], ""),
        (model(3, 7), [model(1, 7), model(2, 9)], "but the alias is held by version 1 and version 2;"),
        (model(1, 7), [model(5, 14)], ""),  # completes its own move
        (replace(model(1, 7), version="4"), [model(1, 7)], ""),  # the very same model under another version
    ],
)
def test_a_challenge_counts_against_the_one_who_is_replaced(champion, holders, reason):
    found = judged_against_another(model(5, 14), record(champion, "challenge.auc"), Holders(tuple(holders)))
    assert reason in found
    assert bool(found) == bool(reason)
    assert not judged_against_another(model(5, 14), record(champion, "metric.auc"), Holders(tuple(holders)))


def test_what_was_rolled_back_from_does_not_come_back_by_itself():
    found = verdict(model(2, 14), model(1, 7), rolled_back={"sha256:2"})
    assert found.outcome == "refuse"
    assert "was rolled back from" in found.reason


def test_without_a_date_nothing_is_newer():
    assert "does not say until when" in verdict(model(2, None), model(1, 7)).reason
    assert "version 1 holds the alias and does not say" in verdict(model(2, 9), model(1, None)).reason


days = st.one_of(st.none(), st.integers(0, 400))


@given(
    days,
    days,
    st.sampled_from(["schedule", "backfill", "manual", "asset"]),
    st.booleans(),
    st.sampled_from(["never", "newer"]),
)
def test_whatever_the_run_the_alias_only_goes_forward(old, new, reason, cleared, backfill):
    info = RunInfo(reason=reason, cleared=cleared)
    if verdict(model(2, new), model(1, old), info=info, backfill=backfill).outcome == "move":
        assert new > old
        assert backfill == "newer" or not (cleared or reason == "backfill")


def test_data_is_scored_by_it_from_the_end_of_the_interval_on():
    week = Interval.of(JAN, JAN + timedelta(days=7))
    now = JAN + timedelta(days=99)
    assert effective_from(model(1, 7), RunInfo(interval=week), now) == week.end
    assert effective_from(model(1, 7), RunInfo(), now) == now


def test_never_before_the_end_of_its_training():
    week = Interval.of(JAN, JAN + timedelta(days=7))
    assert effective_from(model(1, 9), RunInfo(interval=week), JAN) == JAN + timedelta(days=9)


def entries(*moves: str) -> tuple[JournalEntry, ...]:
    """`p1` promotes version 1, `r1` rolls back to it; one a day."""
    found: tuple[JournalEntry, ...] = ()
    for i, (kind, version) in enumerate(moves, start=1):
        entry = JournalEntry(
            seq=0, action="promote" if kind == "p" else "rollback", version=version, model=f"sha256:{version}",
            effective_from=JAN + timedelta(days=i), recorded_at=JAN, identity=str(i),
            previous=found[-1].version if found else None,
        )  # fmt: skip
        found = (*found, journal.chained(found, entry))
    return found


@pytest.mark.parametrize(
    ("moves", "version"),
    [
        ([], None),
        (["p1"], None),
        (["p1", "p2"], "1"),
        (["p1", "p2", "r1"], None),  # 2 was rolled back from
        (["p1", "p2", "p3", "r2"], "1"),
        (["p1", "p2", "p3", "r2", "r1"], None),
        (["p1", "p2", "r1", "p3"], "1"),
        (["p1", "p2", "r1", "r2"], None),  # 2 was brought back by hand, now 1 counts as left
        (["p1", "p2", "r1", "p3", "r1", "p4"], "1"),
    ],
)
def test_the_last_healthy_holder(moves, version):
    log = entries(*moves)
    found = journal.last_healthy(log, log[-1].version if log else None)
    assert (found.version if found else None) == version


def test_what_was_deleted_is_not_gone_back_to_and_what_was_bad_stays_bad():
    log = entries("p1", "p2", "p3", "r2", "p4")
    assert journal.last_healthy(log, "4", {"1", "3", "4"}).version == "1"
    assert journal.last_healthy(log, "4", {"3", "4"}) is None


def test_after_a_move_by_hand_the_journal_s_own_holder_is_healthy():
    assert journal.last_healthy(entries("p1", "p2"), "9").version == "2"


def test_who_held_it_when():
    log = entries("p1", "p2")
    assert journal.held(log, JAN) is None
    assert journal.held(log, JAN + timedelta(days=1)).version == "1"
    assert journal.held(log, JAN + timedelta(days=2)).version == "2"


def test_a_later_entry_rules_from_its_own_moment_on_only():
    log = entries("p1", "p2")
    late = journal.chained(log, replace(log[0], action="rollback", effective_from=JAN + timedelta(days=50)))
    assert journal.held((*log, late), JAN + timedelta(days=20)).version == "2"
    assert journal.held((*log, late), JAN + timedelta(days=60)).version == "1"


def test_what_was_done_is_rewritten_by_rollbacks_not_by_promotions():
    log = entries("p1", "p2", "r1", "p3")
    late = JAN + timedelta(days=50)
    assert journal.held(log, late).version == "3"
    assert journal.held(log, late, before=2).version == "1"
    assert journal.held(log[:2], late, before=1).version == "1"
    assert journal.held(log[:2], late, before=0) is None


def test_which_run_promoted_a_version():
    log = tuple(replace(entry, dag_id="d", run_id=entry.identity) for entry in entries("p1", "p2", "r1"))
    assert journal.promoted_by(log, "d", "2", "2") == log[1]
    assert journal.promoted_by(log, "d", "1", "2") is None
    assert journal.promoted_by(log, "d", "3", "1") is None, "that was a rollback"


def test_one_task_one_entry_per_version():
    log = entries("p1", "p2")
    assert journal.of_run(log, "2", "promote", "2") == log[1]
    assert journal.of_run(log, "2", "promote", "1") is None
    assert journal.of_run(log, "2", "rollback") is None
    assert journal.of_run(log, "", "promote") is None


moves = st.lists(st.tuples(st.sampled_from("pr"), st.sampled_from("12345")).map("".join), min_size=1, max_size=8)


@given(moves, st.data())
def test_any_single_change_but_at_the_end_breaks_the_chain(log, data):
    chain = list(entries(*log))
    assert journal.faults(chain) == []
    at = data.draw(st.integers(0, len(chain) - 1))
    if data.draw(st.booleans()):
        del chain[at]
        assert journal.faults(chain) or at == len(log) - 1  # the head tells the last one
    else:
        chain[at] = replace(chain[at], reason="tampered")
        assert journal.faults(chain) or at == len(log) - 1


def test_an_entry_that_is_no_json_is_an_integrity_error():
    with pytest.raises(IntegrityError, match="entry 000001 cannot be read, it was changed"):
        journal.parse({"000001": "{"}, "late@champion")


def test_bad_values():
    with pytest.raises(SpecError, match="backfill must be one of 'never', 'newer', got 'always'"):
        PromoteSpec(model(1, 1), backfill="always")
    with pytest.raises(SpecError, match="effective_from must be a time with a time zone"):
        RollbackSpec("late", effective_from=datetime(2013, 1, 1))
