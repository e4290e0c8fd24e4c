"""What an environment can do: libraries per stage, and connections."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_ml_provider.exceptions import MlError, SpecError, unknown_name
from airflow_ml_provider.stages import STAGES, Spec, spec_class

# Settings on which the libraries of a stage depend; a stage that is not named has no such settings.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "load_test": ({"protocol": "rest"}, {"protocol": "grpc"}),
    "validate": ({}, {"suite": "suite.yaml"}),
    "evaluate": ({"experiment": "e"},),
    "train": tuple({"engine": engine, "experiment": "e"} for engine in ("lightgbm", "sklearn", "torch", "function")),
    "edge_export": tuple({"format": form} for form in ("ort", "executorch", "litert", "coreml")),
}
_LOOK = """\
import importlib.metadata, importlib.util, json, sys
def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"
def is_there(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
wanted = json.loads(sys.argv[1])
found = {m: version(p) for m, p in wanted.items() if is_there(m)}
print(json.dumps({"python": sys.version.split()[0], "found": found}))
"""


def requirements(stages: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Return the libraries of each stage, or variant of one: import name to the name for `pip install`.

    Raises:
        SpecError: there is no such stage.
    """
    for stage in stages:
        if stage not in STAGES:
            raise unknown_name("stage", stage, STAGES)
    found = {}
    for stage in stages or STAGES:
        for settings in VARIANTS.get(stage, ({},)):
            spec = _draft(spec_class(stage), settings)
            shown = ", ".join(str(value) for name, value in settings.items() if name != "experiment")
            found[f"{stage} ({shown})" if shown else stage] = spec.requires()
    return found


def _draft(cls: type[Spec], settings: Mapping[str, Any]) -> Spec:
    """Return a spec with its defaults and `settings` alone: what it does with which data plays no part here."""
    spec = object.__new__(cls)
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        if item.default_factory is not dataclasses.MISSING:
            object.__setattr__(spec, item.name, item.default_factory())
    for name, value in settings.items():
        object.__setattr__(spec, name, value)
    return spec


def libraries(pythons: Sequence[str], stages: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return one row per Python and stage: complete, or what is missing and the line that installs it.

    Parameters:
        pythons: those to look at; by default the one that runs this.
        stages: those to look at; by default all.
    """
    wanted = requirements(stages)
    modules = {module: package for needs in wanted.values() for module, package in needs.items()}
    rows = []
    for python in pythons or (sys.executable,):
        version, found = _look(python, modules)
        for stage, needs in wanted.items():
            missing = [package for module, package in needs.items() if module not in found]
            rows.append(
                {
                    "what": f"stage {stage}",
                    "where": f"{python} ({version})",
                    "state": "incomplete" if missing else "ok",
                    "detail": f"{python} -m pip install {' '.join(missing)}"
                    if missing
                    else ", ".join(f"{package} {found[module]}" for module, package in sorted(needs.items())),
                }
            )
    return rows


def _look(python: str, modules: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return the version of a Python and of those of `modules` that it has."""
    if shutil.which(python) is None:
        raise SpecError(f"python {python!r} is not an executable file; create the environment or mend the path")
    ran = subprocess.run([python, "-c", _LOOK, json.dumps(modules)], capture_output=True, text=True, timeout=60)
    if ran.returncode:
        raise SpecError(f"python {python!r} does not work: {ran.stderr.strip()[-300:]}")
    body = json.loads(ran.stdout)
    return body["python"], body["found"]


def connections(conn_ids: Sequence[str]) -> list[dict[str, str]]:
    """Return one row per connection: given ones, else those of the default names that exist."""
    from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException

    rows = []
    for conn_id in conn_ids or ("mlflow_default", "feast_default", "lineage_default"):
        row = {"what": f"connection {conn_id}", "where": "", "state": "ok", "detail": ""}
        try:
            works, row["detail"] = _test(conn_id)
            row["state"] = "ok" if works else "no answer"
        except AirflowNotFoundException:
            row.update(state="not defined")
        except (MlError, AirflowException, OSError) as error:
            row.update(state="no answer", detail=str(error))
        if conn_ids or row["state"] != "not defined":
            rows.append(row)
    return rows


def _test(conn_id: str) -> tuple[bool, str]:
    """Return what the button `Test` of a connection of this package says."""
    import importlib

    from airflow.sdk import BaseHook

    from airflow_ml_provider.get_provider_info import get_provider_info

    hooks = {item["connection-type"]: item["hook-class-name"] for item in get_provider_info()["connection-types"]}
    kind = BaseHook.get_connection(conn_id).conn_type
    if kind not in hooks:
        raise unknown_name(f"type of connection {conn_id!r}:", str(kind), hooks)
    module, _, name = hooks[kind].rpartition(".")
    works, message = getattr(importlib.import_module(module), name)(conn_id).test_connection()
    return bool(works), str(message)
