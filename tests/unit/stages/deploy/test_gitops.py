"""Services in an environment repository: a local bare one, with a cluster in memory that follows it."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import yaml

from airflow_ml_provider.exceptions import Conflict, SpecError, Unavailable
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy import git
from airflow_ml_provider.stages.deploy.git import Commit, Repository
from airflow_ml_provider.stages.deploy.gitops import MANIFEST, GitOpsServing, message
from airflow_ml_provider.stages.deploy.moves import hand_back
from airflow_ml_provider.stages.deploy.place import GitOps, encode, resolve
from airflow_ml_provider.stages.deploy.service import Server, Service, Version
from airflow_ml_provider.testing.gitops import MemoryCluster, repository
from airflow_ml_provider.testing.serving import ServingContract


def version(name: str) -> Version:
    return Version(name, ModelRef("late", f"models/{name}", f"sha256:{name}"))


V1, V2 = version("v1"), version("v2")


class World:
    """A bare repository, who follows it, and who works with it."""

    def __init__(self, folder):
        self.folder, self.url = folder, repository(folder / "env.git")
        self.cluster = MemoryCluster(self.url)

    def serving(self, **settings):
        place = GitOps(self.url, path="teams/ml", copy=str(self.folder / "copies"), **settings)
        return GitOpsServing(place, Repository(self.url, copy=place.copy, author=place.author), self.cluster)

    def git(self, *args, stdin=None):
        who = ("-c", "user.name=Someone", "-c", "user.email=someone@example.com")
        command = ["git", "--git-dir", self.url, *who, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True, input=stdin).stdout.strip()

    def log(self, shape="%s", branch="main"):
        return self.git("log", f"--format={shape}", branch).splitlines()

    def by_hand(self, path, text, branch="main"):
        """Somebody else commits a file."""
        other = Repository(self.url, copy=str(self.folder / "other"), author="Someone <someone@example.com>")
        other.fetch()
        folder, _, name = path.rpartition("/")
        tip = other.tip(branch)
        return other.push([Commit(folder, "By hand\n", {name: text})], tip, branch, tip)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


class TestContract(ServingContract):
    @pytest.fixture
    def place(self, world):
        return world.serving()

    @pytest.fixture
    def version(self):
        return version

    @pytest.fixture
    def rows(self):
        return {"x": [1.0, 2.0]}


def rollout(identity="0123456789abcdef", **more):
    from airflow_ml_provider import codec

    stable = codec.encode(V1)
    return {
        "identity": identity,
        "dag_id": "late_rollout",
        "task_id": "rollout",
        "run_id": "r1",
        "stable": stable,
        **more,
    }


def begun(place, *percents):
    revision = place.put(Service("late", V1))
    for percent in percents:
        revision = place.put(Service("late", V1, V2, percent, rollout=rollout(step=percent)), revision)
    return revision


class TestHistory:
    def test_every_step_is_a_commit_that_says_who_and_what(self, world):
        begun(world.serving(author="Airflow <ml@example.com>"), 0, 25)
        assert world.log()[:3] == [
            "late: v2 beside v1, with 25 % of the requests",
            "late: v2 beside v1, with 0 % of the requests",
            "late: v1 answers all requests",
        ]
        body = world.git("log", "-1", "--format=%an %ae%n%B", "main").splitlines()
        assert body[0] == "Airflow ml@example.com"
        wanted = ["Model: v1 late sha256:v1", "Model: v2 late sha256:v2", "Airflow-Dag: late_rollout"]
        assert {*wanted, "Airflow-Run: r1"} <= set(body)
        made = yaml.safe_load(world.git("show", f"main:teams/ml/late/{MANIFEST}"))
        assert made["percent"] == 25

    def test_a_rollback_is_the_revert_of_the_rollout(self, world):
        place = world.serving()
        before_it = begun(place)
        begun_at = place.look("late").revision
        revision = begun_at
        for percent in (0, 25):
            revision = place.put(Service("late", V1, V2, percent, rollout=rollout(step=percent)), revision)
        hand_back(place, "late", rollout()["identity"])
        assert world.log()[0] == 'Revert "late: rollout of v2"'
        body = world.git("log", "-1", "--format=%B", "main")
        reverted = [line.split()[3].rstrip(".") for line in body.splitlines() if line.startswith("This reverts")]
        assert reverted == world.log("%H")[1:4]
        # What git itself makes of reverting these commits is the same tree.
        clone = world.folder / "clone"
        subprocess.run(["git", "clone", "--quiet", world.url, clone], check=True)
        own = ["git", "-C", clone, "-c", "user.name=S", "-c", "user.email=s@example.com"]
        subprocess.run([*own, "checkout", "--quiet", reverted[0]], check=True)
        subprocess.run([*own, "revert", "--no-edit", *reverted], check=True, capture_output=True)
        tree = subprocess.run([*own, "rev-parse", "HEAD^{tree}"], check=True, capture_output=True, text=True).stdout
        assert tree.strip() == world.git("rev-parse", "main^{tree}") == world.git("rev-parse", f"{before_it}^{{tree}}")
        assert place.look("late").wanted == Service("late", V1)

    def test_how_a_rollout_ended_is_noted_after_its_revert(self, world):
        place = world.serving()
        revision = begun(place, 0, 25)
        ended = rollout(state={"phase": "rolled_back"})
        place.put(Service("late", V1, rollout=ended), revision)
        assert world.log()[:2] == ["late: v1 answers all requests", 'Revert "late: rollout of v2"']
        assert place.look("late").wanted.rollout == ended

    def test_a_promotion_reverts_nothing(self, world):
        place = world.serving()
        place.put(Service("late", V2, rollout=rollout(state={"phase": "done"})), begun(place, 50))
        assert not [line for line in world.log() if line.startswith("Revert")]

    def test_names_cannot_add_trailers(self):
        bad = Service("late", V1, V2, 1, rollout=rollout(run_id="r\nAirflow-Rollout: other"))
        assert message(bad).splitlines().count("Airflow-Rollout: other") == 0


class TestOthers:
    def test_commits_elsewhere_are_no_conflict(self, world):
        place = world.serving()
        revision = begun(place)
        world.by_hand("teams/web/page.yaml", "a: 1\n")
        place.put(Service("late", V1, V2, 10), revision)
        assert "By hand" in world.log()
        assert world.git("show", "main:teams/web/page.yaml") == "a: 1"

    def test_a_push_in_between_is_answered_by_the_same_commit_on_top(self, world, monkeypatch):
        place, pushed = world.serving(), []
        revision = begun(place)
        real = Repository.push

        def slow(self, *args, **kwargs):
            if self is place.repository and not pushed:
                pushed.append(world.by_hand("teams/web/page.yaml", "a: 1\n"))
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Repository, "push", slow)
        made = place.put(Service("late", V1, V2, 10), revision)
        assert world.log("%H")[:2] == [made, pushed[0]]

    def test_many_at_once_lose_nothing(self, world):
        names = [f"s{n}" for n in range(4)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name: world.serving().put(Service(name, V1)), names))
        assert sorted(world.git("ls-tree", "--name-only", "main:teams/ml").splitlines()) == names

    def test_what_another_process_fetched_meanwhile_is_not_overwritten(self, world, monkeypatch):
        """The tip as the shared copy knows it is newer than the commit that was built upon."""
        place, seen = world.serving(), []
        revision = begun(place)
        real = Repository.push

        def slow(self, *args, **kwargs):
            if self is place.repository and not seen:
                seen.append(world.by_hand("teams/web/page.yaml", "a: 1\n"))
                world.serving().look("late")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Repository, "push", slow)
        place.put(Service("late", V1, V2, 10), revision)
        assert "By hand" in world.log()

    def test_two_that_change_one_service(self, world):
        one, two = world.serving(), world.serving()
        revision = begun(one)
        two.put(Service("late", V1, V2, 10), revision)
        with pytest.raises(Conflict, match="changed by somebody else, in commit"):
            one.put(Service("late", V1, V2, 20), revision)

    def test_a_manifest_changed_by_hand_is_not_overwritten(self, world):
        place = world.serving()
        begun(place, 10)
        world.by_hand(f"teams/ml/late/{MANIFEST}", "percent: 90\n")
        with pytest.raises(SpecError, match="changed by hand, last in commit"):
            place.put(Service("late", V1, V2, 20), place.look("late").revision)

    def test_further_files_of_people_stay(self, world):
        place = world.serving()
        begun(place)
        world.by_hand("teams/ml/late/kustomization.yaml", "resources: [record.yaml]\n")
        place.put(Service("late", V1, V2, 20), place.look("late").revision)
        assert "kustomization.yaml" in world.git("ls-tree", "--name-only", "main:teams/ml/late")

    def test_a_server_that_refuses(self, world):
        hook = world.folder / "env.git" / "hooks" / "pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\necho 'main is protected' >&2\nexit 1\n")
        hook.chmod(0o755)
        with pytest.raises(SpecError, match="main is protected"):
            begun(world.serving())


class TestSync:
    def test_it_waits_for_the_controller(self, world):
        place = world.serving(controller="argocd", application="models")
        begun(place)
        world.cluster.reported()
        old, world.cluster.stuck, world.cluster.said = world.cluster.commit, True, "no such namespace"
        new = place.put(Service("late", V1, V2, 20), place.look("late").revision)
        states = place.look("late").states
        why = f"argocd is at commit {old[:12]} and has not synced {new[:12]} yet: no such namespace"
        assert {(state.phase, state.why) for state in states.values()} == {("waits", why)}
        world.cluster.stuck = False
        assert place.look("late").states["v2"].phase == "ready"

    def test_a_later_commit_of_others_holds_it_too(self, world):
        place = world.serving()
        begun(place)
        world.by_hand("teams/web/page.yaml", "a: 1\n")
        assert place.look("late").states["v1"].phase == "ready"


class TestChanges:
    def merge(self, world, squash=False):
        tree = world.git("rev-parse", "changes/late^{tree}")
        parents = ["-p", "main"] if squash else ["-p", "main", "-p", "changes/late"]
        world.git("update-ref", "refs/heads/main", world.git("commit-tree", tree, *parents, "-m", "Merge"))

    @pytest.mark.parametrize("squash", [False, True])
    def test_a_change_waits_until_it_is_merged(self, world, squash):
        place = world.serving(changes="changes/")
        revision = place.put(Service("late", V1))
        assert world.log() == ["The environment"]
        seen = place.look("late")
        assert (seen.wanted, seen.revision) == (Service("late", V1), revision)
        assert seen.states["v1"].why.endswith("on branch 'changes/late' waits to be merged into 'main'")
        self.merge(world, squash)
        assert place.look("late").states["v1"].phase == "ready"
        place.put(Service("late", V1, V2, 5), place.look("late").revision)
        assert place.look("late").states["v2"].phase == "waits"
        self.merge(world, squash)
        assert place.look("late").states["v2"].percent == 5

    def test_a_change_that_was_turned_down_is_not_there(self, world):
        place = world.serving(changes="changes/")
        place.put(Service("late", V1))
        world.git("update-ref", "-d", "refs/heads/changes/late")
        assert place.look("late") is None

    def test_a_change_that_was_overtaken(self, world):
        begun(world.serving())
        changes = world.serving(changes="changes/")
        stale = changes.put(Service("late", V1, V2, 5), changes.look("late").revision)
        main = world.serving()
        main.put(Service("late", V2), main.look("late").revision)
        assert changes.look("late").wanted == Service("late", V2)
        with pytest.raises(Conflict):
            changes.put(Service("late", V1, V2, 6), stale)


class TestRepository:
    def test_what_a_killed_git_left_is_cleared(self, world):
        place = world.serving()
        begun(place)
        (place.repository.folder / "packed-refs.lock").touch()
        (place.repository.folder / "shallow.lock").touch()
        world.by_hand("a/b.yaml", "a: 1\n")
        assert place.look("late").states["v1"].phase == "ready"

    @pytest.mark.parametrize("url", ["", "-x", "ext::sh -c id", "https://user:s3cret@host/a", "https://t0ken@host/a"])
    def test_addresses_that_are_refused(self, url):
        with pytest.raises(SpecError) as error:
            Repository(url)
        assert "s3cret" not in str(error.value)
        assert "t0ken" not in str(error.value)

    def test_a_repository_that_is_not_there(self, tmp_path):
        with pytest.raises((SpecError, Unavailable), match="fetch of repository"):
            Repository(str(tmp_path / "none.git"), copy=str(tmp_path / "copies")).fetch()

    def test_no_such_branch(self, world):
        with pytest.raises(SpecError, match="has no branch 'prod'"):
            world.serving(branch="prod").look("late")

    def test_a_password_is_asked_from_the_environment_alone(self, world):
        secret = {git.LOGIN: "bot", git.PASSWORD: "s3cret"}
        own = Repository(world.url, copy=str(world.folder / "copies"), environment=secret)
        own.fetch()
        asked = own.git("credential", "fill", stdin="protocol=https\nhost=example.com\n\n")
        assert {"username=bot", "password=s3cret"} <= set(asked.splitlines())
        text = "".join(path.read_text(errors="replace") for path in own.folder.rglob("*") if path.is_file())
        assert "s3cret" not in text


class TestPlace:
    def test_it_is_written_and_read(self):
        place = GitOps("https://git.example/env.git", controller="flux", application="models")
        assert resolve(encode(place)) == place

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"repository": ""}, "repository must be given"),
            ({"controller": "argocd"}, "application must be given"),
            ({"path": "a/../b"}, "path must be"),
            ({"branch": "a..b"}, "branch must be"),
            ({"changes": "a b"}, "changes must be"),
            ({"author": "me"}, "author must be"),
        ],
    )
    def test_bad_values(self, settings, match):
        with pytest.raises(SpecError, match=match):
            GitOps(**{"repository": "/env.git", **settings})


def test_a_version_s_image_is_in_the_message():
    image = replace(V1, server=Server(format="custom", image="late@sha256:12"))
    assert "Image: v1 late@sha256:12" in message(Service("late", image)).splitlines()
