"""Services that are changed by commits to an environment repository, which a controller brings to the cluster.

Argo CD or Flux applies what is in the repository; nothing here writes to the cluster. A service is a folder with two
files: the manifest of what serves it, and the record of what it shall be. A move of traffic is a commit. A rollback is
the revert of the rollout's commits, as `git revert` would make it, and what has been learnt is noted by one more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Optional, Protocol

from airflow_ml_provider.exceptions import Conflict, SpecError, Unavailable
from airflow_ml_provider.stages.deploy.git import Behind, Commit, Repository
from airflow_ml_provider.stages.deploy.kserve.manifest import record, recorded
from airflow_ml_provider.stages.deploy.logic import is_over
from airflow_ml_provider.stages.deploy.place import GitOps
from airflow_ml_provider.stages.deploy.service import Observed, Readings, Service, VersionState

CONTROLLERS = {
    "argocd": ("argoproj.io", "v1alpha1", "applications"),
    "flux": ("kustomize.toolkit.fluxcd.io", "v1", "kustomizations"),
}
"""Controllers by the API group, version and resource in which they report."""
MANIFEST, RECORD = "inferenceservice.yaml", "record.yaml"
_BELONGS = "airflow-ml/manifest"  # annotation of the record: digest of the manifest that it was written with
_IDENTITY = "Airflow-Rollout"  # trailer
_TRIES = 10


@dataclass(frozen=True)
class Report:
    """What the controller says.

    Attributes:
        commit: the last one that it has brought to the cluster; empty when it has none.
        said: what it complains about, for people.
    """

    commit: str = ""
    said: str = ""


class Cluster(Protocol):
    """What the controller writes to, as far as it is read here."""

    def render(self, wanted: Service, before: Optional[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the manifest of a service, given the one that the repository has."""
        ...

    def reported(self) -> Optional[Report]:
        """Return what the controller says; none when there is nobody to ask."""
        ...

    def look(self, name: str) -> Optional[Observed]:
        """Return a service as it is in the cluster, or none."""
        ...

    def readings(self, name: str) -> Readings:
        """Return what each version has counted."""
        ...

    def predict(self, name: str, rows: Mapping[str, Sequence[Any]], version: str = "") -> tuple[Mapping[str, Any], str]:
        """Return the outputs for some rows, and the version that gave them."""
        ...


@dataclass(frozen=True)
class _Found:
    """A service in the repository."""

    wanted: Service
    revision: str  # the last commit that changed its folder
    tree: str
    manifest: str
    digest: str  # of the manifest, as the record says


@dataclass(frozen=True)
class _Place:
    """Where to read from and to commit onto."""

    commit: str
    lease: str  # where the branch that is pushed to was
    merged: bool  # the commit is on the branch that the controller follows


class GitOpsServing:
    """The services of an environment repository; fulfils `stages.deploy.service.Serving`.

    Parameters:
        place: branch, folder and the way to change them.
        repository: the repository.
        cluster: what the controller writes to.
    """

    def __init__(self, place: GitOps, repository: Repository, cluster: Cluster) -> None:
        self.place, self.repository, self.cluster = place, repository, cluster

    def look(self, name: str) -> Optional[Observed]:
        """Return a service: what it shall be from the repository, what has become of it from the cluster."""
        self.repository.fetch()
        where = self._where(name)
        found = self._found(name, where)
        if found is None:
            return None
        report = self.cluster.reported()  # before the look, so that what is seen is at least as new
        seen = self.cluster.look(name)
        why = self._missing(name, where, found, report, seen)
        if why or seen is None:
            states = {version: VersionState("waits", why) for version in found.wanted.versions}
            return Observed(found.wanted, found.revision, states)
        return Observed(found.wanted, found.revision, seen.states, seen.address)

    def put(self, wanted: Service, revision: Optional[str] = None) -> str:
        """Commit what a service shall be and push it, without waiting; return the commit. The same again does nothing.

        Commits of others to other folders are no conflict: the commit is made again on top of them.

        Raises:
            Conflict: the service has another revision, or is there already: somebody else changed it.
            SpecError: KServe cannot do this, the manifest was changed by hand, or the server refuses the push.
            Unavailable: repository or cluster does not answer.
        """
        for _ in range(_TRIES):
            self.repository.fetch()
            where = self._where(wanted.name)
            found = self._found(wanted.name, where)
            _check_revision(wanted.name, revision, found)
            if found is not None:
                _check_by_hand(wanted.name, found)
            files = self._files(wanted, found)
            if found is not None and all(
                self.repository.read(found.tree, name) == files[name].strip() for name in files
            ):
                return found.revision
            try:
                return self._push(wanted.name, self._commits(wanted, where, found, files), where)
            except Behind:
                continue
        raise Unavailable(
            f"others kept pushing to {self.repository.url} while service {wanted.name!r} was to be changed"
        )

    def readings(self, name: str) -> Readings:
        """Return what each version has counted since its servers started, as the cluster tells it."""
        return self.cluster.readings(name)

    def remove(self, name: str) -> None:
        """Commit that there is no such service; none is no error. The controller must prune to stop it."""
        for _ in range(_TRIES):
            self.repository.fetch()
            where = self._where(name)
            if not self.repository.tree(where.commit, self._folder(name)):
                return
            try:
                self._push(name, [Commit(self._folder(name), f"{name}: removed\n")], where)
            except Behind:
                continue
            return
        raise Unavailable(f"others kept pushing to {self.repository.url} while service {name!r} was to be removed")

    def predict(self, name: str, rows: Mapping[str, Sequence[Any]], version: str = "") -> tuple[Mapping[str, Any], str]:
        """Return the outputs for some rows (column to values), by output, and the version that gave them."""
        return self.cluster.predict(name, rows, version)

    def _folder(self, name: str) -> str:
        return "/".join(filter(None, [self.place.path.strip("/"), name]))

    def _change(self, name: str) -> str:
        return f"{self.place.changes}{name}"

    def _where(self, name: str) -> _Place:
        """Return the commit that counts for a service: the branch's, or that of a change that waits to be merged."""
        main = self.repository.tip(self.place.branch)
        if not main:
            raise SpecError(
                f"repository {self.repository.url} has no branch {self.place.branch!r}; give it a first commit, or "
                "name another branch"
            )
        if not self.place.changes:
            return _Place(main, main, True)
        change = self.repository.tip(self._change(name))
        if not change or self.repository.holds(main, change):
            return _Place(main, change, True)
        folder, base = self._folder(name), self.repository.base(main, change)
        # Merged by a squash, or overtaken by another change: then the branch counts.
        overtaken = self.repository.tree(main, folder) != self.repository.tree(base, folder)
        return _Place(main, change, True) if overtaken else _Place(change, change, False)

    def _found(self, name: str, where: _Place) -> Optional[_Found]:
        tree = self.repository.tree(where.commit, self._folder(name))
        text = self.repository.read(tree, RECORD) if tree else ""
        if not text:
            return None
        kept = _load(text, f"{self._folder(name)}/{RECORD}")
        last = self.repository.log(where.commit, self._folder(name), _IDENTITY, most=1)
        return _Found(
            recorded(kept["data"]), last[0][0], tree, self.repository.read(tree, MANIFEST),
            str(kept["metadata"].get("annotations", {}).get(_BELONGS, "")),
        )  # fmt: skip

    def _missing(
        self, name: str, where: _Place, found: _Found, report: Optional[Report], seen: Optional[Observed]
    ) -> str:
        """Return what is missing until the cluster has what the repository says; empty for nothing."""
        commit, who = found.revision[:12], self.place.controller or "the controller"
        if not where.merged:
            return f"commit {commit} on branch {self._change(name)!r} waits to be merged into {self.place.branch!r}"
        told = f": {report.said}" if report and report.said else ""
        if report is not None and not (report.commit and self.repository.holds(report.commit, found.revision)):
            return f"{who} is at commit {report.commit[:12] or 'none'} and has not synced {commit} yet{told}"
        if seen is None or seen.wanted != found.wanted:
            return f"the cluster has not what commit {commit} says yet{told}"
        return ""

    def _files(self, wanted: Service, found: Optional[_Found]) -> dict[str, str]:
        before = _load(found.manifest, MANIFEST) if found and found.manifest else None
        manifest = _dump(self.cluster.render(wanted, before))
        kept = record(wanted)
        kept["metadata"]["annotations"] = {_BELONGS: _digest(manifest)}
        return {MANIFEST: manifest, RECORD: _dump(kept)}

    def _commits(
        self, wanted: Service, where: _Place, found: Optional[_Found], files: Mapping[str, str]
    ) -> list[Commit]:
        """Return the commits of a change: one, or the revert of a rollout and perhaps one that notes its end."""
        folder = self._folder(wanted.name)
        change = Commit(folder, message(wanted, found.wanted if found else None), files)
        commits = self._rollout(found, where) if found else []
        if found is None or not commits:
            return [change]
        tree = self.repository.tree(f"{commits[-1]}^", folder)
        text = self.repository.read(tree, RECORD) if tree else ""
        if not text or not is_rollback(recorded(_load(text, RECORD)["data"]), found.wanted, wanted):
            return [change]
        revert = Commit(folder, revert_message(wanted.name, commits, found.wanted), tree=tree)
        same = all(self.repository.read(tree, name) == text.strip() for name, text in files.items())
        return [revert] if same else [revert, change]

    def _rollout(self, found: _Found, where: _Place) -> list[str]:
        """Return the commits of the rollout that a service is in, the newest first."""
        identity = found.wanted.rollout.get("identity")
        if not identity:
            return []
        history = self.repository.log(where.commit, self._folder(found.wanted.name), _IDENTITY)
        return [commit for commit, _ in takewhile(lambda one: one[1] == identity, history)]

    def _push(self, name: str, commits: Sequence[Commit], where: _Place) -> str:
        branch = self._change(name) if self.place.changes else self.place.branch
        return self.repository.push(commits, where.commit, branch, where.lease, self.place.push_options)


def is_rollback(before: Service, now: Service, wanted: Service) -> bool:
    """Return whether a change undoes a rollout: the stable version of before it shall serve alone again.

    Parameters:
        before: the service when the rollout began.
        now: the service as it is in the rollout.
        wanted: what it shall be.
    """
    alone = before.candidate is None and wanted.candidate is None and wanted.stable == before.stable
    return alone and (now.candidate is not None or now.stable != before.stable)


def message(wanted: Service, before: Optional[Service] = None) -> str:
    """Return the message of a commit: what changes, which models, and which task of Airflow does it.

    Parameters:
        wanted: what the service shall be.
        before: what it was; it says whose change this is when `wanted` does not.
    """
    stable, candidate = wanted.stable, wanted.candidate
    what = f"{stable.name} answers all requests"
    if candidate is not None:
        what = f"{candidate.name} beside {stable.name}, with {wanted.percent:g} % of the requests"
    lines = [f"Model: {one.name} {one.model.name} {one.model.digest}" for one in wanted.versions.values()]
    lines += [f"Image: {one.name} {one.server.image}" for one in wanted.versions.values() if one.server.image]
    whose = wanted.rollout or (before.rollout if before else {})
    lines += _whose(whose)
    # The commits of a rollout are those that a rollback reverts; the one that ends it is not among them.
    if whose.get("identity") and (candidate is not None or not is_over(wanted)):
        lines.append(f"{_IDENTITY}: {whose['identity']}")
    return "\n".join([f"{wanted.name}: {what}", "", *map(_line, lines), ""])


def revert_message(name: str, commits: Sequence[str], now: Service) -> str:
    """Return the message of the commit that undoes others, the newest of `commits` first."""
    candidate = (now.candidate or now.stable).name
    body = [f"This reverts commit {commit}." for commit in commits]
    return "\n".join([f'Revert "{name}: rollout of {candidate}"', "", *body, "", *map(_line, _whose(now.rollout)), ""])


def _whose(rollout: Mapping[str, Any]) -> list[str]:
    names = {"Airflow-Dag": "dag_id", "Airflow-Task": "task_id", "Airflow-Run": "run_id"}
    return [f"{title}: {rollout[key]}" for title, key in names.items() if rollout.get(key)]


def _line(text: str) -> str:
    return " ".join(text.split())  # a name with a line break would look like a trailer of its own


def _check_revision(name: str, revision: Optional[str], found: Optional[_Found]) -> None:
    if found is None and revision is not None:
        raise Conflict(f"service {name!r} is not in the repository any more")
    if found is not None and revision is None:
        raise Conflict(f"service {name!r} is in the repository already")
    if found is not None and revision != found.revision:
        raise Conflict(f"service {name!r} was changed by somebody else, in commit {found.revision[:12]}")


def _check_by_hand(name: str, found: _Found) -> None:
    """Refuse to overwrite what people wrote into a manifest; a revert of whole commits is no such thing."""
    if _digest(found.manifest) != found.digest:
        raise SpecError(
            f"{MANIFEST} of service {name!r} was changed by hand, last in commit {found.revision[:12]}; revert that, "
            "and set it in `server` of the task"
        )


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.strip().encode()).hexdigest()}"


def _dump(made: Mapping[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(json.loads(json.dumps(made)), sort_keys=False, width=120)
    return text


def _load(text: str, what: str) -> dict[str, Any]:
    import yaml

    try:
        found: dict[str, Any] = yaml.safe_load(text)
        return found
    except yaml.YAMLError as error:
        raise SpecError(f"{what} cannot be read: {error}") from error
