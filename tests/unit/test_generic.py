"""What every operator and sensor of the package must fulfil, whoever wrote it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow.sdk", reason="needs Airflow")

from airflow.sdk import DAG, BaseOperator
from airflow.serialization.serialized_objects import DagSerialization

import airflow_ml_provider
from airflow_ml_provider.get_provider_info import get_provider_info
from airflow_ml_provider.operators._base import StageOperator
from airflow_ml_provider.stages import STAGES, spec_class

ROOT = Path(airflow_ml_provider.__file__).parents[1]

# Arguments that say how the task works, not what it works on: they are no templates.
UNTEMPLATED = {
    "runtime",
    "grain",
    "on_refusal",
    "on_pass",
    "on_refuse",
    "deferrable",
    "retrain_asset",
    "python_callable",
}
# Names that Airflow uses for something else are stored under another one.
RENAMED = {"output": "output_root", "label": "label_column"}
# What a template string cannot stand for.
EXAMPLES: dict[str, Any] = {
    "columns": {"id": "int"},
    "key": ["id"],
    "models": ["late"],
    "sources": {"flights": {"root": "/data/flights", "key": ["id"]}},
    "spine": {
        "source": "flights",
        "timestamp": "at",
        "key": ["id"],
        "label": "late",
        "label_known_at": "arrived_at",
    },
}


def classes(*kinds: str) -> Iterator[type[BaseOperator]]:
    """Give every public operator class of the modules in the provider info."""
    info = get_provider_info()
    for name in (name for kind in kinds for entry in info[kind] for name in entry["python-modules"]):
        module = importlib.import_module(name)
        for member in vars(module).values():
            public = (
                inspect.isclass(member) and issubclass(member, BaseOperator) and not member.__name__.startswith("_")
            )
            if public and member.__module__ == name:
                yield member


ALL = sorted(classes("operators", "sensors"), key=lambda cls: cls.__name__)
STAGE_OPERATORS = [cls for cls in ALL if issubclass(cls, StageOperator)]
each = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)


def parameters(cls: type[BaseOperator]) -> dict[str, inspect.Parameter]:
    """Return the constructor parameters that this package adds, over all of its classes."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("airflow_ml_provider") and "__init__" in vars(base):
            # Airflow wraps constructors; the signature is that of what is within.
            for name, item in inspect.signature(inspect.unwrap(vars(base)["__init__"])).parameters.items():
                if item.kind is item.KEYWORD_ONLY:
                    found.setdefault(name, item)
    return found


def make(cls: type[BaseOperator], **kwargs: Any) -> Any:
    """Return an operator with a template for every required argument."""
    needed = {n: EXAMPLES.get(n, f"{{{{ params.{n} }}}}") for n, p in parameters(cls).items() if p.default is p.empty}
    return cls(task_id="task", **needed, **kwargs)


def test_there_are_operators_for_all_stages() -> None:
    assert len(STAGE_OPERATORS) >= len(STAGES)


@each
def test_arguments_are_explicit(cls: type[BaseOperator]) -> None:
    assert parameters(cls), "all arguments hide in **kwargs"
    for name in vars(cls).get("__annotations__", {}):
        assert not name.startswith("kwargs")


@each
def test_every_template_field_is_an_attribute(cls: type[BaseOperator]) -> None:
    operator = make(cls)
    assert len(set(cls.template_fields)) == len(cls.template_fields)
    for name in cls.template_fields:
        assert hasattr(operator, name), name


@each
def test_every_argument_is_templated(cls: type[BaseOperator]) -> None:
    for name in parameters(cls):
        if name not in UNTEMPLATED:
            assert RENAMED.get(name, name) in cls.template_fields, f"{name} is not in template_fields"


@each
def test_every_connection_is_templated(cls: type[BaseOperator]) -> None:
    for name in parameters(cls):
        if name.endswith("conn_id"):
            assert name in cls.template_fields


@each
def test_arguments_reach_the_attributes_of_their_names(cls: type[BaseOperator]) -> None:
    operator = make(cls)
    for name, item in parameters(cls).items():
        if item.default is item.empty:
            expected = EXAMPLES.get(name, f"{{{{ params.{name} }}}}")
            assert getattr(operator, RENAMED.get(name, name)) == expected


@pytest.mark.parametrize("cls", [c for c in STAGE_OPERATORS if "build_spec" in vars(c)], ids=lambda cls: cls.__name__)
def test_defaults_are_those_of_the_spec(cls: type[StageOperator]) -> None:
    name = inspect.get_annotations(cls.build_spec)["return"]
    spec = next(spec for spec in map(spec_class, STAGES) if spec.__name__ == name)
    defaults = {f.name: f.default for f in dataclasses.fields(spec) if isinstance(f.default, str | int | float)}
    for name, item in parameters(cls).items():
        if name in defaults and item.default is not None:
            assert item.default == defaults[name], name


@each
def test_the_docstring_names_every_argument(cls: type[BaseOperator]) -> None:
    documented = "\n".join(
        inspect.cleandoc(base.__doc__ or "")
        for base in cls.__mro__
        if base.__module__.startswith("airflow_ml_provider")
    )
    for name in parameters(cls):
        assert re.search(rf"^    {name}: \S", documented, re.MULTILINE), f"{name} is not under Parameters:"


@each
def test_the_docstring_names_nothing_else(cls: type[BaseOperator]) -> None:
    text = inspect.cleandoc(cls.__doc__ or "")
    section = text.partition("Parameters:\n")[2].split("\n\n")[0]
    for name in re.findall(r"^    (\w+): ", section, re.MULTILINE):
        assert name in parameters(cls), f"{name} is documented but is no argument"


@each
def test_the_docstring_begins_with_the_outcome(cls: type[BaseOperator]) -> None:
    first = inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]
    assert first.endswith("."), first
    assert len(first) <= 120


@each
def test_it_survives_serialisation(cls: type[BaseOperator]) -> None:
    with DAG("dag", schedule=None) as dag:
        make(cls)
    body = DagSerialization.to_dict(dag)
    task = DagSerialization.from_dict(body).get_task("task")
    assert task.task_type == cls.__name__
    assert tuple(task.template_fields) == tuple(cls.template_fields)
    for link in getattr(cls, "operator_extra_links", ()):
        assert link.name in {found.name for found in task.operator_extra_links}


@each
def test_it_can_be_mapped(cls: type[BaseOperator]) -> None:
    names = [n for n, p in parameters(cls).items() if p.default is p.empty] or list(parameters(cls))[:1]
    values = [EXAMPLES.get(name, "x") for name in names]
    with DAG("dag", schedule=None) as dag:
        cls.partial(task_id="task", **dict(zip(names[1:], values[1:], strict=True))).expand(**{names[0]: [values[0]]})
    assert DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task("task").is_mapped


@each
def test_constructing_it_has_no_side_effect_on_the_class(cls: type[BaseOperator]) -> None:
    before = {name: value for name, value in vars(cls).items() if not name.startswith("_abc")}
    make(cls)
    assert {name: value for name, value in vars(cls).items() if not name.startswith("_abc")} == before


@each
def test_it_is_shown_somewhere(cls: type[BaseOperator]) -> None:
    """Each operator appears in a DAG that runs, a template, or at least a snippet of the documentation."""
    places = [*ROOT.glob("dags/*.py"), *ROOT.glob("airflow_ml_provider/templates/*.py"), *ROOT.glob("docs/**/*.md")]
    assert any(cls.__name__ in path.read_text(encoding="utf-8") for path in places)


@pytest.mark.parametrize("cls", [c for c in ALL if issubclass(c, StageOperator)], ids=lambda cls: cls.__name__)
def test_stage_operators_leave_the_execution_to_the_base(cls: type[BaseOperator]) -> None:
    assert "execute" not in vars(cls)
    assert inspect.getdoc(cls.build_spec)


def test_identity_never_contains_the_try_number() -> None:
    package = ROOT / "airflow_ml_provider"
    may_ask_if_it_is_the_last = "operators/_tries.py"
    found = [
        name
        for path in package.rglob("*.py")
        if (name := str(path.relative_to(package))) != may_ask_if_it_is_the_last
        and re.search(r"\.try_number|[\"']try_number", path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_nothing_is_unpickled_and_nothing_goes_through_a_shell() -> None:
    banned = re.compile(r"pickle\.loads?\(|joblib\.load|shell=True|torch\.load\((?!.*weights_only=True)|os\.system\(")
    for path in (ROOT / "airflow_ml_provider").rglob("*.py"):
        assert not banned.search(path.read_text(encoding="utf-8")), path
