"""The snippets in the documentation are Python, and those that are whole DAGs import."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("README.md")])
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    return [textwrap.dedent(text) for text in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def is_dag(text: str) -> bool:
    """Return whether a snippet is a whole DAG file: it imports what it uses and nothing is left out of it."""
    return "from airflow.sdk import" in text and "DAG(" in text and "..." not in text


def identify(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_snippets_are_python(page: Path) -> None:
    for text in blocks(page):
        ast.parse(text)


@pytest.mark.skipif(find_spec("airflow") is None, reason="needs Airflow")
def test_dags_import(tmp_path: Path) -> None:
    """All of them in one process, as a DAG processor would: the task decorators need the provider to be installed."""
    found = [
        (f"{identify(page)} ({at})", text) for page in PAGES for at, text in enumerate(blocks(page)) if is_dag(text)
    ]
    assert found
    files = []
    for at, (name, text) in enumerate(found):
        files.append((name, str(tmp_path / f"snippet_{at}.py")))
        Path(files[-1][1]).write_text(text)
    script = f"""
import importlib.util, sys, traceback
from airflow.sdk import task
from airflow_ml_provider.decorators.deploy import deploy_task
from airflow_ml_provider.decorators.ingest import ingest_task
from airflow_ml_provider.decorators.train import train_task
for made in (deploy_task, ingest_task, train_task):
    setattr(type(task), made.__name__.removesuffix("_task"), staticmethod(made))
broken = 0
for name, path in {files!r}:
    spec = importlib.util.spec_from_file_location("snippet", path)
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception:
        broken += 1
        print(name, traceback.format_exc(limit=-2))
sys.exit(broken)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]


def test_every_stage_has_a_page_that_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for folder in (ROOT / "airflow_ml_provider" / "stages").iterdir():
        if (folder / "spec.py").exists():
            assert (ROOT / "docs" / "stages" / f"{folder.name}.md").exists()
            assert f"stages/{folder.name}\n" in index
