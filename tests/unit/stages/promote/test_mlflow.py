"""Promotion and rollback on a real MLflow database."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from airflow_ml_provider import codec, models, stages, tables
from airflow_ml_provider.exceptions import Conflict, IntegrityError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.registry.ledger import Ledger
from airflow_ml_provider.stages.gate.spec import GateSpec
from airflow_ml_provider.stages.promote.spec import PromoteSpec, RollbackSpec
from airflow_ml_provider.stages.register.spec import RegisterSpec
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
    pytest.mark.usefixtures("tracking_uri"),
]

METRICS = "metrics: {auc: {at_least: 0.6}}"
CHALLENGE = "challenge: {metric: auc, min_gain: -0.01}"
DAYS = [Interval.from_key(f"2013-01-{day:02d}") for day in range(1, 20)]


def info(day: int, **changes: object) -> RunInfo:
    body = {
        "dag_id": "d",
        "task_id": "t",
        "run_id": f"run-{day}",
        "interval": DAYS[day],
        "reason": "schedule",
        **changes,
    }
    return RunInfo(**body)  # type: ignore[arg-type]


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.test = packages.dataset(root / "test.parquet", packages.rows(400, seed=9), name="test")
        self.registry = Registry.from_env()

    def registered(self, day: int, rules: str = METRICS, **kwargs: object) -> tuple[ModelRef, GateSpec]:
        """Register the model that the run of `day` has trained; return it and how to judge it."""
        kwargs = {"seed": day, "trained_until": DAYS[day].end, **kwargs}
        ref = packages.package(self.root / f"p{day}", **kwargs)  # type: ignore[arg-type]
        report = packages.evaluation(self.root / f"e{day}.json", ref, self.test)
        result = stages.run(RegisterSpec(ref, report), info(day))
        policy = tables.write_text(self.root / f"{codec.digest(rules)[7:19]}.yaml", rules)
        spec = GateSpec(
            model=result.model, evaluation=report, policy=str(policy), output=str(self.root / "out"),  # type: ignore[attr-defined]
            parity=result.parity, test=self.test,  # type: ignore[attr-defined]
        )  # fmt: skip
        return result.model, spec  # type: ignore[attr-defined]

    def judged(self, day: int, **kwargs: object) -> ModelRef:
        ref, spec = self.registered(day, **kwargs)
        stages.run(spec, info(day))
        return ref

    def promoted(self, day: int, **kwargs: object) -> ModelRef:
        ref = self.judged(day, **kwargs)
        assert stages.run(PromoteSpec(ref), info(day)).moved  # type: ignore[attr-defined]
        return ref

    @property
    def champion(self) -> str | None:
        return self.registry.alias("late", "champion")

    def journal(self) -> list[tuple[str, str, str | None]]:
        return [(e.action, e.version, e.previous) for e in self.registry.journal("late")]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_promotion_moves_the_alias_and_writes_the_journal(world):
    ref = world.judged(1)
    result = stages.run(PromoteSpec(ref), info(1, trigger="new data"))
    assert (result.status, result.moved, result.previous) == ("ok", True, None)
    assert result.model == world.registry.get("late", "1")
    assert world.champion == "1"
    (entry,) = world.registry.journal("late")
    assert entry.effective_from == DAYS[1].end
    assert entry.evidence == world.registry.tags("late", "1")["airflow_ml.evidence.digest"]
    assert (entry.reason, entry.dag_id, entry.run_id) == ("schedule: new data", "d", "run-1")
    assert entry.model == ref.digest


def test_the_second_one_says_who_was_before(world):
    world.promoted(1)
    ref = world.judged(2)
    assert stages.run(PromoteSpec(ref), info(2)).previous == "1"
    assert world.journal() == [("promote", "1", None), ("promote", "2", "1")]


def test_running_twice_changes_nothing(world):
    ref = world.promoted(1)
    before = world.registry.journal("late")
    result = stages.run(PromoteSpec(ref), info(1))
    assert (result.status, result.moved, result.model.version) == ("ok", False, "1")
    assert world.registry.journal("late") == before


def test_running_an_old_one_again_after_another_promotion_changes_nothing(world):
    ref = world.promoted(1)
    world.promoted(2)
    result = stages.run(PromoteSpec(ref), info(1))
    assert (result.status, result.moved, result.model.version) == ("ok", False, "2")
    assert world.champion == "2"


def test_without_evidence_it_is_refused(world):
    ref, _ = world.registered(1)
    result = stages.run(PromoteSpec(ref), info(1))
    assert result.status == "refused"
    assert result.reason == "late version 1 has no evidence; let the gate judge it first"
    assert world.champion is None
    assert world.journal() == []


def test_evidence_against_it_is_a_refusal_with_its_reason(world):
    ref = world.judged(1, skill=-1.0)
    result = stages.run(PromoteSpec(ref), info(1))
    assert result.status == "refused"
    assert "the evidence speaks against late version 1: 1 of 3 criteria were not met: metric.auc is 0." in result.reason
    assert world.champion is None


def stored_evidence(world: World) -> Path:
    return next((world.root / "mlartifacts").rglob("evidence/*.json"))


def test_tampered_evidence_is_an_integrity_error(world):
    ref = world.judged(1, skill=-1.0)
    path = stored_evidence(world)
    path.write_text(path.read_text().replace('"decision":"refused"', '"decision":"passed"'))
    with pytest.raises(IntegrityError, match="it was altered"):
        stages.run(PromoteSpec(ref), info(1))
    assert world.champion is None


def test_tampered_evidence_with_a_tampered_digest_is_an_integrity_error(world):
    ref = world.judged(1, skill=-1.0)
    body = {**json.loads(stored_evidence(world).read_text()), "decision": "passed"}
    forged = codec.digest(body)
    tables.write_text(stored_evidence(world).with_name(f"{forged[7:]}.json"), codec.canonical(body))
    world.registry.tag("late", "1", {"airflow_ml.evidence.digest": forged, "airflow_ml.evidence.decision": "passed"})
    with pytest.raises(IntegrityError, match=r"it says passed, but not its criteria: metric\.auc"):
        stages.run(PromoteSpec(ref), info(1))


def test_evidence_of_another_model_is_an_integrity_error(world):
    world.judged(1)
    digest = world.registry.tags("late", "1")["airflow_ml.evidence.digest"]
    ref = world.judged(2, skill=-1.0)
    target = stored_evidence(world)
    for path in (world.root / "mlartifacts").rglob("evidence/*.json"):
        target = path if path.stem == digest[7:] else target
    for folder in {p.parent for p in (world.root / "mlartifacts").rglob("evidence/*.json")}:
        (folder / target.name).write_bytes(target.read_bytes())
    world.registry.tag("late", "2", {"airflow_ml.evidence.digest": digest})
    with pytest.raises(IntegrityError, match=f"it is about model .*, not {ref.digest}"):
        stages.run(PromoteSpec(ref), info(2))


def test_evidence_that_is_gone_is_an_integrity_error(world):
    ref = world.judged(1)
    stored_evidence(world).unlink()
    with pytest.raises(IntegrityError, match="the file is gone"):
        stages.run(PromoteSpec(ref), info(1))


def test_model_files_changed_in_the_registry_are_an_integrity_error(world):
    ref = world.judged(1)
    stored = next((world.root / "mlartifacts").rglob(models.ONNX))
    other = packages.package(world.root / "other", seed=77)
    stored.write_bytes((Path(other.uri) / models.ONNX).read_bytes())
    with pytest.raises(IntegrityError, match="it was changed"):
        stages.run(PromoteSpec(ref), info(1))
    assert world.champion is None


def test_a_version_that_claims_newer_data_than_its_package_is_an_integrity_error(world):
    ref = world.judged(1)
    world.registry.tag("late", "1", {"airflow_ml.trained_until": DAYS[9].end.isoformat()})
    with pytest.raises(IntegrityError, match=r"was trained until 2013-01-03.*its tag says 2013-01-11"):
        stages.run(PromoteSpec(ref), info(1))


def test_another_digest_than_the_registry_s_is_an_integrity_error(world):
    ref = world.judged(1)
    with pytest.raises(IntegrityError, match="in the registry, not sha256:1"):
        stages.run(PromoteSpec(replace(ref, digest="sha256:1")), info(1))
    with pytest.raises(SpecError, match="register it first"):
        stages.run(PromoteSpec(replace(ref, version=None)), info(1))


@pytest.mark.parametrize("changes", [{"reason": "backfill"}, {"cleared": True}])
def test_backfilled_and_cleared_runs_leave_the_alias(world, changes):
    ref = world.judged(2)
    result = stages.run(PromoteSpec(ref), info(2, **changes))
    assert result.status == "refused"
    assert "those never promote by this policy" in result.reason
    assert world.champion is None
    assert stages.run(PromoteSpec(ref, backfill="newer"), info(2, **changes)).moved


def test_a_backfilled_challenger_never_replaces_a_newer_champion(world):
    world.promoted(9)
    old = world.judged(2)
    result = stages.run(PromoteSpec(old, backfill="newer"), info(2, reason="backfill"))
    assert result.status == "refused"
    assert "is not newer than the champion: trained until 2013-01-04" in result.reason
    assert world.champion == "1"


def test_the_same_model_again_is_champion_already(world):
    world.promoted(1)
    again = world.judged(2, seed=1, trained_until=DAYS[1].end)
    assert again.version == "2"
    result = stages.run(PromoteSpec(again), info(2))
    assert (result.status, result.moved) == ("ok", False)
    assert result.reason == "already champion: version 1 is this very model"
    assert world.champion == "1"


def test_a_challenge_against_someone_who_was_replaced_since_is_no_evidence(world):
    world.promoted(1, rules="metrics: {auc: {at_least: 0.1}}", features=("distance", "carrier"))
    ref, gate = world.registered(4, CHALLENGE, features=("hour", "carrier"))
    assert stages.run(gate, info(4)).passed, "it beats the weak one"
    world.promoted(3)
    result = stages.run(PromoteSpec(ref), info(4))
    assert result.status == "refused"
    assert result.reason == (
        "late version 2 was judged against version 1, but the alias is held by version 3; let the gate judge it again"
    )
    assert world.champion == result.model.version == "3"
    again = stages.run(gate, info(4))
    assert world.registry.evidence(ref)["champion"]["version"] == "3"
    assert not again.passed, "it does not beat the strong one"


def test_a_challenge_against_nobody_is_no_evidence_once_somebody_holds_the_alias(world):
    ref = world.judged(4, rules=CHALLENGE)
    world.promoted(3)
    result = stages.run(PromoteSpec(ref), info(4))
    assert (result.status, world.champion) == ("refused", "2")
    assert "was judged against nobody, but the alias is held by version 2" in result.reason


def test_who_was_given_back_the_alias_since_the_challenge_must_be_met(world):
    world.promoted(1)
    world.promoted(2, features=("hour", "carrier"))
    ref, gate = world.registered(4, CHALLENGE, seed=1, threshold=0.6)
    assert stages.run(gate, info(4)).passed
    stages.run(RollbackSpec("late"), info(4, task_id="rollback"))  # for data from now on, not for that of 2013
    refused = stages.run(PromoteSpec(ref), info(4))
    assert "judged against version 2, but the alias is held by version 1" in refused.reason
    assert stages.run(gate, info(4)).passed
    assert world.registry.evidence(ref)["champion"]["version"] == "1"
    assert stages.run(PromoteSpec(ref), info(4)).previous == "1"


@pytest.mark.parametrize("changes", [{}, {"reason": "backfill"}])
def test_judging_and_promoting_again_in_any_order_changes_nothing(world, changes):
    """Train, gate, promote in one run, one run after the other, then all of it again: the own promotion is no rival."""
    steps = []
    for day in (1, 2, 3):
        ref, gate = world.registered(day, CHALLENGE, seed=7, threshold=0.5 + day / 100)
        spec, run = PromoteSpec(ref, backfill="newer"), info(day, **changes)
        judged = stages.run(gate, run)
        assert stages.run(spec, run).moved
        steps.append((gate, judged.evidence.digest, spec, run))
    before = world.registry.journal("late")
    champions = [world.registry.evidence(gate.model)["champion"] for gate, *_ in steps]
    assert [champion and champion["version"] for champion in champions] == [None, "1", "2"]
    for gate, digest, spec, run in steps:
        assert stages.run(gate, run).evidence.digest == digest
        result = stages.run(spec, run)
        assert (result.status, result.moved, result.model.version) == ("ok", False, "3")
    assert world.registry.journal("late") == before


def test_a_challenge_is_not_judged_anew_when_a_killed_move_is_completed(world, monkeypatch):
    from mlflow import MlflowClient

    world.promoted(1)
    ref = world.judged(2, rules=CHALLENGE, seed=1, threshold=0.6)
    real = MlflowClient.set_registered_model_alias
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stages.run(PromoteSpec(ref), info(2))
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)
    assert stages.run(PromoteSpec(ref), info(2)).moved
    assert world.journal() == [("promote", "1", None), ("promote", "2", "1")]


@pytest.mark.parametrize("by_hand", [None, "1"])
def test_an_alias_that_was_moved_by_hand_is_not_said_to_be_right(world, by_hand):
    world.promoted(1)
    ref = world.promoted(2)
    with world.registry._client() as client:
        client.delete_registered_model_alias("late", "champion")
        if by_hand:
            client.set_registered_model_alias("late", "champion", by_hand)
    result = stages.run(PromoteSpec(ref), info(2, run_id="other"))
    assert (result.status, result.moved, result.previous) == ("ok", True, by_hand)
    assert world.champion == "2"
    assert world.journal()[2:] == [("promote", "2", by_hand)]
    assert world.registry.verify_journal("late") == []
    again = stages.run(PromoteSpec(ref), info(2, run_id="third"))
    assert (again.moved, again.reason) == (False, "already champion: version 2 is this very model")


@pytest.mark.parametrize("journalled", [False, True])
def test_a_champion_that_was_set_by_hand_is_journalled_when_it_is_promoted(world, journalled):
    if journalled:
        world.promoted(1)
    ref = world.judged(2)
    with world.registry._client() as client:
        client.set_registered_model_alias("late", "champion", ref.version)
    result = stages.run(PromoteSpec(ref), info(2))
    assert (result.status, world.champion) == ("ok", ref.version)
    assert world.journal()[-1] == ("promote", ref.version, ref.version)
    assert world.registry.verify_journal("late") == []


def test_versions_that_were_deleted_block_no_promotion(world):
    world.promoted(1)
    world.promoted(2)
    stages.run(RollbackSpec("late"), info(4, task_id="rollback"))
    with world.registry._client() as client:
        client.delete_model_version("late", "2")  # rolled back from
    ref = world.judged(5, rules=CHALLENGE, seed=1, threshold=0.6)
    assert stages.run(PromoteSpec(ref), info(5)).moved
    again = world.judged(6, seed=2, trained_until=DAYS[2].end)
    assert "was rolled back from" in stages.run(PromoteSpec(again), info(6)).reason, "the journal knows its digest"
    with world.registry._client() as client:
        client.delete_model_version("late", "3")  # the champion itself
    old = world.judged(0, seed=8)
    assert "version 1 until 2013-01-03" in stages.run(PromoteSpec(old), info(0)).reason, "1 held it before"
    with world.registry._client() as client:
        client.delete_model_version("late", "1")  # all that ever held it
    assert world.promoted(7, rules=CHALLENGE).version == "6"


def test_a_version_of_another_origin_that_was_rolled_back_from_blocks_no_promotion(world):
    world.promoted(1)
    with world.registry._client() as client:
        foreign = client.create_model_version("late", str(world.root)).version
        client.set_registered_model_alias("late", "champion", foreign)
    assert stages.run(RollbackSpec("late"), info(2, task_id="rollback")).previous == str(foreign)
    assert world.promoted(3).version == "3"


def test_killed_between_journal_and_alias(world, monkeypatch):
    from mlflow import MlflowClient

    world.promoted(1)
    ref = world.judged(2)
    real = MlflowClient.set_registered_model_alias

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", die)
    with pytest.raises(KeyboardInterrupt):
        stages.run(PromoteSpec(ref), info(2))
    assert world.champion == "1"
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)
    result = stages.run(PromoteSpec(ref), info(2))
    assert result.moved
    assert world.champion == "2"
    assert world.journal() == [("promote", "1", None), ("promote", "2", "1")]
    assert world.registry.verify_journal("late") == []


def test_a_move_that_was_never_completed_still_counts_for_what_is_newer(world, monkeypatch):
    from mlflow import MlflowClient

    world.promoted(1)
    ref = world.judged(9)
    real = MlflowClient.set_registered_model_alias
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stages.run(PromoteSpec(ref), info(9))
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)
    assert stages.run(PromoteSpec(world.judged(5)), info(5)).status == "refused"
    assert stages.run(PromoteSpec(world.judged(12)), info(12)).moved


def test_a_concurrent_writer_is_a_conflict_that_a_retry_survives(world):
    ref = world.judged(1)
    with (
        world.registry._client() as client,
        Ledger(client, "late", "champion").claim("other"),
        pytest.raises(Conflict) as caught,
    ):
        stages.run(PromoteSpec(ref), info(1))
    assert caught.value.verdict == "retryable"
    assert stages.run(PromoteSpec(ref), info(1)).moved


def test_a_journal_that_was_altered_stops_everything(world):
    world.promoted(1)
    world.promoted(2)
    ref = world.judged(3)
    with world.registry._client() as client:
        client.delete_registered_model_tag("late", "airflow_ml.journal.champion.000001")
    with pytest.raises(IntegrityError, match="entry 1 is missing"):
        stages.run(PromoteSpec(ref), info(3))


def test_rollback_goes_to_the_last_healthy_holder(world):
    for day in (1, 2, 3):
        world.promoted(day)
    spec = RollbackSpec("late", reason="too many alarms")
    result = stages.run(spec, info(4, task_id="rollback", run_id="oops"))
    assert (result.moved, result.model.version, result.previous) == (True, "2", "3")
    assert world.champion == "2"
    entry = world.registry.journal("late")[-1]
    assert (entry.action, entry.reason) == ("rollback", "too many alarms")
    assert entry.evidence == world.registry.journal("late")[1].evidence
    assert entry.effective_from > DAYS[-1].end  # now
    second = stages.run(spec, info(4, task_id="rollback", run_id="oops-again"))
    assert (second.model.version, world.champion) == ("1", "1")
    third = stages.run(spec, info(4, task_id="rollback", run_id="once-more"))
    assert third.status == "refused"
    assert "no earlier healthy holder to go back to; versions that held it: 1, 2, 3" in third.reason


def test_rollback_twice_by_the_same_task_is_one_rollback(world):
    for day in (1, 2, 3):
        world.promoted(day)
    run = info(4, task_id="rollback", run_id="oops")
    stages.run(RollbackSpec("late"), run)
    again = stages.run(RollbackSpec("late"), run)
    assert (again.status, again.moved, again.model.version) == ("ok", False, "2")
    assert len(world.journal()) == 4
    world.promoted(5)
    later = stages.run(RollbackSpec("late"), run)
    assert (later.status, later.moved, later.model.version) == ("ok", False, "4")
    assert "went back to version 2 in this run before" in later.reason


def test_killed_rollback_is_completed(world, monkeypatch):
    from mlflow import MlflowClient

    world.promoted(1)
    world.promoted(2)
    run = info(4, task_id="rollback", run_id="oops")
    real = MlflowClient.set_registered_model_alias
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stages.run(RollbackSpec("late"), run)
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)
    assert stages.run(RollbackSpec("late"), run).moved
    assert world.champion == "1"
    assert len(world.journal()) == 3


def test_what_was_rolled_back_from_is_not_promoted_again(world):
    world.promoted(1)
    bad = world.promoted(2)
    stages.run(RollbackSpec("late"), info(4, task_id="rollback", run_id="oops"))
    result = stages.run(PromoteSpec(bad), info(5))
    assert result.status == "refused"
    assert "late version 2 was rolled back from" in result.reason
    assert world.promoted(6).version == "3"


def test_rollback_passes_by_a_version_that_was_deleted(world):
    for day in (1, 2, 3):
        world.promoted(day)
    with world.registry._client() as client:
        client.delete_model_version("late", "2")
    result = stages.run(RollbackSpec("late"), info(4, task_id="rollback"))
    assert (result.model.version, result.previous, world.champion) == ("1", "3", "1")


def test_rollback_to_a_version_of_choice(world):
    for day in (1, 2, 3):
        world.promoted(day)
    result = stages.run(RollbackSpec("late", to="1"), info(4, task_id="rollback"))
    assert (result.moved, world.champion) == (True, "1")
    same = stages.run(RollbackSpec("late", to="1"), info(5, task_id="rollback"))
    assert (same.status, same.moved) == ("ok", False)
    back = stages.run(RollbackSpec("late", to="3"), info(6, task_id="rollback"))
    assert (back.moved, world.champion) == (True, "3")


def test_rollback_to_a_version_that_never_held_the_alias_is_refused(world):
    world.promoted(1)
    world.judged(2)
    result = stages.run(RollbackSpec("late", to="2"), info(4))
    assert result.status == "refused"
    assert result.reason == "version 2 never held late@champion; versions that did: 1"


def test_rollback_of_what_nobody_held_is_refused(world):
    result = stages.run(RollbackSpec("late"), info(4))
    assert (result.status, result.model) == ("refused", None)
    assert "nobody has ever held late@champion" in result.reason


def test_rollback_proves_the_files_that_it_goes_back_to(world):
    world.promoted(1)
    world.promoted(2)
    path = world.registry.tags("late", "1")["airflow_ml.artifact_path"]
    next((world.root / "mlartifacts").rglob(f"{path}/{models.ONNX}")).write_bytes(b"tampered")
    with pytest.raises(IntegrityError, match="it was changed"):
        stages.run(RollbackSpec("late"), info(4))
    assert world.champion == "2"


def test_rollback_for_data_from_a_moment_on(world):
    world.promoted(1)
    world.promoted(2)
    moment = DAYS[5].start
    stages.run(RollbackSpec("late", effective_from=moment), info(9, task_id="rollback"))
    assert world.registry.holder("late", "champion", moment - timedelta(seconds=1)).version == "2"
    assert world.registry.holder("late", "champion", moment).version == "1"


def test_after_a_move_by_hand_rollback_restores_the_journal_s_holder(world):
    world.promoted(1)
    world.judged(2)
    with world.registry._client() as client:
        client.set_registered_model_alias("late", "champion", "2")
    result = stages.run(RollbackSpec("late"), info(4, task_id="rollback"))
    assert (result.model.version, result.previous, world.champion) == ("1", "2", "1")
