"""Gradient-boosted trees by LightGBM, in process, with the same bytes for the same rows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.train.native import Native, need
from airflow_ml_provider.stages.train.run import Run

MODEL = "model.txt"
LIBRARIES = ("lightgbm", "onnxmltools", "onnx", "onnxruntime", "numpy", "pyarrow")
ROUNDS, PATIENCE = 400, 40
DEFAULTS: Mapping[str, Any] = {
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.8,
    "num_threads": 2,
}
# What makes the result the same in every run, and what the export stands on.
FIXED: Mapping[str, Any] = {
    "objective": "binary", "metric": "binary_logloss", "deterministic": True, "force_row_wise": True, "verbosity": -1,
}  # fmt: skip
_TAKEN = {*FIXED, "seed", "linear_tree", "force_col_wise"}
_LIST = "https://lightgbm.readthedocs.io/en/stable/Parameters.html"


def fit(run: Run) -> Any:
    """Return a booster of as many trees as are best on the validation rows.

    `run.params` are LightGBM's own, by any of their names, with `num_boost_round` and `early_stopping_rounds` among
    them.

    Raises:
        SpecError: a setting is not known, is given twice, has a wrong value or belongs to this package.
    """
    import lightgbm

    params = settings(run.params)
    rounds, patience = params.pop("num_iterations", ROUNDS), params.pop("early_stopping_round", PATIENCE)
    params = {**DEFAULTS, **params, **FIXED, "seed": run.seed}
    matrix, labels = run.train.numpy()
    train = lightgbm.Dataset(matrix, labels, params=params, feature_name=[f"f{i}" for i in range(matrix.shape[1])])
    curve: dict[str, Any] = {}
    callbacks = [lightgbm.record_evaluation(curve)]
    if patience:
        least_gain = params.pop("early_stopping_min_delta", 0.0)
        callbacks.append(lightgbm.early_stopping(patience, min_delta=least_gain, verbose=False))
    try:
        booster = lightgbm.train(
            params,
            train,
            rounds,
            valid_sets=[lightgbm.Dataset(*run.validation.numpy(), reference=train)],
            valid_names=["validation"],
            callbacks=callbacks,
        )
    except lightgbm.basic.LightGBMError as error:
        raise SpecError(f"LightGBM refused params {dict(run.params)}: {error}") from error
    for step, loss in enumerate(curve["validation"]["binary_logloss"]):
        run.log("validation_loss", loss, step)
    run.log("trees", booster.best_iteration or booster.current_iteration())
    return booster


def settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their main names, which would win over the other names of the same setting.

    Raises:
        SpecError: a setting is not known, is given twice, or belongs to this package.
    """
    main = _main_names()
    given: dict[str, str] = {}
    for name, value in params.items():
        if name not in main:
            near = difflib.get_close_matches(name, main, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SpecError(f"params.{name} is no setting of LightGBM; {hint}all of them: {_LIST}")
        setting = main[name]
        if setting in given:
            raise SpecError(f"params.{given[setting]} and params.{name} are one setting, {setting}; give one of them")
        given[setting] = name
        if setting in _TAKEN and value != FIXED.get(setting):
            raise invalid(f"params.{name}", value, "left out", "the stage sets it; the seed is its own argument")
    return {setting: params[name] for setting, name in given.items()}


def _main_names() -> dict[str, str]:
    """Return all names of the settings of the installed LightGBM, each with the setting's main name."""
    from lightgbm.basic import _ConfigAliases  # the library itself knows them; nothing public tells them

    names: Mapping[str, list[str]] = _ConfigAliases._get_all_param_aliases()
    return {name: setting for setting, known in names.items() for name in known}


def native(model: Any, features: int) -> Native:
    """Return a booster, or the booster of a classifier, as it will be served.

    Raises:
        SpecError: its scores are not the probability of label 1.
    """
    need("onnxmltools")
    booster = _single_precision(getattr(model, "booster_", model))

    def graph() -> Any:
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType

        return convert_lightgbm(
            booster, name="lightgbm", zipmap=False, initial_types=[("X", FloatTensorType([None, features]))]
        )

    def save(folder: Path) -> None:
        (folder / MODEL).write_text(booster.model_to_string(), encoding="utf-8")

    return Native(booster.predict, graph, save, LIBRARIES)


def _single_precision(booster: Any) -> Any:
    """Return the best iterations of a booster with thresholds that float32 can hold.

    ONNX compares in float32. A threshold is moved to the next float32 below: for inputs that are float32 themselves no
    comparison changes, and the export decides exactly as the booster.
    """
    import lightgbm

    text = booster.model_to_string(num_iteration=booster.best_iteration or -1)
    if "\nobjective=binary" not in text:
        raise SpecError(
            "a LightGBM model must have the objective 'binary', with scores that are probabilities; this one has "
            + (re.findall(r"^objective=(.*)$", text, re.M) or ["an objective of its own"])[0]
        )
    text = re.sub(r"^threshold=(.*)$", lambda line: f"threshold={_floors(line.group(1))}", text, flags=re.M)
    # The sizes of the trees' texts have changed; without this line LightGBM finds the trees itself.
    return lightgbm.Booster(model_str=re.sub(r"^tree_sizes=.*\n", "", text, flags=re.M))


def _floors(line: str) -> str:
    import numpy as np

    exact = np.array(line.split(), np.float64)
    single = exact.astype(np.float32)
    below = np.where(single > exact, np.nextafter(single, np.float32(-np.inf)), single)
    return " ".join(repr(float(value)) for value in below)
