"""Parsing a DAG file must stay cheap, and what travels to other Pythons must need nothing there.

Every check runs in a process of its own: in this one everything is loaded already.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import airflow_ml_provider
from airflow_ml_provider.runtime.bundle import TRAVELS

PACKAGE = Path(airflow_ml_provider.__file__).parent
ROOT = PACKAGE.parent
HEAVY = (
    "torch", "mlflow", "feast", "great_expectations", "pandas", "numpy", "pyarrow", "duckdb", "kubernetes", "sklearn",
    "lightgbm", "onnx", "onnxruntime", "openlineage", "fastapi", "jsonschema", "yaml_include", "scipy", "optuna",
    "grpc",
)  # fmt: skip
KINDS = ("operators", "sensors", "decorators", "templates", "hooks", "triggers", "links")
LIMIT = 76  # each stage brings three: operator, package, spec


def modules(*folders: str) -> list[str]:
    """Return the names of all modules in folders of the package."""
    found = []
    for folder in folders:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def public(folder: str) -> list[str]:
    """Return the names of the modules of a folder that users import."""
    return [name for name in modules(folder) if not name.rpartition(".")[2].startswith("_")]


def run(python: str, code: str, *flags: str) -> dict[str, list[str]]:
    """Run `code` in a fresh Python; it prints JSON at the end."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_", "AIRFLOW"))}
    command = [python, *flags, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, cwd="/")
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout.splitlines()[-1])


def importing(names: list[str], *, first: str = "") -> str:
    """Return code that imports `first`, then `names`, and prints which modules the latter brought."""
    return f"""
import importlib, json
if {first!r}: importlib.import_module({first!r})
before = set(sys.modules)
for name in {names!r}: importlib.import_module(name)
print(json.dumps({{"new": sorted(set(sys.modules) - before), "all": sorted(sys.modules)}}))
"""


def heavy(loaded: list[str]) -> set[str]:
    return {name for name in loaded if name.partition(".")[0] in HEAVY}


@pytest.mark.skipif(find_spec("airflow") is None, reason="needs Airflow")
class TestParsing:
    def test_operators_and_templates_bring_few_modules(self) -> None:
        """What a DAG file imports; `Interpreter` and the like are the base's, so they count, too."""
        names = public("operators") + public("templates")
        found = run(sys.executable, importing(names, first="airflow.sdk"))
        assert not heavy(found["new"])
        assert len(found["new"]) <= LIMIT, f"{len(found['new'])} modules: {', '.join(found['new'])}"

    def test_sensors_and_decorators_bring_few_more(self) -> None:
        names = [name for kind in ("operators", "templates", "sensors", "decorators") for name in public(kind)]
        found = run(sys.executable, importing(names, first="airflow.sdk"))
        assert not heavy(found["new"])
        assert len(found["new"]) <= LIMIT + 20, f"{len(found['new'])} modules: {', '.join(found['new'])}"

    @pytest.mark.parametrize("kind", KINDS)
    def test_each_kind_by_itself(self, kind: str) -> None:
        assert not heavy(run(sys.executable, importing(modules(kind), first="airflow.sdk"))["new"])

    def test_the_provider_s_entry_points(self) -> None:
        names = ["airflow_ml_provider.get_provider_info", "airflow_ml_provider.cli.definition"]
        found = run(sys.executable, importing(names))
        assert not heavy(found["new"])
        assert not [name for name in found["new"] if name.startswith("airflow.")]

    def test_the_plugin_is_loaded_by_every_process_of_airflow(self) -> None:
        pytest.importorskip("airflow_ml_provider.plugins.ml")
        found = run(sys.executable, importing(["airflow_ml_provider.plugins.ml"], first="airflow.plugins_manager"))
        assert not heavy(found["new"])
        assert not [name for name in found["new"] if name.startswith("airflow.api_fastapi")]


def test_the_package_itself_is_next_to_nothing() -> None:
    found = run(sys.executable, importing(["airflow_ml_provider"]), "-I", "-S")
    assert [name for name in found["new"] if name.startswith("airflow")] == ["airflow_ml_provider"]


def travelling() -> list[str]:
    names = modules(*(name for name in TRAVELS if not name.endswith(".py")))
    # The two processes of serving are aiohttp through and through; only they import that package.
    light = [name for name in names if not name.endswith("__main__") and ".serving.aio" not in name]
    return light + [
        f"airflow_ml_provider.{name[:-3]}" for name in TRAVELS if name.endswith(".py") and name != "__init__.py"
    ]


def test_what_travels_needs_the_standard_library_alone() -> None:
    """`-I -S` hides everything that is installed."""
    found = run(sys.executable, importing(travelling()), "-I", "-S")
    assert not heavy(found["all"])
    assert not [name for name in found["all"] if name.partition(".")[0] == "airflow"]


def test_what_travels_works_from_the_zip(tmp_path: Path) -> None:
    from airflow_ml_provider.runtime import bundle

    package = tmp_path / "package.zip"
    package.write_bytes(bundle.build())
    code = (
        f"sys.path[0] = {str(package)!r}\n"
        + importing(travelling())
        + f"""
import airflow_ml_provider.lineage.naming as naming
assert naming.__file__.startswith({str(package)!r}), naming.__file__
assert naming.schemas()
"""
    )
    code += 'print(json.dumps({"all": sorted(sys.modules)}))'
    assert run(sys.executable, code, "-I", "-S")["all"]


def test_what_travels_imports_in_a_python_without_airflow() -> None:
    python = os.environ.get("ML_PROVIDER_PYTHON", str(ROOT / ".venv-ml" / "bin" / "python"))
    if not Path(python).exists():
        pytest.skip("no Python without Airflow; set ML_PROVIDER_PYTHON to one")
    found = run(python, importing(travelling()))
    assert not heavy(found["all"])


def test_what_travels_is_python_3_9() -> None:
    """No 3.9 is at hand everywhere, so what can be seen in the source is looked for there."""
    paths = [PACKAGE / name for name in TRAVELS]
    for path in [p for p in paths if p.is_file()] + [f for p in paths if p.is_dir() for f in p.rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                keywords = {keyword.arg for keyword in node.keywords}
                assert not (name == "zip" and "strict" in keywords), f"{path}:{node.lineno} zip(strict=) is of 3.10"
                assert not (name == "dataclass" and keywords & {"slots", "kw_only"}), f"{path}:{node.lineno} is of 3.10"
        assert "from __future__ import annotations" in path.read_text(encoding="utf-8") or not any(
            isinstance(node, (ast.AnnAssign, ast.FunctionDef)) for node in ast.walk(tree)
        ), f"{path}: annotations are evaluated"
