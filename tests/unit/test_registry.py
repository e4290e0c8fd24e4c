"""The registry on a real MLflow database."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")

from airflow_ml_provider import models, tables
from airflow_ml_provider.exceptions import Conflict, DataError, IntegrityError, SpecError, Unavailable
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.registry import JournalEntry, Registry
from airflow_ml_provider.registry.journal import Holders
from airflow_ml_provider.registry.ledger import Ledger
from airflow_ml_provider.registry.mlflow import IDENTITY
from airflow_ml_provider.registry.packages import uploads
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

JAN = datetime(2013, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def registry(tracking_uri: str) -> Registry:
    return Registry.from_env()


def register(registry: Registry, folder: Path, seed: int = 0, identity: str = "i", **kwargs: object) -> ModelRef:
    ref = packages.package(folder / f"package-{seed}", seed=seed, **kwargs)  # type: ignore[arg-type]
    return registry.register("late", Path(ref.uri), ref, {IDENTITY: identity}, "candidate")


def promote(
    registry: Registry, ref: ModelRef, at: datetime, run: str = "r", expected: str | None = None, **kwargs: object
):  # type: ignore[no-untyped-def]
    info = RunInfo(dag_id="d", task_id="promote", run_id=run)
    return registry.move(
        "late", "champion", ref, action=kwargs.pop("action", "promote"), info=info, effective_from=at,  # type: ignore[arg-type]
        expected=expected, evidence="sha256:e", **kwargs,
    )  # fmt: skip


def test_without_a_tracking_uri_the_message_names_connection_and_variable(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SpecError, match=r"MLFLOW_TRACKING_URI is not set.*mlflow_conn_id.*mlflow_default"):
        Registry.from_env()


def test_a_server_that_is_away_is_worth_another_try(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9 did not answer") as caught:
        Registry("http://user:secret@127.0.0.1:9").models()
    assert caught.value.verdict == "retryable"
    assert "secret" not in str(caught.value).partition("did not answer")[0]


def test_register_keeps_all_that_the_ref_says(registry, tmp_path):
    ref = register(registry, tmp_path, segment={"origin": "EWR"}, trained_until=JAN)
    assert ref.version == "1"
    assert ref.segment == {"origin": "EWR"}
    assert ref.trained_until == JAN
    assert ref.metrics == {"auc": 0.8}
    assert registry.get("late", "1") == ref
    assert registry.versions("late") == [ref]
    assert registry.models() == ["late"]
    assert registry.holder("late", "candidate") == ref
    assert registry.holder("late", "champion") is None
    assert registry.holder("unheard_of", "champion") is None


def test_the_same_task_gets_its_version_again_and_another_task_a_new_one(registry, tmp_path):
    first = register(registry, tmp_path)
    assert register(registry, tmp_path) == first
    assert register(registry, tmp_path, identity="other").version == "2"
    assert len(registry.versions("late")) == 2


def test_a_task_killed_after_upload_makes_one_version(registry, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    create = MlflowClient.create_model_version

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "create_model_version", die)
    with pytest.raises(KeyboardInterrupt):
        register(registry, tmp_path)
    assert registry.versions("late") == []
    monkeypatch.setattr(MlflowClient, "create_model_version", create)
    register(registry, tmp_path)
    assert [ref.version for ref in registry.versions("late")] == ["1"]
    with registry._client() as client:
        runs = client.search_runs([client.get_experiment_by_name("airflow_ml").experiment_id])
    assert len(runs) == 1


def test_a_request_that_the_server_did_twice_leaves_one_version(registry, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    create = MlflowClient.create_model_version

    def twice(*args: object, **kwargs: object) -> object:
        create(*args, **kwargs)
        return create(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_model_version", twice)
    assert register(registry, tmp_path).version == "1"
    assert [ref.version for ref in registry.versions("late")] == ["1"]


def test_the_candidate_alias_never_goes_back_to_an_older_version(registry, tmp_path):
    register(registry, tmp_path, seed=0, identity="one")
    register(registry, tmp_path, seed=1, identity="two")
    register(registry, tmp_path, seed=0, identity="one")
    assert registry.alias("late", "candidate") == "2"


def test_pickles_are_not_uploaded(tmp_path):
    ref = packages.package(tmp_path / "p")
    for name in ("model.pkl", "model.joblib", "weights.pt", ".hidden.json"):
        (tmp_path / "p" / name).write_bytes(b"x")
    names = [path.name for path in uploads(Path(ref.uri))]
    assert names == ["model.json", "model.onnx", "sample.parquet"]


def test_a_second_task_that_makes_the_experiment_first_does_no_harm(registry, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    get, seen = MlflowClient.get_experiment_by_name, []

    def late(self: MlflowClient, name: str) -> object:
        if not seen:
            seen.append(self.create_experiment(name, (tmp_path / "mlartifacts").as_uri()))
            return None
        return get(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    assert register(registry, tmp_path).version == "1"
    assert len(seen) == 1


def test_a_changed_package_is_not_registered(registry, tmp_path):
    ref = packages.package(tmp_path / "p")
    (tmp_path / "p" / models.ONNX).write_bytes(b"other")
    with pytest.raises(IntegrityError, match="it was changed"):
        registry.register("late", tmp_path / "p", ref, {}, "candidate")


def test_fetch_takes_the_local_folder_and_downloads_once_it_is_gone_or_changed(registry, tmp_path):
    ref = register(registry, tmp_path)
    assert registry.fetch(ref) == Path(ref.uri)
    shutil.rmtree(ref.uri)
    cached = registry.fetch(ref)
    assert cached == tmp_path / "cache" / "models" / ref.digest.partition(":")[2]
    assert models.package_digest(cached) == ref.digest
    assert (cached / "sample.parquet").exists()
    before = os.stat(cached).st_ino
    assert registry.fetch(ref) == cached
    assert os.stat(cached).st_ino == before
    (cached / models.ONNX).write_bytes(b"damaged")
    assert models.package_digest(registry.fetch(ref)) == ref.digest
    assert [p.name for p in cached.parent.iterdir()] == [cached.name]


def test_fetch_refuses_files_that_were_changed_in_the_registry(registry, tmp_path):
    ref = register(registry, tmp_path)
    shutil.rmtree(ref.uri)
    stored = next((tmp_path / "mlartifacts").rglob(models.ONNX))
    stored.write_bytes(b"tampered")
    with pytest.raises(IntegrityError, match="it was changed"):
        registry.fetch(ref)
    stored.unlink()
    with pytest.raises(IntegrityError, match="incomplete"):
        registry.fetch(ref)
    assert not (tmp_path / "cache" / "models" / ref.digest.partition(":")[2]).exists()


def test_fetch_of_an_unregistered_model_that_is_gone_says_so(registry, tmp_path):
    ref = replace(packages.package(tmp_path / "p"), uri=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="not registered"):
        registry.fetch(ref)


def test_a_version_that_others_made_is_left_out_and_named_when_asked_for(registry, tmp_path):
    register(registry, tmp_path)
    with registry._client() as client:
        client.create_model_version("late", str(tmp_path))
    assert [ref.version for ref in registry.versions("late")] == ["1"]
    with pytest.raises(DataError, match=r"lacks the tag airflow_ml\.digest"):
        registry.get("late", "2")


def test_a_name_that_could_break_a_query_is_refused(registry):
    with pytest.raises(SpecError, match="model name must be"):
        registry.versions("late' or name like '%")


def test_evidence_is_proven_by_its_digest(registry, tmp_path):
    ref = register(registry, tmp_path)
    assert registry.evidence(ref) is None
    text = '{"decision":"passed"}'
    from airflow_ml_provider import codec

    digest = codec.digest({"decision": "passed"})
    file = tables.write_text(tmp_path / "evidence" / f"{digest[7:]}.json", text)
    registry.attach_evidence(ref, [file], digest, "passed", str(file))
    assert registry.evidence(ref) == {"decision": "passed"}
    stored = next((tmp_path / "mlartifacts").rglob(f"evidence/{digest[7:]}.json"))
    stored.write_text(text.replace("passed", "refused"))
    with pytest.raises(IntegrityError, match="it was altered"):
        registry.evidence(ref)
    stored.unlink()
    with pytest.raises(IntegrityError, match="the file is gone"):
        registry.evidence(ref)


def test_the_journal_says_who_held_the_alias_for_data_of_which_time(registry, tmp_path):
    one, two = register(registry, tmp_path, 1, "1"), register(registry, tmp_path, 2, "2")
    promote(registry, one, JAN + timedelta(days=7), "r1")
    promote(registry, two, JAN + timedelta(days=14), "r2", expected="1")
    assert registry.holder("late", "champion") == two
    assert registry.holder("late", "champion", JAN) is None
    assert registry.holder("late", "champion", JAN + timedelta(days=7)) == one
    assert registry.holder("late", "champion", JAN + timedelta(days=13)) == one
    assert registry.holder("late", "champion", JAN + timedelta(days=14)) == two
    first, second = registry.journal("late")
    assert (first.version, first.previous, second.version, second.previous) == ("1", None, "2", "1")
    assert second.prev == first.digest
    assert registry.verify_journal("late") == []


def test_a_task_writes_one_entry(registry, tmp_path):
    ref = register(registry, tmp_path)
    entry = promote(registry, ref, JAN)
    assert promote(registry, ref, JAN) == entry
    assert registry.journal("late") == (entry,)


def test_a_move_killed_between_journal_and_alias_is_completed_by_the_next_try(registry, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    ref = register(registry, tmp_path)
    move = MlflowClient.set_registered_model_alias

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", die)
    with pytest.raises(KeyboardInterrupt):
        promote(registry, ref, JAN)
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", move)
    assert registry.alias("late", "champion") is None
    assert "a move was not completed" in registry.verify_journal("late")[0]
    promote(registry, ref, JAN)
    assert registry.alias("late", "champion") == "1"
    assert len(registry.journal("late")) == 1
    assert registry.verify_journal("late") == []


def test_a_move_decided_on_an_old_state_is_a_conflict(registry, tmp_path):
    one, two = register(registry, tmp_path, 1, "1"), register(registry, tmp_path, 2, "2")
    promote(registry, one, JAN, "r1")
    with pytest.raises(Conflict, match="moved from version None to 1") as caught:
        promote(registry, two, JAN, "r2", expected=None)
    assert caught.value.verdict == "retryable"
    assert len(registry.journal("late")) == 1


def test_a_concurrent_writer_is_a_conflict_and_no_entry_is_lost(registry, tmp_path):
    one, two = register(registry, tmp_path, 1, "1"), register(registry, tmp_path, 2, "2")
    with registry._client() as client, Ledger(client, "late", "champion").claim("someone"):
        with pytest.raises(Conflict, match="task someone is writing"):
            promote(registry, one, JAN, "r1")
        assert registry.journal("late") == ()
    promote(registry, one, JAN, "r1")
    promote(registry, two, JAN, "r2", expected="1")
    assert [e.version for e in registry.journal("late")] == ["1", "2"]


def test_the_claim_of_a_task_that_was_killed_lapses(registry, tmp_path):
    ref = register(registry, tmp_path)
    with registry._client() as client:
        client.set_registered_model_tag("late", "airflow_ml.claim.champion.dead", "1.0")
        promote(registry, ref, JAN)
        tags = client.get_registered_model("late").tags
    assert [key for key in tags if "claim" in key] == []


def test_the_retry_of_a_killed_try_takes_its_claim_over_at_once(registry, tmp_path):
    ref = register(registry, tmp_path)
    info = RunInfo(dag_id="d", task_id="promote", run_id="r")
    with registry._client() as client:
        fresh = f"{datetime.now(timezone.utc).timestamp()} of-the-killed-try"
        client.set_registered_model_tag("late", f"airflow_ml.claim.champion.{info.identity}", fresh)
        with pytest.raises(Conflict, match=f"task {info.identity} is writing"):
            promote(registry, ref, JAN, run="another")
        promote(registry, ref, JAN, run="r")
        assert [key for key in client.get_registered_model("late").tags if "claim" in key] == []


def test_a_try_whose_claim_was_taken_over_writes_nothing_and_leaves_the_claim(registry, tmp_path):
    one = register(registry, tmp_path)
    with registry._client() as client:
        zombie, retry = (Ledger(client, "late", "champion") for _ in range(2))
        entry = JournalEntry(0, "promote", "1", one.digest, JAN, JAN, identity="task")
        with retry_after(zombie, retry):
            for write in (lambda: zombie.append(entry, ()), lambda: zombie.write_head(entry), zombie.confirm):
                with pytest.raises(Conflict, match="another try of this task took it over"):
                    write()
            assert zombie.read() == ()
        tags = client.get_registered_model("late").tags
        assert [key for key in tags if "claim" in key] == []


@contextmanager
def retry_after(zombie: Ledger, retry: Ledger) -> Iterator[None]:
    """Have the claim of one try taken over by another; the first one lets go of it first."""
    with contextlib.ExitStack() as later:
        with zombie.claim("task"):
            later.enter_context(retry.claim("task"))
            yield
        retry.confirm()


class TwoTries:
    """Two live tries of one task that are both past looking for the entry before either of them writes it.

    Parameters:
        claims_last: whose claim counts.
        writes_last: whose entry stands. The other one stops before it writes the head until this one is done.
    """

    def __init__(self, claims_last: str, writes_last: str) -> None:
        from mlflow import MlflowClient

        self.claims_last, self.writes_last = claims_last, writes_last
        self.past_look, self.waits = threading.Barrier(2), 30
        self.events = {(what, name): threading.Event() for what in ("entry", "written", "ended") for name in "ab"}
        self.outcomes: dict[str, str] = {}
        self._set = MlflowClient.set_registered_model_tag

    def set_tag(self, client: Any, name: str, key: str, value: str) -> None:
        me = threading.current_thread().name
        other = "b" if me == "a" else "a"
        if ".claim." in key and me == self.claims_last:
            self._wait("entry", other)
        if ".journal." in key:
            self.events["entry", me].set()
            self.past_look.wait(self.waits)
            if me == self.writes_last:
                self._wait("written", other)
        if ".head." in key and me != self.writes_last:
            self.events["written", me].set()
            self._wait("ended", other)
        self._set(client, name, key, value)

    def _wait(self, what: str, who: str) -> None:
        assert self.events[what, who].wait(self.waits)

    def run(self, work: Callable[[], object]) -> None:
        threads = [threading.Thread(target=self._try, args=(work,), name=name) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * self.waits)

    def _try(self, work: Callable[[], object]) -> None:
        me = threading.current_thread().name
        try:
            work()
            self.outcomes[me] = "moved"
        except Conflict:
            self.outcomes[me] = "conflict"
        finally:
            for what in ("entry", "written", "ended"):
                self.events[what, me].set()


@pytest.mark.parametrize("claims_last", "ab")
@pytest.mark.parametrize("writes_last", "ab")
def test_two_live_tries_of_one_task_leave_one_sound_entry(registry, tmp_path, monkeypatch, claims_last, writes_last):
    from mlflow import MlflowClient

    ref = register(registry, tmp_path)
    tries = TwoTries(claims_last, writes_last)
    monkeypatch.setattr(MlflowClient, "set_registered_model_tag", lambda *args: tries.set_tag(*args))
    tries.run(lambda: promote(Registry.from_env(), ref, JAN))
    assert tries.outcomes == {claims_last: "moved", "ab".replace(claims_last, ""): "conflict"}
    assert registry.verify_journal("late") == []
    assert registry.alias("late", "champion") == "1"
    assert len(registry.journal("late")) == 1
    tags = MlflowClient(registry.uri).get_registered_model("late").tags
    assert [key for key in tags if "claim" in key] == []


def test_a_zombie_does_not_move_the_alias_back(registry, tmp_path, monkeypatch):
    one, two = register(registry, tmp_path, 1, "1"), register(registry, tmp_path, 2, "2")
    alias, once = Registry.alias, []

    def slow(self: Registry, name: str, what: str) -> str | None:
        """What happens while the first try looks at the alias, after its entry: its retry, and another promotion."""
        found = alias(self, name, what)
        if self is zombie and len(self.journal(name)) == 1 and not once:
            once.append(True)
            promote(registry, one, JAN, "r1")
            promote(registry, two, JAN + timedelta(days=1), "r2", expected="1")
        return found

    zombie = Registry.from_env()
    monkeypatch.setattr(Registry, "alias", slow)
    with pytest.raises(Conflict, match="another try of this task took it over"):
        promote(zombie, one, JAN, "r1")
    assert registry.alias("late", "champion") == "2"
    assert registry.verify_journal("late") == []


def test_a_move_decided_on_an_old_journal_is_a_conflict(registry, tmp_path):
    one, two = register(registry, tmp_path, 1, "1"), register(registry, tmp_path, 2, "2")
    promote(registry, one, JAN, "r1", after=0)
    with pytest.raises(Conflict, match=r"the journal of late@champion has entry 1 meanwhile"):
        promote(registry, two, JAN, "r2", expected="1", after=0)
    promote(registry, two, JAN, "r2", expected="1", after=1)


@pytest.fixture
def three(registry, tmp_path):  # type: ignore[no-untyped-def]
    refs = [register(registry, tmp_path, i, str(i)) for i in (1, 2, 3)]
    for i, ref in enumerate(refs, start=1):
        promote(registry, ref, JAN + timedelta(days=i), f"r{i}", expected=str(i - 1) if i > 1 else None)
    return registry


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_removed_entry_shows(three, number):
    with three._client() as client:
        client.delete_registered_model_tag("late", f"airflow_ml.journal.champion.{number:06d}")
    assert f"entry {number} is missing" in three.verify_journal("late")[0]
    with pytest.raises(IntegrityError, match=f"entry {number} is missing"):
        three.journal("late")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_altered_entry_shows(three, number):
    key = f"airflow_ml.journal.champion.{number:06d}"
    with three._client() as client:
        text = client.get_registered_model("late").tags[key]
        client.set_registered_model_tag("late", key, text.replace('"evidence":"sha256:e"', '"evidence":"sha256:f"'))
    assert f"entry {number} was altered" in three.verify_journal("late")[0]
    with pytest.raises(IntegrityError, match="was altered"):
        three.holder("late", "champion", JAN + timedelta(days=9))


def test_an_entry_that_is_no_entry_shows(three):
    with three._client() as client:
        client.set_registered_model_tag("late", "airflow_ml.journal.champion.000002", "hello")
    assert "entry 000002 cannot be read" in three.verify_journal("late")[0]


def test_who_holds_the_alias_now(three):
    log = three.journal("late")
    assert three.holders("late", "champion", log) == Holders((three.get("late", "3"),))
    assert three.holders("late", "champion", ()) == Holders((three.get("late", "3"),), agreed=False)
    with three._client() as client:
        client.set_registered_model_alias("late", "champion", "1")
    held = three.holders("late", "champion", log)
    assert ([ref.version for ref in held.models], held.agreed) == (["1", "3"], False)
    assert [ref.version for ref in held.besides(three.get("late", "1"))] == ["3"]
    with three._client() as client:
        client.delete_model_version("late", "3")
        client.delete_registered_model_alias("late", "champion")
    held = three.holders("late", "champion", log)
    assert ([ref.version for ref in held.models], held.agreed) == (["2"], False)
    assert three.last_holder("late", log, JAN + timedelta(days=1)).version == "1"
    assert three.last_holder("late", log, JAN) is None
    assert three.present("late") == {"1", "2"}


def test_a_holder_that_is_not_what_the_journal_says_is_an_integrity_error(three):
    three.tag("late", "3", {"airflow_ml.threshold": "0.9"})
    with pytest.raises(IntegrityError, match="its tags were changed"):
        three.holders("late", "champion", three.journal("late"))


def test_which_models_were_rolled_back_from_is_known_after_their_versions_are_gone(three):
    bad = three.get("late", "3")
    promote(three, three.get("late", "2"), JAN, "back", expected="3", action="rollback")
    with three._client() as client:
        client.delete_model_version("late", "3")
    assert three.rolled_back("late", three.journal("late")) == {bad.digest}
    with three._client() as client:
        client.set_registered_model_alias("late", "champion", "1")
    promote(three, three.get("late", "2"), JAN, "back again", expected="1", action="rollback")
    assert three.rolled_back("late", three.journal("late")) == {bad.digest, three.get("late", "1").digest}


def test_an_alias_moved_by_hand_shows(three):
    with three._client() as client:
        client.set_registered_model_alias("late", "champion", "1")
    assert three.verify_journal("late") == [
        "the alias points to version 1, the journal's last entry to 3: a move was not completed, or the alias was "
        "moved by hand"
    ]


def test_a_version_whose_digest_was_changed_holds_nothing(three):
    three.tag("late", "3", {"airflow_ml.digest": "sha256:" + "0" * 64})
    with pytest.raises(IntegrityError, match="its tags were changed"):
        three.holder("late", "champion", JAN + timedelta(days=9))


def test_pages_for_humans(tmp_path):
    registry = Registry("http://mlflow:5000/", ui_url="https://ml.example/")
    ref = replace(ModelRef("late", "", "sha256:0"), version="3")
    assert registry.version_url(ref) == "https://ml.example/#/models/late/versions/3"
    assert Registry("http://mlflow:5000/").version_url(ref) == "http://mlflow:5000/#/models/late/versions/3"
    assert Registry("sqlite:///x.db").version_url(ref) == ""
    assert Registry("sqlite:///x.db").run_url("r") == ""


def test_a_request_does_not_load_feast(tmp_path):
    """Feast registers a plugin for the headers of MLflow's requests; loading it costs every task seconds."""
    import subprocess
    import sys

    pytest.importorskip("mlflow")
    code = (
        "import sys; from airflow_ml_provider.registry import Registry; "
        "Registry.from_env({'MLFLOW_TRACKING_URI': sys.argv[1]}).holder('m', 'champion'); "
        "import mlflow.tracking.request_header.registry; print('feast' in sys.modules)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, f"sqlite:///{tmp_path}/mlflow.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
