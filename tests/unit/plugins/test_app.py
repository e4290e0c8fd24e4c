"""The web application, with and without a login."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("airflow")

from airflow.api_fastapi.core_api import security
from starlette.testclient import TestClient

from airflow_ml_provider.plugins import overview
from airflow_ml_provider.plugins.app import app


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "store"
    root.mkdir()
    (root / "style.css").write_text("b { color: red }")
    (root / "index.html").write_text('<link rel="stylesheet" href="style.css"><b>day</b>')
    (root / "report.json").write_text("{}")
    (root / "model.pkl").write_text("x")
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.setenv("AIRFLOW__ML__DOCUMENTS", str(root))
    return root


@pytest.fixture
def client() -> Iterator[TestClient]:
    """Somebody who is not logged in."""
    with TestClient(app, base_url="http://testserver/ml", root_path="/ml") as found:
        yield found


@pytest.fixture
def user(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """Somebody who is logged in and may look at the web site."""
    allowed = SimpleNamespace(is_authorized_view=lambda access_view, user: user.name == "viewer")
    monkeypatch.setattr(security, "get_auth_manager", lambda: allowed)
    app.dependency_overrides[security.get_user] = lambda: SimpleNamespace(name="viewer")
    yield client
    app.dependency_overrides.clear()


def get(client: TestClient, address: str) -> Any:
    return client.get(address, follow_redirects=False)


def test_without_a_login_there_is_nothing(client: TestClient, store: Path) -> None:
    assert get(client, f"/files{store}/index.html").status_code == 401
    assert get(client, f"/files{store}/none.html").status_code == 401
    assert get(client, "/page").status_code == 401
    for address in ("/openapi.json", "/docs", "/redoc", "/files"):
        assert get(client, address).status_code == 404


def test_without_the_right_to_look_there_is_nothing(user: TestClient, store: Path) -> None:
    app.dependency_overrides[security.get_user] = lambda: SimpleNamespace(name="nobody")
    assert get(user, f"/files{store}/index.html").status_code == 403
    assert get(user, "/page").status_code == 403


def test_a_document_is_shown_in_a_sandbox_with_its_styles(user: TestClient, store: Path) -> None:
    answer = get(user, f"/files{store}/index.html")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == "sandbox allow-scripts"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "private, no-cache"
    assert '<link rel="stylesheet" href="data:text/css;' in answer.text


@pytest.mark.parametrize(("name", "kind"), [("report.json", "application/json"), ("style.css", "text/css")])
def test_other_documents(user: TestClient, store: Path, name: str, kind: str) -> None:
    answer = get(user, f"/files{store}/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["content-security-policy"] == "sandbox allow-scripts"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/model.pkl",
        "/none.html",
        "",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/index.html%00",
    ],
)
def test_nothing_else_is_there(user: TestClient, store: Path, path: str) -> None:
    assert get(user, f"/files{store}{path}").status_code == 404


def test_by_default_nothing_is_shown(user: TestClient, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__ML__DOCUMENTS")
    assert get(user, f"/files{store}/index.html").status_code == 404


def test_the_page(user: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "read", lambda conn_id: ([], f"nothing behind {conn_id}"))
    answer = get(user, "/page")
    assert answer.status_code == 200
    assert "nothing behind mlflow_default" in answer.text
    assert "script-src" not in answer.headers["content-security-policy"]
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
