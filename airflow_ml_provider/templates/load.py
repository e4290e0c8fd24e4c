"""YAML to `PipelineConfig`: environment variables filled in, every key checked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import date, datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.templates.config import PipelineConfig

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def load_config(path: str | Path, **overrides: Any) -> PipelineConfig:
    """Return the configuration in a YAML file.

    `${NAME}` and `${NAME:-default}` stand for environment variables; dates mean midnight UTC; relative paths start
    from the file's folder. `overrides` replace top-level keys.

    Raises:
        SpecError: the file cannot be read, or a key or value is wrong; the message names the place and the nearest key.
    """
    import yaml

    file = Path(path)
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), _loader())  # noqa: S506
    except (OSError, yaml.YAMLError) as error:
        raise SpecError(f"configuration {file} cannot be read: {error}") from error
    if not isinstance(data, Mapping):
        raise SpecError(f"configuration {file} must be a mapping, got {type(data).__name__}")
    filled = {"folder": str(file.parent.resolve()), **_fill(data, file), **overrides}
    try:
        return codec.decode(PipelineConfig, filled)
    except SpecError as error:
        raise SpecError(f"{file}: {error}") from None


@lru_cache(maxsize=1)
def _loader() -> Any:
    """Return a safe loader of YAML that refuses a key that is there twice: the second would silently win."""
    import yaml

    # The one in C is ten times as fast, and this runs at every parse of the DAG file.
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise yaml.YAMLError(f"key {key.value!r} is there twice, again in line {key.start_mark.line + 1}")
                seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    return Loader


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration, for editors; it is shipped as `pipeline.schema.json`."""
    return codec.json_schema(PipelineConfig, "airflow-ml-provider pipeline")


def _fill(value: Any, file: Path) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _fill(item, file) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, file) for item in value]
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=timezone.utc)
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=timezone.utc)
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _variable(match, file), value)
    return value


def _variable(match: re.Match[str], file: Path) -> str:
    name, default = match.group(1), match.group(2)
    value = os.environ.get(name, default)
    if value is None:
        raise SpecError(f"{file}: environment variable {name} is not set; set it or write ${{{name}:-default}}")
    return value


if __name__ == "__main__":  # after a change of the configuration's classes
    import json

    Path(__file__).with_name("pipeline.schema.json").write_text(json.dumps(json_schema(), indent=1) + "\n")
