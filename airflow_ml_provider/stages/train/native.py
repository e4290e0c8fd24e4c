"""A fitted model of any library, seen in one way: its scores, its ONNX graph, its own safe file."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from airflow_ml_provider.exceptions import MissingLibrary, SpecError

# First match along the bases of a model's class, so that lightgbm's scikit-learn classes are lightgbm's.
_ADAPTERS = {
    "lightgbm": "airflow_ml_provider.stages.train.lightgbm",
    "torch": "airflow_ml_provider.stages.train.torch",
    "sklearn": "airflow_ml_provider.stages.train.sklearn",
}
_INSTALLS = {"sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Native:
    """A fitted model.

    Attributes:
        score: matrix float32 [N, F] to P(label = 1), float [N].
        graph: returns the ONNX model of the matrix; its last output is the probability.
        save: writes the library's own safe file or files into a folder.
        libraries: distributions that took part in making it.
    """

    score: Callable[[Any], Any]
    graph: Callable[[], Any]
    save: Callable[[Path], None]
    libraries: tuple[str, ...]


def of(model: Any, features: int) -> Native:
    """Return what a training function gave back as a `Native`.

    Parameters:
        model: LightGBM booster or classifier, scikit-learn classifier, torch module, or an ONNX model.
        features: number of the matrix's columns.

    Raises:
        SpecError: it is none of these.
        MissingLibrary: this Python lacks the library that exports it.
    """
    if isinstance(model, bytes) or type(model).__name__ == "ModelProto":
        return _onnx(model)
    roots = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    for root, adapter in _ADAPTERS.items():
        if root in roots:
            found: Native = importlib.import_module(adapter).native(model, features)
            return found
    raise SpecError(
        f"a training function must return a LightGBM booster, a scikit-learn classifier, a torch module or an ONNX "
        f"model, got {type(model).__name__}"
    )


def need(*modules: str) -> None:
    """Raise `MissingLibrary` unless these can be imported."""
    import sys
    from importlib.util import find_spec

    missing = [_INSTALLS.get(name, name) for name in modules if find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        raise MissingLibrary(
            f"the model cannot be exported: {sys.executable} lacks {names}; "
            f"run: {sys.executable} -m pip install {names}"
        )


def _onnx(model: Any) -> Native:
    graph = model if isinstance(model, bytes) else model.SerializeToString()

    def score(matrix: Any) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found = session.run([session.get_outputs()[-1].name], {session.get_inputs()[0].name: matrix})[0]
        return found[:, 1] if found.ndim == 2 and found.shape[1] == 2 else found.reshape(-1)

    return Native(score, lambda: graph, lambda folder: None, ("onnx", "onnxruntime"))
