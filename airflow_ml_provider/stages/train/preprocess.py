"""From raw columns to the matrix that a model sees; fitted on training rows, stored as JSON, the same inside ONNX.

Numbers come first, then categories. A category's code is its place in the order of the label rates of the training
rows, so that one threshold on it divides categories in the way that is best for a binary outcome (Fisher 1958); rates
are drawn to the overall rate by `_PRIOR` rows. Rare and unknown texts, missing ones included where they are rare, share
a code of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Optional

from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.models import InputType, encode_texts, read_input

Encoding = Literal["ordinal", "one_hot", "indexed"]

_RARE = 10  # fewer training rows than this do not make a category
_MOST = 255  # categories of one column
_PRIOR = 20.0


@dataclass(frozen=True)
class Number:
    """A number column: (x - offset) * scale, in float32.

    Attributes:
        name: the column.
        fill: what stands in for a missing value (the training median); none leaves it NaN.
        offset: the training mean, or 0.
        scale: one over the training standard deviation, or 1.
    """

    name: str
    fill: Optional[float]
    offset: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Category:
    """A text column.

    Attributes:
        name: the column.
        values: the known texts, in the order of their codes.
        unknown: code of every other text; the codes of known ones from there on are one higher.
    """

    name: str
    values: tuple[str, ...]
    unknown: int

    @property
    def size(self) -> int:
        """Number of codes."""
        return len(self.values) + 1

    @property
    def codes(self) -> dict[str, int]:
        """Code of each known text."""
        return {value: i if i < self.unknown else i + 1 for i, value in enumerate(self.values)}

    @property
    def titles(self) -> list[str]:
        """The text that each code stands for; `*` for the unknown ones."""
        return [*self.values[: self.unknown], "*", *self.values[self.unknown :]]


@dataclass(frozen=True)
class Preprocessor:
    """What happens to raw columns before the model.

    Attributes:
        encoding: `ordinal`, `one_hot` or `indexed`; see `TrainSpec.encoding`.
        numbers: the number columns.
        categories: the text columns.
    """

    encoding: Encoding
    numbers: tuple[Number, ...]
    categories: tuple[Category, ...]

    @property
    def inputs(self) -> dict[str, InputType]:
        """The raw columns in the order of the model's inputs."""
        numbers: dict[str, InputType] = {column.name: "float" for column in self.numbers}
        return {**numbers, **{column.name: "string" for column in self.categories}}

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the matrix's columns."""
        names = [column.name for column in self.numbers]
        for column in self.categories:
            hot = [f"{column.name}={title}" for title in column.titles]
            names += hot if self.encoding == "one_hot" else [column.name]
        return tuple(names)

    def matrix(self, table: Any) -> Any:
        """Return the rows of an Arrow table as the model sees them, float32 [N, F]."""
        import numpy as np

        blocks = [self._number(table, column) for column in self.numbers]
        for column in self.categories:
            texts, indices = encode_texts(table.column(column.name))
            known = column.codes
            codes = np.array([known.get(text, column.unknown) for text in texts], np.int64)[indices]
            if self.encoding == "one_hot":
                blocks.append((codes[:, None] == np.arange(column.size)).astype(np.float32))
            else:
                blocks.append(codes.astype(np.float32).reshape(-1, 1))
        return np.hstack(blocks)

    def _number(self, table: Any, column: Number) -> Any:
        import numpy as np

        values = read_input(table, column.name, "float", "in training")
        if column.fill is not None:
            values = np.where(np.isnan(values), np.float32(column.fill), values)
        if self.encoding == "ordinal":
            return values
        return (values - np.float32(column.offset)) * np.float32(column.scale)


def fit(
    table: Any, labels: Any, inputs: Mapping[str, InputType], encoding: Encoding, *, keep_missing: bool = False
) -> Preprocessor:
    """Return the preprocessing that training rows (validation rows are not among them) ask for.

    Parameters:
        table: Arrow table of the training rows.
        labels: 0 or 1 per row.
        inputs: column to what it is read as.
        encoding: what the model shall see.
        keep_missing: numbers that are missing in training rows stay NaN, for models that can learn from that. Columns
            that are never missing there are filled all the same: what such a model would do with a NaN is undefined.

    Raises:
        DataError: a number is infinite.
    """
    numbers = [_number(table, name, encoding, keep_missing) for name, kind in inputs.items() if kind == "float"]
    categories = [_category(table, name, labels) for name, kind in inputs.items() if kind == "string"]
    return Preprocessor(encoding, tuple(numbers), tuple(categories))


def _number(table: Any, name: str, encoding: Encoding, keep_missing: bool) -> Number:
    import numpy as np

    values = read_input(table, name, "float", "in training").reshape(-1)
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise DataError(f"column {name!r} has {infinite} infinite values (float32); make them missing, or clip them")
    present = values[~np.isnan(values)]
    if not len(present):
        return Number(name, fill=0.0)
    fill = float(np.median(present))
    if encoding == "ordinal":
        return Number(name, None if keep_missing and len(present) < len(values) else fill)
    filled = np.where(np.isnan(values), np.float32(fill), values).astype(np.float64)
    deviation = float(filled.std())
    return Number(name, fill, _single(filled.mean()), _single(1 / deviation) if deviation > 1e-12 else 1.0)


def _single(value: float) -> float:
    """Return the value that ONNX, which computes in float32, will use."""
    import numpy as np

    return float(np.float32(value))


def _category(table: Any, name: str, labels: Any) -> Category:
    import numpy as np

    texts, indices = encode_texts(table.column(name))
    rows = np.bincount(indices, minlength=len(texts))
    positives = np.bincount(indices, weights=labels, minlength=len(texts))
    overall = float(np.mean(labels))
    by_count = sorted(range(len(texts)), key=lambda i: (-rows[i], texts[i]))
    known = [i for i in by_count[:_MOST] if rows[i] >= _RARE]
    rates = {texts[i]: float((positives[i] + _PRIOR * overall) / (rows[i] + _PRIOR)) for i in known}
    rest_rows, rest_positives = len(indices) - rows[known].sum(), positives.sum() - positives[known].sum()
    rest = float((rest_positives + _PRIOR * overall) / (rest_rows + _PRIOR))
    values = sorted(rates, key=lambda text: (rates[text], text))
    return Category(name, tuple(values), sum(rate < rest for rate in rates.values()))
