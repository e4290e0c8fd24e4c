"""The gate on a real MLflow database: facts are verified, evidence is written whatever the decision is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

import yaml

from airflow_ml_provider import codec, models, stages, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import Provenance, RunInfo
from airflow_ml_provider.refs import ReportRef
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.stages.gate import evidence, page
from airflow_ml_provider.stages.gate.mlflow import _overlaps, _quality
from airflow_ml_provider.stages.gate.spec import GateSpec
from airflow_ml_provider.stages.register.spec import RegisterSpec
from airflow_ml_provider.stages.validate.series import write_point
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.contracts import assert_idempotent, contents
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
    pytest.mark.usefixtures("tracking_uri"),
]

DAY = Interval.from_key("2013-01-07")
INFO = RunInfo(dag_id="d", task_id="gate", run_id="week-1", interval=DAY, reason="schedule")


class World:
    """A registered candidate with its reports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.test = packages.dataset(root / "test.parquet", packages.rows(900, seed=9, start=DAY.start), name="test")
        self.registry = Registry.from_env()

    def candidate(self, name: str = "one", days: int = 0, **kwargs: object) -> dict[str, object]:
        """Register a model and return the arguments of the gate's spec that are about it."""
        until = DAY.start + timedelta(days=days)
        ref = packages.package(self.root / name, trained_until=until, **kwargs)  # type: ignore[arg-type]
        report = packages.evaluation(self.root / "reports" / f"{name}.json", ref, self.test)
        info = replace(INFO, task_id="register", run_id=name)
        result = stages.run(RegisterSpec(ref, report), info)
        return {"model": result.model, "evaluation": report, "parity": result.parity}  # type: ignore[attr-defined]

    def policy(self, **body: object) -> str:
        path = tables.write_text(self.root / f"{codec.digest(body)[7:19]}.yaml", yaml.safe_dump(body))
        return str(path)

    def spec(self, candidate: dict[str, object], rules: dict[str, object], **changes: object) -> GateSpec:
        arguments = {"output": str(self.root / "out"), "test": self.test, **changes}
        arguments.setdefault("policy", self.policy(**rules))
        return GateSpec(**candidate, **arguments)  # type: ignore[arg-type]

    def make_champion(self, candidate: dict[str, object], at: datetime = DAY.start, run: str = "before") -> None:
        model = candidate["model"]
        self.registry.move(
            "late", "champion", model, action="promote", effective_from=at,  # type: ignore[arg-type]
            info=RunInfo("d", "promote", run), expected=self.registry.alias("late", "champion"),
        )  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


POLICY = {
    "metrics": {"auc": {"at_least": 0.62, "use_bound": True}},
    "min_rows": 300,
    "challenge": {"min_gain": -0.01},
}


def test_a_pass_with_evidence_on_version_and_run(world):
    result = stages.run(world.spec(world.candidate(), POLICY), INFO)
    assert result.status == "ok"
    assert result.passed
    assert result.failed == ()
    body = json.loads(Path(result.evidence.uri).read_text())
    assert Path(result.evidence.uri).name == f"{result.evidence.digest[7:]}.json"
    assert result.links["evidence"] == result.evidence.html
    assert body["decision"] == "passed"
    assert [c["name"] for c in body["criteria"]] == [
        "metric.auc", "min_rows", "challenge.auc", "parity", "lineage",
    ]  # fmt: skip
    assert body["unchecked"] == ["worst_slice", "quality", "approvals", "load"]
    assert body["policy"]["body"]["metrics"]["auc"] == {"at_least": 0.62, "at_most": None, "use_bound": True}
    assert body["digests"]["model"] == result.model.digest
    assert set(body["digests"]) == {
        "model", "training", "data", "features", "code", "environment", "evaluation", "test", "parity",
    }  # fmt: skip
    assert body["run"]["reason"] == "schedule"
    tags = world.registry.tags("late", "1")
    assert tags["airflow_ml.evidence.digest"] == result.evidence.digest
    assert tags["airflow_ml.evidence.decision"] == "passed"
    assert world.registry.evidence(result.model) == body


def test_a_refusal_carries_its_evidence_too(world):
    spec = world.spec(world.candidate(skill=-1.0), POLICY)
    result = stages.run(spec, INFO)
    assert result.status == "refused"
    assert not result.passed
    assert result.failed == ("metric.auc",)
    assert "late version 1: 1 of 5 criteria were not met: metric.auc is 0.1" in result.reason
    assert "and must be at least 0.62" in result.reason
    assert world.registry.evidence(result.model)["decision"] == "refused"
    assert world.registry.tags("late", "1")["airflow_ml.evidence.decision"] == "refused"


def test_judging_twice_gives_the_same_evidence(world):
    world.make_champion(world.candidate("old", seed=1))
    spec = world.spec(world.candidate("new", days=1), POLICY)
    first, second = assert_idempotent(spec, INFO, roots=[world.root / "out"])
    assert first.evidence.digest == second.evidence.digest
    assert len(contents([world.root / "out"])) == 2


def test_judging_again_after_the_promotion_still_meets_the_former_champion(world):
    world.make_champion(world.candidate("old", seed=1))
    new = world.candidate("new", days=1)
    first = stages.run(world.spec(new, POLICY), INFO)
    world.make_champion(new, DAY.end, run=INFO.run_id)
    assert stages.run(world.spec(new, POLICY), INFO).evidence.digest == first.evidence.digest


def test_the_challenge_compares_on_the_same_rows(world):
    world.make_champion(world.candidate("good"))
    result = stages.run(world.spec(world.candidate("bad", days=1, features=("distance",)), POLICY), INFO)
    body = json.loads(Path(result.evidence.uri).read_text())
    found = next(c for c in body["criteria"] if c["name"] == "challenge.auc")
    assert not found["passed"]
    assert found["rows"] == 900
    assert found["interval"][0] < found["observed"] < found["interval"][1]
    assert "gain over version 1" in found["note"]
    assert body["champion"]["version"] == "1"


def test_a_backfilled_challenger_meets_the_champion_of_its_own_time(world):
    world.make_champion(world.candidate("first", seed=1), DAY.start)
    world.make_champion(world.candidate("later", days=30, seed=2), DAY.end + timedelta(days=30), run="later")
    result = stages.run(world.spec(world.candidate("backfilled", days=1, seed=3), POLICY), INFO)
    assert json.loads(Path(result.evidence.uri).read_text())["champion"]["version"] == "1"


def test_without_a_champion_the_challenge_passes_with_a_note(world):
    result = stages.run(world.spec(world.candidate(), POLICY), INFO)
    assert "no champion to compare with" in Path(result.evidence.uri).read_text()


def test_a_champion_that_needs_columns_which_the_data_lacks_is_a_clear_no(world):
    world.make_champion(world.candidate("old", seed=1))
    world.test = packages.dataset(world.root / "less.parquet", packages.rows(900, seed=9).drop_columns(["carrier"]))
    result = stages.run(world.spec(world.candidate("new", days=1, features=("distance", "hour")), POLICY), INFO)
    assert result.failed == ("challenge.auc",)
    assert "the champion cannot score: model 'late' needs column 'carrier'" in result.reason


def test_a_champion_that_was_set_by_hand_is_challenged(world):
    world.candidate("old")
    with world.registry._client() as client:
        client.set_registered_model_alias("late", "champion", "1")
    spec = world.spec(world.candidate("new", days=1, skill=-1.0), {"challenge": {"min_gain": 0.0}})
    first = stages.run(spec, INFO)
    assert first.failed == ("challenge.auc",)
    assert world.registry.evidence(first.model)["champion"]["version"] == "1"
    world.make_champion({"model": first.model}, DAY.end, run=INFO.run_id)  # the journal begins with it
    assert stages.run(spec, INFO).evidence.digest == first.evidence.digest
    other = world.spec(world.candidate("other", seed=5, skill=-1.0), {"challenge": {"min_gain": 0.0}})
    assert stages.run(other, replace(INFO, run_id="other", interval=Interval.from_key("2013-01-06"))).failed


@pytest.mark.parametrize("days", [3, 1])
def test_who_was_rolled_back_from_is_no_yardstick(world, days):
    """Neither for a challenger that may replace the holder, nor for one that is too old for that."""
    world.make_champion(world.candidate("good", seed=1), DAY.start)
    world.make_champion(world.candidate("bad", days=2, skill=-1.0), DAY.end, run="bad")
    if days == 1:
        world.make_champion(world.candidate("later", days=9), DAY.end + timedelta(days=9), run="later")
        roll_back(world, "2")
    roll_back(world, "1")
    result = stages.run(world.spec(world.candidate("new", days=days, features=("hour",)), POLICY), INFO)
    assert world.registry.evidence(result.model)["champion"]["version"] == "1"
    assert result.failed == ("challenge.auc",)


def roll_back(world: World, version: str) -> None:
    """Give the alias back as `RollbackOperator` does by default: for data from now on."""
    world.registry.move(
        "late", "champion", world.registry.get("late", version), action="rollback",
        effective_from=datetime.now(timezone.utc), info=RunInfo("d", "rollback", f"back-{version}"),
        expected=world.registry.alias("late", "champion"),
    )  # fmt: skip


def test_a_challenger_meets_whom_it_would_replace_whatever_that_one_is_effective_from(world):
    world.make_champion(world.candidate("first", seed=1), DAY.start)
    world.make_champion(world.candidate("late", days=1, seed=2), datetime.now(timezone.utc), run="by hand")
    spec = world.spec(world.candidate("new", days=2, seed=3), POLICY)
    first = stages.run(spec, INFO)
    assert world.registry.evidence(first.model)["champion"]["version"] == "2"
    world.make_champion({"model": first.model}, DAY.end, run=INFO.run_id)
    world.make_champion(world.candidate("newest", days=9, seed=4), DAY.end + timedelta(days=9), run="newest")
    assert stages.run(spec, INFO).evidence.digest == first.evidence.digest


def test_judging_again_gives_the_same_evidence_in_a_run_without_an_interval_too(world):
    world.make_champion(world.candidate("old", seed=1))
    info, new = replace(INFO, interval=None), world.candidate("new", days=1)
    first = stages.run(world.spec(new, POLICY), info)
    world.make_champion(new, DAY.end, run=INFO.run_id)
    assert stages.run(world.spec(new, POLICY), info).evidence.digest == first.evidence.digest


def test_a_version_that_was_deleted_challenges_nobody(world):
    world.make_champion(world.candidate("one", seed=1))
    world.make_champion(world.candidate("two", days=1, seed=2), DAY.end, run="two")
    with world.registry._client() as client:
        client.delete_model_version("late", "2")
    spec = world.spec(world.candidate("new", days=2, seed=3), {"metrics": {"auc": {"at_least": 0.5}}})
    result = stages.run(spec, INFO)
    assert result.passed
    assert world.registry.evidence(result.model)["champion"] is None, "the policy does not ask for a challenge"
    result = stages.run(replace(spec, policy=world.policy(**POLICY)), INFO)
    assert world.registry.evidence(result.model)["champion"]["version"] == "1"
    world.make_champion({"model": result.model}, DAY.end, run=INFO.run_id)
    with world.registry._client() as client:
        client.delete_model_version("late", "1")
    assert stages.run(spec, INFO).passed
    assert stages.run(replace(spec, policy=world.policy(**POLICY)), INFO).passed


def test_the_same_model_as_the_champion_passes(world):
    world.make_champion(world.candidate("one"))
    shutil.copytree(world.root / "one", world.root / "two")
    again = models.describe(world.root / "two")
    report = packages.evaluation(world.root / "reports" / "two.json", again, world.test)
    registered = stages.run(RegisterSpec(again, report), replace(INFO, run_id="two"))
    spec = world.spec({"model": registered.model, "evaluation": report, "parity": registered.parity}, POLICY)
    result = stages.run(spec, INFO)
    assert result.passed
    assert "version 1, is the same model" in Path(result.evidence.uri).read_text()


def test_only_the_rows_of_the_segment_are_compared(world):
    world.make_champion(world.candidate("old", seed=1, segment={"origin": "EWR"}))
    result = stages.run(world.spec(world.candidate("new", days=1, segment={"origin": "EWR"}), POLICY), INFO)
    body = json.loads(Path(result.evidence.uri).read_text())
    expected = packages.rows(900, seed=9).column("origin").to_pylist().count("EWR")
    assert next(c for c in body["criteria"] if c["name"] == "challenge.auc")["rows"] == expected
    assert body["model"]["segment"] == {"origin": "EWR"}


def test_a_champion_that_has_seen_test_rows_is_noted(world):
    world.make_champion(world.candidate("old", seed=1, days=5))
    result = stages.run(world.spec(world.candidate("new", days=6), POLICY), INFO)
    assert "so some of the test rows" in Path(result.evidence.uri).read_text()


def test_quality_of_the_batches_before_the_end_of_training(world):
    for day, overall, passed in ((5, 0.97, True), (6, 0.50, False), (7, 0.10, True)):
        interval = Interval.from_key(f"2013-01-{day:02d}")
        body = {"interval": interval.key, "quality": {"overall": overall}, "passed": passed, "rows": 1}
        write_point(str(world.root / "quality"), interval, body)
    spec = world.spec(world.candidate(), {"min_quality": 0.9}, quality=(str(world.root / "quality"),))
    result = stages.run(spec, INFO)
    assert result.passed  # the bad batch of the 7th came after training, that of the 6th was refused
    assert result.metrics["quality"] == 0.97
    refused = stages.run(replace(spec, policy=world.policy(min_quality=0.98)), INFO)
    assert refused.failed == ("quality",)


def test_quality_counts_from_the_first_training_row_on(world):
    packages.package(world.root / "p", trained_until=DAY.start)
    manifest = models.read_manifest(world.root / "p")
    first = Interval(DAY.start - timedelta(days=2, hours=-7), DAY.start, "2013-01-06")  # from 07:00 of the 5th on
    models.write_manifest(world.root / "p", replace(manifest, training=replace(manifest.training, interval=first)))
    for day in (3, 4, 5, 6, 7):
        body = {"interval": f"2013-01-{day:02d}", "quality": {"overall": day / 10}, "passed": True}
        write_point(str(world.root / "quality"), Interval.from_key(body["interval"]), body)
    found = _quality(models.read_manifest(world.root / "p"), (str(world.root / "quality"),))
    assert [batch["interval"] for batch in found] == ["2013-01-05", "2013-01-06"]
    assert _overlaps("2013-01-06T120000", None, DAY.start)
    assert not _overlaps("2013-01-07T120000", None, DAY.start)


def test_quality_that_one_of_the_series_lacks_is_not_met(world):
    for day, rows, quality in ((1, 9, {"overall": 0.99}), (2, 0, {})):
        body = {"interval": f"2013-01-{day:02d}", "quality": quality, "passed": True, "rows": rows}
        write_point(str(world.root / "flights"), Interval.from_key(body["interval"]), body)
    roots = (str(world.root / "flights"), str(world.root / "typo"))
    spec = world.spec(world.candidate(), {"min_quality": 0.9}, quality=roots)
    result = stages.run(spec, INFO)
    assert result.failed == ("quality",)
    assert "no quality is recorded for the training window in typo; worst batch 2013-01-01 of 1" in result.reason
    assert str(world.root) not in Path(result.evidence.uri).read_text()
    assert stages.run(replace(spec, quality=roots[:1]), INFO).passed, "the 2nd was empty"
    body = {"interval": "2013-01-03", "quality": {}, "passed": True, "rows": 5}
    write_point(roots[0], Interval.from_key("2013-01-03"), body)
    reason = stages.run(replace(spec, quality=roots[:1]), INFO).reason
    assert "no score is recorded for 1 admitted batches, such as 2013-01-03 of flights" in reason


def test_missing_lineage_is_named(world):
    ref = packages.package(world.root / "p")
    manifest = models.read_manifest(world.root / "p")
    models.write_manifest(world.root / "p", replace(manifest, provenance=Provenance(code={"package": "1"})))
    report = packages.evaluation(world.root / "r.json", ref, world.test)
    registered = stages.run(RegisterSpec(ref, report), INFO)
    spec = world.spec({"model": registered.model, "evaluation": report, "parity": registered.parity}, {})
    assert "not recorded: data, environment, why" in stages.run(spec, INFO).reason


def test_provenance_that_was_changed_after_registration_is_not_met(world):
    candidate = world.candidate()
    manifest = models.read_manifest(world.root / "one")
    models.write_manifest(
        world.root / "one", replace(manifest, provenance=replace(manifest.provenance, data={"x": "sha256:other"}))
    )
    assert "it differs from the package's" in stages.run(world.spec(candidate, {}), INFO).reason


def test_approvals(world):
    candidate = world.candidate()
    spec = world.spec(candidate, {"approvals": 1})
    assert stages.run(spec, INFO).failed == ("approvals",)
    result = stages.run(replace(spec, approved_by=("Ann",)), INFO)
    assert result.passed
    assert json.loads(Path(result.evidence.uri).read_text())["approved_by"] == ["Ann"]


def test_an_evaluation_of_another_model_is_an_integrity_error(world):
    one, two = world.candidate("one"), world.candidate("two", seed=2)
    with pytest.raises(IntegrityError, match="evaluation report is about model sha256:"):
        stages.run(world.spec({**one, "evaluation": two["evaluation"]}, POLICY), INFO)
    with pytest.raises(IntegrityError, match="parity report is about model sha256:"):
        stages.run(world.spec({**one, "parity": two["parity"]}, POLICY), INFO)


def test_reports_that_were_mixed_up_are_a_data_error(world):
    one = world.candidate()
    message = r"evaluation report .*parity.json lacks test, metrics, operating_point: it is the parity report; pass the"
    with pytest.raises(DataError, match=message):
        stages.run(world.spec({**one, "evaluation": one["parity"]}, POLICY), INFO)
    with pytest.raises(DataError, match=message):
        stages.run(RegisterSpec(one["model"], one["parity"]), replace(INFO, run_id="again"))
    message = r"parity report .*one.json lacks passed, max_difference, flips: it is the evaluation report; pass the"
    with pytest.raises(DataError, match=message):
        stages.run(world.spec({**one, "parity": one["evaluation"]}, POLICY), INFO)
    other = tables.write_text(world.root / "x.json", json.dumps({"model": {"digest": one["model"].digest}}))
    report = ReportRef("x", str(other), tables.file_digest(other))
    with pytest.raises(DataError, match="lacks passed, max_difference, flips; pass the register stage's `parity`"):
        stages.run(world.spec({**one, "parity": report}, POLICY), INFO)


def test_an_evaluation_at_another_operating_point_than_the_version_s_is_an_integrity_error(world):
    ref = packages.package(world.root / "p", threshold=0.4)
    point = {"by": "threshold", "value": 0.1, "threshold": 0.1}
    report = packages.evaluation(world.root / "r.json", ref, world.test, operating_point=point)
    forgotten = stages.run(RegisterSpec(ref), INFO)
    spec = world.spec({"model": forgotten.model, "evaluation": report, "parity": forgotten.parity}, POLICY)
    with pytest.raises(
        IntegrityError, match=r"measured at the operating point 0\.1, the version is used at 0\.4: register"
    ):
        stages.run(spec, INFO)
    given = stages.run(RegisterSpec(ref, report), replace(INFO, run_id="given"))
    result = stages.run(replace(spec, model=given.model, parity=given.parity), INFO)
    assert world.registry.evidence(result.model)["operating_point"] == point


def test_a_version_that_names_no_operating_point_is_judged_where_it_is_used(world):
    candidate = world.candidate(threshold=0.4)
    with world.registry._client() as client:
        client.delete_model_version_tag("late", "1", "airflow_ml.threshold")
    result = stages.run(world.spec(candidate, POLICY), INFO)
    assert world.registry.evidence(result.model)["operating_point"]["threshold"] == 0.4


def test_a_report_that_was_changed_is_an_integrity_error(world):
    candidate = world.candidate()
    path = Path(candidate["evaluation"].uri)
    path.write_text(path.read_text().replace('"rows": 900', '"rows": 9000'))
    with pytest.raises(IntegrityError, match=r"evaluation report .* it was changed"):
        stages.run(world.spec(candidate, POLICY), INFO)


def test_a_test_set_that_was_changed_or_is_another_one_is_an_integrity_error(world):
    world.make_champion(world.candidate("old", seed=1))
    candidate = world.candidate("new", days=1)
    other = packages.dataset(world.root / "other.parquet", packages.rows(900, seed=10), name="test")
    with pytest.raises(IntegrityError, match="the evaluation used"):
        stages.run(world.spec(candidate, POLICY, test=other), INFO)
    shutil.copy(other.uri, world.test.uri)
    with pytest.raises(IntegrityError, match=r"test set 'test' at .* it was changed"):
        stages.run(world.spec(candidate, POLICY), INFO)


def test_a_challenge_needs_the_test_set(world):
    world.make_champion(world.candidate("old", seed=1))
    with pytest.raises(SpecError, match="test must be given when the policy has a challenge"):
        stages.run(world.spec(world.candidate("new", days=1), POLICY, test=None), INFO)


def test_a_test_set_without_the_label_names_it(world):
    world.make_champion(world.candidate("old", seed=1))
    with pytest.raises(DataError, match="lacks the label 'late'"):
        stages.run(world.spec(world.candidate("new", days=1), POLICY, label="late"), INFO)


def test_an_unregistered_model_is_a_spec_error(world):
    candidate = world.candidate()
    with pytest.raises(SpecError, match=r"a registered version.*register it first"):
        stages.run(world.spec({**candidate, "model": replace(candidate["model"], version=None)}, POLICY), INFO)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metrics: [", "cannot be read"),
        ("tresholds: {}", r"unknown key in gate policy p\.yaml 'tresholds'"),
        ("metrics: {auc: {at_least: high}}", r"gate policy p\.yaml\.metrics\.auc\.at_least"),
        (
            "{parity: false, lineage: false}",
            r"gate policy p\.yaml: criteria must be at least one of .*, got 'none at all'",
        ),
    ],
)
def test_a_policy_file_with_a_mistake_names_it(world, text, message):
    path = tables.write_text(world.root / "p.yaml", text)
    with pytest.raises(SpecError, match=message):
        stages.run(world.spec(world.candidate(), {}, policy=str(path)), INFO)


def test_a_missing_policy_file_names_it(world):
    with pytest.raises(SpecError, match=r"gate policy .*nowhere\.yaml cannot be read"):
        stages.run(world.spec(world.candidate(), {}, policy=str(world.root / "nowhere.yaml")), INFO)


def test_the_page_escapes_what_it_shows(world):
    result = stages.run(world.spec(world.candidate(), POLICY, approved_by=("<script>alert(1)</script>",)), INFO)
    html = Path(result.evidence.html).read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "late version 1: passed" in html
    body = json.loads(Path(result.evidence.uri).read_text())
    body["model"]["name"] = body["reason"] = body["criteria"][0]["note"] = '"><img src=x>'
    assert "<img" not in page.render(body, "sha256:0")


def test_the_record_is_verified_against_the_model(world):
    result = stages.run(world.spec(world.candidate(), POLICY), INFO)
    body = world.registry.evidence(result.model)
    until = models.read_manifest(Path(result.model.uri)).trained_until
    evidence.verify(body, result.model, until, 0.5)
    for change, message in (
        ({"kind": "other"}, "it is of kind 'other'"),
        ({"model": {**body["model"], "digest": "sha256:1"}}, "it is about model sha256:1"),
        ({"model": {**body["model"], "trained_until": None}}, "it says trained until None"),
        ({"criteria": []}, "there are none"),
        ({"operating_point": {"threshold": 0.9}}, "it judged at the operating point 0.9, the version says 0.5"),
        ({"criteria": [{**body["criteria"][0], "passed": False}]}, "but not its criteria: metric.auc"),
    ):
        with pytest.raises(IntegrityError, match=message):
            evidence.verify({**body, **change}, result.model, until, 0.5)


def test_no_clock_and_no_path_in_the_record(world):
    text = Path(stages.run(world.spec(world.candidate(), POLICY), INFO).evidence.uri).read_text()
    assert str(world.root) not in text
    assert str(datetime.now(timezone.utc).year) not in text
