"""The connection to Feast, on a real repository of a few lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("airflow.sdk")
pytest.importorskip("feast")

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.hooks.feast import FeastHook

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

CONFIG = """
project: demo
provider: local
registry: ${ML_FEATURE_STORE}/feast/registry.db
online_store: {type: sqlite, path: "${ML_FEATURE_STORE}/feast/online.db"}
entity_key_serialization_version: 3
"""


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FeastHook]:
    def make(**fields: object) -> FeastHook:
        monkeypatch.setenv("AIRFLOW_CONN_FEATURES", json.dumps({"conn_type": "feast", **fields}))
        return FeastHook("features")

    return make


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    (tmp_path / "store" / "feast").mkdir(parents=True)
    (tmp_path / "feature_store.yaml").write_text(CONFIG)
    return tmp_path


def test_a_repository_by_extra_or_host(connect: Callable[..., FeastHook], repo: Path) -> None:
    store = str(repo / "store")
    for fields in ({"extra": {"repo": str(repo), "store": store}}, {"host": str(repo), "extra": {"store": store}}):
        opened = connect(**fields).get_conn()
        assert opened.project == "demo"
        assert opened.config.registry.path == f"{store}/feast/registry.db"


def test_the_test_button(connect: Callable[..., FeastHook], repo: Path) -> None:
    hook = connect(extra={"repo": str(repo), "store": str(repo / "store")})
    assert hook.test_connection() == (True, "Feast project 'demo' has 0 feature views: none yet")


def test_the_test_button_says_what_is_wrong(connect: Callable[..., FeastHook], tmp_path: Path) -> None:
    fine, message = connect(extra={"repo": str(tmp_path)}).test_connection()
    assert not fine
    assert "holds no feature_store.yaml" in message
    (tmp_path / "feature_store.yaml").write_text(CONFIG.replace("path:", "paht:"))
    fine, message = connect(extra={"repo": str(tmp_path)}).test_connection()
    assert not fine
    assert "feature_store.yaml is wrong" in message


def test_connections_that_cannot_be_used(connect: Callable[..., FeastHook]) -> None:
    with pytest.raises(SpecError, match="'features' names no repository"):
        connect().get_conn()
    with pytest.raises(SpecError, match="connection 'nowhere' is not defined; create it with type feast"):
        FeastHook("nowhere").get_conn()
