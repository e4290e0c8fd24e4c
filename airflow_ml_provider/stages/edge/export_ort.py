"""ONNX Runtime's own format, for its builds for mobiles, with what a reduced build must contain."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider import models
from airflow_ml_provider.stages.edge import export_inputs as inputs
from airflow_ml_provider.stages.edge.export_inputs import Runnable
from airflow_ml_provider.stages.edge.spec import EdgeExportSpec

OPERATORS = "model.required_operators_and_types.config"
LIBRARIES = ("onnx", "onnxruntime", "flatbuffers", "numpy")


def convert(spec: EdgeExportSpec, parent: Path, file: Path, signature: Mapping[str, Any]) -> dict[str, Any]:
    """Write `file`, and beside it the operators and types for `build.py --include_ops_by_config`; return the former."""
    import onnx
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    model = onnx.load_from_string((parent / models.ONNX).read_bytes())
    model.metadata_props.add(key=inputs.SIGNATURE, value=inputs.text(signature))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / models.ONNX
        source.write_bytes(model.SerializeToString(deterministic=True))
        convert_onnx_models_to_ort(
            source, file.parent, [OptimizationStyle.Fixed], target_platform="arm", enable_type_reduction=True
        )
    lines = (file.parent / OPERATORS).read_text(encoding="utf-8").splitlines()
    return {"operators": [line for line in lines if line and not line.startswith("#")], "operators_file": OPERATORS}


def load(file: Path) -> Runnable:
    """Return the file opened by ONNX Runtime."""
    import json

    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.load_model_format", "ORT")  # a device's file has no suffix to tell it by
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    signature = json.loads(session.get_modelmeta().custom_metadata_map[inputs.SIGNATURE])
    return Runnable(signature, lambda feeds: session.run([models.SCORE], dict(feeds))[0])
