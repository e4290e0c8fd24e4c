"""Slices of the test rows: every value of a column, or pair of values, measured apart."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.stages.evaluate.metrics import Rows, estimate

MAX_VALUES = 24
MAX_SLICES = 5000
MISSING = "(missing)"


@dataclass(frozen=True)
class Groups:
    """Rows divided by a column: the name of each group, and the group of each row.

    Attributes:
        names: such as `carrier=UA`, in order of the values.
        codes: position of a row's group in `names`.
    """

    names: Sequence[str]
    codes: Any

    def cross(self, other: Groups) -> Groups:
        """Return the groups of both together; combinations that do not occur are left out."""
        width = len(other.names)
        both = self.codes.astype("int64") * width + other.codes
        found, codes = _dense(both, len(self.names) * width)
        return Groups([f"{self.names[c // width]}*{other.names[c % width]}" for c in found], codes)


def group(name: str, column: Any) -> Groups:
    """Return the groups of one Arrow column: its values, or quartiles of numbers with more than 24 different ones.

    Raises:
        DataError: a text column has too many different values to be a slice.
    """
    import numpy as np
    import pyarrow as pa

    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        values = _numbers(column)
        known = np.unique(values[~np.isnan(values)])
        if len(known) > MAX_VALUES:
            return _quartiles(name, values)
        codes = np.where(np.isnan(values), len(known), np.searchsorted(known, values))
        return _used(Groups([f"{name}={v:.10g}" for v in known.tolist()] + [f"{name}={MISSING}"], codes))
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    if len(texts) > MAX_SLICES:
        raise DataError(
            f"slice column {name!r} has {len(texts)} different values, at most {MAX_SLICES} can be slices; "
            "choose a column with fewer, or group its values in the features"
        )
    indices = encoded.indices.fill_null(len(texts))
    codes = np.frombuffer(indices.buffers()[1], np.int32)[indices.offset : indices.offset + len(indices)]
    order = np.argsort(np.array(texts, dtype=object), kind="stable") if texts else np.empty(0, np.int64)
    rank = np.append(np.argsort(order), len(texts))
    return _used(Groups([f"{name}={texts[i]}" for i in order.tolist()] + [f"{name}={MISSING}"], rank[codes]))


def judge(
    rows: Rows, groups: Groups, threshold: float, *, min_rows: int, resamples: int, confidence: float, seed: int
) -> list[dict[str, Any]]:
    """Return the slices of one division: `slice`, `rows`, `base_rate`, `judged`, and `metrics` where judged.

    Parameters:
        rows: all test rows.
        groups: their division; `codes` in the order of `rows`.
        threshold: operating point.
        min_rows: slices with fewer rows, or of one label only, are not judged.
        resamples: bootstrap resamples.
        confidence: of the intervals.
        seed: a slice's own seed is drawn from this one and its name.
    """
    import numpy as np

    order = np.argsort(groups.codes, kind="stable")  # the rows of a group stay in order of score
    sizes = np.bincount(groups.codes, minlength=len(groups.names))
    sorted_rows, end = rows.take(order), sizes.cumsum()
    found = []
    for name, size, stop in zip(groups.names, sizes.tolist(), end.tolist()):
        part = sorted_rows.take(slice(stop - size, stop))
        judged = size >= min_rows and part.both_labels
        own_seed = (seed, zlib.crc32(name.encode()))
        found.append(
            {
                "slice": name,
                "rows": size,
                "base_rate": float(part.labels.mean()),
                "judged": judged,
                "metrics": estimate(part, threshold, resamples=resamples, confidence=confidence, seed=own_seed)
                if judged
                else {},
            }
        )
    return found


def judge_all(
    names: Sequence[str], table: Any, rows: Rows, order: Any, threshold: float, *, min_rows: int, resamples: int,
    confidence: float, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the slices of several divisions one after the other, each as `judge` does.

    Parameters:
        names: columns, or pairs joined by `*`.
        table: Arrow table with these columns.
        rows: its rows, in order of score.
        order: position of each of them in the table.
        threshold: operating point.
        min_rows: slices with fewer rows are not judged.
        resamples: bootstrap resamples.
        confidence: of the intervals.
        seed: of the bootstrap.
    """
    groups: dict[str, Groups] = {}
    for column in dict.fromkeys(part for name in names for part in name.split("*")):
        found = group(column, table.column(column))
        groups[column] = Groups(found.names, found.codes[order])
    entries = []
    for name in names:
        first, _, second = name.partition("*")
        divided = groups[first].cross(groups[second]) if second else groups[first]
        entries += judge(
            rows, divided, threshold, min_rows=min_rows, resamples=resamples, confidence=confidence, seed=seed
        )
    return entries


def _numbers(column: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    values = column.cast(pa.float64(), safe=False).combine_chunks().fill_null(float("nan"))
    return np.frombuffer(values.buffers()[1], np.float64)[values.offset : values.offset + len(values)]


def _quartiles(name: str, values: Any) -> Groups:
    import numpy as np

    known = values[~np.isnan(values)]
    cuts = np.unique(np.quantile(known, [0.25, 0.5, 0.75], method="inverted_cdf"))
    cuts = cuts[cuts > known.min()]
    edges = [f"{e:.10g}" for e in (known.min(), *cuts, known.max())]
    names = [f"{name}=[{a}, {b})" for a, b in zip(edges, edges[1:])]
    names[-1] = names[-1][:-1] + "]"
    codes = np.where(np.isnan(values), len(names), np.searchsorted(cuts, values, side="right"))
    return _used(Groups([*names, f"{name}={MISSING}"], codes))


def _used(groups: Groups) -> Groups:
    """Return the groups without those that no row belongs to."""
    found, codes = _dense(groups.codes, len(groups.names))
    return Groups([groups.names[i] for i in found], codes)


def _dense(codes: Any, size: int) -> tuple[list[int], Any]:
    """Return which of the codes 0 … size - 1 occur, and the codes renumbered accordingly."""
    import numpy as np

    occurs = np.bincount(codes, minlength=size) > 0
    if (count := int(occurs.sum())) > MAX_SLICES:
        raise DataError(f"{count} slices of one kind are too many (at most {MAX_SLICES}); choose coarser columns")
    return np.flatnonzero(occurs).tolist(), (np.cumsum(occurs) - 1)[codes].astype(np.uint16)
