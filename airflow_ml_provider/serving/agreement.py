"""Whether two versions have given the same answer to one request. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from airflow_ml_provider.exceptions import DataError

_REAL = ("FP", "BF")


def agree(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> bool:
    """Return whether two answers of the Open Inference Protocol (as its JSON has them) have the same outputs, by name.

    Labels, texts, integers and truth values must be equal, real numbers a and b within the tolerance t:
    `abs(a - b) <= t · max(1, abs(a), abs(b))`. What is missing (null) only agrees with what is missing.

    Raises:
        DataError: one of them is not of the protocol.

    >>> half, more = ({"outputs": [{"name": "y", "datatype": "FP32", "data": [y]}]} for y in (0.5, 0.505))
    >>> agree(half, more, 0.01)
    True
    """
    mine, yours = _outputs(one), _outputs(other)
    return mine.keys() == yours.keys() and all(_same(mine[name], yours[name], tolerance) for name in mine)


def _outputs(answer: Mapping[str, Any]) -> dict[str, tuple[bool, list[Any]]]:
    """Return by name whether an output has real numbers, and its values in row-major order."""
    try:
        outputs = answer["outputs"]
        return {o["name"]: (str(o["datatype"]).startswith(_REAL), list(_flat(o["data"]))) for o in outputs}
    except (KeyError, TypeError) as error:
        raise DataError(f"an answer is not of the protocol: {type(error).__name__}: {error}") from error


def _flat(data: Sequence[Any]) -> Iterator[Any]:
    for value in data:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _same(mine: tuple[bool, list[Any]], yours: tuple[bool, list[Any]], tolerance: float) -> bool:
    if mine == yours:
        return True
    (real, a), (also_real, b) = mine, yours
    if not (real and also_real and len(a) == len(b)):
        return False
    near = partial(math.isclose, rel_tol=tolerance, abs_tol=tolerance)
    try:
        return all(map(near, a, b))
    except TypeError:  # something is missing
        return all(x == y if x is None or y is None else near(x, y) for x, y in zip(a, b))
