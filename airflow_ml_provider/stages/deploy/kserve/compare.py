"""Whether an InferenceService in the cluster is still the one that was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_ml_provider.stages.deploy.kserve.manifest import TRAFFIC, predictors
from airflow_ml_provider.stages.deploy.kserve.scale import SCALE

# KServe gives none of these a default, so that they are ours when they are there.
_OURS = ("canary", "explainer", TRAFFIC, *SCALE)
_QUANTITY = re.compile(r"([\d.]+)(m|[kMGTP]?|[KMGTP]i)")
_UNITS = {"": 1.0, "m": 1e-3, **{unit: 1e3 ** (at + 1) for at, unit in enumerate("kMGTP")}}
_UNITS = {**_UNITS, **{f"{unit}i": 1024.0 ** (at + 1) for at, unit in enumerate("KMGTP")}}


def same(made: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Return whether what was found in the cluster is what was made here; what the server added does not count.

    What was removed from a version is seen by its annotation `airflow-ml/rendered`, which changes with it.
    """
    parts = [(made["spec"], found["spec"]), *zip(predictors(made), predictors(found))]
    return (
        all((key in one) == (key in two) for one, two in parts for key in _OURS)
        and within(made["spec"], found["spec"])
        and within(made["metadata"]["labels"], found["metadata"].get("labels"))
    )


def within(made: Any, found: Any, quantity: bool = False) -> bool:
    """Return whether all that was made here is in what was found; quantities may be written in another way."""
    if isinstance(made, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and within(value, found[key], quantity or key in ("requests", "limits"))
            for key, value in made.items()
        )
    if isinstance(made, list):
        return isinstance(found, list) and len(made) == len(found) and all(map(within, made, found))
    return bool(_amount(made) == _amount(found) if quantity else made == found)


def _amount(value: Any) -> Any:
    """Return a quantity of Kubernetes as a number, since the server may write it in another way."""
    found = _QUANTITY.fullmatch(str(value))
    return float(found[1]) * _UNITS[found[2]] if found else value
