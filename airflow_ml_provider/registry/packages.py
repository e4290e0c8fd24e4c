"""A model package on its way into and out of the registry: what is uploaded, which tags say what, where copies are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from airflow_ml_provider import codec, models
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.refs import ModelRef

TAG = "airflow_ml."
MLMODEL = "MLmodel"
SAFE_SUFFIXES = (
    ".json", ".onnx", ".parquet", ".safetensors", ".skops", ".txt", ".html",
    ".ort", ".config", ".pte", ".tflite", ".zip",
)  # fmt: skip


def uploads(folder: Path) -> list[Path]:
    """Return the files of a package that may leave it: safe formats only, so never a pickle."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return [path for path in files if path.suffix in SAFE_SUFFIXES or path.name == MLMODEL]


def tags_of(ref: ModelRef, folder: Path) -> dict[str, str]:
    """Return the tags of a version from which `as_ref` makes its ref again."""
    until = ref.trained_until.isoformat() if ref.trained_until else ""
    return {
        f"{TAG}digest": ref.digest,
        f"{TAG}engine": ref.engine,
        f"{TAG}segment": codec.canonical(ref.segment),
        f"{TAG}trained_until": until,
        f"{TAG}metrics": codec.canonical(ref.metrics),
        f"{TAG}uri": str(folder),
    }


def as_ref(version: Any) -> ModelRef:
    """Return the ref of a version of MLflow's.

    Raises:
        DataError: this package did not register it.
    """
    tags = version.tags
    if f"{TAG}digest" not in tags:
        raise DataError(
            f"model {version.name!r} version {version.version} was not registered by this package: it lacks the tag "
            f"{TAG}digest; use the register stage"
        )
    metrics = json.loads(tags.get(f"{TAG}metrics") or "{}")
    body = {
        "name": version.name,
        "uri": tags.get(f"{TAG}uri", ""),
        "digest": tags[f"{TAG}digest"],
        "version": str(version.version),
        "run_id": version.run_id or None,
        "engine": tags.get(f"{TAG}engine", ""),
        "segment": json.loads(tags.get(f"{TAG}segment") or "{}"),
        "trained_until": tags.get(f"{TAG}trained_until") or None,
        "metrics": {key: value for key, value in metrics.items() if value is not None},
    }
    return codec.decode(ModelRef, body, f"model {version.name} version {version.version}")


def hexadecimal(digest: str) -> str:
    """Return a digest without the name of its algorithm."""
    return digest.partition(":")[2] or digest


def holds(folder: Path, digest: str) -> bool:
    """Whether a folder holds exactly the model with `digest`."""
    try:
        return models.package_digest(folder) == digest
    except (DataError, SpecError, OSError):
        return False


def cache() -> Path:
    """Return the folder of downloaded packages: below `AIRFLOW_ML_CACHE`, else the user's cache folder."""
    root = os.environ.get("AIRFLOW_ML_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "airflow_ml"
    )
    return Path(root) / "models"
