"""LiteRT (TensorFlow Lite) files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider import models
from airflow_ml_provider.stages.edge import export_inputs as inputs
from airflow_ml_provider.stages.edge import export_torch
from airflow_ml_provider.stages.edge.export_inputs import Runnable
from airflow_ml_provider.stages.edge.spec import EdgeExportSpec

LIBRARIES = ("litert-torch", "ai-edge-litert", "torch", "numpy")
_FILE = f"{inputs.SIGNATURE}.json"


def convert(spec: EdgeExportSpec, parent: Path, file: Path, signature: Mapping[str, Any]) -> dict[str, Any]:
    """Write `file`, with the signature as an associated file: a zip at its end, which the interpreter passes over."""
    import litert_torch
    import torch

    whole = export_torch.module(parent, spec.network)

    class Named(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, columns: Any) -> Any:
            return {models.SCORE: self.whole(columns)}

    rows = torch.zeros(*signature["inputs"][0]["shape"])
    litert_torch.convert(Named().eval(), sample_kwargs={inputs.COLUMNS: rows}).export(str(file))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(_FILE), inputs.text(signature))
    return {"operators": _operators(file)}


def load(file: Path) -> Runnable:
    """Return the file opened by LiteRT's interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    with zipfile.ZipFile(file) as archive:
        signature = json.loads(archive.read(_FILE))
    run = Interpreter(model_path=str(file), num_threads=1).get_signature_runner()
    return Runnable(signature, lambda feeds: run(**feeds)[models.SCORE])


def _operators(file: Path) -> list[str]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = Interpreter(
        model_path=str(file), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    return sorted({one["op_name"] for one in plain._get_ops_details()})
