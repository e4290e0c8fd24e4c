"""Classifiers of scikit-learn, in process: those that ONNX can represent."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider.exceptions import SpecError, unknown_name
from airflow_ml_provider.stages.train.native import Native, need
from airflow_ml_provider.stages.train.preprocess import Encoding
from airflow_ml_provider.stages.train.run import Run

MODEL = "model.skops"
LIBRARIES = ("scikit-learn", "skl2onnx", "skops", "onnx", "onnxruntime", "numpy", "pyarrow")
DEFAULT = "sklearn.linear_model.LogisticRegression"
_TREES: Encoding = "ordinal"
_DENSE: Encoding = "one_hot"

# Import path to what the model sees and its defaults. Nothing else is imported by name.
ESTIMATORS: Mapping[str, tuple[Encoding, Mapping[str, Any]]] = {
    DEFAULT: (_DENSE, {"max_iter": 1000}),
    "sklearn.linear_model.SGDClassifier": (_DENSE, {"loss": "log_loss"}),
    "sklearn.neural_network.MLPClassifier": (_DENSE, {"hidden_layer_sizes": [64, 32], "max_iter": 100}),
    "sklearn.naive_bayes.GaussianNB": (_DENSE, {}),
    "sklearn.tree.DecisionTreeClassifier": (_TREES, {"min_samples_leaf": 20}),
    "sklearn.ensemble.RandomForestClassifier": (_TREES, {"n_estimators": 200, "min_samples_leaf": 5}),
    "sklearn.ensemble.ExtraTreesClassifier": (_TREES, {"n_estimators": 200, "min_samples_leaf": 5}),
    "sklearn.ensemble.GradientBoostingClassifier": (_TREES, {}),
    "sklearn.ensemble.AdaBoostClassifier": (_TREES, {}),
}
_NOT_CONVERTIBLE = {"sklearn.ensemble.HistGradientBoostingClassifier"}


def estimator(params: Mapping[str, Any]) -> str:
    """Return the import path of the estimator that `params.estimator` names.

    Raises:
        SpecError: it is not one that can be trained and exported here.
    """
    path = params.get("estimator", DEFAULT)
    if path in _NOT_CONVERTIBLE:
        raise SpecError(f"params.estimator {path!r} does not convert to ONNX; take engine 'lightgbm', its like")
    if path not in ESTIMATORS:
        raise unknown_name("params.estimator", str(path), ESTIMATORS)
    return str(path)


def encoding(params: Mapping[str, Any]) -> Encoding:
    """Return what the estimator's matrix shall hold."""
    return ESTIMATORS[estimator(params)][0]


def fit(run: Run) -> Any:
    """Return the fitted estimator of `run.params`: `estimator` (import path) and its own settings.

    Raises:
        SpecError: the estimator, or one of its settings, is not known or has a wrong value.
    """
    path = estimator(run.params)
    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    known = kind().get_params()
    given = {key: value for key, value in run.params.items() if key != "estimator"}
    for key in given:
        if key not in known:
            raise unknown_name(f"setting of {name}", key, known)
    if "random_state" in known:
        given["random_state"] = run.seed
    if "n_jobs" in known and name != "LogisticRegression":
        given["n_jobs"] = 1
    matrix, labels = run.train.numpy()
    try:
        return kind(**{**ESTIMATORS[path][1], **given}).fit(matrix, labels.astype("int64"))
    except (ValueError, TypeError) as error:  # scikit-learn checks its settings here
        raise SpecError(f"scikit-learn refused params {dict(run.params)}: {error}") from error


def native(model: Any, features: int) -> Native:
    """Return a fitted classifier as it will be served.

    Raises:
        SpecError: it gives no probabilities of the labels 0 and 1.
    """
    need("skl2onnx", "skops")
    if not hasattr(model, "predict_proba") or list(getattr(model, "classes_", ())) != [0, 1]:
        raise SpecError(
            f"{type(model).__name__} must be a fitted classifier with predict_proba and the labels 0 and 1; its labels "
            f"are {list(getattr(model, 'classes_', ()))}"
        )

    def graph() -> Any:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType

        try:
            return convert_sklearn(
                model,
                name="sklearn",
                initial_types=[("X", FloatTensorType([None, features]))],
                options={id(model): {"zipmap": False}},
                target_opset={"": 17, "ai.onnx.ml": 3},
            )
        except Exception as error:  # its errors have no common base
            raise SpecError(f"{type(model).__name__} does not convert to ONNX: {error}") from error

    def save(folder: Path) -> None:
        import warnings

        with warnings.catch_warnings():  # it looks into every loaded module, and wakes their deprecated names
            warnings.simplefilter("ignore")
            import skops.io

            skops.io.dump(model, folder / MODEL)

    return Native(lambda matrix: model.predict_proba(matrix)[:, 1], graph, save, LIBRARIES)
