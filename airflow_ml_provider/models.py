"""The model package: a folder of safe formats that training writes and everything later reads. Airflow-free.

`model.json` (the manifest), `model.onnx` (what serves), the engine's own safe format beside it, `sample.parquet` (real
rows with the native scores, for the parity check) and `reference.json` (profile of the training rows, for drift).
Nothing in it is ever unpickled.

The ONNX model has one input per column, shape [N, 1], of float32 or string, and one output `score`, shape [N] or
[N, 1]: the probability of label 1. Missing numbers are NaN, missing texts are empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Optional

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.provenance import Provenance
from airflow_ml_provider.refs import DatasetRef, ModelRef

MANIFEST, ONNX, SAMPLE, REFERENCE = "model.json", "model.onnx", "sample.parquet", "reference.json"
SAMPLE_SCORE = "native_score"

InputType = Literal["float", "string"]


@dataclass(frozen=True)
class Manifest:
    """What a model package says of itself.

    Attributes:
        name: name of the model.
        engine: what trained it.
        inputs: column to type, in the order of the ONNX inputs.
        label: what the score is the probability of.
        threshold: the operating point chosen on validation rows.
        segment: column values that the model is for.
        trained_until: nothing later than this has been seen.
        training: the training rows.
        metrics: on validation rows.
        provenance: what the model was made from.
        run_id: tracking run.
    """

    name: str
    engine: str
    inputs: Mapping[str, InputType]
    label: str
    training: DatasetRef
    trained_until: datetime
    threshold: float = 0.5
    segment: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    run_id: Optional[str] = None


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest of a package; done last, it makes the package whole."""
    body = json.dumps(codec.encode(manifest), indent=1, sort_keys=True, ensure_ascii=False)
    return tables.write_text(folder / MANIFEST, body)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a package.

    Raises:
        DataError: the folder holds no complete package.
    """
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no complete model package: {error}") from error
    return codec.decode(Manifest, data, MANIFEST)


def package_digest(folder: Path) -> str:
    """Return the digest of what serves: the ONNX file and the manifest's inputs, threshold and segment."""
    manifest = read_manifest(folder)
    return codec.digest(
        {
            "onnx": tables.file_digest(folder / ONNX),
            "inputs": list(manifest.inputs.items()),
            "threshold": manifest.threshold,
            "segment": manifest.segment,
        }
    )


def describe(folder: Path) -> ModelRef:
    """Return the ref of a package."""
    manifest = read_manifest(folder)
    return ModelRef(
        name=manifest.name,
        uri=str(folder),
        digest=package_digest(folder),
        run_id=manifest.run_id,
        engine=manifest.engine,
        segment=manifest.segment,
        trained_until=manifest.trained_until,
        metrics=manifest.metrics,
    )


def verify(folder: Path, ref: ModelRef) -> Path:
    """Return `folder` if it holds exactly the model of `ref`.

    Raises:
        IntegrityError: its digest is another one.
    """
    found = package_digest(folder)
    if found != ref.digest:
        raise IntegrityError(f"model {ref.name!r} at {folder} has digest {found}, not {ref.digest}: it was changed")
    return folder


def segment_mask(table: Any, segment: Mapping[str, str]) -> Any:
    """Return an Arrow boolean array: which rows of a table or batch belong to `segment`.

    Raises:
        DataError: the table lacks a column of the segment.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    mask: Any = pa.repeat(True, table.num_rows)
    for column, value in segment.items():
        if column not in table.schema.names:
            raise DataError(f"segment column {column!r} is missing; there are {', '.join(table.schema.names)}")
        values = table.column(column).cast(pa.string())
        mask = pc.and_(mask, pc.fill_null(pc.equal(values, value), False))
    return mask


class Scorer:
    """A model package opened for scoring with ONNX Runtime.

    Parameters:
        folder: the package.
        providers: execution providers in order of preference; those that this build lacks are left out.
        threads: intra-op threads of one call; one is best when several batches are in flight.
    """

    def __init__(self, folder: Path, *, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 1) -> None:
        import onnxruntime as ort

        self.manifest = read_manifest(folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        usable = [p for p in providers if p in ort.get_available_providers()] or ["CPUExecutionProvider"]
        self._session = ort.InferenceSession(str(folder / ONNX), options, providers=usable)
        expected, found = list(self.manifest.inputs), [i.name for i in self._session.get_inputs()]
        if sorted(expected) != sorted(found):
            raise IntegrityError(
                f"model {self.manifest.name!r}: manifest names inputs {expected}, the graph has {found}"
            )

    def score(self, batch: Any) -> Any:
        """Return P(label = 1) per row of an Arrow table or record batch, float32 of shape [N].

        Raises:
            DataError: the batch lacks an input column, or a column cannot be read as its type.
        """
        import numpy as np

        if batch.num_rows == 0:
            return np.empty(0, dtype=np.float32)
        feeds = {name: self._feed(batch, name, kind) for name, kind in self.manifest.inputs.items()}
        return self._session.run(["score"], feeds)[0].reshape(-1).astype(np.float32, copy=False)

    def _feed(self, batch: Any, name: str, kind: InputType) -> Any:
        import numpy as np
        import pyarrow as pa

        if name not in batch.schema.names:
            raise DataError(
                f"model {self.manifest.name!r} needs column {name!r}; the data has {', '.join(batch.schema.names)}"
            )
        column = batch.column(name)
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        try:
            if kind == "string":
                texts = column.cast(pa.string()).fill_null("")
                return np.array(texts.to_pylist(), dtype=object).reshape(-1, 1)
            # Arrow refuses to read nulls as NaN zero-copy, so they are filled first.
            numbers = column.cast(pa.float64(), safe=False).fill_null(float("nan"))
        except pa.ArrowException as error:
            raise DataError(f"column {name!r} of type {column.type} cannot be read as {kind}: {error}") from error
        return (
            np.frombuffer(numbers.buffers()[1], dtype=np.float64)[numbers.offset : numbers.offset + len(numbers)]
            .astype(np.float32)
            .reshape(-1, 1)
        )
