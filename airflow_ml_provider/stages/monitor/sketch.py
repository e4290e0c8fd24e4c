"""Sketches: what one scan keeps of a table, small, exact to merge, the same for training rows and for today's rows.

A number column is kept as a histogram whose bins are fixed by the bits of a float32, not by the data: values are
ordered by their bits and the lowest `shift` bits are dropped. `shift` is the smallest one that leaves at most `CAP`
occupied bins. Bins of a greater shift are unions of bins of a smaller one, hence merging the sketches of any parts in
any order gives exactly the sketch of the whole. Columns with at most `CAP` different values are kept exactly; others
keep a constant relative resolution (about 1/32 for a million normal values), so heavy tails cost nothing.

A text column is kept as counts by value, up to `CAP` different values; beyond that, by the same argument, as counts in
`BUCKETS` buckets of a hash: names are lost then, shifts between values are not.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional, Union

from airflow_ml_provider.exceptions import DataError

CAP = 2048
BUCKETS = 512
FORMAT = 1
# Code of the value 0; codes of positive values lie above it by the bits of the value, of negative ones below.
ZERO = 0x80000000

Kind = Literal["float", "string"]


@dataclass(frozen=True)
class Numbers:
    """What is kept of a number column.

    Attributes:
        count: values, infinite ones included.
        nulls: missing values; NaN counts as missing.
        low: least finite value; none without one.
        high: greatest finite value.
        total: sum of the finite values; the one part that merges up to rounding only.
        shift: bits dropped from the code of a value.
        bins: code of a bin to its count, in ascending order of values.
    """

    kind: ClassVar[Kind] = "float"
    count: int = 0
    nulls: int = 0
    low: Optional[float] = None
    high: Optional[float] = None
    total: float = 0.0
    shift: int = 0
    bins: Mapping[int, int] = field(default_factory=dict)

    @property
    def mean(self) -> Optional[float]:
        """Mean of the values; none without values or when there are infinite ones."""
        edges = (
            [lower_edge(code, self.shift) for code in (min(self.bins), max(self.bins))] if self.count else [math.inf]
        )
        return self.total / self.count if all(map(math.isfinite, [*edges, self.total])) else None

    def merge(self, other: Numbers) -> Numbers:
        """Return the sketch of both columns' rows together."""
        shift = max(self.shift, other.shift)
        bins = coarsen(self.bins, shift - self.shift)
        for code, count in coarsen(other.bins, shift - other.shift).items():
            bins[code] = bins.get(code, 0) + count
        while len(bins) > CAP:
            bins, shift = coarsen(bins, 1), shift + 1
        return Numbers(
            count=self.count + other.count,
            nulls=self.nulls + other.nulls,
            low=min((v for v in (self.low, other.low) if v is not None), default=None),
            high=max((v for v in (self.high, other.high) if v is not None), default=None),
            total=self.total + other.total,
            shift=shift,
            bins=dict(sorted(bins.items())),
        )

    def to_dict(self) -> dict[str, Any]:
        codes = list(self.bins)
        steps = [b - a for a, b in zip([0, *codes], codes)]  # shorter as text than the codes themselves
        total = self.total if math.isfinite(self.total) else None
        return {
            "kind": self.kind, "count": self.count, "nulls": self.nulls, "low": self.low, "high": self.high,
            "total": total, "shift": self.shift, "steps": steps, "counts": list(self.bins.values()),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Numbers:
        code, bins = 0, {}
        for step, count in zip(data["steps"], data["counts"]):
            code += step
            bins[code] = count
        total = math.nan if data["total"] is None else data["total"]
        return cls(data["count"], data["nulls"], data["low"], data["high"], total, data["shift"], bins)


@dataclass(frozen=True)
class Texts:
    """What is kept of a text column.

    Attributes:
        count: values.
        nulls: missing values.
        values: value to count; empty when there were more than `CAP` different ones …
        buckets: … and then hash bucket to count.
    """

    kind: ClassVar[Kind] = "string"
    count: int = 0
    nulls: int = 0
    values: Mapping[str, int] = field(default_factory=dict)
    buckets: Mapping[int, int] = field(default_factory=dict)

    @property
    def by_name(self) -> bool:
        """Whether the values are still known by name."""
        return not self.buckets

    def bucketed(self) -> dict[int, int]:
        """Return the counts by hash bucket, whichever way they are kept."""
        buckets = dict(self.buckets)
        for value, count in self.values.items():
            bucket = bucket_of(value)
            buckets[bucket] = buckets.get(bucket, 0) + count
        return dict(sorted(buckets.items()))

    def top(self, n: int = 20) -> list[tuple[str, int]]:
        """Return the `n` most frequent values with their counts, and the rest as `("", count)` when there is one."""
        ranked = sorted(self.values.items(), key=lambda item: (-item[1], item[0]))
        rest = self.count - sum(count for _, count in ranked[:n])
        return ranked[:n] + ([("", rest)] if rest else [])

    def merge(self, other: Texts) -> Texts:
        """Return the sketch of both columns' rows together."""
        count, nulls = self.count + other.count, self.nulls + other.nulls
        if self.by_name and other.by_name:
            values = dict(self.values)
            for value, number in other.values.items():
                values[value] = values.get(value, 0) + number
            if len(values) <= CAP:
                return Texts(count, nulls, dict(sorted(values.items())))
        buckets = self.bucketed()
        for bucket, number in other.bucketed().items():
            buckets[bucket] = buckets.get(bucket, 0) + number
        return Texts(count, nulls, {}, dict(sorted(buckets.items())))

    def to_dict(self) -> dict[str, Any]:
        values = dict(sorted(self.values.items()))
        body: dict[str, Any] = {"kind": self.kind, "count": self.count, "nulls": self.nulls, "values": values}
        return {**body, "buckets": {str(k): v for k, v in self.buckets.items()}} if self.buckets else body

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Texts:
        buckets = {int(k): v for k, v in data.get("buckets", {}).items()}
        return cls(data["count"], data["nulls"], dict(data["values"]), buckets)


Column = Union[Numbers, Texts]
KINDS: dict[str, type[Column]] = {"float": Numbers, "string": Texts}


@dataclass(frozen=True)
class Sketch:
    """What is kept of a table.

    Attributes:
        rows: number of rows.
        columns: name of a column to what is kept of it.
    """

    rows: int = 0
    columns: Mapping[str, Column] = field(default_factory=dict)

    def merge(self, other: Sketch) -> Sketch:
        """Return the sketch of both tables' rows together; a column that one of them lacks is kept as it is.

        Raises:
            DataError: a column is text in one and numbers in the other.
        """
        columns = dict(self.columns)
        for name, column in other.columns.items():
            mine = columns.get(name)
            if mine is not None and mine.kind != column.kind:
                raise DataError(f"column {name!r} is {mine.kind} in one sketch and {column.kind} in the other")
            columns[name] = column if mine is None else mine.merge(column)  # type: ignore[arg-type]
        return Sketch(self.rows + other.rows, columns)

    def to_json(self) -> str:
        """Return the sketch as JSON; equal sketches give equal text."""
        columns = {name: self.columns[name].to_dict() for name in sorted(self.columns)}
        body = {"format": FORMAT, "rows": self.rows, "columns": columns}
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> Sketch:
        """Return the sketch that `to_json` wrote.

        Raises:
            DataError: the text is something else.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise DataError(f"sketch has format {data['format']!r}, this version reads {FORMAT}; write it again")
            columns = {name: KINDS[body["kind"]].from_dict(body) for name, body in data["columns"].items()}
            return cls(data["rows"], columns)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"this is no sketch: {error!r}") from error


def lower_edge(code: int, shift: int) -> float:
    """Return the least float32 of a bin; it is the value itself where the bin holds one value only."""
    code <<= shift
    if code > 0xFFFFFFFF:
        return math.inf
    bits = code - ZERO if code >= ZERO else (ZERO - code) | 0x80000000
    value: float = struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0]
    if math.isnan(value):  # codes beyond those of the infinities
        return math.inf if code >= ZERO else -math.inf
    return value


def coarsen(bins: Mapping[int, int], bits: int) -> dict[int, int]:
    """Return the histogram with so many more bits dropped."""
    merged: dict[int, int] = {}
    for code, count in bins.items():
        merged[code >> bits] = merged.get(code >> bits, 0) + count
    return merged


def bucket_of(value: str) -> int:
    """Return the hash bucket of a text; the same in every process and on every machine."""
    return zlib.crc32(value.encode("utf-8", "surrogatepass")) % BUCKETS


def sketch_parquet(
    paths: Sequence[Path], columns: Mapping[str, Kind], where: Optional[Mapping[str, str]] = None
) -> Sketch:
    """Return the sketch of `columns` over all rows of Parquet files, in one scan and bounded memory.

    Parameters:
        paths: the files; none gives the sketch of no rows.
        columns: column to `float` or `string`.
        where: keep rows in which each of these columns, read as text, has this value.

    Raises:
        DataError: a file cannot be read, a column is missing or cannot be read as what was asked for.
    """
    from airflow_ml_provider.stages.monitor import scan

    return scan.tables(paths, columns, dict(where or {}))
