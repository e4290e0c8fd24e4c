"""The hook without a cluster: what it decides before it asks one."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("airflow.providers.cncf.kubernetes")

from airflow_ml_provider.exceptions import Conflict, DataError, SpecError, Unavailable
from airflow_ml_provider.hooks import kserve
from airflow_ml_provider.hooks._cluster import explained
from airflow_ml_provider.hooks._records import check_revision


def test_same_protocol() -> None:
    """It offers what every place that serves offers, under the same names."""
    import inspect

    from airflow_ml_provider.stages.deploy.service import Serving

    for name in ("look", "put", "readings", "remove", "predict"):
        asked, given = (inspect.signature(getattr(one, name)).parameters for one in (Serving, kserve.KServeServing))
        assert [(one.name, one.default) for one in asked.values()] == [
            (one.name, one.default) for one in given.values()
        ]


@pytest.mark.parametrize(
    ("revision", "kept", "message"),
    [("1", None, "is not there any more"), (None, "1", "is there already"), ("1", "2", "was changed by somebody else")],
)
def test_revisions(revision: str | None, kept: str | None, message: str) -> None:
    found = {"metadata": {"resourceVersion": kept}} if kept else None
    with pytest.raises(Conflict, match=f"service 'late' {message}"):
        check_revision("late", revision, found)


@pytest.mark.parametrize(
    ("owners", "uid", "orphaned"),
    [([], None, False), (["1"], None, True), (["1"], "1", False), (["1"], "2", True)],
)
def test_record_of_what_is_gone(owners: list[str], uid: str | None, orphaned: bool) -> None:
    kept = {"metadata": {"ownerReferences": [{"uid": one} for one in owners]}}
    assert kserve._orphaned(kept, {"metadata": {"uid": uid}} if uid else None) is orphaned


def test_what_others_wrote_stays() -> None:
    found = {
        "metadata": {"finalizers": ["f"], "labels": {"a": "b"}, "annotations": {"mode": "Standard", "their": "own"}},
        "spec": {"old": 1}, "status": {"url": "u"},
    }  # fmt: skip
    made = {"metadata": {"labels": {"c": "d"}, "annotations": {"mode": "RawDeployment"}}, "spec": {"new": 1}}
    assert kserve._changed(found, made) == {
        "metadata": {
            "finalizers": ["f"], "labels": {"a": "b", "c": "d"}, "annotations": {"mode": "Standard", "their": "own"},
        },
        "spec": {"new": 1}, "status": {"url": "u"},
    }  # fmt: skip


def refused(status: int, body: Any) -> Exception:
    from kubernetes.client import ApiException

    error = ApiException(status=status, reason="Forbidden")
    error.body = body
    return error


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ('admission webhook "isvc" denied the request: no', "the cluster does not take the service: 403 .* denied"),
        ("user x cannot create", "connection 'c' may not do this"),
    ],
)
def test_refused_by_a_webhook_is_not_about_rights(message: str, told: str) -> None:
    with pytest.raises(SpecError, match=told), explained("c", "service"):
        raise refused(403, json.dumps({"message": message}))


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error": "unexpected input"}', DataError),
        (500, '{"error": "out of memory"}', Unavailable),
        (503, '{"kind": "Status", "message": "no endpoints available"}', Unavailable),
        (404, '{"kind": "Status", "message": "services not found"}', Unavailable),
        (403, '{"kind":"Status","message":"cannot create services/proxy"}', SpecError),
    ],
)
def test_answers_through_the_api_server(status: int, body: Any, kind: type[Exception]) -> None:
    """Those of the model's server are told from those of the API server itself."""
    with pytest.raises(kind), explained("c", "service"), kserve._told("late"):
        raise refused(status, body)
