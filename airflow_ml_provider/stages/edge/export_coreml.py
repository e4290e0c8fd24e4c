"""Core ML packages, as a zip with the folder in it. They are made anywhere and run on macOS only."""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider import models
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.stages.edge import export_inputs as inputs
from airflow_ml_provider.stages.edge import export_torch
from airflow_ml_provider.stages.edge.export_inputs import NotMeasurable, Runnable
from airflow_ml_provider.stages.edge.spec import EdgeExportSpec

LIBRARIES = ("coremltools", "torch", "numpy")
FOLDER = "model.mlpackage"


def convert(spec: EdgeExportSpec, parent: Path, file: Path, signature: Mapping[str, Any]) -> dict[str, Any]:
    """Write `file` for iOS 16 or macOS 13 and later; return the inputs and outputs that Core ML will see.

    Raises:
        DataError: these are not those of the signature.
    """
    import coremltools as ct

    program = export_torch.program(parent, spec.network, spec.batch_size).run_decompositions({})
    made = ct.convert(
        program,
        outputs=[ct.TensorType(name=models.SCORE)],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=getattr(ct.precision, spec.precision.upper()),
        skip_model_load=True,
    )
    made.user_defined_metadata[inputs.SIGNATURE] = inputs.text(signature)
    with tempfile.TemporaryDirectory() as aside:
        made.save(str(Path(aside, FOLDER)))
        _zip(Path(aside), file)
        seen = _seen(ct.models.MLModel(str(Path(aside, FOLDER)), skip_model_load=True).get_spec())
    wanted = [(one["name"], one["shape"], "FLOAT32") for one in (signature["inputs"][0], signature["output"])]
    if [(one["name"], one["shape"], one["type"]) for one in seen] != wanted:
        raise DataError(f"the Core ML model has {seen}; it should have {wanted}")
    return {"interface": seen, "minimum_deployment_target": "iOS16", "precision": spec.precision}


def load(file: Path) -> Runnable:
    """Return the file opened by Core ML.

    Raises:
        NotMeasurable: this is no macOS.
    """
    if sys.platform != "darwin":
        raise NotMeasurable(f"Core ML runs models on macOS only; this is {sys.platform}")
    import coremltools as ct

    with tempfile.TemporaryDirectory() as aside:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(aside)
        model = ct.models.MLModel(str(Path(aside, FOLDER)))
    signature = json.loads(model.user_defined_metadata[inputs.SIGNATURE])
    return Runnable(signature, lambda feeds: model.predict(dict(feeds))[models.SCORE])


def _zip(folder: Path, file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def _seen(spec: Any) -> list[dict[str, Any]]:
    from coremltools.proto import FeatureTypes_pb2

    names = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType
    return [
        {
            "name": one.name,
            "shape": [int(size) for size in one.type.multiArrayType.shape],
            "type": names.Name(one.type.multiArrayType.dataType),
        }
        for one in (*spec.description.input, *spec.description.output)
    ]
