"""What a device must know of a model's inputs, written into the file itself: the columns, and the codes of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from airflow_ml_provider import codec, models
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.stages.train.preprocess import Preprocessor

SIGNATURE, COLUMNS = "signature", "columns"
_MANY = 1024  # rows of a call where the file takes any number


class NotMeasurable(Exception):
    """This machine cannot run a file; says why."""


@dataclass(frozen=True)
class Runnable:
    """A file for devices, opened.

    Attributes:
        signature: what it says of its inputs.
        call: from its inputs by name to its scores.
    """

    signature: Mapping[str, Any]
    call: Callable[[Mapping[str, Any]], Any]

    def score(self, table: Any) -> Any:
        """Return P(label = 1) per row of an Arrow table, float32 [N]."""
        import numpy as np

        given = feeds(self.signature, table)
        size = self.signature["output"]["shape"][0] or _MANY
        fixed = self.signature["output"]["shape"][0] is not None
        parts = []
        for start in range(0, table.num_rows, size):
            part = {name: values[start : start + size] for name, values in given.items()}
            rows = len(next(iter(part.values())))
            if fixed and rows < size:
                part = {name: np.resize(values, (size, *values.shape[1:])) for name, values in part.items()}
            parts.append(np.asarray(self.call(part), np.float32).reshape(-1)[:rows])
        return np.concatenate(parts)


def preprocessor(parent: Path) -> Preprocessor:
    """Return what a package does to raw columns before the model.

    Raises:
        DataError: it does not say.
    """
    try:
        text = (parent / models.PREPROCESS).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{parent} does not say what happens to raw columns: {error}") from error
    return codec.decode(Preprocessor, json.loads(text), models.PREPROCESS)


def signature(parent: Path, batch_size: Optional[int], threshold: float) -> dict[str, Any]:
    """Return what a file says of itself.

    Parameters:
        parent: the model's package.
        batch_size: rows of a call of a file that takes numbers only, one matrix of them; none for one that takes any
            number of rows of the model's own inputs.
        threshold: the operating point.
    """
    manifest = models.read_manifest(parent)
    if batch_size is None:
        inputs = [
            _input(name, "string" if kind == "string" else "float32", None, [{"name": name}])
            for name, kind in manifest.inputs.items()
        ]
    else:
        pre = preprocessor(parent)
        columns: list[dict[str, Any]] = [{"name": column.name} for column in pre.numbers]
        columns += [{"name": c.name, "codes": c.codes, "unknown": c.unknown} for c in pre.categories]
        inputs = [_input(COLUMNS, "float32", batch_size, columns)]
    return {
        "model": manifest.name,
        "label": manifest.label,
        "threshold": threshold,
        "inputs": inputs,
        "output": {"name": models.SCORE, "type": "float32", "shape": [batch_size, 1]},
    }


def _input(name: str, kind: str, rows: Optional[int], columns: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "type": kind, "shape": [rows, len(columns)], COLUMNS: columns}


def feeds(signature: Mapping[str, Any], table: Any) -> dict[str, Any]:
    """Return the rows of an Arrow table as a file takes them, by its signature alone: what a device does.

    Raises:
        DataError: a column is missing or cannot be read.
    """
    import numpy as np

    model = signature["model"]

    def column(entry: Mapping[str, Any], kind: str) -> Any:
        if "codes" not in entry:
            return models.read_input(table, entry["name"], "string" if kind == "string" else "float", model)
        texts = models.read_input(table, entry["name"], "string", model)
        codes = [[entry["codes"].get(text, entry["unknown"])] for (text,) in texts]
        return np.array(codes, np.float32).reshape(-1, 1)

    return {
        one["name"]: np.hstack([column(entry, one["type"]) for entry in one[COLUMNS]]) for one in signature["inputs"]
    }


def text(body: Mapping[str, Any]) -> str:
    """Return a signature as it stands in a file."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False)
