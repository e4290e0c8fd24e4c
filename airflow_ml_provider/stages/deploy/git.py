"""A branch of a Git repository, read and written by the command `git` without a working tree. Airflow-free.

Blobs, trees and commits are made directly in a bare copy, so several processes share it. What somebody else
pushed first is answered by making the commit again on top of it: there is nothing to merge, since a commit only writes
files of one folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from airflow_ml_provider.exceptions import MissingLibrary, SpecError, Unavailable, invalid

# `git` reads what it shall answer from the environment, so a password is in no argument, file or address.
LOGIN, PASSWORD = "AIRFLOW_ML_GIT_LOGIN", "AIRFLOW_ML_GIT_PASSWORD"
_HELPER = f'!f() {{ echo "username=${LOGIN}"; echo "password=${PASSWORD}"; }}; f'
_PROTOCOLS = "file:git:http:https:ssh"  # `ext` would run commands
_REFUSED = ("non-fast-forward", "fetch first", "stale info", "cannot lock ref", "failed to update ref")
_FORBIDDEN = ("Authentication failed", "Permission denied", "could not read Username", "not found", "not appear to be")
_SERVER_SAYS_NO = ("pre-receive hook declined", "protected branch", "hook declined")
_REMOTE = "refs/remotes/origin/"


class Behind(Exception):
    """Somebody else pushed first."""


@dataclass(frozen=True)
class Commit:
    """A commit to make.

    Attributes:
        folder: what it changes, a path in the repository.
        message: subject, an empty line, text.
        files: names in the folder to their text; other files there stay. Empty removes the folder.
        tree: the folder becomes this tree of Git instead.
    """

    folder: str
    message: str
    files: Mapping[str, str] = field(default_factory=dict)
    tree: str = ""


class Repository:
    """A repository somewhere, with a bare copy here.

    Parameters:
        url: its address, without credentials.
        copy: folder of the copies of repositories, for this user alone; empty takes one below the temporary folder.
        author: who commits, as `NAME <ADDRESS>`.
        environment: further variables of `git`, such as `GIT_SSH_COMMAND`, or `LOGIN` and `PASSWORD`.
        timeout_s: a call of `git` fails after so many seconds.

    Raises:
        SpecError: the address has credentials in it, or is none.
    """

    def __init__(
        self,
        url: str,
        *,
        copy: str = "",
        author: str = "Airflow <airflow@localhost>",
        environment: Optional[Mapping[str, str]] = None,
        timeout_s: float = 60.0,
    ) -> None:
        check_url(url)
        self.url, self.author, self.timeout_s = url, author, timeout_s
        self.environment = dict(environment or {})
        home = Path(copy) if copy else Path(tempfile.gettempdir()) / f"airflow-ml-git-{os.getuid()}"
        self.folder = home / hashlib.sha256(url.encode()).hexdigest()[:16]

    def fetch(self) -> None:
        """Bring the copy up to date; one process does at a time.

        Raises:
            SpecError: the repository cannot be had, or the folder of the copies is not ours.
            Unavailable: it does not answer.
        """
        home = self.folder.parent
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if home.stat().st_uid != os.getuid():
            raise SpecError(f"folder {home} belongs to another user; give a folder of your own")
        with open(f"{self.folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (self.folder / "HEAD").is_file():
                self.folder.mkdir(mode=0o700, exist_ok=True)
                self.git("init", "--quiet", "--bare", ".")
            for stale in (*self.folder.glob("*.lock"), *(self.folder / "refs").rglob("*.lock")):
                stale.unlink()  # of a git that was killed, as nobody else fetches now
            refs = f"+refs/heads/*:{_REMOTE}*"
            # The child holds the lock, too, so that it does if this process is killed.
            self.git("fetch", "--quiet", "--prune", "--no-tags", "--", self.url, refs, held=(lock.fileno(),))

    def tip(self, branch: str) -> str:
        """Return the last commit of a branch; empty when there is no such branch."""
        return self._maybe("rev-parse", "--verify", "--quiet", f"{_REMOTE}{branch}^{{commit}}")

    def tree(self, commit: str, folder: str) -> str:
        """Return the tree of a folder in a commit; empty when it has none."""
        return self._maybe("rev-parse", "--verify", "--quiet", f"{commit}:{folder}")

    def read(self, tree: str, name: str) -> str:
        """Return the text of a file in a tree; empty when there is none."""
        return self._maybe("cat-file", "blob", f"{tree}:{name}")

    def log(self, commit: str, folder: str, trailer: str, most: int = 1000) -> list[tuple[str, str]]:
        """Return the commits that changed a folder, the newest first, each with the value of a trailer."""
        shape = f"--format=%H %(trailers:key={trailer},valueonly,separator=%x2C)"
        found = self.git("log", f"-{most}", shape, commit, "--", folder)
        return [(line.partition(" ")[0], line.partition(" ")[2]) for line in found.splitlines()]

    def holds(self, later: str, earlier: str) -> bool:
        """Return whether a commit has another one, or is it; false for a commit that is not known here."""
        return self._run("merge-base", "--is-ancestor", earlier, later).returncode == 0

    def base(self, one: str, other: str) -> str:
        """Return the last commit that two have in common; empty when there is none."""
        return self._maybe("merge-base", one, other)

    def push(self, commits: Sequence[Commit], onto: str, branch: str, lease: str, options: Sequence[str] = ()) -> str:
        """Make commits on top of one, push them together, and return the last one.

        Parameters:
            commits: what to commit.
            onto: the commit below them.
            branch: where to push to.
            lease: where the branch must still be; empty if it must not be there.
            options: for the server (`git push --push-option`).

        Raises:
            Behind: somebody else pushed first.
            SpecError: the server does not take it.
        """
        made = onto
        for commit in commits:
            made = self._commit(commit, made)
        # Not the tip as it is known here by now: another process may have fetched in between.
        given = [f"--force-with-lease=refs/heads/{branch}:{lease}", *(f"--push-option={one}" for one in options)]
        done = self._run("push", "--quiet", *given, "--", self.url, f"{made}:refs/heads/{branch}")
        if done.returncode and any(word in done.stderr for word in _REFUSED):
            raise Behind(branch)
        if done.returncode:
            raise self._error("push", done.stderr)
        return made

    def _commit(self, commit: Commit, onto: str) -> str:
        with tempfile.TemporaryDirectory(dir=self.folder) as aside:
            index = {"GIT_INDEX_FILE": f"{aside}/index", "GIT_WORK_TREE": aside}  # an empty one, as git wants one
            self.git("read-tree", onto, more=index)
            if not commit.files:
                self.git("rm", "-r", "--cached", "--quiet", "--ignore-unmatch", "--", commit.folder, more=index)
            if commit.tree:
                self.git("read-tree", f"--prefix={commit.folder}/", commit.tree, more=index)
            for name, text in commit.files.items():
                blob = self.git("hash-object", "-w", "--stdin", stdin=text)
                self.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{commit.folder}/{name}", more=index)
            tree = self.git("write-tree", more=index)
        return self.git("commit-tree", tree, "-p", onto, "-F", "-", stdin=commit.message)

    def _maybe(self, *args: str) -> str:
        done = self._run(*args)
        return done.stdout.strip() if done.returncode == 0 else ""

    def git(
        self, *args: str, stdin: str = "", more: Optional[Mapping[str, str]] = None, held: Sequence[int] = ()
    ) -> str:
        """Return what `git` prints.

        Raises:
            SpecError: it may not do this, or there is no such repository.
            Unavailable: it failed otherwise.
        """
        done = self._run(*args, stdin=stdin, more=more, held=held)
        if done.returncode:
            raise self._error(args[0], done.stderr)
        return done.stdout.strip()

    def _run(
        self, *args: str, stdin: str = "", more: Optional[Mapping[str, str]] = None, held: Sequence[int] = ()
    ) -> subprocess.CompletedProcess[str]:
        own = ("core.hooksPath=/dev/null", "gc.autoDetach=false", "credential.helper=")
        settings = (*own, f"credential.helper={_HELPER}") if PASSWORD in self.environment else own
        command = ["git", *(part for one in settings for part in ("-c", one)), *args]
        try:
            return subprocess.run(
                command, cwd=self.folder, env={**self._base(), **(more or {})}, input=stdin, capture_output=True,
                text=True, timeout=self.timeout_s, pass_fds=held,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise MissingLibrary("a place with a repository needs the command git on the worker; install it") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"git {args[0]} of {self.url} took more than {self.timeout_s:g} s") from error

    def _base(self) -> dict[str, str]:
        name, _, address = self.author.partition("<")
        who = {"NAME": name.strip(), "EMAIL": address.rstrip("> ")}
        people = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        fixed = {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": _PROTOCOLS, "LC_ALL": "C", "GIT_DIR": "."}
        return {**inherited, **people, **fixed, **self.environment}

    def _error(self, command: str, said: str) -> Exception:
        told = " ".join(said.split())[-500:]
        terminal = any(word in said for word in (*_FORBIDDEN, *_SERVER_SAYS_NO))
        kind = SpecError if terminal else Unavailable
        return kind(f"git {command} of repository {self.url} failed: {told}")


def check_url(url: str) -> None:
    """Refuse an address that is none, or has a password in it.

    Raises:
        SpecError: so it is.
    """
    if not url or url.startswith("-") or "::" in url:
        raise invalid("repository", url, "the address of a Git repository, by https, ssh or a path")
    scheme, separator, rest = url.partition("://")
    user = rest.partition("/")[0].rpartition("@")[0] if separator else ""
    if ":" in user or (user and scheme in ("http", "https")):
        raise invalid("repository", f"{scheme}://…@…", "an address without credentials", "put them into a connection")
