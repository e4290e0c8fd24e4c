"""What Argo CD and Flux say, and how git gets a connection's secrets."""

from __future__ import annotations

import gc
import json
import shlex
from pathlib import Path

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.hooks.gitops import GitOpsHook, report_of
from airflow_ml_provider.stages.deploy.git import LOGIN, PASSWORD
from airflow_ml_provider.stages.deploy.gitops import Report
from airflow_ml_provider.stages.deploy.place import GitOps

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("controller", "status", "report"),
    [
        ("argocd", {}, Report()),
        ("argocd", {"sync": {"status": "Synced", "revision": COMMIT}}, Report(COMMIT)),
        ("argocd", {"sync": {"status": "OutOfSync", "revision": COMMIT}}, Report()),
        (
            "argocd",
            {
                "sync": {"status": "OutOfSync", "revision": "f" * 40},
                "operationState": {"phase": "Succeeded", "syncResult": {"revision": COMMIT}},
            },
            Report(COMMIT),
        ),
        (
            "argocd",
            {
                "conditions": [{"type": "ComparisonError", "message": "no such path"}],
                "operationState": {"phase": "Failed", "message": "forbidden"},
            },
            Report("", "no such path; forbidden"),
        ),
        ("flux", {"lastAppliedRevision": f"main@sha1:{COMMIT}"}, Report(COMMIT)),
        ("flux", {"lastAppliedRevision": f"main/{COMMIT}"}, Report(COMMIT)),
        (
            "flux",
            {"conditions": [{"type": "Ready", "status": "False", "message": "build failed"}]},
            Report("", "build failed"),
        ),
    ],
)
def test_reports(controller, status, report):
    assert report_of(controller, status) == report


def connect(monkeypatch, **fields):
    monkeypatch.setenv("AIRFLOW_CONN_ENV", json.dumps({"conn_type": "git", **fields}))
    return GitOpsHook("env").repository(GitOps(conn_id="env"))


def test_a_token(monkeypatch):
    found = connect(monkeypatch, host="https://git.example/env.git", password="s3cret")
    assert found.url == "https://git.example/env.git"
    assert found.environment == {LOGIN: "git", PASSWORD: "s3cret"}


def test_a_key_is_in_a_file_as_long_as_it_is_needed(monkeypatch):
    extra = {"private_key": "KEY", "known_hosts": "/etc/hosts of git"}
    found = connect(monkeypatch, host="ssh://git@git.example/env.git", extra=json.dumps(extra))
    command = shlex.split(found.environment["GIT_SSH_COMMAND"])
    path = Path(command[command.index("-i") + 1])
    assert path.read_text() == "KEY\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "UserKnownHostsFile=/etc/hosts of git" in command
    del found
    gc.collect()
    assert not path.exists()


def test_no_connection():
    with pytest.raises(SpecError, match="connection 'none' is not defined"):
        GitOpsHook("none").repository(GitOps(conn_id="none"))


def test_no_address(monkeypatch):
    with pytest.raises(SpecError, match="repository must be"):
        connect(monkeypatch, password="s3cret")
