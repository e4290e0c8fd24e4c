"""The model package: a folder of safe formats that training writes and everything later reads. Airflow-free.

`model.json` (the manifest), `model.onnx` (what serves), the engine's own safe format beside it, `preprocess.json` (what
happens to raw columns, also inside the ONNX graph), `sample.parquet` (real rows with the native scores, for the parity
check), `validation.parquet` (labels and native scores of the validation rows, for choosing the operating point) and
`reference.json` (profile of the training rows, for drift). Nothing in it is ever unpickled.

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
from airflow_ml_provider.exceptions import DataError, IntegrityError, invalid
from airflow_ml_provider.provenance import Provenance
from airflow_ml_provider.refs import DatasetRef, ModelRef

MANIFEST, ONNX, SAMPLE, REFERENCE = "model.json", "model.onnx", "sample.parquet", "reference.json"
PREPROCESS, VALIDATION = "preprocess.json", "validation.parquet"
SAMPLE_SCORE = "native_score"
# Columns of `validation.parquet`, beside SAMPLE_SCORE.
VALIDATION_LABEL, VALIDATION_TIME = "label", "event_timestamp"
SCORE = "score"

InputType = Literal["float", "string"]

# What the inputs of a graph are called by ONNX Runtime.
_ONNX_TYPES: Mapping[str, InputType] = {"tensor(float)": "float", "tensor(string)": "string"}


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
        recipe: digest of everything that was asked for; a package of the same recipe need not be made again.
        files: further files that serve, such as the model in the format of a device, with their digests.
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
    recipe: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.inputs:
            raise invalid("inputs of a model", dict(self.inputs), "at least one column")
        if not 0 <= self.threshold <= 1:
            raise invalid("threshold", self.threshold, "in [0, 1]", "give a fraction, not percent")
        if any(name in ("", ".", "..") or "/" in name for name in self.files):
            raise invalid("files of a package", list(self.files), "names of files in its folder")


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest of a package; done last, it makes the package whole."""
    # Keys are not sorted: the order of the inputs is part of what is said.
    body = json.dumps(codec.encode(manifest), indent=1, ensure_ascii=False, allow_nan=False)
    return tables.write_text(folder / MANIFEST, body)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a package.

    Raises:
        DataError: the folder holds no complete package.
    """
    try:
        return codec.decode(Manifest, json.loads((folder / MANIFEST).read_text(encoding="utf-8")), MANIFEST)
    except (OSError, ValueError) as error:  # SpecError is a ValueError, too
        raise DataError(f"{folder} holds no complete model package: {error}") from error


def package_digest(folder: Path) -> str:
    """Return the digest of what serves: the ONNX file and further files, the manifest's inputs, threshold and segment.

    Raises:
        DataError: the folder holds no complete package.
    """
    manifest = read_manifest(folder)
    try:
        onnx = tables.file_digest(folder / ONNX)
        files = {name: tables.file_digest(folder / name) for name in manifest.files}
    except OSError as error:
        raise DataError(f"{folder} holds no complete model package: {error}") from error
    return codec.digest(
        {
            "onnx": onnx,
            "inputs": sorted(manifest.inputs.items()),
            "threshold": manifest.threshold,
            "segment": manifest.segment,
            **({"files": files} if files else {}),
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
    import numpy as np
    import pyarrow as pa

    mask = np.ones(table.num_rows, np.uint8)
    for column, value in segment.items():
        if column not in table.schema.names:
            raise DataError(f"segment column {column!r} is missing; there are {', '.join(table.schema.names)}")
        values, indices = _dictionary(table.column(column))
        mask &= np.array([text == value for text in values] or [False], np.uint8)[indices]
    return arrow_array(mask).cast(pa.bool_())


def arrow_array(values: Any) -> Any:
    """Return a numpy vector of numbers as an Arrow array. (Arrow's own way, and its scalars, import pandas.)"""
    import numpy as np
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def read_input(batch: Any, name: str, kind: InputType, model: str) -> Any:
    """Return one column as a model gets it: float32 (missing is NaN) or objects of text (missing is empty), [N, 1].

    Parameters:
        batch: Arrow table or record batch.
        name: the column.
        kind: what the model wants.
        model: name of the model, for messages.

    Raises:
        DataError: the column is missing or cannot be read as `kind`.
    """
    import numpy as np
    import pyarrow as pa

    if name not in batch.schema.names:
        raise DataError(f"model {model!r} needs column {name!r}; the data has {', '.join(batch.schema.names)}")
    column = _whole(batch.column(name))
    try:
        if kind == "string":
            texts, indices = encode_texts(column)
            return np.array(texts or [""], dtype=object)[indices].reshape(-1, 1)
        return _numbers(column).reshape(-1, 1)
    except pa.ArrowException as error:
        raise DataError(f"column {name!r} of type {column.type} cannot be read as {kind}: {error}") from error


def encode_texts(column: Any) -> tuple[list[str], Any]:
    """Return the different texts of an Arrow array (missing is empty) and per row the index of its text."""
    import numpy as np

    found, indices = _dictionary(column)
    known = {text: i for i, text in enumerate(dict.fromkeys(text or "" for text in found))}
    return list(known), np.array([known[text or ""] for text in found] or [0], np.int64)[indices]


def _dictionary(column: Any) -> tuple[list[Optional[str]], Any]:
    """Return the different texts, none among them where some are missing, and per row the index of its text."""
    import pyarrow as pa

    encoded = _whole(column).cast(pa.string()).dictionary_encode(null_encoding="encode")
    return encoded.dictionary.to_pylist(), _values(encoded.indices, "int32")


def _numbers(column: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    numbers = column.cast(pa.float64(), safe=False)
    values = _values(numbers, "float64")
    if numbers.null_count:
        values = np.where(_values(numbers.is_valid().cast(pa.uint8()), "uint8"), values, np.nan)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as it is for ONNX Runtime
        return values.astype(np.float32)


def _whole(column: Any) -> Any:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _values(array: Any, kind: str) -> Any:
    """Return the values of an Arrow array of numbers, whatever stands where there is none."""
    import numpy as np

    if not len(array):
        return np.empty(0, kind)
    return np.frombuffer(array.buffers()[1], kind)[array.offset : array.offset + len(array)]


class Scorer:
    """A model package opened for scoring with ONNX Runtime.

    Parameters:
        folder: the package.
        providers: execution providers in order of preference; those that this build lacks are left out.
        threads: intra-op threads of one call; one is best when several batches are in flight.

    Raises:
        DataError: the folder holds no complete package.
        IntegrityError: the graph is damaged or is not what the manifest says.
    """

    def __init__(self, folder: Path, *, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 1) -> None:
        self.manifest = read_manifest(folder)
        # From bytes, weights in further files are an error: nothing serves that the digest does not cover.
        self._session = _open(self.manifest.name, (folder / ONNX).read_bytes(), providers, threads)
        wanted = dict(self.manifest.inputs)
        found = {i.name: _ONNX_TYPES.get(i.type, i.type) for i in self._session.get_inputs()}
        outputs = [o.name for o in self._session.get_outputs()]
        if wanted != found or SCORE not in outputs:
            raise IntegrityError(
                f"model {self.manifest.name!r}: the manifest names inputs {wanted} and output {SCORE!r}, the graph has "
                f"inputs {found} and outputs {outputs}"
            )

    def score(self, batch: Any) -> Any:
        """Return P(label = 1) per row of an Arrow table or record batch, float32 of shape [N].

        Raises:
            DataError: the batch lacks an input column, or a column cannot be read as its type.
        """
        import numpy as np

        if batch.num_rows == 0:
            return np.empty(0, dtype=np.float32)
        model = self.manifest.name
        return self.run({name: read_input(batch, name, kind, model) for name, kind in self.manifest.inputs.items()})

    def run(self, feeds: Mapping[str, Any]) -> Any:
        """Return P(label = 1) per row, float32 of shape [N].

        Parameters:
            feeds: every input as the graph takes it: float32 or objects of text, of shape [N, 1].
        """
        import numpy as np

        return self._session.run([SCORE], dict(feeds))[0].reshape(-1).astype(np.float32, copy=False)


def _open(name: str, graph: bytes, providers: Sequence[str], threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    usable = [p for p in providers if p in ort.get_available_providers()] or ["CPUExecutionProvider"]
    try:
        return ort.InferenceSession(graph, options, providers=usable)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise IntegrityError(f"model {name!r}: ONNX Runtime cannot open its graph: {error}") from error
