"""What Airflow discovers is valid, complete and true."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

airflow = pytest.importorskip("airflow.sdk", reason="needs Airflow")
jsonschema = pytest.importorskip("jsonschema")

import airflow_ml_provider  # noqa: E402
from airflow_ml_provider.get_provider_info import get_provider_info  # noqa: E402

INFO = get_provider_info()
ROOT = Path(airflow_ml_provider.__file__).parent


def load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def modules(kind: str) -> list[str]:
    return [name for entry in INFO[kind] for name in entry["python-modules"]]


def test_it_fits_the_schema_that_airflow_reads_it_with() -> None:
    schema = json.loads(resources.files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(INFO)


@pytest.mark.parametrize("connection", INFO["connection-types"], ids=lambda c: c["connection-type"])
def test_the_connection_form_fits_the_schema_of_providers(connection: dict[str, Any]) -> None:
    """Airflow validates the form nowhere; the schema for `provider.yaml` is the only one that knows these keys."""
    schema = json.loads(resources.files("airflow").joinpath("provider.yaml.schema.json").read_text())
    part = {"definitions": schema.get("definitions", {}), **schema["properties"]["connection-types"]["items"]}
    jsonschema.Draft7Validator(part).validate(connection)


@pytest.mark.parametrize("connection", INFO["connection-types"], ids=lambda c: c["connection-type"])
def test_hooks_are_what_the_connection_types_say(connection: dict[str, Any]) -> None:
    from airflow.sdk import BaseHook

    hook = load(connection["hook-class-name"])
    assert issubclass(hook, BaseHook)
    assert hook.conn_type == connection["connection-type"]
    assert hook.hook_name == connection["hook-name"]
    assert hook.default_conn_name
    assert hook.conn_name_attr in inspect.signature(hook).parameters
    assert callable(hook.test_connection)
    assert "get_connection_form_widgets" not in vars(hook), "the form is described in the provider info"


@pytest.mark.parametrize("decorator", INFO["task-decorators"], ids=lambda d: d["name"])
def test_decorators_exist(decorator: dict[str, str]) -> None:
    assert callable(load(decorator["class-name"]))


def test_extra_links_exist() -> None:
    from airflow.sdk import BaseOperatorLink

    for path in INFO["extra-links"]:
        assert issubclass(load(path), BaseOperatorLink)


def test_no_link_is_left_out() -> None:
    from airflow_ml_provider import links

    own = {name for name, value in vars(links).items() if inspect.isclass(value) and hasattr(value, "key")}
    own = {name for name in own if "key" in vars(getattr(links, name))}
    assert {path.rpartition(".")[2] for path in INFO["extra-links"]} == own


@pytest.mark.parametrize("kind", ["operators", "sensors", "hooks", "triggers"])
def test_every_module_is_listed_and_exists(kind: str) -> None:
    found = {
        f"airflow_ml_provider.{kind}.{module.name}"
        for module in pkgutil.iter_modules([str(ROOT / kind)])
        if not module.name.startswith("_")
    }
    assert set(modules(kind)) == found
    for name in modules(kind):
        importlib.import_module(name)


def test_every_integration_is_declared() -> None:
    declared = {entry["integration-name"] for entry in INFO["integrations"]}
    for kind in ("operators", "sensors", "hooks", "triggers"):
        assert {entry["integration-name"] for entry in INFO[kind]} <= declared


def test_commands_exist() -> None:
    for path in INFO["cli"]:
        (group,) = load(path)()
        assert group.name == "ml"
        for command in group.subcommands:
            assert command.func.__closure__, f"{command.name} is loaded before it is used"


def test_entry_points_name_what_exists() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]
    module, _, name = points["apache_airflow_provider"]["provider_info"].partition(":")
    assert load(f"{module}.{name}") is get_provider_info
    for path in points["airflow.plugins"].values():
        from airflow.plugins_manager import AirflowPlugin

        assert issubclass(load(path.replace(":", ".")), AirflowPlugin)
    assert INFO["package-name"] == project["name"]


def test_public_names_exist_and_are_lazy() -> None:
    for name in airflow_ml_provider.__all__:
        assert getattr(airflow_ml_provider, name) is not None
    assert "airflow_ml_provider" in sys.modules
    with pytest.raises(AttributeError):
        airflow_ml_provider.NoSuchName  # noqa: B018
