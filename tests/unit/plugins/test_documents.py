from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.plugins import documents


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store" / "docs").mkdir(parents=True)
    (tmp_path / "store" / "docs" / "index.html").write_text("page")
    (tmp_path / "store" / "model.pkl").write_text("x")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "store2").mkdir()
    (tmp_path / "store2" / "near.txt").write_text("secret")
    return tmp_path / "store"


def test_roots(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert documents.roots("") == ()
    assert documents.roots(f" {tmp_path}/a:{tmp_path}/b,{tmp_path}/link ") == (
        tmp_path / "a",
        tmp_path / "b",
        tmp_path,
    )
    assert documents.roots("/:relative:.:") == ()


def test_files_below_a_folder_are_found(store: Path) -> None:
    folders = (store,)
    page = store / "docs" / "index.html"
    assert documents.find(str(page), folders) == page
    assert documents.find(f"{store}/docs/../docs/index.html", folders) == page
    assert documents.find(str(page), ()) is None


@pytest.mark.parametrize(
    "path",
    [
        "{store}/model.pkl",  # not a document
        "{store}/docs",  # a folder
        "{store}/docs/none.html",
        "{store}/../secret.txt",
        "{store}/docs/../../secret.txt",
        "{store}/../store2/near.txt",  # the folder's name begins like that of the root
        "/etc/passwd",
        "{store}/docs/index.html\0.txt",
        "docs/index.html",
        "",
    ],
)
def test_everything_else_is_not_there(store: Path, path: str) -> None:
    assert documents.find(path.format(store=store), (store,)) is None


def test_symbolic_links_do_not_lead_out(store: Path) -> None:
    (store / "out.txt").symlink_to(store.parent / "secret.txt")
    (store / "folder").symlink_to(store.parent / "store2")
    (store / "disguised.txt").symlink_to(store / "model.pkl")
    (store / "inside.html").symlink_to(store / "docs" / "index.html")
    folders = (store,)
    assert documents.find(str(store / "out.txt"), folders) is None
    assert documents.find(str(store / "folder" / "near.txt"), folders) is None
    assert documents.find(str(store / "disguised.txt"), folders) is None
    assert documents.find(str(store / "inside.html"), folders) == store / "docs" / "index.html"


@given(
    st.lists(st.sampled_from(["..", ".", "docs", "store", "store2", "secret.txt", "near.txt", "a.html"]), max_size=8)
)
def test_no_path_leads_out(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    base = tmp_path_factory.getbasetemp() / "paths"
    (base / "store" / "docs").mkdir(parents=True, exist_ok=True)
    for name in ("secret.txt", "store/a.html", "store/docs/a.html"):
        (base / name).write_text("x")
    found = documents.find("/".join([str(base / "store"), *parts]), (base / "store",))
    assert found is None or found in (base / "store" / "a.html", base / "store" / "docs" / "a.html")


def test_what_a_page_refers_to_is_put_into_it(store: Path) -> None:
    (store / "style.css").write_text("b { color: red }")
    (store / "docs" / "run me.js").write_text("let a")
    page = store / "docs" / "index.html"
    text = documents.self_contained(
        '<link rel="stylesheet" href="../style.css?v=1"><script defer src=\'run%20me.js\'></script>', page, (store,)
    )
    css, js = (base64.b64encode(t.encode()).decode() for t in ("b { color: red }", "let a"))
    assert text == (
        f'<link rel="stylesheet" href="data:text/css;charset=utf-8;base64,{css}">'
        f"<script defer src='data:text/javascript;charset=utf-8;base64,{js}'></script>"
    )


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://example.com/a.js"></script>',
        '<script src="//example.com/a.js"></script>',
        '<img src="/static/logo.png">',
        '<img src="none.png">',
        '<img src="../../secret.txt">',
        '<a href="index.html">',
        "<script>let src='style.css'</script>",
    ],
)
def test_the_rest_of_a_page_stays(store: Path, text: str) -> None:
    assert documents.self_contained(text, store / "docs" / "index.html", (store,)) == text
